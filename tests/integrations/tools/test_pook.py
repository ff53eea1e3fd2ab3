"""pook: its mocks answer for the default client and for the caller's own."""

from __future__ import annotations

import pook  # type: ignore[import-untyped]
import pytest
from callers import PROMPT, Caller
from pook.exceptions import PookNoMatches  # type: ignore[import-untyped]

from cromicle_sdk import NotFoundError, Retry
from cromicle_sdk.server import LocalServer

BASE_URL = "http://mocked.test"
CHAT_URL = f"{BASE_URL}/chat"


@pytest.mark.usefixtures("no_network")
def test_chat_returns_the_mocked_text(caller: Caller) -> None:
    with pook.use():
        mock = pook.post(CHAT_URL).times(2).reply(200).type("text/plain").body("Mocked.").mock
        replies = caller.chat(BASE_URL, PROMPT, "Again")
    assert [reply.text for reply in replies] == ["Mocked.", "Mocked."]
    assert mock.calls == 2


@pytest.mark.usefixtures("no_network")
def test_stream_yields_the_mocked_text(caller: Caller) -> None:
    with pook.use():
        pook.post(CHAT_URL).reply(200).type("text/plain").body("Mocked.")
        assert "".join(caller.stream(BASE_URL)) == "Mocked."


@pytest.mark.usefixtures("no_network")
def test_a_mock_can_match_the_prompt(caller: Caller) -> None:
    with pook.use():
        pook.post(CHAT_URL).body(pook.regex(PROMPT.replace("?", r"\?"))).reply(200).type(
            "text/plain"
        ).body("Fine.")
        (reply,) = caller.chat(BASE_URL)
    assert reply.text == "Fine."


@pytest.mark.usefixtures("no_network")
def test_a_mocked_status_is_raised(caller: Caller) -> None:
    with pook.use():
        pook.post(CHAT_URL).reply(404).body("Not here.")
        error = caller.fail(BASE_URL)
    assert isinstance(error, NotFoundError)
    assert error.body == "Not here."


@pytest.mark.usefixtures("no_network")
def test_a_request_without_a_mock_raises_the_error_of_pook(caller: Caller) -> None:
    with pook.use(), pytest.raises(PookNoMatches):
        caller.chat(BASE_URL, retry=Retry(attempts=3, first_delay=0))


def test_the_network_that_pook_allows_is_used(caller: Caller, local: LocalServer) -> None:
    with pook.use(network=True):
        (reply,) = caller.chat(local.base_url)
    assert reply.text == PROMPT
