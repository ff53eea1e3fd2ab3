"""The response to a chat completion: tables of bodies, and the text or the error of each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstreams import choice

from cromicle_sdk.server import BackendError
from cromicle_sdk.server.openai import completion as _completion
from cromicle_sdk.server.openai.completion import Completion

SECRET = "s3cret"


def build_events(*events: Any) -> bytes:
    """A body of these events: bytes as they are, a str as data, anything else as JSON."""
    body = b""
    for event in events:
        if isinstance(event, bytes):
            body += event
        else:
            data = event if isinstance(event, str) else json.dumps(event)
            body += f"data: {data}\n\n".encode()
    return body


def receive(*chunks: bytes) -> tuple[list[str], Completion]:
    """The texts of a body, and the completion after it."""
    completion = Completion()
    texts: list[str] = []
    for chunk in chunks:
        texts += completion.receive_data(chunk)
    texts += completion.receive_eof()
    return texts, completion


def read(*events: Any) -> str:
    """The text of these events, which are a whole completion."""
    return "".join(receive(build_events(*events))[0])


def fail(body: bytes) -> tuple[str, BackendError]:
    """The text before the error in a body, and the error."""
    completion = Completion()
    text = ""
    with pytest.raises(BackendError) as caught:
        for texts in (completion.receive_data(body), completion.receive_eof()):
            for each in texts:
                text += each
    assert SECRET not in str(caught.value) + caught.value.detail
    assert caught.value.__context__ is None
    return text, caught.value


STOP = choice({}, "stop")
DONE = "[DONE]"
HI = choice({"content": "Hi"})


def numbered(index: Any, content: str | None, reason: str | None = None) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}


def whole(content: Any, reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason, **more}]}


class TestText:
    @pytest.mark.parametrize(
        ("events", "text"),
        [
            ([choice({"role": "assistant"}), HI, STOP, DONE], "Hi"),
            ([choice({"role": "assistant", "content": ""}), HI, STOP], "Hi"),
            ([choice({"content": None}), choice({"content": "Hi"}, "stop")], "Hi"),
            ([HI, DONE], "Hi"),
            ([HI, " [DONE] "], "Hi"),
            ([HI, "[done]"], "Hi"),
            ([HI, '"[DONE]"'], "Hi"),
            (["data: " + json.dumps(HI), "data: [DONE]"], "Hi"),
            ([HI, "", STOP], "Hi"),
            ([HI, {"choices": [], "usage": {"total_tokens": 9}}, DONE], "Hi"),
            ([{"choices": [{"delta": {"content": "no index"}}]}, DONE], "no index"),
            ([{"choices": [{"index": 0, "delta": None}]}, DONE], ""),
            ([{"choices": [{"index": 0}]}, DONE], ""),
            ([{"choices": [None, {"delta": {"content": "Hi"}}]}, DONE], "Hi"),
            ([{"choices": [numbered(i, str(i))["choices"][0] for i in (1, 0, 2)]}, DONE], "0"),
            ([choice({"content": ["a", {"type": "text", "text": "b"}, "c"]}), DONE], "abc"),
            ([{"choices": [{"index": None, "delta": {"content": "no index"}}]}, DONE], "no index"),
            ([choice({"content": [{"type": "output_text", "text": "a"}]}), DONE], "a"),
            ([choice({"content": [{"text": "a"}, {"type": "text", "text": None}]}), DONE], "a"),
            ([choice({"content": [{"type": "refusal", "refusal": "no"}]}), DONE], "no"),
            ([choice({"content": [{"type": "thinking", "text": "hm"}, "yes"]}), DONE], "yes"),
            ([choice({"reasoning_content": "h m", "reasoning": "h m", "content": "y"}), DONE], "y"),
            ([choice({"content": None, "refusal": "I "}), choice({"refusal": "won't."}), DONE],
             "I won't."),
            ([choice({"tool_calls": [{"function": {"name": "f", "arguments": "{ }"}}]},
                     "tool_calls"), DONE], ""),
            ([choice({"content": "a"}, "stop"), choice({"content": "b"}, "stop"), DONE], "ab"),
            ([choice({"content": "x"}, logprobs={"content": [{"token": "a b"}]}), DONE], "x"),
            ([choice({"content": "x"}, logprobs={"content": [{"logprob": -1e999}]}), DONE], "x"),
            ([{**choice({"content": "x"}), "error": None}, DONE], "x"),
            ([choice({"content": "\U0001f389 é \u2028 \x85"}), DONE], "\U0001f389 é \u2028 \x85"),
            ([HI, STOP, DONE, b"nonsense\n\n"], "Hi"),
        ],
    )  # fmt: skip
    def test_the_text_of_a_stream(self, events: list[Any], text: str) -> None:
        assert read(*events) == text

    @pytest.mark.parametrize(
        ("events", "text"),
        [
            ([numbered(i, str(i)) for i in range(4)] + [numbered(0, None, "stop")], "0123"),
            ([numbered(i, str(i)) for i in (1, 1, 1)] + [numbered(1, None, "stop")], "111"),
            ([numbered(i, str(i)) for i in range(2)] + [DONE], "01"),
            ([numbered(0, "a"), numbered(1, "x"), numbered(0, "b"), numbered(1, "y"), DONE], "ab"),
        ],
    )
    def test_the_index_of_a_choice(self, events: list[Any], text: str) -> None:
        assert read(*events) == text

    @pytest.mark.parametrize(
        "events",
        [
            [whole("H", None), whole("i", None), STOP],
            [whole("H", None), whole("i")],
            # MiniMax repeats the whole text at the end, Perplexity in each event.
            [choice({"content": "H"}), choice({"content": "i"}), whole("Hi")],
            [choice({"content": "H"}, message={"content": "H"}),
             choice({"content": "i"}, message={"content": "Hi"}), whole("Hi"), DONE],
            [choice({"content": "H"}, message={"content": "H"}),
             choice({"content": "i"}, message={"content": "i"}), DONE],
            [choice({"content": "Hi"}, message={"content": ""}), DONE],
            # Foundry Local has both in each event.
            [choice({"content": ""}, message={"content": ""}),
             choice({"content": "H"}, message={"content": "H"}),
             choice({"content": "i"}, message={"content": "i"}), STOP, DONE],
            # Together repeats the text of a delta beside it.
            [choice({"content": "H"}, text="H"), choice({"content": "i"}, text="i"), STOP],
            [choice({"content": "Hi"}, text=""), STOP],
        ],
    )  # fmt: skip
    def test_a_message_or_a_text_beside_the_delta(self, events: list[Any]) -> None:
        assert read(*events) == "Hi"

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (whole("whole"), "whole"),
            (whole("whole", None), "whole"),
            ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, "no"),
            ({"choices": [{"index": 1, "message": {"content": "whole"}}]}, "whole"),
            ({"choices": [{"delta": {"content": "whole"}}]}, "whole"),
            ({**whole("whole"), "usage": {"total_tokens": 3}, "error": None}, "whole"),
        ],
    )
    def test_one_json_object(self, body: Any, text: str) -> None:
        data = json.dumps(body).encode()
        for chunks in ([data], [b"\n \n", data, b"\n"], [b"\xef\xbb\xbf", data[:5], data[5:]]):
            texts, completion = receive(*chunks)
            assert texts == [text]
            assert completion.is_done

    @pytest.mark.parametrize(
        "prefix",
        [
            b"",
            b"\xef\xbb\xbf",
            b"\n\n",
            b": ping\n\n",
            b"event: message\n",
            b"id: 1\n",
            b"retry:1\n",
        ],
    )
    def test_the_first_bytes_decide_about_the_format(self, prefix: bytes) -> None:
        body = prefix + build_events(HI, STOP)
        assert receive(body)[0] == ["Hi"]
        assert receive(*(body[i : i + 1] for i in range(len(body))))[0] == ["Hi"]

    @pytest.mark.parametrize(
        "body",
        [
            build_events(HI, STOP).replace(b"\n\n", b"\n"),
            build_events(HI, STOP, DONE).replace(b"\n\n", b"\r"),
            build_events(HI)[:-1] + build_events(STOP),
            build_events(HI, DONE)[:-2],
            build_events(HI, "[DONE]\ndata: nonsense"),
            b"data: {\ndata: " + json.dumps(choice({"content": "Hi"}, "stop"))[1:].encode(),
        ],
    )
    def test_events_without_an_empty_line_between_or_after_them(self, body: bytes) -> None:
        assert receive(body)[0] == ["Hi"]

    @pytest.mark.parametrize(
        "deltas",
        [
            ["\ud83c", "\udf89"],
            ["\ud83c", "", "\udf89"],
            ["\ud83c", None, "\udf89"],
            ["\ud83c", "\udf89\ud83c", "\udf89"],
            [["\ud83c", "\udf89"]],
            ["a\ud83c", "\udf89b"],
        ],
    )
    def test_the_halves_of_a_character_in_two_deltas_are_joined(self, deltas: list[Any]) -> None:
        expected = "".join("".join(delta or "") for delta in deltas)
        expected = expected.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        assert read(*(choice({"content": delta}) for delta in deltas), DONE) == expected

    def test_nothing_is_yielded_for_half_a_character(self) -> None:
        completion = Completion()
        assert list(completion.receive_data(build_events(choice({"content": "\ud83c"})))) == []
        assert list(completion.receive_data(build_events(choice({"content": "\udf89"})))) == ["🎉"]

    def test_an_event_of_several_megabytes(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2**21}}
        events = [
            choice({"images": [image]}),
            choice({"content": [image]}),
            choice({"content": "", "image": "A" * 2**21}),
            choice({"content": "Hi" * 2**20}),
            STOP,
        ]
        assert read(*events) == "Hi" * 2**20


IGNORED: list[Any] = [
    b": keep-alive\n\n",
    b": OPENROUTER PROCESSING\n\n",
    b"id: 7\nretry: 1000\n\n",
    b"event: ping\n\n",
    b"event: ping\ndata: nonsense\n\n",
    b"event: ping\ndata: {}\n\n",
    b'event: ping\ndata: {"type": "ping", "time": "12 o\'clock"}\n\n',
    b'event: usage\ndata: {"total": 3, "plan": "a b"}\n\n',
    b'event: metadata\ndata: {"region": "EU West"}\n\n',
    b"event: heartbeat\n\n",
    b"event: unknown\ndata: {}\n\n",
    "ping",
    "keep-alive",
    "null",
    "[]",
    '""',
    {},
    {"choices": None},
    {"choices": []},
    {"choices": None, "usage": {"completion_tokens": 3}},
    {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "A model"},
    {"usage": {"prompt_tokens": 1, "cost_details": {"note": "not billed yet"}}},
    {"type": "ping"},
    {"type": "ping", "cost": "0.1 USD"},
    {"object": "billing", "amount": 0.1, "currency": "US dollar"},
    {"billing": {"amount": "0.1 USD", "plan": "pay as you go"}},
    {"metadata": {"provider": "Some Provider", "trace": "a b c"}},
    {"provider": "Some Provider", "model": "A model"},
    {"x_groq": {"id": "req_1", "usage": {"queue_time": 0.1}}},
    {"timings": {"predicted_ms": 1.5}, "stats": {"draft": "not used"}},
    {"choices": [], "prompt_filter_results": [{"content_filter_results": {"hate": {}}}]},
    {"event": "metadata", "sid": "cha000b"},
    {"code": 0, "message": "Success", "sid": "cha000b"},
    {"code": 200, "msg": "ok", "success": True},
    {"base_resp": {"status_code": 0, "status_msg": ""}},
    {"error": None, "errors": [], "error_code": 0, "error_msg": "", "exception": False},
    {"status": "in_progress", "progress": 0.5},
    {"obfuscation": "ZGF"},
    {"amazon-bedrock-guardrailAction": "NONE", "amazon-bedrock-trace": {"guardrail": {"a": "b c"}}},
    {"p": "abcdef"},
    {"note": "以上内容为AI生成"},
    {"cost": "0"},
    {"CreatedAt": "2025-10-06", "Successful": True, "HttpStatusCode": 0, "HeaderValues": None},
    {"extend_fields": {"traceId": "abc", "requestId": "def"}},
    {"region": "EU", "currency": "USD", "supported_formats": ["gguf", "mlx"]},
    {"unheard_of": "0b6c2a52-6f0f-4c1e-9d56-3f0a8e9c7b11"},
    {"unheard_of": "2026-11-26T10:00:00.123Z"},
    {"unheard_of": "req_011CSHoEeqs5C35K2UUqR7Fy"},
    {"unheard_of": "data:image/png;base64,AAAA"},
    {"unheard_of": [1, 2.5, True, None, [], {}, ""]},
    {"code": "200", "status_msg": "success", "ok": "true"},
    {"error": "none", "failed": 0, "cancelled": False, "incomplete_details": None},
    {"warnings": [{"code": "deprecated", "message": "Use another model."}]},
    {"model_info": {"arch": "llama", "format": "a format of two words"}},
    {"prompt": ["Tell me", "a story"], "search_queries": ["the weather"]},
    {"finish_reason": None},
    choice({"finish_reason": ""}, context={"citations": [{"content": "a source"}]}),
    '{"model": "a", "model": "b", "choices": [], "choices": []}',
    {"ping": 1763942400},
    {"search_results": [{"title": "A page", "text": "with a text"}], "citations": ["http://a"]},
    choice({"reasoning": "a thought", "reasoning_details": [{"text": "a thought"}]}),
    choice({"thinking": "a thought", "thinking_blocks": [{"text": "a thought"}]}),
    choice({"annotations": [{"url_citation": {"title": "A page", "content": "a text"}}]}),
    choice({"audio": {"transcript": "a text", "data": "AAAA"}}),
    choice({"function_call": {"name": "f", "arguments": "{ }"}, "token_id": 5}),
    choice({"provider_specific_fields": {"note": "a note"}, "role": "assistant"}),
    choice({"extra_content": {"google": {"thought_signature": "a b"}}}),
    choice({}, content_filter_results={"error": {"code": "content_filter_error"}}),
    choice({}, native_finish_reason="some words", stop_reason="\n\nUser: ", matched_stop="a b"),
    choice({}, token_ids=[1, 2], seed=5, content_filter_offsets={"start": 0}),
]


@pytest.mark.parametrize("event", IGNORED, ids=str)
def test_an_event_without_text_or_error_is_ignored(event: Any) -> None:
    for position in range(4):
        events: list[Any] = [choice({"content": "H"}), choice({"content": "i"}), STOP]
        events.insert(position, event)
        if position == 0 and isinstance(event, dict) and not event.get("choices"):
            # As the first event, so that the body does not begin with a brace.
            events.insert(0, b": start\n\n")
        assert read(*events) == "Hi"


MAY_HOLD_TEXT: list[Any] = [
    SECRET,
    f'{{"{SECRET}"',
    f'"{SECRET}"',
    f'["{SECRET}"]',
    "5",
    "[" * 100_000,
    "9" * 5000,
    b"s3cret\n\n",
    b'{"choices": [{"delta": {"content": "s3cret"}}]}\n\n',
    b"<html><body>s3cret</body></html>\n\n",
    b"event: unknown\ndata: s3cret\n\n",
    b'event: response.output_text.delta\ndata: {"delta": "s3cret"}\n\n',
    b'event: ping\ndata: {"content": "s3cret"}\n\n',
    b'event: metadata\ndata: {"choices": [{"delta": {"text": "s3cret"}}]}\n\n',
    {"content": SECRET},
    {"text": SECRET},
    {"delta": SECRET},
    {"delta": {"text": SECRET}},
    {"delta": {"unheard_of": [SECRET]}},
    {"response": SECRET, "done": False},
    {"message": {"role": "assistant", "content": SECRET}},
    {"output": [{"content": [{"type": "output_text", "text": SECRET}]}]},
    {"token": {"id": 5, "text": SECRET}},
    {"generated_text": SECRET},
    {"completion": SECRET},
    {"candidates": [{"content": {"parts": [{"text": SECRET}]}}]},
    {"data": {"choices": [{"delta": {"content": SECRET}}]}},
    {"type": "ping", "content": SECRET},
    {"metadata": {"text": SECRET}},
    {"unheard_of": f"a {SECRET}"},
    {"unheard_of": SECRET},
    {"unheard_of": "OK"},
    {"unheard_of": "42"},
    {"unheard_of": ["s3", "cret"]},
    {"unheard_of": [[{"deeper": SECRET}]]},
    {"x" * 100: SECRET},
    {"\u00e9": SECRET},
    {"value": SECRET},
    {"response": "OK"},
    {"message": "Success"},
    {"code": 0, "message": f"a {SECRET}"},
    {"code": 0, "data": "Success"},
    {"content": 42},
    {"generatedText": SECRET},
    {"assistant_message": SECRET},
    {"metadata": {"final_answer": SECRET}},
    {"x_vendor": {"content": SECRET}},
    {"x_text": SECRET},
    {"region": f"a {SECRET}"},
    {"state": f"a {SECRET}"},
    choice({"value": SECRET}),
    choice({"content": "", "piece": SECRET}),
    choice({}, chunk=SECRET),
    choice({"content": [{"type": "text", "text": "x", "more": SECRET}]}),
    '{"choices": [{"delta": {"content": "s3cret"}}], "choices": []}',
    '{"choices": [{"delta": {"content": "s3cret", "content": null}}]}',
    '{"choices": [{"delta": {}, "finish_reason": "error", "finish_reason": "stop"}]}',
    '{"choices": []}{"choices": [{"delta": {"content": "s3cret"}}]}',
    {"unheard_of": {"deeper": [f" {SECRET}"]}},
    {"unheard_of": "é"},
    {"detail": SECRET},
    {"choices": {"0": SECRET}},
    {"choices": SECRET},
    {"choices": [SECRET]},
    {"choices": [{"index": "0", "delta": {"content": SECRET}}]},
    {"choices": [{"index": True, "delta": {"content": SECRET}}]},
    {"choices": [{"index": 0, "text": SECRET}]},
    {"choices": [{"index": 0, "content": SECRET}]},
    {**choice({}), "content": SECRET},
    choice(SECRET),
    choice([SECRET]),
    choice({"text": SECRET}),
    choice({"output_text": SECRET}),
    choice({"content": 5}),
    choice({"content": {"text": SECRET}}),
    choice({"content": [5]}),
    choice({"content": [[SECRET]]}),
    choice({"content": [{"type": SECRET, "text": SECRET}]}),
    choice({"content": [{"type": "text", "text": {"value": SECRET}}]}),
    choice({"content": [{"type": "markdown", "markdown": f"a {SECRET}"}]}),
    choice({"refusal": {"text": SECRET}}),
    choice({"content": "x"}, text=SECRET),
    choice({"content": "x"}, message={"content": SECRET}),
    choice({"content": "x \ud83c"}),
    choice({"content": "\udf89"}),
    choice({"refusal": "\udc00"}),
]


@pytest.mark.parametrize("event", MAY_HOLD_TEXT, ids=str)
def test_what_may_hold_text_and_is_not_understood_is_an_error(event: Any) -> None:
    for end in ([STOP, DONE], [DONE]):
        text, error = fail(build_events(HI, event, *end))
        assert text.startswith("Hi")
        assert (error.status, error.code) == (502, "upstream_invalid")
        assert str(error).endswith("the model server sent an invalid response")


REPORTED: list[tuple[Any, int, str]] = [
    ({"error": {"message": SECRET}}, 502, "upstream_failed"),
    ({"error": SECRET}, 502, "upstream_failed"),
    ({"error": {}}, 502, "upstream_failed"),
    ({"error": True}, 502, "upstream_failed"),
    ({"error": {}, "choices": []}, 502, "upstream_failed"),
    ({**HI, "error": {"message": SECRET}}, 502, "upstream_failed"),
    (choice({"content": "x"}, error={"code": 502, "message": SECRET}), 502, "upstream_failed"),
    ({"errors": [{"message": SECRET}]}, 502, "upstream_failed"),
    ({"x_groq": {"error": SECRET}}, 502, "upstream_failed"),
    ({"object": "error", "message": SECRET}, 502, "upstream_failed"),
    ({"type": "error", "error": {"type": "overloaded_error"}}, 503, "upstream_unavailable"),
    ({"success": False, "msg": SECRET}, 502, "upstream_failed"),
    ({"code": 1302, "msg": SECRET}, 502, "upstream_failed"),
    ({"base_resp": {"status_code": 1004, "status_msg": SECRET}}, 502, "upstream_failed"),
    ({"status": "failed"}, 502, "upstream_failed"),
    ({"status": 500}, 502, "upstream_failed"),
    ({"error_msg": SECRET}, 502, "upstream_failed"),
    ({"errorMessage": SECRET}, 502, "upstream_failed"),
    ({"lastError": {"text": SECRET}}, 502, "upstream_failed"),
    ({"failure": SECRET}, 502, "upstream_failed"),
    ({"blockReason": "SAFETY"}, 502, "upstream_failed"),
    ({"cancelled": True}, 502, "upstream_failed"),
    ({"incomplete_details": {"reason": SECRET}}, 502, "upstream_failed"),
    ({"status": "timeout"}, 502, "upstream_failed"),
    ({"task_state": "CANCELLED"}, 502, "upstream_failed"),
    ({"type": "response.incomplete", "response": {}}, 502, "upstream_failed"),
    ({"code": "InvalidParameter", "request_id": "r"}, 502, "upstream_failed"),
    ({"ret": -1, "data": None}, 502, "upstream_failed"),
    ({"ok": False}, 502, "upstream_failed"),
    ({"success": "false"}, 502, "upstream_failed"),
    ({"message": SECRET, "code": 429}, 429, "upstream_busy"),
    ({"detail": "Rate limit", "status": 429}, 429, "upstream_busy"),
    (choice({"error": {"code": 429}}), 429, "upstream_busy"),
    (choice({"content": [{"type": "text", "text": "", "error": SECRET}]}), 502, "upstream_failed"),
    (b"event: timeout\ndata: {}\n\n", 502, "upstream_failed"),
    (b"event: cancelled\n\n", 502, "upstream_failed"),
    ({"exception": SECRET}, 502, "upstream_failed"),
    ({"error": {"code": 429, "message": SECRET}}, 429, "upstream_busy"),
    ({"error": {"code": "429", "message": SECRET}}, 429, "upstream_busy"),
    ({"error": {"type": "rate_limit_exceeded"}}, 429, "upstream_busy"),
    ({"error": {"status": "RESOURCE_EXHAUSTED"}}, 429, "upstream_busy"),
    ({"error": {"code": "context_length_exceeded"}}, 400, "context_length_exceeded"),
    ({"object": "error", "code": 400, "message": f"maximum context length {SECRET}"}, 400,
     "context_length_exceeded"),
    ({"error": {"code": 400, "message": SECRET}}, 400, "upstream_refused"),
    ({"error": {"code": 503, "message": "Loading model"}}, 503, "upstream_loading"),
    ({"error": {"code": 401, "message": SECRET}}, 502, "upstream_denied"),
    ({"error": {"code": "model_not_found"}}, 502, "upstream_refused"),
    (b"event: error\n\n", 502, "upstream_failed"),
    (b"event: error\ndata: s3cret\n\n", 502, "upstream_failed"),
    (b"event: error\ndata: {}\n\n", 502, "upstream_failed"),
    (b'event: error\ndata: {"code": 429}\n\n', 429, "upstream_busy"),
    (b'event: error\ndata: {"error": {"code": 429}}\n\n', 429, "upstream_busy"),
    (b"event: exception\ndata: s3cret\n\n", 502, "upstream_failed"),
    (b"event: response.failed\ndata: {}\n\n", 502, "upstream_failed"),
    (b'event: unknown\ndata: {"error": "s3cret"}\n\n', 502, "upstream_failed"),
    (b'event: ping\ndata: {"error": "s3cret"}\n\n', 502, "upstream_failed"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "status", "code"), REPORTED, ids=str)
def test_a_reported_error_is_what_it_says(event: Any, status: int, code: str) -> None:
    for before in ([], [HI], [HI, STOP]):
        # A body that begins with a brace is one JSON object.
        text, error = fail(build_events(b": start\n\n", *before, event, DONE))
        assert text == "Hi" * bool(before)
        assert (error.status, error.code) == (status, code)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 502, "upstream_invalid"),
        (b"[]", 502, "upstream_invalid"),
        (b"{}", 502, "upstream_invalid"),
        (b'{"choices": []}', 502, "upstream_invalid"),
        (b'{"id": 1, "usage": {}}', 502, "upstream_invalid"),
        (b'{"choices": [{"message": {"content": "\xff"}}]}', 502, "upstream_invalid"),
        (b'{"choices": [{"text": "s3cret"}]}', 502, "upstream_invalid"),
        (json.dumps(whole("x")).encode("utf-16"), 502, "upstream_invalid"),
        (json.dumps(whole("x")).encode("utf-16-le"), 502, "upstream_invalid"),
        (json.dumps(whole("x")).encode() * 2, 502, "upstream_invalid"),
        (json.dumps(whole("x", "error")).encode(), 502, "upstream_invalid"),
        (json.dumps(whole("x")).encode() + b"\n{}", 502, "upstream_invalid"),
        (b'[{"choices": [{"message": {"content": "s3cret"}}]}]', 502, "upstream_invalid"),
        (b'[null, {"error": {"code": 429}}]', 429, "upstream_busy"),
        (b'{"choices": [{"message": {}}], "finish_reason": "error"}', 502, "upstream_invalid"),
        (b'{"error": {"code": 429}}', 429, "upstream_busy"),
        (b'{"error": {"message": "prompt is too long"}}', 400, "context_length_exceeded"),
        (b'{"object": "error", "message": "s3cret", "code": 400}', 400, "upstream_refused"),
        (b"", 502, "upstream_invalid"),
        (b"\n\n", 502, "upstream_invalid"),
        (b"\xef\xbb", 502, "upstream_invalid"),
        (b"<html>s3cret", 502, "upstream_invalid"),
        (b"\x1f\x8b\x08", 502, "upstream_invalid"),
        (b"s3cret", 502, "upstream_invalid"),
    ],
)
def test_a_body_that_is_not_a_completion(body: bytes, status: int, code: str) -> None:
    error = fail(body)[1]
    assert (error.status, error.code) == (status, code)


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        (" eos ", "stop"),
        ("end_turn", "stop"),
        ("tool_calls", "tool_calls"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("model_context_window_exceeded", "length"),
        ("content_filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("sensitive", "content_filter"),
        ("max-tokens", "length"),
        ("content filter", "content_filter"),
    ],
)
def test_a_known_finish_reason_ends_the_completion(reason: str, shown: str) -> None:
    for last in (choice({}, reason), choice({"content": "!"}, reason)):
        texts, completion = receive(build_events(HI, last))
        assert texts[0] == "Hi"
        assert completion.is_finished
        assert completion.finish_reason == shown


@pytest.mark.parametrize(
    "reason",
    ["network_error", "ERROR", "timeout", "abort", "cancelled", "insufficient_system_resource",
     SECRET, 5, True, {"type": "stop"}],
)  # fmt: skip
def test_any_other_finish_reason_is_an_error_after_the_text(reason: Any) -> None:
    text, error = fail(build_events(HI, choice({"content": "!"}, reason), DONE))
    assert text == "Hi!"
    assert "unknown finish_reason" in error.detail


@pytest.mark.parametrize("name", ["finish_reason", "finishReason"])
@pytest.mark.parametrize(
    "place",
    [
        lambda fields: fields,
        lambda fields: {"choices": [], **fields},
        lambda fields: {"choices": [fields]},
        lambda fields: choice(fields, None),
        lambda fields: {"choices": [{"message": fields}]},
    ],
    ids=["event", "beside choices", "choice", "delta", "message"],
)
def test_a_finish_reason_counts_in_each_place(place: Any, name: str) -> None:
    _, completion = receive(build_events(HI, place({name: "length"}), DONE))
    assert completion.finish_reason == "length"
    assert "finish_reason" in fail(build_events(HI, place({name: "error"}), DONE))[1].detail


@pytest.mark.parametrize(
    ("reasons", "shown"),
    [
        (["length", "stop"], "length"),
        (["content_filter", None, "stop"], "content_filter"),
        (["stop", "length"], "length"),
        (["length", "content_filter"], "content_filter"),
        (["length", "x", "stop"], "stop"),
        (["length", "x"], "length"),
    ],
)
def test_an_early_end_is_not_hidden_by_a_later_stop(reasons: list[Any], shown: str) -> None:
    """Proxies add a `stop` of their own."""
    events = [choice({"content": "x"} if each == "x" else {}, each if each != "x" else None)
              for each in reasons]  # fmt: skip
    assert receive(build_events(HI, *events, DONE))[1].finish_reason == shown


@pytest.mark.parametrize(
    "messages", [["H", "Hi"], ["Hi", "Hi"], ["H", "i", "Hi, you"], ["Hi", None, "Hi"]]
)
def test_messages_that_may_repeat_their_text_are_an_error(messages: list[Any]) -> None:
    _, error = fail(build_events(*(whole(each, None) for each in messages), STOP, DONE))
    assert "repeats its text" in error.detail


@pytest.mark.parametrize("unread", ["0b6c2a52-6f0f-4c1e-9d56-3f0a8e9c7b11", "https://s3cret"])
def test_what_may_be_the_only_text_is_an_error(unread: str) -> None:
    """A model that was asked for an identifier or an address has no other answer."""
    body = build_events(choice({"unheard_of": unread}), STOP, DONE)
    assert "sent no text" in fail(body)[1].detail


@pytest.mark.parametrize("reason", [None, "", "null", "none", False])
def test_no_finish_reason_is_no_end(reason: Any) -> None:
    completion = Completion()
    list(completion.receive_data(build_events(choice({"content": "x"}, reason))))
    assert not completion.is_finished
    with pytest.raises(BackendError):
        list(completion.receive_eof())


@pytest.mark.parametrize(
    "body",
    [
        build_events(HI),
        build_events(HI)[:-5],
        build_events(HI) + b"data: [DO",
        build_events(HI, STOP) + b'data: {"choices": [{"delta": {"content": "s3c',
        build_events(HI, STOP) + b"data: \xf0\x9f",
        build_events(HI, {"usage": {}}),
        build_events(choice({"content": "\ud83c"}), STOP),
    ],
)
def test_a_stream_that_breaks_off_is_an_error(body: bytes) -> None:
    assert fail(body)[1].code == "upstream_invalid"


@pytest.mark.parametrize(
    ("pending", "is_finished"),
    [
        (b"data: " + json.dumps(STOP).encode(), True),
        (b"data: " + json.dumps(STOP).encode() + b"\n", True),
        (b"data: " + json.dumps(STOP).encode() + b"\r\n", True),
        (b"event: message\ndata: " + json.dumps({"finish_reason": "length"}).encode(), True),
        (b"data: " + json.dumps(HI).encode() + b"\ndata: [DONE]", True),
        (b"data: [DONE]", True),
        (b"data: [DONE]\n", True),
        (b"data: " + json.dumps(HI).encode(), False),
        (b"data: " + json.dumps(STOP).encode()[:-1], False),
        (b"data: " + json.dumps(STOP).encode()[:-2], False),
        (b"data: []", False),
        (b"data: {}", False),
        (b'data: {"choices": {}}', False),
        (b'data: {"choices": [null, []]}', False),
        (b"event: {}", False),
        (b"id: {}", False),
    ],
)
def test_an_end_without_an_empty_line_after_it(pending: bytes, is_finished: bool) -> None:
    completion = Completion()
    assert list(completion.receive_data(build_events(HI) + pending)) == ["Hi"]
    assert completion.is_finished is is_finished
    if is_finished:
        list(completion.receive_eof())


def test_an_end_that_goes_on_is_none() -> None:
    completion = Completion()
    list(completion.receive_data(b"data: [DONE]"))
    assert completion.is_finished
    with pytest.raises(BackendError):
        list(completion.receive_data(b"s3cret\n\n"))


def test_one_json_object_is_finished_before_the_end_of_the_body() -> None:
    data = json.dumps(whole("} x {", None)).encode()
    completion = Completion()
    parts = [data[: data.index(b"}") + 1], data[data.index(b"}") + 1 :], b" \n"]
    texts = [(list(completion.receive_data(part)), completion.is_finished) for part in parts]
    assert texts == [([], False), (["} x {"], True), ([], True)]
    with pytest.raises(BackendError, match="invalid response"):
        list(completion.receive_data(b"x"))


def test_json_is_not_parsed_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_completion, "_MAX_TRIED_BYTES", 1000)
    completion = Completion()
    list(completion.receive_data(b'{"choices": [{"message": {"content": "'))
    for _ in range(100):
        list(completion.receive_data(b"{}" * 10))
    list(completion.receive_data(b'"}}]}'))
    assert not completion.is_finished
    assert list(completion.receive_eof()) == ["{}" * 1000]


def test_is_done_and_is_finished() -> None:
    completion = Completion()
    states: list[tuple[bool, bool]] = []
    events: list[Any] = [HI, STOP, {"usage": {}}, DONE]
    for event in events:
        list(completion.receive_data(build_events(event)))
        states.append((completion.is_finished, completion.is_done))
    assert states == [(False, False), (True, False), (True, False), (True, True)]
    assert list(completion.receive_eof()) == []


@pytest.mark.parametrize("start", [b"{", b" \n", b'["'])
def test_json_is_limited(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_completion, "MAX_EVENT_BYTES", 1000)
    completion = Completion()
    list(completion.receive_data(start))
    with pytest.raises(BackendError) as caught:
        for _ in range(11):
            list(completion.receive_data(b" " * 100))
    assert "1000 bytes" in caught.value.detail


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_every_character_is_yielded(texts: list[str]) -> None:
    assert read(*(choice({"content": text}) for text in texts), STOP, DONE) == "".join(texts)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.data())
def test_every_character_is_yielded_however_it_is_escaped_and_split(
    text: str, data: st.DataObject
) -> None:
    halves = text.encode("utf-16-le")
    units = [
        halves[i : i + 2].decode("utf-16-le", "surrogatepass") for i in range(0, len(halves), 2)
    ]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(units)), max_size=5)))
    ends = [*cuts, len(units)]
    deltas = ["".join(units[start:end]) for start, end in zip([0, *cuts], ends, strict=True)]
    body = build_events(*(choice({"content": delta}) for delta in deltas), STOP)
    cut = data.draw(st.integers(0, len(body)))
    assert "".join(receive(body[:cut], body[cut:])[0]) == text


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


def as_event(data: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
    return f"{lines}\n".encode(errors="replace")


@given(st.lists(JSON.map(json.dumps).map(as_event) | st.binary() | st.text().map(as_event)))
def test_any_body_is_text_or_an_error(chunks: Iterable[bytes]) -> None:
    try:
        texts, _ = receive(*chunks)
    except BackendError:
        return
    "".join(texts).encode()
