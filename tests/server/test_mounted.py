"""The app under other servers (uvicorn, hypercorn) and in other apps (Starlette, FastAPI)."""

from __future__ import annotations

import gc
import logging
import threading
from typing import Any

import httpx
import pytest
from asgi_servers import SERVERS, Serve
from fastapi import FastAPI
from runtimes import Runtime
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp
from upstreams import answer, answer_texts, say

from cromicle_sdk import Client, IncompleteReplyError, NotFoundError, RateLimitError, Retry
from cromicle_sdk.server import create_app, openai_backend
from cromicle_sdk.testing import FaultyServer

ONCE = Retry(attempts=1)
TEXT = "Grüße, 日本 🎉"


@pytest.fixture(params=list(SERVERS.values()), ids=list(SERVERS))
def serve(request: pytest.FixtureRequest) -> Serve:
    found: Serve = request.param
    return found


def build_gateway(faults: FaultyServer, **options: Any) -> Starlette:
    return create_app(openai_backend(faults.base_url, "m"), **options)


def connect(base_url: str) -> Client:
    return Client(base_url=base_url, token="abc", retry=ONCE)


def test_chunks_are_streamed(serve: Serve, faults: FaultyServer) -> None:
    gate = threading.Event()
    answer_texts(faults, "one", "two", gate=gate)
    with (
        serve(build_gateway(faults)) as base_url,
        connect(base_url) as client,
        client.stream("Hi") as stream,
    ):
        assert next(stream) == "one"
        gate.set()
        assert list(stream) == ["two"]


def test_every_client_gets_the_reply(serve: Serve, runtime: Runtime, faults: FaultyServer) -> None:
    answer_texts(faults, *TEXT)

    async def scenario() -> None:
        async with runtime.client(base_url=base_url, token="abc") as client:
            for _ in range(3):
                assert (await client.chat("Hi")).text == TEXT

    with serve(build_gateway(faults)) as base_url:
        runtime.run(scenario)


def test_an_error_of_the_model_server_is_forwarded(serve: Serve, faults: FaultyServer) -> None:
    faults.fail(429, retry_after=9)
    with serve(build_gateway(faults)) as base_url, connect(base_url) as client:
        with pytest.raises(RateLimitError) as caught:
            client.chat("Hi")
    assert caught.value.retry_after == 9


def test_a_truncated_reply_is_detected(serve: Serve, faults: FaultyServer) -> None:
    answer(faults, *say("half"))
    with serve(build_gateway(faults)) as base_url, connect(base_url) as client:
        with pytest.raises(IncompleteReplyError) as caught:
            client.chat("Hi")
    assert caught.value.partial_text == "half"


def test_a_disconnect_ends_the_request_to_the_model_server(
    serve: Serve, faults: FaultyServer
) -> None:
    answer(faults, *say("one", "never"), gate=threading.Event())
    with serve(build_gateway(faults)) as base_url, connect(base_url) as client:
        with client.stream("Hi") as stream:
            assert next(stream) == "one"
        faults.wait_until_closed()


def test_a_complete_reply_is_logged_as_complete(
    serve: Serve, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    name = "cromicle_sdk.server.access"
    caplog.set_level(logging.INFO, name)
    for _ in range(10):
        answer_texts(faults, TEXT)
    with serve(build_gateway(faults)) as base_url, connect(base_url) as client:
        for _ in range(10):
            assert client.chat("Hi").text == TEXT
    lines = [record.getMessage() for record in caplog.records if record.name == name]
    assert len(lines) == 10
    assert all(" end=complete " in line for line in lines)


def mount_in_starlette(app: ASGIApp) -> ASGIApp:
    return Starlette(routes=[Route("/", _greet), Mount("/models/llama", app)])


def mount_in_fastapi(app: ASGIApp) -> ASGIApp:
    outer = FastAPI()
    outer.add_route("/", _greet)
    outer.mount("/models/llama", app)
    return outer


class PassThrough(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


# Starlette's middleware leaves a generator of its own unfinished, about which trio warns.
@pytest.mark.filterwarnings("ignore:Async generator 'starlette:ResourceWarning")
@pytest.mark.parametrize(
    "names", ["", "P", "PP", "G", "GP", "PG"], ids=lambda names: names or "none"
)
def test_truncation_is_detected_through_middleware(
    serve: Serve, names: str, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {"P": Middleware(PassThrough), "G": Middleware(GZipMiddleware)}
    answer_texts(faults, TEXT)
    answer(faults, *say("half"))
    routes = [Mount("/llm", build_gateway(faults))]
    outer = Starlette(routes=routes, middleware=[kinds[name] for name in names])
    with serve(outer) as base_url, connect(f"{base_url}/llm") as client:
        assert client.chat("Hi").text == TEXT
        with pytest.raises(IncompleteReplyError) as caught:
            client.chat("Hi")
    assert caught.value.partial_text == "half"
    gc.collect()
    # It is one log line without a traceback.
    ours = [record for record in caplog.records if record.name.startswith("cromicle_sdk.server")]
    assert [record.exc_info for record in ours] == [None]


async def _greet(request: Any) -> PlainTextResponse:
    return PlainTextResponse("the outer app")


@pytest.mark.parametrize("mount", [mount_in_starlette, mount_in_fastapi])
def test_the_app_can_be_mounted(serve: Serve, mount: Any, faults: FaultyServer) -> None:
    answer_texts(faults, TEXT)
    answer(faults, *say("half"))
    with serve(mount(build_gateway(faults))) as base_url:
        with connect(f"{base_url}/models/llama") as client:
            assert client.chat("Hi").text == TEXT
            with pytest.raises(IncompleteReplyError):
                client.chat("Hi")
        description = httpx.get(f"{base_url}/models/llama/openapi.json").json()
        assert description["servers"] == [{"url": "/models/llama"}]
        with connect(base_url) as client, pytest.raises(NotFoundError):
            client.chat("Hi")
