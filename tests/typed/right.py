"""Code of users, with the type of each value; mypy and pyright check it, and nothing runs it.

A type that becomes `Any` is no longer the one that `assert_type` expects.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import httpx
import httpx2
from starlette.applications import Starlette
from typing_extensions import Unpack, assert_type

import cromicle_sdk
from cromicle_sdk import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    AsyncStream,
    AsyncTransport,
    AuthenticationError,
    CallOptions,
    Client,
    ConfigurationError,
    Conversation,
    CromicleError,
    Headers,
    IncompleteReplyError,
    InvalidMessageError,
    Message,
    Messages,
    RateLimitError,
    RedirectError,
    Reply,
    ReplyError,
    Retry,
    Stream,
    TextPart,
    Timeout,
    Transport,
    UnexpectedContentError,
    ViewOptions,
    format_prompt,
)
from cromicle_sdk.bulk import Ask, Outcome, Prompt, abulk, bulk
from cromicle_sdk.server import (
    Backend,
    BackendError,
    BackendRequest,
    LocalServer,
    TokenFile,
    create_app,
    create_openai_app,
    echo_backend,
    openai_backend,
    serve,
)
from cromicle_sdk.testing import FaultyServer, RecordedRequest

Phase = Literal["connect", "first_byte", "stall", "total", "pool"]

# Clients


def make_clients(context: ssl.SSLContext) -> None:
    assert_type(Client(), Client)
    assert_type(AsyncClient(), AsyncClient)
    assert_type(
        Client(
            base_url="https://chat.example",
            token="secret",
            timeout=Timeout(total=5),
            retry=Retry(attempts=1),
            max_reply_bytes=1000,
            max_connections=10,
            strict=False,
            extra_body={"temperature": 0.5, "stop": ["a"]},
            send_messages=True,
            headers={"x-name": "value"},
            proxy="http://proxy.example",
            verify=True,
            http_client=None,
        ),
        Client,
    )
    AsyncClient(
        base_url=None,
        token=None,
        timeout=None,
        max_connections=None,
        extra_body=None,
        headers=None,
        proxy=httpx.Proxy("http://proxy.example"),
        verify=context,
    )
    Client(timeout=5)
    Client(timeout=0.5, proxy=httpx.URL("http://proxy.example"), headers=httpx.Headers())
    Client(timeout=httpx.Timeout(5), http_client=httpx.Client())
    Client(timeout=httpx2.Timeout(5), http_client=httpx2.Client())
    AsyncClient(http_client=httpx.AsyncClient())
    AsyncClient(http_client=httpx2.AsyncClient())


def use_client() -> None:
    with Client() as client:
        assert_type(client, Client)
        assert_type(client.chat("Hi"), Reply)
        assert_type(client.stream("Hi"), Stream)
        assert_type(client.with_options(), Client)
        assert_type(client.close(), None)
        assert_type(client.is_closed, bool)
    with closing(Client()) as closed:
        assert_type(closed, Client)


async def use_async_client() -> None:
    async with AsyncClient() as client:
        assert_type(client, AsyncClient)
        assert_type(await client.chat("Hi"), Reply)
        assert_type(client.stream("Hi"), AsyncStream)
        assert_type(client.with_options(), AsyncClient)
        assert_type(await client.aclose(), None)
        assert_type(client.is_closed, bool)
    async with aclosing(client.stream("Hi")) as stream:
        assert_type(stream, AsyncStream)


class OwnClient(Client):
    pass


class OwnAsyncClient(AsyncClient):
    pass


async def use_own_clients(own: OwnClient, own_async: OwnAsyncClient) -> None:
    assert_type(own.with_options(strict=False), OwnClient)
    with own as entered:
        assert_type(entered, OwnClient)
    assert_type(own_async.with_options(strict=False), OwnAsyncClient)
    async with own_async as entered_async:
        assert_type(entered_async, OwnAsyncClient)


# The options of a call


async def give_options(client: Client, async_client: AsyncClient) -> None:
    for timeout in (5, 0.5, None, Timeout(), httpx.Timeout(5), httpx2.Timeout(None)):
        client.chat("Hi", timeout=timeout)
        client.stream("Hi", timeout=timeout)
        client.with_options(timeout=timeout)
        await async_client.chat("Hi", timeout=timeout)
        async_client.stream("Hi", timeout=timeout)
        async_client.with_options(timeout=timeout)
    for fields in ({"temperature": 0.5}, {"stop": ["a"]}, {}, None):
        client.chat("Hi", extra_body=fields)
        await async_client.chat("Hi", extra_body=fields)
    for headers in ({"x-name": "value"}, httpx.Headers(), {}, None):
        client.chat("Hi", headers=headers)
        await async_client.chat("Hi", headers=headers)
    assert_type(
        client.chat(
            "Hi",
            timeout=5,
            retry=Retry(),
            max_reply_bytes=1000,
            strict=True,
            extra_body={},
            send_messages=True,
            headers={},
        ),
        Reply,
    )
    assert_type(
        client.stream(
            "Hi",
            timeout=5,
            retry=Retry(),
            max_reply_bytes=1000,
            strict=True,
            extra_body={},
            send_messages=True,
            headers={},
        ),
        Stream,
    )
    assert_type(
        client.with_options(
            token="secret",
            timeout=5,
            retry=Retry(),
            max_reply_bytes=1000,
            strict=True,
            extra_body={},
            send_messages=True,
            headers={},
        ),
        Client,
    )
    assert_type(
        await async_client.chat(
            "Hi",
            timeout=5,
            retry=Retry(),
            max_reply_bytes=1000,
            strict=True,
            extra_body={},
            send_messages=True,
            headers={},
        ),
        Reply,
    )
    assert_type(
        async_client.stream(
            "Hi",
            timeout=5,
            retry=Retry(),
            max_reply_bytes=1000,
            strict=True,
            extra_body={},
            send_messages=True,
            headers={},
        ),
        AsyncStream,
    )
    assert_type(
        async_client.with_options(
            token="secret",
            timeout=5,
            retry=Retry(),
            max_reply_bytes=1000,
            strict=True,
            extra_body={},
            send_messages=True,
            headers={},
        ),
        AsyncClient,
    )


def ask(client: Client, question: Messages, **options: Unpack[CallOptions]) -> str:
    return client.chat(question, **options).text


def ask_slowly(client: Client, question: Messages, **options: Unpack[CallOptions]) -> Stream:
    options["timeout"] = None
    return client.stream(question, **options)


async def ask_async(client: AsyncClient, question: Messages, **options: Unpack[CallOptions]) -> str:
    async with client.stream(question, **options) as stream:
        return (await stream.read()).text + (await client.chat(question, **options)).text


def view(client: Client, **options: Unpack[ViewOptions]) -> Client:
    return client.with_options(**options)


def view_async(client: AsyncClient, **options: Unpack[ViewOptions]) -> AsyncClient:
    return client.with_options(**options)


def pass_options(client: Client, async_client: AsyncClient) -> None:
    assert_type(ask(client, "Hi", timeout=None, retry=Retry(), headers={"x": "y"}), str)
    view(client, token="secret", strict=False)
    view_async(async_client, send_messages=True, extra_body={"seed": 1})
    options: CallOptions = {"timeout": 5, "max_reply_bytes": 1000}
    assert_type(client.chat("Hi", **options), Reply)
    assert_type(options["max_reply_bytes"], int)
    assert_type(options.get("strict"), bool | None)
    assert_type(options.get("headers"), Mapping[str, str] | None)
    assert_type(options.get("extra_body"), Mapping[str, Any] | None)
    assert_type(options.get("retry"), Retry | None)


# Messages


class Row(NamedTuple):
    role: str
    content: str


@dataclass(frozen=True)
class Line:
    role: str
    content: str


def send_messages(client: Client) -> None:
    message = Message(role="user", content="Hi")
    part = TextPart(type="text", text="Hi")
    client.chat("Hi")
    client.chat([message])
    client.chat((message, message))
    client.chat(iter([message]))
    client.chat([Message(role="user", content=[part])])
    client.chat([{"role": "user", "content": "Hi"}])
    client.chat([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
    client.chat({"role": role, "content": "Hi"} for role in ("system", "user"))
    client.chat((Row("user", "Hi"), Line("user", "Hi")))
    client.chat(Conversation().user("Hi"))
    assert_type(message["role"], str)
    assert_type(part["text"], str)
    assert_type(format_prompt([message]), str)


def use_conversation() -> None:
    conversation = Conversation(system="Be brief.", messages=[{"role": "user", "content": "Hi"}])
    assert_type(conversation.user("Hi"), Conversation)
    assert_type(conversation.assistant("Hello"), Conversation)
    assert_type(conversation.messages, list[Message])
    assert_type(conversation.to_json(), str)
    assert_type(Conversation.from_json("[]"), Conversation)
    assert_type(len(conversation), int)
    for message in conversation:
        assert_type(message, Message)


# Replies and streams


def use_reply(reply: Reply) -> None:
    assert_type(reply.text, str)
    assert_type(reply.status_code, int)
    assert_type(reply.headers, Headers)
    assert_type(reply.headers["x-name"], str)
    assert_type(reply.headers.get("x-name"), str | None)
    assert_type(reply.request_id, str | None)
    assert_type(reply.finish_reason, str | None)
    assert_type(reply.attempts, int)
    assert_type(reply.chunks, int)
    assert_type(reply.first_text_after, float | None)
    assert_type(reply.elapsed, float)
    assert_type(str(reply), str)


def use_stream(client: Client) -> None:
    for text in client.stream("Hi"):
        assert_type(text, str)
    with client.stream("Hi") as stream:
        assert_type(stream, Stream)
        for text in stream:
            assert_type(text, str)
        assert_type(stream.text, str)
        assert_type(stream.reply, Reply)
        assert_type(stream.status_code, int)
        assert_type(stream.headers, Headers)
    assert_type(client.stream("Hi").start(), Stream)
    assert_type(client.stream("Hi").read(), Reply)
    assert_type(stream.close(), None)
    assert_type(next(stream), str)
    assert_type(list(stream), list[str])
    assert_type(cromicle_sdk.Stream, type[Stream])


async def use_async_stream(client: AsyncClient) -> None:
    async for text in client.stream("Hi"):
        assert_type(text, str)
    async with client.stream("Hi") as stream:
        assert_type(stream, AsyncStream)
        async for text in stream:
            assert_type(text, str)
        assert_type(stream.text, str)
        assert_type(stream.reply, Reply)
        assert_type(stream.status_code, int)
        assert_type(stream.headers, Headers)
    assert_type(await client.stream("Hi").start(), AsyncStream)
    assert_type(await client.stream("Hi").read(), Reply)
    assert_type(await stream.aclose(), None)
    assert_type(await anext(stream), str)
    assert_type([text async for text in stream], list[str])


# Options


def use_options() -> None:
    timeout = Timeout(connect=5, first_byte=None, stall=0.5, total=None, pool=None)
    assert_type(timeout, Timeout)
    assert_type(timeout.connect, float | None)
    assert_type(timeout.first_byte, float | None)
    assert_type(timeout.stall, float | None)
    assert_type(timeout.total, float | None)
    assert_type(timeout.pool, float | None)
    retry = Retry(
        attempts=1, first_delay=1, max_delay=2.5, max_retry_after=60, budget=None, busy=False
    )
    assert_type(retry, Retry)
    assert_type(retry.attempts, int)
    assert_type(retry.first_delay, float)
    assert_type(retry.max_delay, float)
    assert_type(retry.max_retry_after, float)
    assert_type(retry.budget, int | None)
    assert_type(retry.busy, bool)


# Errors


def use_errors(client: Client) -> None:
    try:
        client.chat("Hi")
    except APITimeoutError as error:
        assert_type(error.phase, Phase)
        assert_type(error.partial_text, str)
        timeout: TimeoutError = error
        print(timeout)
    except RedirectError as error:
        assert_type(error.location, str | None)
    except (AuthenticationError, RateLimitError) as error:
        assert_type(error.retry_after, float | None)
    except APIStatusError as error:
        assert_type(error.status_code, int)
        assert_type(error.headers, Mapping[str, str])
        assert_type(error.body, str)
        assert_type(error.request_id, str | None)
        assert_type(error.code, str | None)
    except APIConnectionError as error:
        assert_type(error.detail, str)
        assert_type(error.is_final, bool)
    except UnexpectedContentError as error:
        assert_type(error.body, str)
    except IncompleteReplyError as error:
        assert_type(error.is_final, bool)
    except ReplyError as error:
        assert_type(error.partial_text, str)
    except ConfigurationError as error:
        assert_type(error.option, str | None)
        assert_type(error.detail, str)
        invalid: ValueError = error
        print(invalid)
    except InvalidMessageError as error:
        assert_type(error.index, int | None)
    except CromicleError as error:
        assert_type(error.partial_text, str)
        assert_type(error.attempts, int)
        assert_type(error.hint, str)
        assert_type(error.option, str | None)
        assert_type(error.problem, str)


# Many prompts


def use_bulk(client: Client, async_client: AsyncClient) -> None:
    outcomes = bulk(["One", [Message(role="user", content="Two")], Prompt("Three")])
    assert_type(outcomes, Generator[tuple[int, Outcome], None, None])
    for index, outcome in outcomes:
        assert_type(index, int)
        assert_type(outcome, Reply | CromicleError)
    options: CallOptions = {"extra_body": {"temperature": 0.5}}
    prompt = Prompt("Hi", options)
    assert_type(prompt.options, CallOptions)
    Prompt("Hi", {"timeout": None})
    bulk(
        iter([prompt]),
        client=client,
        limit=5,
        executor=ThreadPoolExecutor(),
        ordered=True,
        patience=60,
        shard_size=10,
    )
    bulk([prompt], client=async_client, executor=lambda: ThreadPoolExecutor(2))
    bulk([prompt], client=None, rate=2.5, executor=None)
    assert_type(Ask(client, limit=5, patience=60, column="a", reply="b", error="c"), Ask)


async def use_abulk(client: AsyncClient) -> None:
    async def read_prompts() -> AsyncIterator[str]:
        yield "One"

    async with abulk(
        read_prompts(), client=client, limit=5, ordered=True, rate=2, patience=60
    ) as outcomes:
        async for index, outcome in outcomes:
            assert_type(index, int)
            assert_type(outcome, Reply | CromicleError)
    async with abulk(["One", Prompt("Two")]) as more:
        assert_type(await anext(more), tuple[int, Reply | CromicleError])


# Servers


async def count(prompt: str) -> AsyncIterator[str]:
    yield str(len(prompt))


async def count_more(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
    assert_type(request.id, str)
    assert_type(request.messages, list[Message] | None)
    assert_type(request.options, Mapping[str, Any])
    assert_type(request.finish_reason, str | None)
    request.finish_reason = "length"
    if not prompt:
        raise BackendError(422, "empty", "It is empty.")
    yield str(len(prompt))


async def choose(prompt: str) -> AsyncIterator[str]:
    return count(prompt)


def use_servers(client: AsyncClient, context: ssl.SSLContext) -> None:
    backends: list[Backend] = [count, count_more, choose, echo_backend()]
    for backend in backends:
        LocalServer(backend, token="secret", allow_options=["seed"], page=True, port=0)
    with LocalServer() as server:
        assert_type(server, LocalServer)
        assert_type(server.base_url, str)
    assert_type(server.start(), LocalServer)
    assert_type(server.stop(), None)
    app = create_app(
        count_more,
        tokens=TokenFile("tokens.txt"),
        max_request_bytes=1000,
        max_buffered_bytes=None,
        max_concurrent=5,
        max_concurrent_per_token=2,
        max_waiting=5,
        allow_options=True,
        metrics=False,
        allowed_hosts=["chat.example"],
        allow_origins=("https://chat.example",),
        page=True,
    )
    assert_type(app, Starlette)
    LocalServer(app=app)
    create_app(
        openai_backend(
            "http://127.0.0.1:11434/v1",
            ["large", "small"],
            api_key="secret",
            headers={},
            timeout=5,
            stop=["a"],
            extra_body={},
            proxy=None,
            verify=context,
        )
    )
    openai = create_openai_app(client, models=["one"], token="secret", max_concurrent=5)
    assert_type(openai, Starlette)
    assert_type(serve(app, port=0, on_ready=print), None)


def use_faulty_server() -> None:
    with FaultyServer() as server:
        assert_type(server.reply("Hi").fail(503, retry_after=0).cut(after="H"), FaultyServer)
        assert_type(server.base_url, str)
        assert_type(server.requests, list[RecordedRequest])
        assert_type(server.requests[0].message, str)
        assert_type(server.wait_for_requests(1), list[RecordedRequest])


# Transports


def use_transports(context: ssl.SSLContext) -> None:
    transport = Transport(max_connections=5, proxy="http://proxy.example", verify=context)
    assert_type(transport, Transport)
    httpx.Client(transport=transport)
    async_transport = AsyncTransport(max_connections=5, proxy=None, verify=True)
    assert_type(async_transport, AsyncTransport)
    httpx.AsyncClient(transport=async_transport)
    assert_type(cromicle_sdk.__version__, str)
