"""vcrpy: a reply is recorded once and replayed without a server, its secrets left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import vcr  # type: ignore[import-untyped]
from callers import PROMPT, TOKEN, Caller, has_secret
from vcr.errors import CannotOverwriteExistingCassetteException  # type: ignore[import-untyped]
from vcr.request import Request  # type: ignore[import-untyped]

from cromicle_sdk import APIConnectionError, IncompleteReplyError, PermissionDeniedError, Retry
from cromicle_sdk.server import LocalServer
from cromicle_sdk.testing import FaultyServer


def hide_secrets(request: Request) -> Request:
    """A hook, which is called with each request before it is written or compared."""
    body = json.loads(request.body)
    request.body = json.dumps({"message": body["message"]}).encode()
    return request


RECIPES: dict[str, dict[str, Any]] = {
    "a list": {"filter_post_data_parameters": ["token", "hash"]},
    "a hook": {"before_record_request": hide_secrets},
}


@pytest.fixture(params=RECIPES)
def recorder(request: pytest.FixtureRequest) -> vcr.VCR:
    return vcr.VCR(**RECIPES[request.param])


@pytest.fixture
def cassette(tmp_path: Path) -> str:
    return str(tmp_path / "chat.yaml")


def read(path: str) -> str:
    return Path(path).read_text("utf-8")


def test_a_recorded_reply_is_replayed_without_the_server(
    recorder: vcr.VCR, cassette: str, caller: Caller, request: pytest.FixtureRequest
) -> None:
    with LocalServer(token=TOKEN) as server, recorder.use_cassette(cassette):
        recorded = caller.chat(server.base_url, PROMPT, "Again")
    request.getfixturevalue("no_network")
    with recorder.use_cassette(cassette, record_mode="none") as tape:
        replayed = caller.chat(server.base_url, PROMPT, "Again")
    assert [reply.text for reply in recorded] == [PROMPT, "Again"]
    assert [reply.text for reply in replayed] == [PROMPT, "Again"]
    assert tape.play_count == 2


def test_a_recorded_stream_is_replayed(recorder: vcr.VCR, cassette: str, caller: Caller) -> None:
    with LocalServer(token=TOKEN) as server, recorder.use_cassette(cassette):
        assert "".join(caller.stream(server.base_url)) == PROMPT
    with recorder.use_cassette(cassette, record_mode="none"):
        assert "".join(caller.stream(server.base_url)) == PROMPT


def test_neither_token_nor_hash_is_in_the_cassette(
    recorder: vcr.VCR, cassette: str, caller: Caller, local: LocalServer
) -> None:
    with recorder.use_cassette(cassette):
        caller.chat(local.base_url)
    assert PROMPT in read(cassette)
    assert not has_secret(read(cassette))


def test_both_are_recorded_without_a_recipe(
    cassette: str, caller: Caller, local: LocalServer
) -> None:
    with vcr.use_cassette(cassette):
        caller.chat(local.base_url)
    assert has_secret(read(cassette))


def test_a_recorded_status_is_raised_when_it_is_replayed(
    recorder: vcr.VCR, cassette: str, caller: Caller, faults: FaultyServer
) -> None:
    faults.fail(403, body="Not you.")
    for _ in range(2):
        with recorder.use_cassette(cassette):
            error = caller.fail(faults.base_url)
        assert isinstance(error, PermissionDeniedError)
        assert error.body == "Not you."
    assert len(faults.requests) == 1


def test_a_truncated_reply_is_an_error_and_is_not_recorded(
    recorder: vcr.VCR, cassette: str, caller: Caller, faults: FaultyServer
) -> None:
    faults.cut(after="Hello, wor")
    with recorder.use_cassette(cassette):
        error = caller.fail(faults.base_url)
    # vcrpy reads the whole reply before the client sees its head.
    assert isinstance(error, (APIConnectionError, IncompleteReplyError))
    assert not Path(cassette).exists()


@pytest.mark.usefixtures("no_network")
def test_a_request_that_is_not_in_the_cassette_raises_the_error_of_vcrpy(
    recorder: vcr.VCR, cassette: str, caller: Caller
) -> None:
    with (
        recorder.use_cassette(cassette, record_mode="none"),
        pytest.raises(CannotOverwriteExistingCassetteException),
    ):
        caller.chat("http://mocked.test", retry=Retry(attempts=3, first_delay=0))


def test_connections_are_used_again_while_replies_are_recorded(
    recorder: vcr.VCR, cassette: str, caller: Caller, faults: FaultyServer
) -> None:
    faults.reply("Fine.")
    with recorder.use_cassette(cassette, record_mode="all"):
        caller.chat(faults.base_url, "One", "Two")
    assert [request.connection for request in faults.requests] == [1, 1]
