"""The OpenAPI description of the app, for tools that generate clients or tests from it."""

from __future__ import annotations

from typing import Any

from cromicle_sdk._core.response import FINISH_REASON_HEADER
from cromicle_sdk._version import __version__

__all__ = ["build_openapi"]

_ERROR = {"$ref": "#/components/schemas/Error"}

_ERRORS = {
    "400": "The body is not a JSON object of this form, or has a field that is not accepted.",
    "401": "The token is not accepted.",
    "408": "The request was not complete in time.",
    "413": "The body is too long.",
    "415": "The content type is not application/json.",
    "422": "The hash does not match the token and the message.",
    "429": "Too many wrong tokens, or the model server limits the rate of requests.",
    "500": "The backend failed before its first chunk.",
    "502": "The model server is unreachable, rejected the request, or sent an invalid response.",
    "503": "Too many concurrent replies, or too many bytes of requests that are being received.",
    "504": "The model server did not respond in time.",
    "505": "The request uses HTTP/1.0, in which a truncated reply would look complete.",
}
_HAVE_RETRY_AFTER = ("429", "502", "503")


def build_openapi(
    *, metrics: bool, page: bool = False, allow_options: frozenset[str] | None = frozenset()
) -> dict[str, Any]:
    """Return the description for `GET /openapi.json`, with `/metrics` and `/` if they exist.

    `allow_options` are the accepted fields of a request beside the protocol's; None for any.

    The paths are relative to the mount point of the app, which the caller adds as `servers`.
    """
    paths: dict[str, Any] = {
        "/chat": {"post": _describe_chat()},
        "/health": {
            "get": _describe_get("Check that the server is up.", "application/json", _HEALTH)
        },
        "/openapi.json": {
            "get": _describe_get("Get this description.", "application/json", {"type": "object"})
        },
    }
    if metrics:
        text = {"type": "string"}
        paths["/metrics"] = {
            "get": _describe_get("Get metrics for Prometheus.", "text/plain", text)
        }
    if page:
        paths["/"] = {"get": _describe_get(_PAGE, "application/json", _INDEX)}
        responses = paths["/"]["get"]["responses"]
        responses["200"]["content"]["text/html"] = {"schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cromicle",
            "version": __version__,
            "description": "Chat: a prompt and its SHA-256 in, a plain-text stream out.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Chat": _describe_request(allow_options), "Error": _ERROR_SCHEMA}
        },
    }


_PAGE = "Get the chat page if the request accepts HTML, otherwise a description of the server."

_INDEX = {
    "type": "object",
    "required": ["name", "version", "description", "chat", "openapi"],
    "properties": {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "description": {"type": "string"},
        "chat": {"type": "string", "description": "The path of the chat endpoint."},
        "openapi": {"type": "string", "description": "The path of this description."},
    },
}

_HEALTH = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": {"const": "ok"},
        "upstream": {
            "type": "object",
            "description": "The last result of the model server.",
            "properties": {
                "last_result": {
                    "type": ["string", "null"],
                    "description": "ok, or the code of an error; null before the first response.",
                },
                "seconds_ago": {"type": ["number", "null"]},
            },
        },
    },
}

_CHAT: dict[str, Any] = {
    "type": "object",
    "required": ["message", "token", "hash"],
    "properties": {
        "message": {"type": "string", "description": "The prompt."},
        "token": {"type": "string", "description": "A token that the server accepts."},
        "hash": {
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
            "description": "SHA-256 of the UTF-8 bytes of token and message, in lower-case hex.",
        },
        "messages": {
            "type": "array",
            "minItems": 1,
            "description": "The messages that the prompt was formatted from.",
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": {"type": "string", "pattern": "^[\\w-]+$"},
                    "content": {"type": "string"},
                },
                "additionalProperties": False,
            },
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


def _describe_request(allow_options: frozenset[str] | None) -> dict[str, Any]:
    names = sorted(allow_options or ())
    return {
        **_CHAT,
        "properties": {**_CHAT["properties"], **{name: {} for name in names}},
        "additionalProperties": allow_options is None,
    }


def _describe_chat() -> dict[str, Any]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    responses: dict[str, Any] = {
        "200": {
            "description": (
                "The reply, chunked. It is complete only if the last chunk arrives. The trailer "
                f"{FINISH_REASON_HEADER} may follow: stop, length, content_filter or another word."
            ),
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
        "summary": "Generate a reply to a prompt.",
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
