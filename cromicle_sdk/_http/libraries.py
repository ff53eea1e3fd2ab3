"""httpcore and httpcore2, which have the same classes under two names."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from types import ModuleType
from typing import Any

import httpcore

__all__ = ["convert_error", "convert_request", "find_extensions", "find_library"]


def find_library(request: object) -> ModuleType:
    """The library that a request is of: httpx2 sends those of httpcore2."""
    return httpcore if isinstance(request, httpcore.Request) else sys.modules["httpcore2"]


def find_extensions(message: Any) -> MutableMapping[str, Any]:
    """The extensions of a request or a response, which httpcore leaves partly untyped."""
    extensions: MutableMapping[str, Any] = message.extensions
    return extensions


def convert_request(request: Any) -> httpcore.Request:
    """The same request as one of httpcore's."""
    url = request.url
    return httpcore.Request(
        request.method,
        httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target),
        headers=request.headers,
        content=request.stream,
        extensions=request.extensions,
    )


def convert_error(error: Exception, library: ModuleType) -> Exception:
    """The same error as one of the library's, with this one for its cause; any other as it is."""
    name = type(error).__name__
    if library is httpcore or getattr(httpcore, name, None) is not type(error):
        return error
    converted: Exception = getattr(library, name)(str(error))
    converted.__cause__ = error
    return converted
