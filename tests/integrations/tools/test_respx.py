"""respx: both of its mockers answer for the default client and for the caller's own."""

from __future__ import annotations

import json

import httpx
import pytest
import respx
from callers import DEFAULT_CALLERS, PROMPT, Caller
from respx.models import AllMockedAssertionError

from cromicle_sdk import APIConnectionError, RateLimitError, Retry
from cromicle_sdk.server import LocalServer

BASE_URL = "http://mocked.test"
CHAT_URL = f"{BASE_URL}/chat"


@pytest.fixture(params=["httpcore", "httpx"])
def mocker(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.usefixtures("no_network")
class TestMockedReplies:
    def test_chat_returns_the_mocked_text(self, mocker: str, caller: Caller) -> None:
        with respx.mock(using=mocker) as router:
            route = router.post(CHAT_URL).respond(text="Mocked.")
            replies = caller.chat(BASE_URL, PROMPT, "Again")
        assert [reply.text for reply in replies] == ["Mocked.", "Mocked."]
        assert [json.loads(call.request.content)["message"] for call in route.calls] == [
            PROMPT,
            "Again",
        ]

    def test_stream_yields_the_mocked_text(self, mocker: str, caller: Caller) -> None:
        with respx.mock(using=mocker) as router:
            router.post(CHAT_URL).respond(text="Mocked.")
            assert "".join(caller.stream(BASE_URL)) == "Mocked."

    def test_a_mocked_status_is_raised(self, mocker: str, caller: Caller) -> None:
        with respx.mock(using=mocker) as router:
            router.post(CHAT_URL).respond(429, text="Slow down.", headers={"retry-after": "7"})
            error = caller.fail(BASE_URL)
        assert isinstance(error, RateLimitError)
        assert (error.body, error.retry_after) == ("Slow down.", 7)

    def test_a_mocked_failure_is_retried(self, mocker: str, caller: Caller) -> None:
        with respx.mock(using=mocker) as router:
            router.post(CHAT_URL).mock(
                side_effect=[
                    httpx.ConnectError("mocked"),
                    httpx.Response(503),
                    httpx.Response(200, text="At last."),
                ]
            )
            (reply,) = caller.chat(BASE_URL, retry=Retry(first_delay=0))
        assert (reply.text, reply.attempts) == ("At last.", 3)

    def test_a_mocked_error_becomes_one_of_this_package(self, mocker: str, caller: Caller) -> None:
        with respx.mock(using=mocker) as router:
            router.post(CHAT_URL).mock(side_effect=httpx.ConnectError("mocked refusal"))
            error = caller.fail(BASE_URL)
        assert isinstance(error, APIConnectionError)
        assert "mocked refusal" in str(error)

    def test_a_request_without_a_route_raises_the_error_of_respx(
        self, mocker: str, caller: Caller
    ) -> None:
        with (
            respx.mock(using=mocker, assert_all_called=False) as router,
            pytest.raises(AllMockedAssertionError),
        ):
            router.post("http://other.test/chat")
            caller.chat(BASE_URL, retry=Retry(attempts=3, first_delay=0))

    @pytest.mark.parametrize("caller", DEFAULT_CALLERS, ids=str)
    def test_a_mocked_call_gives_its_connection_slot_back(
        self, mocker: str, caller: Caller
    ) -> None:
        with respx.mock(using=mocker) as router:
            router.post(CHAT_URL).respond(text="Mocked.")
            replies = caller.chat(BASE_URL, "One", "Two", "Three", max_connections=1)
        assert len(replies) == 3

    @pytest.mark.parametrize("proxy", ["http://proxy.test:3128", "socks5://proxy.test:1080"])
    def test_a_mock_answers_before_the_proxy_of_the_environment(
        self, mocker: str, caller: Caller, proxy: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ALL_PROXY", proxy)
        with respx.mock(using=mocker) as router:
            router.post(CHAT_URL).respond(text="Mocked.")
            (reply,) = caller.chat(BASE_URL)
        assert reply.text == "Mocked."


def test_a_route_that_passes_through_reaches_the_server(
    mocker: str, caller: Caller, local: LocalServer
) -> None:
    with respx.mock(using=mocker) as router:
        route = router.post(f"{local.base_url}/chat").pass_through()
        replies = caller.chat(local.base_url, PROMPT, "Again")
    assert [reply.text for reply in replies] == [PROMPT, "Again"]
    assert route.called
