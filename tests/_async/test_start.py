"""A stream that is started before its text is read, as a relay does."""

from __future__ import annotations

import gc

import pytest
from runtimes import Runtime, outcome

from cromicle_sdk import (
    APIConnectionError,
    APITimeoutError,
    CromicleError,
    IncompleteReplyError,
    InvalidMessageError,
    RateLimitError,
    Retry,
    UnexpectedContentError,
)
from cromicle_sdk.testing import FaultyServer

ONCE = Retry(attempts=1)


def test_the_head_is_there_before_the_text(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            assert await stream.start() is stream
            assert await stream.start() is stream
            assert stream.status_code == 200
            assert stream.text == ""
            assert [text async for text in stream] == ["Hello"]
            await stream.start()
            assert stream.reply.text == "Hello"

    faults.reply("Hello")
    runtime.run(scenario)
    assert len(faults.requests) == 1


def test_a_stream_is_started_in_the_line_that_makes_it(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """So every error before the text is raised in one place, invalid messages included."""

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            for messages, kind in (
                ([], InvalidMessageError),
                ([{"role": "user", "content": 7}], InvalidMessageError),
                ("Hi", RateLimitError),
                ("Hi", UnexpectedContentError),
                ("Hi", APIConnectionError),
            ):
                assert faults.requests == [] or messages == "Hi"
                with pytest.raises(kind):
                    await client.stream(messages).start()

    faults.fail(429).reply("<html>", content_type="text/html").reset()
    runtime.run(scenario)


def test_a_start_is_retried(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        retry = Retry(attempts=3, first_delay=0)
        async with runtime.client(base_url=faults.base_url, retry=retry) as client:
            stream = await client.stream("Hi").start()
            assert stream.status_code == 200
            assert (await stream.read()).attempts == 3

    faults.fail(503).fail(503).reply("At last.")
    runtime.run(scenario)


def test_a_failure_after_the_start_is_raised_by_the_stream(
    runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            stream = client.stream("Hi")
            await stream.start()
            error = await outcome(stream.read())
            assert isinstance(error, IncompleteReplyError)
            assert error.partial_text == "Hello, wor"
            with pytest.raises(CromicleError, match="Create a new one"):
                await stream.start()

    faults.cut(after="Hello, wor")
    runtime.run(scenario)


def test_a_start_has_the_time_limit_of_the_first_byte(
    runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE, timeout=0.05) as client:
            with pytest.raises(APITimeoutError) as caught:
                await client.stream("Hi").start()
            assert caught.value.phase == "first_byte"

    faults.stall()
    runtime.run(scenario)


@pytest.mark.parametrize("end", ["close", "block", "drop"])
def test_a_stream_that_is_not_read_after_its_start_leaves_no_connection(
    end: str, runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            await stream.start()
            if end == "close":
                await stream.aclose()
            elif end == "block":
                async with stream:
                    pass
            del stream
            gc.collect()
            faults.wait_until_closed()

    faults.stall(after="Once")
    runtime.run(scenario)
