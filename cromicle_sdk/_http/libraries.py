"""Conversions between httpcore and httpcore2, which have the same classes in two packages."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from types import ModuleType
from typing import Any

import httpcore

__all__ = ["convert_error", "convert_request", "find_extensions", "find_library"]


def find_library(request: object) -> ModuleType:
    """Return the library of a request: httpcore, or httpcore2 for a request of httpx2."""
    return httpcore if isinstance(request, httpcore.Request) else sys.modules["httpcore2"]


def find_extensions(message: Any) -> MutableMapping[str, Any]:
    """Return the extensions of a request or a response, which httpcore types only in part."""
    extensions: MutableMapping[str, Any] = message.extensions
    return extensions


def convert_request(request: Any) -> httpcore.Request:
    """Convert a request to one of httpcore."""
    url = request.url
    return httpcore.Request(
        request.method,
        httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target),
        headers=request.headers,
        content=request.stream,
        extensions=request.extensions,
    )


def convert_error(error: Exception, library: ModuleType) -> Exception:
    """Convert an error of httpcore to the library's, with the original as its cause.

    Any other error is returned unchanged.
    """
    name = type(error).__name__
    if library is httpcore or getattr(httpcore, name, None) is not type(error):
        return error
    converted: Exception = getattr(library, name)(str(error))
    converted.__cause__ = error
    return converted
