"""Mistakes of users, which mypy and pyright must both find; nothing runs it.

Each line names the errors that it expects. A comment that ignores no error is an error itself.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import httpx
from typing_extensions import Unpack

from cromicle_sdk import (
    AsyncClient,
    AsyncTransport,
    CallOptions,
    Client,
    Conversation,
    Message,
    Retry,
    Timeout,
    Transport,
)
from cromicle_sdk.bulk import Prompt, abulk, bulk
from cromicle_sdk.server import LocalServer, create_app, create_openai_app


def make_clients() -> None:
    Client(timout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Client("http://127.0.0.1:8000")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Client(base_url=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(token=b"x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(retry=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(max_reply_bytes=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(max_connections=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(strict="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(extra_body=[1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(send_messages=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(headers={"x": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Client(proxy=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(verify=False)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client(http_client=httpx.AsyncClient())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncClient(timout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    AsyncClient(http_client=httpx.Client())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def call(client: Client) -> None:
    client.chat()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.chat(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.chat(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.chat("Hi", 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.chat("Hi", tiemout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.chat("Hi", token="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.chat("Hi", timeout="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.chat("Hi", retry=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.chat("Hi", retry=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.chat("Hi", max_reply_bytes=0.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.chat("Hi", strict=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.chat("Hi", extra_body="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.chat("Hi", send_messages="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.chat("Hi", headers="x: y")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.stream(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.stream("Hi", tiemout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.stream("Hi", timeout="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.with_options(base_url="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.with_options(token=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.with_options(timeout="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    len(client.chat("Hi"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.chat("Hi").text = ""  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    print(client.chat("Hi").txt)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


async def call_async(client: AsyncClient) -> None:
    await client.chat(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.chat("Hi", tiemout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.stream("Hi", tiemout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.stream("Hi")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    print(client.chat("Hi").text)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    client.with_options(proxy="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def mix_up() -> None:
    async with Client() as client:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        print(client)
    with AsyncClient() as async_client:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        print(async_client)
    async for text in Client().stream("Hi"):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        print(text)
    for text in AsyncClient().stream("Hi"):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        print(text)
    await Client().chat("Hi")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]


def pass_options(client: Client, **options: Unpack[CallOptions]) -> None:
    options["tiemout"] = 3  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportGeneralTypeIssues]
    client.with_options("x", **options)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Prompt("Hi", {"tiemout": 3})  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportArgumentType]
    Prompt("Hi", {"timeout": "3"})  # type: ignore[typeddict-item]  # pyright: ignore[reportArgumentType]


def build_values() -> None:
    Timeout(5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Timeout(read=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Timeout(total="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry(attempts=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry(max_attempts=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Conversation(messages=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Conversation().user(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Message(role="user")  # type: ignore[typeddict-item]  # pyright: ignore[reportCallIssue]
    Transport(max_connections=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncTransport(http2=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def use_others(client: Client) -> None:
    bulk(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bulk(["Hi"], clients=client)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bulk(["Hi"], limit="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    abulk(["Hi"], client=client)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    LocalServer(prot=0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    LocalServer(lambda: "Hi")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    create_app(tokens=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    create_openai_app(client)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
