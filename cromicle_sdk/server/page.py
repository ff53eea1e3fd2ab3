"""`GET /`: a page that chats with the server for browsers, and JSON for programs."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cromicle_sdk._version import __version__

from .routing import ExactRoute

__all__ = ["asks_for_html", "build_page_route", "build_policy"]

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)

_QUALITY = re.compile(r";\s*q\s*=\s*(0|1|0\.[0-9]{0,3}|1\.0{0,3})\s*(?=;|\Z)", re.IGNORECASE)


def build_page_route() -> ExactRoute:
    """The route of `GET /`. It reads the page once."""
    html = resources.files("cromicle_sdk.server").joinpath("page.html").read_text("utf-8")
    page = html.encode()
    page_headers = {
        "content-security-policy": build_policy(html),
        # Otherwise a link in a reply would disclose the address of the page to other sites.
        "referrer-policy": "same-origin",
        "vary": "accept",
    }

    async def get_page(request: Request) -> Response:
        if asks_for_html(",".join(request.headers.getlist("accept"))):
            return Response(page, media_type="text/html", headers=page_headers)
        index = _build_index(request.scope.get("root_path", ""))
        return JSONResponse(index, headers={"vary": "accept"})

    return ExactRoute("/", get_page)


def build_policy(html: str) -> str:
    """Return the content security policy of a page, with the hashes of its scripts and styles.

    The page may connect to its own origin only, load no resources, and not be framed. Trusted Types
    without a policy make every assignment of HTML, as to `innerHTML`, an exception.
    """
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for name, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[name].append(f"'sha256-{digest}'")
    directives = {
        "default-src": "'none'",
        "script-src": " ".join(hashes["script"]),
        "style-src": " ".join(hashes["style"]),
        # The icon is part of the page.
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def asks_for_html(accept: str) -> bool:
    """Whether an `Accept` header lists HTML, with a quality not lower than that of JSON.

    Wildcards do not count, because programs send `*/*`.
    """
    quality = {"text/html": 0.0, "application/json": 0.0}
    for part in accept.lower().split(","):
        media_type, _, parameters = part.partition(";")
        if media_type.strip() in quality:
            found = _QUALITY.search(";" + parameters)
            quality[media_type.strip()] = 1.0 if found is None else float(found[1])
    return 0 < quality["text/html"] >= quality["application/json"]


def _build_index(root_path: str) -> dict[str, Any]:
    """Return the JSON for programs at `GET /`."""
    return {
        "name": "cromicle-sdk",
        "version": __version__,
        "description": "A chat endpoint that speaks the Cromicle protocol.",
        "chat": f"{root_path}/chat",
        "openapi": f"{root_path}/openapi.json",
    }
