"""What docs/coming-from.md says about openai is true of the installed version."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

import cromicle_sdk
from cromicle_sdk import Client, IncompleteReplyError, Retry
from cromicle_sdk.testing import FaultyServer
from cromicle_sdk.testing.response import build_chunk, build_head

QUESTION = "Hello, how are you?"
EVENT = "data: " + json.dumps(
    {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "any",
        "choices": [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}],
    }
)
EVENT += "\n\n"


def stream_by_openai(faults: FaultyServer) -> str:
    text = ""
    with openai.OpenAI(base_url=faults.base_url, api_key="any", max_retries=0) as client:
        try:
            for chunk in client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": QUESTION}], stream=True
            ):
                text += chunk.choices[0].delta.content or ""
        except (openai.APIConnectionError, httpx.RemoteProtocolError):
            text += " (cut off)"
    return text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 503])
def test_an_error_status_raises_the_same_name(status: int, faults: FaultyServer) -> None:
    faults.fail(status)
    with pytest.raises(openai.APIStatusError) as theirs:
        stream_by_openai(faults)
    with Client(base_url=faults.base_url, retry=Retry(attempts=1)) as client:
        with pytest.raises(cromicle_sdk.APIStatusError) as ours:
            client.chat(QUESTION)
    assert type(ours.value).__name__ == type(theirs.value).__name__


@pytest.mark.parametrize("name", ["APIConnectionError", "APITimeoutError", "APIStatusError"])
def test_both_have_the_error(name: str) -> None:
    assert issubclass(getattr(openai, name), openai.OpenAIError)
    assert issubclass(getattr(cromicle_sdk, name), cromicle_sdk.CromicleError)


def test_a_stream_that_is_cut_off(faults: FaultyServer) -> None:
    head = build_head(content_type="text/event-stream")
    faults.raw(head + build_chunk(EVENT), end="close")
    assert stream_by_openai(faults) == "Hel (cut off)"


def test_a_stream_without_its_last_event_is_no_error_of_openai(faults: FaultyServer) -> None:
    faults.reply(EVENT, content_type="text/event-stream")
    assert stream_by_openai(faults) == "Hel"


def test_a_truncated_reply_has_its_text(faults: FaultyServer) -> None:
    faults.cut(after="Hel")
    with Client(base_url=faults.base_url, retry=Retry(attempts=1)) as client:
        with pytest.raises(IncompleteReplyError) as caught:
            client.chat(QUESTION)
    assert caught.value.partial_text == "Hel"
