"""`abulk` in tasks of an event loop: asyncio, uvloop and trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import pytest
from runtimes import ASYNC_RUNTIMES, Runtime

from cromicle_sdk import AsyncClient, Client, ConfigurationError, Reply
from cromicle_sdk.bulk import Outcome, abulk
from cromicle_sdk.server import LocalServer
from cromicle_sdk.testing import FaultyServer

pytestmark = pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda each: each.name)


def text_of(outcome: Outcome) -> str:
    assert isinstance(outcome, Reply), outcome
    return outcome.text


async def numbers(count: int) -> AsyncIterator[str]:
    for number in range(count):
        yield str(number)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_each_prompt_has_one_outcome(
    runtime: Runtime, echo: LocalServer, ordered: bool, is_async: bool
) -> None:
    async def scenario() -> None:
        prompts: Any = numbers(100) if is_async else map(str, range(100))
        async with (
            AsyncClient(base_url=echo.base_url) as client,
            abulk(prompts, client=client, limit=5, ordered=ordered) as outcomes,
        ):
            seen = [(index, text_of(outcome)) async for index, outcome in outcomes]
            assert not client.is_closed
        expected = [(number, str(number)) for number in range(100)]
        assert (seen if ordered else sorted(seen)) == expected

    runtime.run(scenario)


def test_without_a_client_the_environment_has_the_endpoint(
    runtime: Runtime, echo: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROMICLE_BASE_URL", echo.base_url)

    async def scenario() -> None:
        async with abulk(["One"]) as outcomes:
            assert [text_of(outcome) async for _, outcome in outcomes] == ["One"]

    runtime.run(scenario)


def test_the_source_is_read_only_as_far_as_needed(runtime: Runtime, echo: LocalServer) -> None:
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield str(read)

    async def scenario() -> None:
        async with (
            AsyncClient(base_url=echo.base_url) as client,
            abulk(source(), client=client, limit=2) as outcomes,
        ):
            for _ in range(10):
                await anext(outcomes)
            await anyio.sleep(0.1)

    runtime.run(scenario)
    assert read <= 10 + 4 * 2


def test_leaving_the_block_cancels_the_calls(runtime: Runtime, faults: FaultyServer) -> None:
    faults.reply("Yes.").stall(after="")

    async def scenario() -> None:
        async with (
            AsyncClient(base_url=faults.base_url) as client,
            abulk(numbers(100), client=client, limit=4) as outcomes,
        ):
            async for _, outcome in outcomes:
                assert text_of(outcome) == "Yes."
                break

    runtime.run(scenario)


def test_an_exception_in_the_block_passes_unchanged(runtime: Runtime, faults: FaultyServer) -> None:
    faults.stall(after="")

    async def scenario() -> None:
        async with (
            AsyncClient(base_url=faults.base_url) as client,
            abulk(["One"], client=client),
        ):
            raise LookupError("of the caller")

    with pytest.raises(LookupError, match="of the caller"):
        runtime.run(scenario)


def test_a_timeout_around_it_cancels_the_calls(runtime: Runtime, faults: FaultyServer) -> None:
    faults.stall(after="")

    async def scenario() -> None:
        with anyio.move_on_after(0.1) as scope:
            async with (
                AsyncClient(base_url=faults.base_url) as client,
                abulk(["One"], client=client) as outcomes,
            ):
                async for _ in outcomes:
                    pass
        assert scope.cancelled_caught

    runtime.run(scenario)


def test_an_exception_of_the_source_comes_after_the_outcomes(
    runtime: Runtime, echo: LocalServer
) -> None:
    async def source() -> AsyncIterator[str]:
        yield "One"
        raise LookupError("no more")

    seen: list[str] = []

    async def scenario() -> None:
        async with (
            AsyncClient(base_url=echo.base_url) as client,
            abulk(source(), client=client) as outcomes,
        ):
            async for _, outcome in outcomes:
                seen.append(text_of(outcome))

    with pytest.raises(LookupError, match="no more"):
        runtime.run(scenario)
    assert seen == ["One"]


def test_an_exception_of_a_hook_is_raised(runtime: Runtime, echo: LocalServer) -> None:
    async def fail(request: httpx.Request) -> None:
        raise LookupError("of the hook")

    async def scenario() -> None:
        async with (
            httpx.AsyncClient(event_hooks={"request": [fail]}) as http_client,
            AsyncClient(base_url=echo.base_url, http_client=http_client) as client,
            abulk(numbers(10), client=client) as outcomes,
        ):
            async for _ in outcomes:
                pass

    with pytest.raises(LookupError, match="of the hook"):
        runtime.run(scenario)


def test_bad_options_are_rejected_at_once(runtime: Runtime) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("limit", {"limit": 0}),
        ("prompts", {"prompts": "a text"}),
        ("client", {"client": Client()}),
    ]
    for option, given in cases:
        with pytest.raises(ConfigurationError) as caught:
            abulk(**{"prompts": ["One"], **given})
        assert caught.value.option == option
