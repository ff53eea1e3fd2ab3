"""pytest-httpx: its fixture answers for the default client and for the caller's own."""

from __future__ import annotations

import json

import httpx
import pytest
from callers import PROMPT, Caller
from pytest_httpx import HTTPXMock, IteratorStream

from cromicle_sdk import APITimeoutError, AuthenticationError, IncompleteReplyError, Retry

pytestmark = pytest.mark.usefixtures("no_network")

BASE_URL = "http://mocked.test"
CHAT_URL = f"{BASE_URL}/chat"


def test_chat_returns_the_mocked_text(httpx_mock: HTTPXMock, caller: Caller) -> None:
    httpx_mock.add_response(url=CHAT_URL, method="POST", text="Mocked.", is_reusable=True)
    replies = caller.chat(BASE_URL, PROMPT, "Again")
    assert [reply.text for reply in replies] == ["Mocked.", "Mocked."]
    messages = [json.loads(request.content)["message"] for request in httpx_mock.get_requests()]
    assert messages == [PROMPT, "Again"]


def test_stream_yields_a_mocked_stream(httpx_mock: HTTPXMock, caller: Caller) -> None:
    httpx_mock.add_response(
        headers={"content-type": "text/plain"}, stream=IteratorStream([b"Mock", b"ed", b"."])
    )
    assert "".join(caller.stream(BASE_URL)) == "Mocked."


def test_a_mocked_stream_that_breaks_is_an_incomplete_reply(
    httpx_mock: HTTPXMock, caller: Caller
) -> None:
    def break_off(request: httpx.Request) -> httpx.Response:
        def chunks() -> object:
            yield b"Mock"
            raise httpx.ReadError("mocked reset")

        return httpx.Response(
            200,
            headers={"content-type": "text/plain"},
            stream=IteratorStream(chunks()),  # type: ignore[arg-type]  # an iterator is enough
        )

    httpx_mock.add_callback(break_off)
    error = caller.fail(BASE_URL)
    assert isinstance(error, IncompleteReplyError)
    assert error.partial_text == "Mock"


def test_a_mocked_status_is_raised(httpx_mock: HTTPXMock, caller: Caller) -> None:
    httpx_mock.add_response(status_code=401, text="Not you.")
    error = caller.fail(BASE_URL)
    assert isinstance(error, AuthenticationError)
    assert error.body == "Not you."


def test_a_mocked_failure_is_retried(httpx_mock: HTTPXMock, caller: Caller) -> None:
    httpx_mock.add_exception(httpx.ConnectError("mocked"))
    httpx_mock.add_response(status_code=503)
    httpx_mock.add_response(text="At last.")
    (reply,) = caller.chat(BASE_URL, retry=Retry(first_delay=0))
    assert (reply.text, reply.attempts) == ("At last.", 3)


@pytest.mark.httpx_mock(assert_all_requests_were_expected=False)
def test_the_error_for_a_request_without_a_mock_names_the_request(
    httpx_mock: HTTPXMock, caller: Caller
) -> None:
    error = caller.fail(BASE_URL)
    assert isinstance(error, APITimeoutError)  # pytest-httpx raises httpx.TimeoutException
    assert "No response can be found for POST request on" in str(error.__cause__)
    assert len(httpx_mock.get_requests()) == 1
