"""A pytest plugin that runs scenarios with httpx2 clients over the transports of this package."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from runtimes import Runtime

from cromicle_sdk import AsyncTransport, Transport

__all__ = ["pytest_configure"]

# Options that cannot be combined with `http_client`.
CONNECTION_OPTIONS = {"http_client", "max_connections", "proxy", "verify"}

make_client = Runtime.client


def make_client_over_httpx2(runtime: Runtime, **options: Any) -> Any:
    if not CONNECTION_OPTIONS & options.keys():
        transport: Any = Transport() if runtime.is_blocking else AsyncTransport()
        kind: Any = httpx2.Client if runtime.is_blocking else httpx2.AsyncClient
        options["http_client"] = kind(transport=transport)
    return make_client(runtime, **options)


def pytest_configure(config: pytest.Config) -> None:
    Runtime.client = make_client_over_httpx2  # type: ignore[assignment,method-assign]
