"""The app in OpenAPI's words, for tools that make clients or tests of them."""

from __future__ import annotations

from typing import Any

from cromicle_sdk._version import __version__

__all__ = ["build_openapi"]

_ERROR = {"$ref": "#/components/schemas/Error"}

_ERRORS = {
    "400": "The body is not a JSON object with the three fields as strings.",
    "401": "The token is not an accepted one.",
    "408": "The request did not arrive whole in time.",
    "413": "The body is too long.",
    "415": "The content type is not application/json.",
    "422": "The hash is not that of the token and the message.",
    "429": "The model server has too much to do.",
    "500": "The backend failed before its first piece.",
    "502": "The model server refused, can't be reached, or answered nonsense.",
    "503": "As many replies as are allowed at once are under way.",
    "504": "The model server did not answer in time.",
    "505": "HTTP/1.0, in which a reply that is cut off would look like a whole one.",
}
_HAVE_RETRY_AFTER = ("429", "502", "503")


def build_openapi(*, metrics: bool) -> dict[str, Any]:
    """The description that `GET /openapi.json` answers with; `metrics` says whether there are any.

    Its paths begin where the app is mounted, which `servers` has to say.
    """
    paths: dict[str, Any] = {
        "/chat": {"post": _describe_chat()},
        "/health": {
            "get": _describe_get("Whether the server answers.", "application/json", _HEALTH)
        },
        "/openapi.json": {
            "get": _describe_get("This description.", "application/json", {"type": "object"})
        },
    }
    if metrics:
        text = {"type": "string"}
        paths["/metrics"] = {"get": _describe_get("Figures for Prometheus.", "text/plain", text)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cromicle",
            "version": __version__,
            "description": "Chat: a prompt and its SHA-256 in, plain text out while it is made.",
        },
        "paths": paths,
        "components": {"schemas": {"Chat": _CHAT, "Error": _ERROR_SCHEMA}},
    }


_HEALTH = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"const": "ok"}},
}

_CHAT = {
    "type": "object",
    "required": ["message", "token", "hash"],
    "properties": {
        "message": {"type": "string", "description": "The prompt."},
        "token": {"type": "string", "description": "One that the server accepts."},
        "hash": {
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
            "description": "SHA-256 of the UTF-8 bytes of token and message, in lower-case hex.",
        },
    },
}

_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}


def _describe_chat() -> dict[str, Any]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    responses: dict[str, Any] = {
        "200": {
            "description": "The reply, in chunks; one without its last chunk is not complete.",
            "content": text,
        }
    }
    for status, description in _ERRORS.items():
        responses[status] = {
            "description": description,
            "content": {"application/json": {"schema": _ERROR}},
        }
        if status in _HAVE_RETRY_AFTER:
            responses[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    schema = {"$ref": "#/components/schemas/Chat"}
    return {
        "summary": "Ask for a reply.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": responses,
    }


def _describe_get(description: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": description,
        "responses": {
            "200": {"description": description, "content": {media_type: {"schema": schema}}}
        },
    }
