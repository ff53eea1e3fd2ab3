"""The gateway in front of llmock, which fails on demand and judges what its client did then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from environments import install
from model_servers import (
    NEEDS_SIGNALS,
    Gateway,
    find_port,
    run,
    serve_gateway,
    wait_for_status,
)
from runtimes import Runtime

from cromicle_sdk import APIStatusError, Client, Retry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), NEEDS_SIGNALS]

PROMPT = "Hello, how are you?"
REPLY = f"Hello! You said: {PROMPT}"

# The gateway waits so long for the model server, in seconds.
PATIENCE = 0.5


@pytest.fixture(scope="module")
def llmock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = str(install("llmock", "llmock==0.2.2") / "llmock")
    port, log = find_port(), tmp_path_factory.mktemp("llmock") / "log"
    options = ["--port", str(port), "--response-style", "echo"]
    with run([command, "serve", *options], log) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for_status(f"{url}/health", process, log)
        yield url


@pytest.fixture(scope="module")
def gateway(llmock: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    options = ("--model", "gpt-4o", "--upstream-timeout", str(PATIENCE))
    with serve_gateway(f"{llmock}/v1", folder, *options) as gateway:
        yield gateway


@pytest.fixture
def client(llmock: str, gateway: Gateway) -> Iterator[Client]:
    httpx.post(f"{llmock}/_llmock/reset").raise_for_status()
    retry = Retry(first_delay=0.1)
    with Client(base_url=gateway.base_url, token="abc", retry=retry) as client:
        yield client


def script(llmock: str, **behavior: Any) -> None:
    """Let the next request, or as many as `times`, be treated so."""
    response = httpx.post(f"{llmock}/_llmock/scenario", json={"behaviors": [behavior]})
    response.raise_for_status()


def check_verdict(llmock: str, *, attempts: int, warning: str = "") -> None:
    """llmock passes its client, which made so many requests, without any but this warning."""
    verdict = httpx.get(f"{llmock}/_llmock/verdict").json()
    assert [each for each in verdict["findings"] if each["code"] != warning] == []
    assert verdict["passed"]
    assert verdict["attempts"] == attempts


def test_the_reply_is_the_text_of_the_model(gateway: Gateway, runtime: Runtime) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=gateway.base_url, token="abc") as client:
            assert (await client.chat(PROMPT)).text == REPLY

    runtime.run(scenario)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_a_passing_failure_is_retried(llmock: str, client: Client, status: int) -> None:
    script(llmock, type="fail", status=status)
    assert client.chat(PROMPT).text == REPLY
    check_verdict(llmock, attempts=2)


def test_the_wait_that_it_asks_for_is_kept(llmock: str, client: Client) -> None:
    script(llmock, type="fail", status=429, retry_after=1, times=2)
    reply = client.chat(PROMPT)
    assert reply.text == REPLY
    assert reply.elapsed >= 2
    check_verdict(llmock, attempts=3)


@pytest.mark.parametrize(
    ("status", "told"), [(400, 400), (413, 413), (422, 422), (401, 502), (403, 502), (404, 502)]
)
def test_a_lasting_failure_is_not_retried(
    llmock: str, client: Client, status: int, told: int
) -> None:
    script(llmock, type="fail", status=status, times=None)
    with pytest.raises(APIStatusError) as caught:
        client.chat(PROMPT)
    assert caught.value.status_code == told
    check_verdict(llmock, attempts=1)


@pytest.mark.parametrize("kind", ["disconnect", "malformed", "stall", "truncate"])
def test_a_stream_that_breaks_is_never_a_reply(llmock: str, client: Client, kind: str) -> None:
    script(llmock, type="stream_fault", kind=kind, after_chunks=2, stall_seconds=8 * PATIENCE)
    # `chat` retries it. llmock cannot know that `stream` raises, and would call it accepted.
    assert client.chat(PROMPT).text == REPLY
    # It warns where it has sent everything before it notices that the gateway has left.
    check_verdict(llmock, attempts=2, warning="malformed_chunk_ignored")
