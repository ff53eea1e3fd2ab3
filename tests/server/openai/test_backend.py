"""The gateway: what it asks the model server, and what of its answers the caller gets."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import ssl
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import anyio
import httpx
import pytest
import trustme
from runtimes import ASYNC_RUNTIMES, Runtime
from upstreams import (
    DONE,
    EVENTS,
    KEY,
    STOP,
    answer,
    answer_texts,
    choice,
    event,
    say,
    serve_gateway,
)

from cromicle_sdk import (
    APIStatusError,
    Client,
    ConfigurationError,
    IncompleteReplyError,
    InternalServerError,
    RateLimitError,
    Retry,
    Timeout,
    format_prompt,
)
from cromicle_sdk.server import BackendError, LocalServer, create_app, openai_backend
from cromicle_sdk.server.openai import client as _upstream
from cromicle_sdk.testing import (
    LAST_CHUNK,
    Connection,
    FaultyServer,
    RecordedRequest,
    build_chunk,
    build_head,
)

ONCE = Retry(attempts=1)
PROMPT = "a very private prompt"
# Far more than anything here takes, even on a busy machine; only a defect waits that long.
PATIENCE = 20.0


@contextlib.contextmanager
def connect(upstream: FaultyServer, **options: Any) -> Iterator[Client]:
    """A client of a gateway before the upstream."""
    with (
        serve_gateway(upstream, **options) as gateway,
        Client(base_url=gateway.base_url, token="abc", retry=ONCE) as client,
    ):
        yield client


def ask(upstream: FaultyServer, prompt: str = PROMPT, **options: Any) -> str:
    with connect(upstream, **options) as client:
        return client.chat(prompt).text


def refuse(upstream: FaultyServer, **options: Any) -> APIStatusError:
    """The error that a caller gets."""
    with pytest.raises(APIStatusError) as caught:
        ask(upstream, **options)
    return caught.value


def code_of(error: APIStatusError) -> str:
    code: str = json.loads(error.body)["error"]["code"]
    return code


class TestRequest:
    def test_it_is_a_streamed_chat_completion(self, faults: FaultyServer) -> None:
        answer_texts(faults, "ok")
        assert ask(faults, "Grüße 🎉") == "ok"
        (request,) = faults.requests
        assert (request.method, request.path) == ("POST", "/v1/chat/completions")
        assert request.body.decode() == (
            '{"model":"a-model","messages":[{"role":"user","content":"Grüße 🎉"}],"stream":true}'
        )
        assert request.headers["accept"] == EVENTS
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers["content-type"] == "application/json"
        assert request.headers["user-agent"].startswith("cromicle-sdk/")
        assert not {"authorization", "cookie"} & set(request.headers)

    def test_the_key_goes_in_its_header(self, faults: FaultyServer) -> None:
        answer_texts(faults, "ok")
        ask(faults, api_key=KEY)
        assert faults.requests[0].headers["authorization"] == f"Bearer {KEY}"

    @pytest.mark.parametrize(("key", "header"), [(None, "Basic dXNlcjpwYXNz"), ("k", "Bearer k")])
    def test_a_key_comes_before_what_the_url_has(
        self, key: str | None, header: str, faults: FaultyServer
    ) -> None:
        answer_texts(faults, "ok")
        base_url = faults.base_url.replace("://", "://user:pass@")
        backend = openai_backend(base_url, "m", api_key=key)
        with (
            LocalServer(app=create_app(backend)) as gateway,
            Client(base_url=gateway.base_url, token="abc") as client,
        ):
            client.chat("Hi")
        assert faults.requests[0].headers["authorization"] == header
        assert faults.requests[0].path == "/chat/completions"

    def test_the_system_comes_first(self, faults: FaultyServer) -> None:
        answer_texts(faults, "ok")
        ask(faults, "Hi", system="Be brief.")
        assert faults.requests[0].json["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ]

    CONVERSATION = (
        {"role": "system", "content": "Rhyme."},
        {"role": "user", "content": "One\ntwo"},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": ""},
    )

    def test_a_conversation_is_one_message(self, faults: FaultyServer) -> None:
        answer_texts(faults, "ok")
        prompt = format_prompt(self.CONVERSATION)
        ask(faults, prompt)
        assert faults.requests[0].json["messages"] == [{"role": "user", "content": prompt}]

    @pytest.mark.parametrize("system", [None, "Be brief."])
    def test_or_its_messages_again(self, system: str | None, faults: FaultyServer) -> None:
        answer_texts(faults, "ok")
        ask(faults, format_prompt(self.CONVERSATION), parse_roles=True, system=system)
        first = [] if system is None else [{"role": "system", "content": system}]
        assert faults.requests[0].json["messages"] == [*first, *self.CONVERSATION]

    def test_what_does_not_parse_is_one_message_all_the_same(self, faults: FaultyServer) -> None:
        answer_texts(faults, "ok")
        ask(faults, "Say\nUser: a\nAssistant:", parse_roles=True)
        assert faults.requests[0].json["messages"] == [
            {"role": "user", "content": "Say\nUser: a\nAssistant:"}
        ]

    def test_connections_are_used_again(self, faults: FaultyServer) -> None:
        answer_texts(faults, "one")
        faults.fail(429, retry_after=0)
        faults.fail(500, body="x" * 1000)
        answer_texts(faults, "two")
        with connect(faults) as client:
            assert client.chat("Hi").text == "one"
            for _ in range(2):
                with pytest.raises(APIStatusError):
                    client.chat("Hi")
            for _ in range(3):
                assert client.chat("Hi").text == "two"
        assert faults.connections == 1

    def test_a_connection_whose_answer_lingers_is_not(self, faults: FaultyServer) -> None:
        gate = threading.Event()
        head = build_head(content_type=EVENTS)
        body = "".join([*say("ok"), DONE])
        faults.raw([head + build_chunk(body), LAST_CHUNK], gate=gate)
        with connect(faults) as client:
            assert client.chat("Hi").text == "ok"
            assert client.chat("Hi").text == "ok"
        gate.set()
        assert faults.connections == 2

    @pytest.mark.parametrize("end", ["close", "reset", "keep"])
    def test_what_comes_of_the_body_after_the_answer_changes_nothing(
        self, end: Any, faults: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        head = build_head(content_type=EVENTS)
        rest = b"" if end != "keep" else b"no chunk size\r\n"
        faults.raw(head + build_chunk("".join([*say("ok"), DONE])) + rest, end=end)
        with connect(faults) as client:
            assert client.chat("Hi").text == "ok"
            assert client.chat("Hi").text == "ok"
        assert faults.connections == 2
        assert not caplog.records

    def test_over_tls_and_with_a_certificate_of_ones_own(self) -> None:
        authority = trustme.CA()
        with FaultyServer(ssl_context=_server_context(authority)) as upstream:
            answer_texts(upstream, "ok")
            assert ask(upstream, verify=_client_context(authority)) == "ok"
            error = refuse(upstream)
        assert (error.status_code, code_of(error)) == (502, "upstream_unreachable")


def _server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def _client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


class TestText:
    def test_a_delta_is_out_before_the_next_has_come(self, faults: FaultyServer) -> None:
        gate = threading.Event()
        answer(faults, *say("first", "second"), STOP, DONE, gate=gate)
        with connect(faults) as client, client.stream("Hi") as stream:
            assert next(stream) == "first"
            gate.set()
            assert list(stream) == ["second"]

    def test_every_delta_is_a_piece(self, faults: FaultyServer) -> None:
        texts = ["Grüße, ", "\n", "日本", " 🎉", "\u2028\x85", " end "]
        first = event(choice({"role": "assistant", "content": ""}))
        usage = event({"choices": [], "usage": {}})
        answer(
            faults, ": keep-alive\n\n", first, *say(*texts), ": ping\n\n", STOP, usage, DONE,
            delay=0.01,
        )  # fmt: skip
        with connect(faults) as client:
            reply = client.chat("Hi")
        assert reply.text == "".join(texts)
        assert reply.chunks == len(texts)

    @pytest.mark.parametrize(
        "events",
        [
            [*say("text"), STOP],
            [*say("text"), DONE],
            [*say("text"), STOP, DONE, "nonsense after the end\n\n"],
            [*say("text"), "event: ping\ndata: nonsense\n\n", "event: ping\ndata: {}\n\n", DONE],
            ["event: chunk\n" + part for part in [*say("text"), STOP]],
            ["\ufeff", *say("text"), "id: 7\n\n", DONE],
            ["data:[DONE]\n\n".join(["".join(say("text")), ""])],
        ],
    )
    def test_what_else_is_a_whole_answer(self, events: list[str], faults: FaultyServer) -> None:
        answer(faults, *events)
        assert ask(faults) == "text"

    def test_a_charset_in_the_content_type_changes_nothing(self, faults: FaultyServer) -> None:
        events = [*say("é"), STOP, DONE]
        faults.reply(chunks=events, content_type="Text/Event-Stream; charset=latin-1")
        assert ask(faults) == "é"

    def test_a_body_without_chunks_or_length_has_its_end_in_it(self, faults: FaultyServer) -> None:
        answer(faults, *say("text"), DONE, length="none")
        assert ask(faults) == "text"

    def test_a_server_that_does_not_stream(self, faults: FaultyServer) -> None:
        whole = {"choices": [{"index": 0, "message": {"content": "all of it"}}]}
        faults.reply(json.dumps(whole), content_type="application/json", length="exact")
        assert ask(faults) == "all of it"

    @pytest.mark.parametrize(
        ("reason", "words"), [("length", "early: length"), ("content_filter", "early: content_f")]
    )
    def test_an_early_end_is_logged(
        self, reason: str, words: str, faults: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        answer(faults, *say("half"), event(choice({}, reason)), DONE)
        assert ask(faults) == "half"
        assert words in caplog.text

    def test_no_text_at_all_is_an_empty_reply_and_logged(
        self, faults: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        answer(faults, event(choice({}, "my own words")), DONE)
        with connect(faults) as client:
            assert client.chat("Hi", strict=False).text == ""
        assert "without a text: no reason that is known" in caplog.text
        assert "my own words" not in caplog.text


REFUSED: list[tuple[int, int, str, str]] = [
    (400, 502, "upstream_refused", "says 400"),
    (401, 502, "upstream_denied", "refuses the key of this gateway"),
    (403, 502, "upstream_denied", "refuses the key of this gateway"),
    (404, 502, "upstream_refused", "usually ends in /v1"),
    (405, 502, "upstream_refused", "usually ends in /v1"),
    (418, 502, "upstream_refused", "says 418"),
    (422, 502, "upstream_refused", "says 422"),
    (429, 429, "upstream_busy", "says 429"),
    (500, 502, "upstream_failed", "says 500"),
    (503, 502, "upstream_failed", "still be loading"),
    (529, 502, "upstream_failed", "says 529"),
    (302, 502, "upstream_redirected", "redirects"),
    (204, 502, "upstream_refused", "says 204"),
]


class TestBeforeTheFirstText:
    @pytest.mark.parametrize(("status", "owed", "code", "words"), REFUSED)
    def test_a_status(
        self,
        status: int,
        owed: int,
        code: str,
        words: str,
        faults: FaultyServer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        faults.fail(status, body=None if status == 204 else f"{PROMPT} {KEY}")
        error = refuse(faults, api_key=KEY)
        assert (error.status_code, code_of(error)) == (owed, code)
        assert error.retry_after is None
        (record,) = caplog.records
        assert record.levelname == ("WARNING" if status == 429 else "ERROR")
        assert words in record.getMessage()
        assert error.request_id
        assert error.request_id in record.getMessage()
        assert len(faults.requests) == 1

    @pytest.mark.parametrize("behave", ["stall", "drip"])
    def test_a_refusal_does_not_wait_for_its_reason(
        self, behave: str, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_upstream, "REASON_SECONDS", 0.2)
        gate = threading.Event()
        head = build_head(429, headers=[("retry-after", "7")])
        pieces = [head, build_chunk('{"error":')] + [build_chunk(" ")] * 2000
        faults.raw(pieces, delay=0.05, gate=gate if behave == "stall" else None)
        started = time.monotonic()
        error = refuse(faults)
        assert isinstance(error, RateLimitError)
        assert error.retry_after == 7
        assert time.monotonic() - started < 30
        faults.wait_until_closed()

    def test_a_redirect_is_not_followed(self, faults: FaultyServer) -> None:
        with FaultyServer() as other:
            faults.redirect(307, location=other.base_url)
            assert refuse(faults, api_key=KEY).status_code == 502
            assert other.requests == []

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [("7", 7.0), (0, 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("-1", None), ("nan", None),
         ("soon", None), ("1_000", None), ("inf", None)],
    )  # fmt: skip
    def test_a_sound_retry_after_is_passed_on(
        self, value: str, seconds: float | None, faults: FaultyServer
    ) -> None:
        faults.fail(429, retry_after=value).fail(503, retry_after=value)
        busy = refuse(faults)
        assert isinstance(busy, RateLimitError)
        assert busy.retry_after == seconds
        loading = refuse(faults)
        assert (loading.status_code, loading.retry_after) == (502, seconds)

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({"error": {"code": "context_length_exceeded"}}, "400 (context_length_exceeded)"),
            ({"error": {"code": None, "type": "invalid_request_error"}}, "400 (invalid_request"),
            ({"error": {"code": PROMPT, "type": KEY, "message": PROMPT}}, "400"),
            ({"error": {"code": [PROMPT], "type": {"a": KEY}}}, "400"),
            ({"error": PROMPT}, "400"),
            ([PROMPT], "400"),
            (PROMPT, "400"),
        ],
    )
    def test_a_reason_is_one_of_the_known_words(
        self, body: Any, words: str, faults: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        faults.fail(400, body=body if body is PROMPT else json.dumps(body))
        error = refuse(faults, api_key=KEY)
        assert words in error.body
        for said in (error.body, caplog.text):
            assert PROMPT not in said
            assert KEY not in said

    def test_nobody_listens(self, faults: FaultyServer, caplog: pytest.LogCaptureFixture) -> None:
        faults.stop()
        error = refuse(faults)
        assert (error.status_code, code_of(error)) == (502, "upstream_unreachable")
        assert "Connection refused" in caplog.text
        # Where the model server is, is nobody's business.
        assert "127.0.0.1" not in error.body

    @pytest.mark.parametrize("fault", ["cut", "reset"])
    def test_it_hangs_up(self, fault: str, faults: FaultyServer) -> None:
        getattr(faults, fault)()
        error = refuse(faults)
        assert (error.status_code, code_of(error)) == (502, "upstream_unreachable")

    def test_what_is_no_http_is_not_quoted(
        self, faults: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        line = f"HTTP/1.1 200 OK\r\n{PROMPT} {KEY}\r\n\r\n".encode()
        faults.raw(line, end="close")
        error = refuse(faults, api_key=KEY)
        assert (error.status_code, code_of(error)) == (502, "upstream_unreachable")
        assert PROMPT not in caplog.text + error.body
        assert KEY not in caplog.text + error.body

    @pytest.mark.parametrize("timeout", [Timeout(first_byte=0.1), Timeout(total=0.1), 0.1])
    @pytest.mark.parametrize("has_head", [False, True])
    def test_it_does_not_begin_in_time(
        self, timeout: float | Timeout, has_head: bool, faults: FaultyServer
    ) -> None:
        if has_head:
            faults.raw([build_head(content_type=EVENTS), b""], gate=threading.Event())
        else:
            faults.stall()
        error = refuse(faults, timeout=timeout)
        assert (error.status_code, code_of(error)) == (504, "upstream_timeout")
        faults.wait_until_closed()

    def test_no_connection_in_time(self, faults: FaultyServer) -> None:
        faults.black_hole()
        error = refuse(faults, timeout=Timeout(connect=0.1))
        assert (error.status_code, code_of(error)) == (504, "upstream_timeout")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"content_type": "text/html"}, "neither a stream of events nor JSON"),
            ({"content_type": None}, "neither a stream of events nor JSON"),
            ({"headers": {"content-encoding": "gzip"}, "content_type": EVENTS}, "compressed"),
            ({"content_type": "application/json"}, "JSON object"),
            ({"content_type": EVENTS}, "finish_reason"),
        ],
    )
    def test_it_answers_nonsense(
        self,
        options: dict[str, Any],
        words: str,
        faults: FaultyServer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        faults.reply(PROMPT, **options)
        error = refuse(faults)
        assert (error.status_code, code_of(error)) == (502, "upstream_invalid")
        assert words in caplog.text
        assert PROMPT not in caplog.text

    @pytest.mark.parametrize(
        "events",
        [
            [event({"error": {"message": PROMPT}}), DONE],
            [f"event: error\ndata: {PROMPT}\n\n", DONE],
            ["event: failed\n" + event({"error": {"message": PROMPT}}), DONE],
            [f"data: {PROMPT}\n\n"],
            [event(choice({"role": "assistant"}))],
            [b"data: \xff\n\n"],
        ],
    )
    def test_its_stream_goes_wrong_at_once(
        self, events: list[Any], faults: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        answer(faults, *events)
        error = refuse(faults)
        assert (error.status_code, code_of(error)) == (502, "upstream_invalid")
        assert PROMPT not in caplog.text

    def test_an_endless_line(self, faults: FaultyServer) -> None:
        head = build_head(content_type=EVENTS) + build_chunk("data: ")

        def flood(connection: Connection, request: RecordedRequest) -> None:
            connection.send(head)
            while True:
                connection.send(build_chunk("x" * 65536))

        faults.script(flood)
        error = refuse(faults)
        assert (error.status_code, code_of(error)) == (502, "upstream_invalid")
        faults.wait_until_closed()

    def test_an_endless_answer_in_one_piece(
        self, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cromicle_sdk.server.openai.backend._MAX_WHOLE_BYTES", 100_000)
        head = build_head(content_type="application/json")
        faults.script(lambda connection, _: _send_for_ever(connection, head))
        assert code_of(refuse(faults)) == "upstream_invalid"
        faults.wait_until_closed()

    def test_an_endless_error(self, faults: FaultyServer) -> None:
        faults.flood("x", status=500)
        assert code_of(refuse(faults)) == "upstream_failed"
        faults.wait_until_closed()

    def test_a_defect_of_the_gateway_is_a_500(
        self, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any, **options: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("cromicle_sdk.server.openai.client.Call.send", fail)
        error = refuse(faults)
        assert (error.status_code, code_of(error)) == (500, "backend_failed")


def _send_for_ever(connection: Connection, head: bytes) -> None:
    connection.send(head)
    while True:
        connection.send(build_chunk("x" * 65536))


class TestInTheMiddle:
    @pytest.mark.parametrize(
        ("rest", "end"),
        [
            ([], "close"),
            ([], "reset"),
            ([LAST_CHUNK], "keep"),
            ([build_chunk(STOP)], "close"),
            ([build_chunk(event({"error": {"message": PROMPT}})), LAST_CHUNK], "keep"),
            ([build_chunk("event: error\ndata: {}\n\n"), LAST_CHUNK], "keep"),
            ([build_chunk(f"data: {PROMPT}\n\n"), LAST_CHUNK], "keep"),
            ([build_chunk(b"data: \xe4\n\n"), LAST_CHUNK], "keep"),
            ([build_chunk('data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n')], "keep"),
            ([build_chunk(event(choice({}, "error"))), LAST_CHUNK], "keep"),
            ([b"nonsense\r\n"], "keep"),
        ],
    )
    def test_the_reply_is_cut(
        self,
        rest: list[bytes],
        end: Any,
        faults: FaultyServer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        gate = threading.Event()
        begin = build_head(content_type=EVENTS) + build_chunk("".join(say("Hello, ", "wor")))
        faults.raw([begin, b"".join(rest)], gate=gate, end=end)
        with connect(faults, api_key=KEY) as client, client.stream(PROMPT) as stream:
            assert next(stream) == "Hello, "
            gate.set()
            with pytest.raises(IncompleteReplyError) as caught:
                stream.read()
        assert caught.value.partial_text == "Hello, wor"
        (record,) = caplog.records
        assert record.name == "cromicle_sdk.server"
        assert PROMPT not in caplog.text

    def test_it_falls_silent(self, faults: FaultyServer, caplog: pytest.LogCaptureFixture) -> None:
        begin = build_head(content_type=EVENTS) + build_chunk(say("Hello")[0])
        faults.raw([begin, b""], gate=threading.Event())
        with (
            connect(faults, timeout=Timeout(stall=0.1)) as client,
            pytest.raises(IncompleteReplyError) as caught,
        ):
            client.chat("Hi")
        assert caught.value.partial_text == "Hello"
        assert "fell silent" in caplog.text
        faults.wait_until_closed()

    def test_comments_keep_it_alive_until_its_time_is_up(self, faults: FaultyServer) -> None:
        def comment(connection: Connection, request: RecordedRequest) -> None:
            connection.send(build_head(content_type=EVENTS) + build_chunk(say("Hello")[0]))
            while True:
                connection.send(build_chunk(": keep-alive\n\n"))
                connection.pause(0.01)

        faults.script(comment)
        with (
            connect(faults, timeout=Timeout(stall=5, total=0.5)) as client,
            pytest.raises(IncompleteReplyError),
        ):
            client.chat("Hi")
        faults.wait_until_closed()


class TestCallers:
    @pytest.mark.parametrize("begun", [False, True])
    def test_a_caller_that_goes_away_ends_the_call_upstream(
        self, begun: bool, faults: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        if begun:
            answer(faults, *say("Hello", "never"), gate=threading.Event())
        else:
            faults.stall()
        with connect(faults) as client:
            stream = client.stream("Hi")
            reading = threading.Thread(target=_read_to_its_end, args=(stream,))
            reading.start()
            faults.wait_for_requests(1)
            while begun and not stream.text:
                reading.join(0.001)
            left = time.monotonic()
            stream.close()
            faults.wait_until_closed()
            # It takes some milliseconds; this allows for a busy machine.
            assert time.monotonic() - left < 2
            reading.join(PATIENCE)
        assert not caplog.records

    def test_a_caller_that_does_not_read_stops_the_model_server(self, faults: FaultyServer) -> None:
        sent = 0
        blocked = threading.Event()
        piece = build_chunk("".join(say("x" * 1000) * 50))

        def flood(connection: Connection, request: RecordedRequest) -> None:
            nonlocal sent
            connection.send(build_head(content_type=EVENTS))
            while True:
                connection.send(piece)
                sent += len(piece)

        faults.script(flood)
        with connect(faults) as client, client.stream("Hi") as stream:
            next(stream)
            seen = -1
            # Three looks in a row that see no more: its send blocks.
            while seen != sent:
                seen = sent
                blocked.wait(0.3)
            # Buffers of four sockets hold some megabytes; without brakes it is far more.
            assert sent < 50_000_000
            assert faults.open_connections == 1
        faults.wait_until_closed()

    def test_several_at_once_get_their_own(self, faults: FaultyServer) -> None:
        def echo(connection: Connection, request: RecordedRequest) -> None:
            text = request.json["messages"][0]["content"]
            connection.send(build_head(content_type=EVENTS))
            for word in text.split(" "):
                connection.send(build_chunk(say(word + " ")[0]))
                connection.pause(0.001)
            connection.send(build_chunk(STOP + DONE) + LAST_CHUNK)

        faults.script(echo)
        with connect(faults) as client:
            texts = [f"{number} " * 20 for number in range(20)]
            replies: dict[str, str] = {}

            def work(text: str) -> None:
                replies[text] = client.chat(text).text

            threads = [threading.Thread(target=work, args=(text.strip(),)) for text in texts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
        assert replies == {text.strip(): text for text in texts}


def _read_to_its_end(stream: Any) -> None:
    with contextlib.suppress(Exception):
        stream.read()


@pytest.fixture(params=ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def loop(request: pytest.FixtureRequest) -> Runtime:
    runtime: Runtime = request.param
    return runtime


class TestAsABackend:
    """Without the app, on every event loop."""

    def test_it_yields_the_texts(self, loop: Runtime, faults: FaultyServer) -> None:
        answer_texts(faults, "one ", "two")
        backend: Any = openai_backend(faults.base_url, "m")

        async def scenario() -> None:
            assert [text async for text in backend("Hi")] == ["one ", "two"]
            assert [text async for text in backend("Hi")] == ["one ", "two"]

        loop.run(scenario)
        # On another loop it begins afresh.
        loop.run(scenario)
        assert faults.connections == 2

    def test_one_that_is_dropped_leaves_no_socket(
        self, loop: Runtime, faults: FaultyServer
    ) -> None:
        answer_texts(faults, "ok")

        async def scenario(backend: Any) -> None:
            assert [text async for text in backend("Hi")] == ["ok"]

        def use_in_a_cycle() -> None:
            backend: Any = openai_backend(faults.base_url, "m")
            loop.run(lambda: scenario(backend))
            # Collected by itself it would be easy.
            backend.itself = backend

        use_in_a_cycle()
        assert faults.open_connections == 1
        gc.collect()
        faults.wait_until_closed()

    def test_leaving_in_the_middle_closes_the_connection(
        self, loop: Runtime, faults: FaultyServer
    ) -> None:
        answer(faults, *say("one", "two"), gate=threading.Event())
        backend: Any = openai_backend(faults.base_url, "m")

        async def scenario() -> None:
            async with aclosing(backend("Hi")) as texts:
                assert await texts.__anext__() == "one"
            await anyio.to_thread.run_sync(faults.wait_until_closed)

        loop.run(scenario)

    def test_a_cancelled_call_closes_the_connection(
        self, loop: Runtime, faults: FaultyServer
    ) -> None:
        answer(faults, *say("one", "two"), gate=threading.Event())
        backend: Any = openai_backend(faults.base_url, "m")

        async def scenario() -> None:
            async with aclosing(backend("Hi")) as texts:
                assert await texts.__anext__() == "one"
                with anyio.move_on_after(0.01) as scope:
                    await texts.__anext__()
                assert scope.cancelled_caught
            await anyio.to_thread.run_sync(faults.wait_until_closed)

        loop.run(scenario)

    def test_no_frame_of_an_error_shows_the_key(self, loop: Runtime, faults: FaultyServer) -> None:
        faults.fail(401)
        faults.raw(f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode(), end="close")
        answer(faults, *say("one"))
        backend: Any = openai_backend(faults.base_url, "m", api_key=KEY)

        async def scenario() -> None:
            for _ in range(3):
                with pytest.raises(BackendError) as caught:
                    async for _ in backend("Hi"):
                        pass
                assert KEY not in _show_frames(caught.value)

        loop.run(scenario)

    def test_no_frame_of_a_cancellation_shows_the_key(
        self, loop: Runtime, faults: FaultyServer
    ) -> None:
        # The request is never read, so that it is cancelled while it is being sent.
        faults.stall(when="head")
        backend: Any = openai_backend(faults.base_url, "m", api_key=KEY)
        shown: list[str] = []

        async def scenario() -> None:
            with anyio.move_on_after(0.5):
                try:
                    async for _ in backend("x" * 20_000_000):
                        pass
                except BaseException as error:
                    shown.append(_show_frames(error))
                    raise

        loop.run(scenario)
        assert len(shown) == 1
        assert KEY not in shown[0]


def _show_frames(error: BaseException) -> str:
    """The error, its causes and every frame of them, as a traceback with locals prints it."""
    shown: list[str] = []
    link: BaseException | None = error
    while link is not None:
        shown.append(repr(link))
        for frame, _ in traceback.walk_tb(link.__traceback__):
            if frame.f_code.co_filename != __file__:
                shown.append(repr(frame.f_locals))
        link = link.__cause__ or link.__context__
    return "\n".join(shown)


class TestSecrets:
    def test_nothing_is_logged_at_any_level(
        self, faults: FaultyServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(1)
        answer_texts(faults, "a private answer")
        faults.fail(400, body=f"{PROMPT} {KEY}")
        answer(faults, *say("half"))
        with connect(faults, api_key=KEY) as client:
            client.chat(PROMPT)
            for _ in range(2):
                with pytest.raises((InternalServerError, IncompleteReplyError)):
                    client.chat(PROMPT)
        # asyncio logs its selector, and httpcore is the client's, too.
        logged = [r for r in caplog.records if r.name.startswith("cromicle_sdk")]
        text = "".join(logging.Formatter().format(record) for record in logged)
        assert "upstream_refused" in text
        for secret in (KEY, PROMPT, "private", "half"):
            assert secret not in text

    def test_the_backend_shows_no_key(self) -> None:
        backend = openai_backend("http://127.0.0.1/v1", "m", api_key=KEY)
        closure: Any = backend
        assert KEY not in repr([cell.cell_contents for cell in closure.__closure__])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"base_url": "localhost:1"}, "base_url"),
        ({"base_url": None}, "base_url"),
        ({"base_url": "http://u:p@/x"}, "base_url"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"model": "m\ud800"}, "model"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "s3cret\n"}, "api_key"),
        ({"api_key": "s3cr\xe9t"}, "api_key"),
        ({"api_key": b"s3cret"}, "api_key"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"system": ""}, "system"),
        ({"system": ["s"]}, "system"),
        ({"system": "\udc00"}, "system"),
        ({"parse_roles": 1}, "parse_roles"),
        ({"proxy": "nonsense"}, "proxy"),
        ({"verify": False}, "verify"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], name: str) -> None:
    given: dict[str, Any] = {"base_url": "http://h/v1", "model": "m", "api_key": "s3cret-too"}
    with pytest.raises(ConfigurationError, match=name) as caught:
        openai_backend(**{**given, **options})
    assert "s3cr" not in _show_frames(caught.value)


class TestErrors:
    @pytest.mark.parametrize("status", [399, 600, 200])
    def test_a_status_that_is_no_refusal(self, status: int) -> None:
        with pytest.raises(ValueError, match="status"):
            BackendError(status, "code", "message")

    @pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
    def test_a_wait_that_is_none(self, seconds: float) -> None:
        with pytest.raises(ValueError, match="retry_after"):
            BackendError(503, "code", "message", retry_after=seconds)

    def test_any_backend_may_choose_its_refusal(self, caplog: pytest.LogCaptureFixture) -> None:
        async def backend(prompt: str) -> Any:
            if not prompt:
                raise BackendError(451, "banned", "not here", retry_after=1.2, detail="why\nso")
            yield prompt

        with LocalServer(backend) as server:
            body = {"message": "", "token": "abc"}
            body["hash"] = hashlib.sha256(b"abc").hexdigest()
            refused = httpx.post(server.base_url + "/chat", json=body)
        assert refused.status_code == 451
        assert refused.headers["retry-after"] == "2"
        assert refused.json() == {"error": {"code": "banned", "message": "not here"}}
        (record,) = caplog.records
        assert "banned, why so" in record.getMessage()

    def test_it_says_what_it_is(self) -> None:
        assert str(BackendError(502, "code", "message")) == "502 code: message"
