"""One call with each compared library, in idiomatic code.

Each is a context manager that takes a base URL and yields a function that makes one call and reads
the reply to its end. The packages are imported where they are used, so not all of them need to be
installed.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from time import perf_counter
from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = [
    "ASYNC",
    "BLOCKING",
    "PROMPT",
    "AsyncCall",
    "AsyncLibrary",
    "BlockingLibrary",
    "Call",
    "Received",
]

PROMPT = "Tell me a story of a lighthouse keeper, in a few sentences."


class Received(NamedTuple):
    """The number of received characters, and the time of the first (`time.perf_counter`)."""

    characters: int
    first_text_at: float


Call = Callable[[], Received]
AsyncCall = Callable[[], Awaitable[Received]]
BlockingLibrary = Callable[[str], AbstractContextManager[Call]]
AsyncLibrary = Callable[[str], AbstractAsyncContextManager[AsyncCall]]

_TOKEN = "abc"  # noqa: S105 - the protocol's default, not a secret
_MODEL = "benchmark"


def _payload() -> dict[str, str]:
    digest = hashlib.sha256((_TOKEN + PROMPT).encode()).hexdigest()
    return {"message": PROMPT, "token": _TOKEN, "hash": digest}


@contextmanager
def _cromicle(url: str) -> Iterator[Call]:
    from cromicle_sdk import Client

    with Client(base_url=url) as client:

        def call() -> Received:
            characters, first = 0, 0.0
            for text in client.stream(PROMPT):
                first = first or perf_counter()
                characters += len(text)
            return Received(characters, first)

        yield call


@asynccontextmanager
async def _async_cromicle(url: str) -> AsyncIterator[AsyncCall]:
    from cromicle_sdk import AsyncClient

    async with AsyncClient(base_url=url, max_connections=4096) as client:

        async def call() -> Received:
            characters, first = 0, 0.0
            async for text in client.stream(PROMPT):
                first = first or perf_counter()
                characters += len(text)
            return Received(characters, first)

        yield call


@contextmanager
def _cromicle_http_client(url: str) -> Iterator[Call]:
    import httpx

    from cromicle_sdk import Client

    with (
        httpx.Client() as http_client,
        Client(base_url=url, http_client=http_client) as client,
    ):

        def call() -> Received:
            characters, first = 0, 0.0
            for text in client.stream(PROMPT):
                first = first or perf_counter()
                characters += len(text)
            return Received(characters, first)

        yield call


@asynccontextmanager
async def _async_cromicle_http_client(url: str) -> AsyncIterator[AsyncCall]:
    import httpx

    from cromicle_sdk import AsyncClient

    async with (
        httpx.AsyncClient() as http_client,
        AsyncClient(base_url=url, http_client=http_client) as client,
    ):

        async def call() -> Received:
            characters, first = 0, 0.0
            async for text in client.stream(PROMPT):
                first = first or perf_counter()
                characters += len(text)
            return Received(characters, first)

        yield call


@contextmanager
def _httpx(url: str) -> Iterator[Call]:
    import httpx

    with httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None)) as client:

        def call() -> Received:
            characters, first = 0, 0.0
            with client.stream("POST", f"{url}/chat", json=_payload()) as response:
                response.raise_for_status()
                for text in response.iter_text():
                    first = first or perf_counter()
                    characters += len(text)
            return Received(characters, first)

        yield call


@asynccontextmanager
async def _async_httpx(url: str) -> AsyncIterator[AsyncCall]:
    import httpx

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:

        async def call() -> Received:
            characters, first = 0, 0.0
            async with client.stream("POST", f"{url}/chat", json=_payload()) as response:
                response.raise_for_status()
                async for text in response.aiter_text():
                    first = first or perf_counter()
                    characters += len(text)
            return Received(characters, first)

        yield call


@contextmanager
def _httpx2(url: str) -> Iterator[Call]:
    import httpx2

    with httpx2.Client(timeout=60, limits=httpx2.Limits(max_connections=None)) as client:

        def call() -> Received:
            characters, first = 0, 0.0
            with client.stream("POST", f"{url}/chat", json=_payload()) as response:
                response.raise_for_status()
                for text in response.iter_text():
                    first = first or perf_counter()
                    characters += len(text)
            return Received(characters, first)

        yield call


@asynccontextmanager
async def _async_httpx2(url: str) -> AsyncIterator[AsyncCall]:
    import httpx2

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=60, limits=limits) as client:

        async def call() -> Received:
            characters, first = 0, 0.0
            async with client.stream("POST", f"{url}/chat", json=_payload()) as response:
                response.raise_for_status()
                async for text in response.aiter_text():
                    first = first or perf_counter()
                    characters += len(text)
            return Received(characters, first)

        yield call


@asynccontextmanager
async def _aiohttp(url: str) -> AsyncIterator[AsyncCall]:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def call() -> Received:
            characters, first = 0, 0.0
            async with session.post(f"{url}/chat", json=_payload()) as response:
                response.raise_for_status()
                decoder = codecs.getincrementaldecoder("utf-8")()
                async for data in response.content.iter_any():
                    text = decoder.decode(data)
                    first = first or perf_counter()
                    characters += len(text)
            return Received(characters, first)

        yield call


@asynccontextmanager
async def _first_provider(url: str) -> AsyncIterator[AsyncCall]:
    """The Cromicle provider of gpt4free, which opens a session for each call."""
    import aiohttp

    async def call() -> Received:
        characters, first = 0, 0.0
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/chat", json=_payload()) as response,
        ):
            response.raise_for_status()
            async for data in response.content.iter_any():
                text = data.decode()
                first = first or perf_counter()
                characters += len(text)
        return Received(characters, first)

    yield call


@contextmanager
def _openai(url: str) -> Iterator[Call]:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key=_TOKEN) as client:

        def call() -> Received:
            characters, first = 0, 0.0
            with client.chat.completions.create(
                model=_MODEL, messages=[{"role": "user", "content": PROMPT}], stream=True
            ) as events:
                for event in events:
                    text = event.choices[0].delta.content or ""
                    first = first or perf_counter()
                    characters += len(text)
            return Received(characters, first)

        yield call


@asynccontextmanager
async def _async_openai(url: str) -> AsyncIterator[AsyncCall]:
    import openai

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=_TOKEN) as client:

        async def call() -> Received:
            characters, first = 0, 0.0
            async with await client.chat.completions.create(
                model=_MODEL, messages=[{"role": "user", "content": PROMPT}], stream=True
            ) as events:
                async for event in events:
                    text = event.choices[0].delta.content or ""
                    first = first or perf_counter()
                    characters += len(text)
            return Received(characters, first)

        yield call


@contextmanager
def _ollama(url: str) -> Iterator[Call]:
    import ollama

    with ollama.Client(host=url) as client:

        def call() -> Received:
            characters, first = 0, 0.0
            messages = [{"role": "user", "content": PROMPT}]
            for part in client.chat(model=_MODEL, messages=messages, stream=True):
                text = part.message.content or ""
                first = first or perf_counter()
                characters += len(text)
            return Received(characters, first)

        yield call


@asynccontextmanager
async def _async_ollama(url: str) -> AsyncIterator[AsyncCall]:
    import ollama

    async with ollama.AsyncClient(host=url) as client:

        async def call() -> Received:
            characters, first = 0, 0.0
            messages = [{"role": "user", "content": PROMPT}]
            async for part in await client.chat(model=_MODEL, messages=messages, stream=True):
                text = part.message.content or ""
                first = first or perf_counter()
                characters += len(text)
            return Received(characters, first)

        yield call


@contextmanager
def _raw_socket(url: str) -> Iterator[Call]:
    """The minimum: a prebuilt request, and a search for the end of the response."""
    parts = urlsplit(url)
    body = json.dumps(_payload()).encode()
    request = (
        f"POST {parts.path}/chat HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    with socket.create_connection((parts.hostname, parts.port or 80)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def call() -> Received:
            characters, first, end = 0, 0.0, b""
            connection.sendall(request)
            while not end.endswith(b"\r\n0\r\n\r\n"):
                data = connection.recv(65536)
                if not data:
                    raise ConnectionError("the server closed the connection")
                first = first or perf_counter()
                if not end:
                    data = data.partition(b"\r\n\r\n")[2]
                end = (end + data)[-7:]
                # Removes the framing of the chunks.
                characters += len(data.translate(None, b"0123456789abcdef\r\n"))
            return Received(characters, first)

        yield call


BLOCKING: dict[str, BlockingLibrary] = {
    "cromicle": _cromicle,
    "cromicle http_client": _cromicle_http_client,
    "httpx": _httpx,
    "httpx2": _httpx2,
    "openai": _openai,
    "ollama": _ollama,
    "raw socket": _raw_socket,
}

ASYNC: dict[str, AsyncLibrary] = {
    "cromicle": _async_cromicle,
    "cromicle http_client": _async_cromicle_http_client,
    "httpx": _async_httpx,
    "httpx2": _async_httpx2,
    "aiohttp": _aiohttp,
    "first provider": _first_provider,
    "openai": _async_openai,
    "ollama": _async_ollama,
}
