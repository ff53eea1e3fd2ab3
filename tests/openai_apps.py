"""Apps that serve OpenAI's API from a Cromicle endpoint, and OpenAI clients for them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import openai
from starlette.applications import Starlette

from cromicle_sdk import AsyncClient, Retry
from cromicle_sdk.server import LocalServer, create_openai_app

# The token of the app, and that of the endpoint behind it.
TOKEN = "a-token-of-the-server"
KEY = "a-key-of-the-endpoint"

_CLIENT_OPTIONS = ("http_client", "max_reply_bytes", "retry", "strict", "timeout")


def build_openai_app(endpoint: str, **options: Any) -> Starlette:
    """Build the app for an endpoint. `options` are those of the app and of its client."""
    client_options = {name: options.pop(name) for name in _CLIENT_OPTIONS if name in options}
    client_options.setdefault("retry", Retry(attempts=1))
    client = AsyncClient(base_url=endpoint, token=KEY, **client_options)
    return create_openai_app(client, **{"token": TOKEN, **options})


@contextlib.contextmanager
def serve_openai(endpoint: str, **options: Any) -> Generator[LocalServer]:
    with LocalServer(app=build_openai_app(endpoint, **options)) as server:
        yield server


def connect(server: LocalServer, **options: Any) -> openai.OpenAI:
    """Return a client of OpenAI's package that does not retry."""
    return openai.OpenAI(**_build_options(server, options))


def connect_async(server: LocalServer, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(**_build_options(server, options))


def _build_options(server: LocalServer, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "base_url": f"{server.base_url}/v1",
        "api_key": TOKEN,
        "max_retries": 0,
        **options,
    }
