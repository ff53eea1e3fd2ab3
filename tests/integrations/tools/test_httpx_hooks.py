"""httpx's own ways to see a call: the event hooks of a client, and the line that it logs."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest
from callers import CALLERS, DEFAULT_CALLERS, PROMPT, TOKEN, Caller, has_secret
from runtimes import Runtime

from cromicle_sdk import Retry
from cromicle_sdk.testing import FaultyServer


class Hooks:
    """Event hooks in their blocking and their async form."""

    def __init__(self, *, reads_response: bool = False) -> None:
        self.messages: list[str] = []
        self.statuses: list[int] = []
        self._reads_response = reads_response

    def client(self, runtime: Runtime) -> Any:
        if runtime.is_blocking:
            return httpx.Client(
                event_hooks={"request": [self._request], "response": [self._response]}
            )
        return httpx.AsyncClient(
            event_hooks={"request": [self._arequest], "response": [self._aresponse]}
        )

    def _request(self, request: httpx.Request) -> None:
        self.messages.append(json.loads(request.read())["message"])
        request.headers["x-hook"] = "was here"

    async def _arequest(self, request: httpx.Request) -> None:
        await request.aread()
        self._request(request)

    def _response(self, response: httpx.Response) -> None:
        self.statuses.append(response.status_code)
        if self._reads_response:
            response.read()

    async def _aresponse(self, response: httpx.Response) -> None:
        self.statuses.append(response.status_code)
        if self._reads_response:
            await response.aread()


@pytest.mark.parametrize("reads_response", [False, True])
def test_event_hooks_see_each_attempt(
    reads_response: bool, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.fail(503).reply("At last.")
    hooks = Hooks(reads_response=reads_response)

    async def scenario() -> None:
        http_client = hooks.client(runtime)
        async with runtime.client(
            base_url=faults.base_url, http_client=http_client, retry=Retry(first_delay=0)
        ) as client:
            assert (await client.chat(PROMPT)).text == "At last."
        if runtime.is_blocking:
            http_client.close()
        else:
            await http_client.aclose()

    runtime.run(scenario)
    assert hooks.messages == [PROMPT, PROMPT]
    assert hooks.statuses == [503, 200]
    assert [request.headers["x-hook"] for request in faults.requests] == ["was here", "was here"]


@pytest.mark.parametrize("caller", CALLERS, ids=str)
def test_httpx_logs_one_line_without_a_secret(
    caller: Caller, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    faults.reply("Logged.")
    caller.chat(faults.base_url)
    lines = [record.getMessage() for record in caplog.records if record.name == "httpx"]
    assert lines == [f'HTTP Request: POST {faults.base_url}/chat "HTTP/1.1 200 OK"']
    assert not has_secret(caplog.text)
    assert "Logged." not in caplog.text


@pytest.mark.parametrize("caller", DEFAULT_CALLERS, ids=str)
def test_a_token_in_the_reason_phrase_is_not_in_the_line_of_httpx(
    caller: Caller, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    faults.raw(f"HTTP/1.1 403 {TOKEN}\r\ncontent-length: 0\r\n\r\n".encode())
    caller.fail(faults.base_url)
    assert "HTTP/1.1 403" in caplog.text
    assert not has_secret(caplog.text)


@pytest.mark.parametrize("caller", DEFAULT_CALLERS, ids=str)
def test_userinfo_of_the_base_url_is_not_in_the_line_of_httpx(
    caller: Caller, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    faults.reply("Fine.")
    caller.chat(faults.base_url.replace("://", "://user:passphrase@"))
    assert f"POST {faults.base_url}/chat" in caplog.text
    assert "passphrase" not in caplog.text
    assert "authorization" in faults.requests[0].headers
