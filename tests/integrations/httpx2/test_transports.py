"""httpx2: its clients take the transports of this package, and raise their own errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from callers import PROMPT
from runtimes import RUNTIMES, Runtime

from cromicle_sdk import AsyncTransport, Transport
from cromicle_sdk.server import LocalServer
from cromicle_sdk.testing import FaultyServer


@pytest.fixture(params=[r for r in RUNTIMES if r.name != "uvloop"], ids=lambda r: str(r.name))
def runtime(request: pytest.FixtureRequest) -> Runtime:
    runtime: Runtime = request.param
    return runtime


def run(runtime: Runtime, use: Callable[[Any], Awaitable[None]]) -> None:
    """Call `use` with an httpx2 client over our transport."""

    # For a type checker it is no transport of httpx2, whose classes it cannot derive from as well.
    transport: Any = Transport() if runtime.is_blocking else AsyncTransport()

    async def scenario() -> None:
        if runtime.is_blocking:
            with httpx2.Client(transport=transport) as client:
                await use(client)
        else:
            async with httpx2.AsyncClient(transport=transport) as client:
                await use(client)

    runtime.run(scenario)


async def post(runtime: Runtime, client: Any, url: str) -> Any:
    if runtime.is_blocking:
        return client.post(url, json={"message": PROMPT})
    return await client.post(url, json={"message": PROMPT})


def test_a_request_gets_its_response_and_uses_a_connection_again(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.reply("From a pool of ours.")

    async def use(client: Any) -> None:
        for _ in range(2):
            response = await post(runtime, client, f"{faults.base_url}/chat")
            assert isinstance(response, httpx2.Response)
            assert response.text == "From a pool of ours."

    run(runtime, use)
    assert [request.connection for request in faults.requests] == [1, 1]
    assert [request.message for request in faults.requests] == [PROMPT, PROMPT]


def test_a_refused_connection_is_an_error_of_httpx2(runtime: Runtime, faults: FaultyServer) -> None:
    faults.stop()

    async def use(client: Any) -> None:
        with pytest.raises(httpx2.ConnectError):
            await post(runtime, client, f"{faults.base_url}/chat")

    run(runtime, use)


def test_a_truncated_response_is_an_error_of_httpx2(runtime: Runtime, faults: FaultyServer) -> None:
    faults.cut(after="Hello, wor")

    async def use(client: Any) -> None:
        with pytest.raises(httpx2.RemoteProtocolError):
            await post(runtime, client, f"{faults.base_url}/chat")

    run(runtime, use)


def test_a_client_of_this_package_uses_it_as_its_http_client(
    runtime: Runtime, echo: LocalServer
) -> None:
    async def use(http_client: Any) -> None:
        async with runtime.client(base_url=echo.base_url, http_client=http_client) as client:
            assert (await client.chat(PROMPT)).text == PROMPT

    run(runtime, use)
