"""What the events of a streamed completion say: tables of data, and the text that is owed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstreams import choice

from cromicle_sdk.server import BackendError
from cromicle_sdk.server.openai.completion import Completion


def receive(*events: Any) -> str:
    """The text of these events, JSON or data as it is, up to a clean end."""
    completion = Completion()
    text = ""
    for event in events:
        text += completion.receive_event(event if isinstance(event, str) else json.dumps(event))
    completion.receive_eof()
    return text


STOP = choice({}, "stop")
DONE = "[DONE]"


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([choice({"role": "assistant"}), choice({"content": "Hi"}), STOP, DONE], "Hi"),
        ([choice({"role": "assistant", "content": ""}), choice({"content": "Hi"}), STOP], "Hi"),
        ([choice({"content": None}), choice({"content": "Hi"}, "stop")], "Hi"),
        ([choice({"content": "Hi"}), DONE], "Hi"),
        ([choice({"content": "Hi"}), " [DONE] "], "Hi"),
        ([choice({"content": "Hi"}), "", STOP], "Hi"),
        ([choice({"content": "Hi"}), {"choices": [], "usage": {"total_tokens": 9}}, DONE], "Hi"),
        ([{"choices": [{"delta": {"content": "no index"}}]}, DONE], "no index"),
        ([{"choices": [{"index": 0, "delta": None}]}, DONE], ""),
        ([{"choices": [{"index": 0}]}, DONE], ""),
        (
            [{"choices": [{"index": i, "delta": {"content": str(i)}} for i in (1, 0, 2)]}, DONE],
            "0",
        ),
        ([choice({"content": ["a", {"type": "text", "text": "b"}, "c"]}), DONE], "abc"),
        ([{"choices": [{"index": None, "delta": {"content": "no index"}}]}, DONE], "no index"),
        ([choice({"content": [{"type": "output_text", "text": "a"}]}), DONE], "a"),
        ([choice({"content": [{"type": "thinking", "text": "hm"}, "yes"]}), DONE], "yes"),
        ([choice({"reasoning_content": "hm", "reasoning": "hm", "content": "yes"}), DONE], "yes"),
        ([choice({"content": None, "refusal": "I "}), choice({"refusal": "won't."}), DONE],
         "I won't."),
        ([choice({"tool_calls": [{"function": {"name": "f"}}]}, "tool_calls"), DONE], ""),
        ([choice({"content": "cut"}, "length"), DONE], "cut"),
        ([choice({"content": "a"}, "stop"), choice({"content": "b"}, "stop"), DONE], "ab"),
        ([choice({"content": "x"}, logprobs={"content": [{"logprob": -1e999}]}), DONE], "x"),
        ([{**choice({"content": "x"}), "error": None}, DONE], "x"),
        ([choice({"content": "\U0001f389 é \u2028 \x85"}), DONE], "\U0001f389 é \u2028 \x85"),
    ],
)  # fmt: skip
def test_the_text_of_a_completion(events: list[Any], text: str) -> None:
    assert receive(*events) == text


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([], "finish_reason"),
        ([choice({"content": "half"})], "finish_reason"),
        ([choice({"content": "half"}, "")], "finish_reason"),
        (["s3cret"], "JSON"),
        (['{"s3cret"'], "JSON"),
        (["[1]"], "JSON"),
        (["null"], "JSON"),
        (["[" * 100_000], "JSON"),
        (["9" * 5000], "JSON"),
        ([{"error": {"message": "s3cret"}}], "error"),
        ([{"error": "s3cret"}], "error"),
        ([{**choice({"content": "x"}), "error": {"message": "s3cret"}}], "error"),
        ([choice({}, "error")], "interrupted"),
        ([choice({}, "abort")], "interrupted"),
        ([choice({"content": "x"}, "insufficient_system_resource")], "interrupted"),
        ([choice({"content": "x"}, error={"code": 502, "message": "s3cret"})], "error"),
        ([{"error": {}, "choices": []}], "error"),
        ([{"choices": ["s3cret"]}], "choice"),
        ([{"choices": [{"index": "0", "delta": {"content": "s3cret"}}]}], "index"),
        ([{"choices": [{"index": 0, "text": "s3cret"}]}], "delta"),
        ([choice({"content": [{"type": "s3cret", "text": "s3cret"}]})], "part"),
        ([choice({"content": [["s3cret"]]})], "part"),
        ([choice({"content": "x"}, "null")], "finish_reason"),
        ([{"object": "error", "message": "s3cret"}], "choices"),
        ([{"choices": None}], "choices"),
        ([{"choices": {"0": "s3cret"}}], "choices"),
        ([choice("s3cret")], "delta"),
        ([choice({"content": 5})], "content"),
        ([choice({"content": {"text": "s3cret"}})], "content"),
        ([choice({"content": [5]})], "content"),
        (['{"choices": [{"delta": {"content": "s3cret \\ud83d"}}]}'], "surrogate"),
        (['{"choices": [{"delta": {"content": ["\\udc00"]}}]}'], "surrogate"),
        (['{"choices": [{"delta": {"refusal": "\\udc00"}}]}'], "surrogate"),
    ],
)
def test_what_is_no_completion_is_a_502_that_quotes_nothing(
    events: list[Any], problem: str
) -> None:
    with pytest.raises(BackendError, match="makes no sense") as caught:
        receive(*events)
    assert (caught.value.status, caught.value.code) == (502, "upstream_invalid")
    assert problem in caught.value.detail
    assert "s3cret" not in caught.value.detail
    assert caught.value.__context__ is None


def test_nothing_after_done_is_waited_for() -> None:
    completion = Completion()
    assert not completion.is_done
    completion.receive_event(DONE)
    assert completion.is_done


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [{"index": 0, "message": {"role": "assistant", "content": "whole"}}]},
         "whole"),
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, "no"),
    ],
)  # fmt: skip
def test_an_answer_in_one_piece(body: Any, text: str) -> None:
    completion = Completion()
    assert completion.receive_whole(json.dumps(body).encode()) == text
    completion.receive_eof()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"error": {}, "message": 1}'])
def test_an_answer_in_one_piece_that_is_none(body: bytes) -> None:
    with pytest.raises(BackendError):
        Completion().receive_whole(body)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_every_character_comes_through(texts: list[str]) -> None:
    events = [choice({"content": text}) for text in texts]
    assert receive(*events, STOP, DONE) == "".join(texts)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "index", "type", "text", "error", "finish_reason"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON.map(json.dumps) | st.text())
def test_any_event_is_a_text_or_a_refusal(data: str) -> None:
    try:
        text = Completion().receive_event(data)
    except BackendError:
        return
    text.encode()
