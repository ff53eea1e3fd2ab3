"""Status, headers and bytes become text or an error, however the bytes are cut."""

from __future__ import annotations

import codecs
import copy
import dataclasses
import itertools
import json
import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cromicle_sdk._core.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    CromicleError,
    IncompleteReplyError,
    InternalServerError,
    RedirectError,
    ReplyDecodeError,
    ReplyTooLargeError,
    UnexpectedContentError,
    status_error_class,
)
from cromicle_sdk._core.options import Options, Retry, Timeout
from cromicle_sdk._core.request import build_request, hash_prompt
from cromicle_sdk._core.response import Head, Headers, Reply, ResponseDecoder, parse_retry_after
from cromicle_sdk._core.secrets import Secret

CANARY = "sk-canary-123456"
DIGEST = hash_prompt(CANARY, "Hi")
URL = "http://server.test/chat"
BOM = b"\xef\xbb\xbf"
# 1- to 4-byte characters, all the newlines, and a mark that is not the first character.
TEXT = "aé€😀\r\n\u0000\u2028\r\ufeffß"
CHUNKED = ((b"Content-Type", b"text/plain"), (b"Transfer-Encoding", b"chunked"))
LIMIT = 64 * 1024


def build_options(**changes: Any) -> Options:
    values: dict[str, Any] = {
        "base_url": "http://user:hunter2@server.test",
        "token": Secret(CANARY),
        "timeout": Timeout(),
        "retry": Retry(),
        "max_reply_bytes": 1_000_000,
        "strict": True,
        "headers": None,
    }
    return Options.build(**{**values, **changes})


FAILED = "The server failed; try again later, or contact its operator."


def build_decoder(
    *, redact: Callable[[str], str] = str, attempt: int = 2, **changes: Any
) -> ResponseDecoder:
    return ResponseDecoder(build_options(**changes), redact=redact, started=10.0, attempt=attempt)


def receive_head(
    decoder: ResponseDecoder,
    status_code: int = 200,
    headers: Iterable[tuple[bytes, bytes]] = CHUNKED,
    http_version: bytes = b"HTTP/1.1",
    *,
    came_over_network: bool = True,
) -> None:
    head = Head(status_code, headers, http_version, came_over_network)
    decoder.receive_head(head, wall_clock=1_000_000_000.0)


def receive(
    chunks: Iterable[bytes], *, strict: bool = True, max_reply_bytes: int = 1_000_000
) -> tuple[str, CromicleError | None]:
    """What is yielded, and the error that ended it."""
    decoder = build_decoder(strict=strict, max_reply_bytes=max_reply_bytes)
    receive_head(decoder)
    yielded, failure = "", None
    try:
        for chunk in chunks:
            yielded += decoder.receive_data(chunk, now=11.0)
        yielded += decoder.receive_eof(now=12.0)
    except CromicleError as error:
        failure = error
    if failure is None:
        assert decoder.reply.text == decoder.text == yielded
    else:
        assert decoder.text.startswith(yielded)
        assert isinstance(failure, UnexpectedContentError) or failure.partial_text == decoder.text
    return yielded, failure


def receive_answer(
    status_code: int,
    body: bytes = b"",
    *headers: tuple[bytes, bytes],
    redact: Callable[[str], str] = str,
    **changes: Any,
) -> CromicleError:
    """The error that a response raises."""
    decoder = build_decoder(redact=redact, **changes)
    with pytest.raises(CromicleError) as caught:
        receive_head(decoder, status_code, headers)
        assert not decoder.is_accepted
        assert decoder.receive_data(body, now=11.0) == ""
        decoder.receive_eof(now=12.0)
    assert caught.value.attempts == 2
    return caught.value


def status_error(
    status_code: int, body: bytes = b"", *headers: tuple[bytes, bytes], **changes: Any
) -> APIStatusError:
    error = receive_answer(status_code, body, *headers, **changes)
    assert isinstance(error, APIStatusError)
    return error


def split(data: bytes, *cuts: int) -> list[bytes]:
    edges = (0, *cuts, len(data))
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def one_by_one(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# Text, however it is cut


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("mark", [b"", BOM])
def test_every_cut_gives_the_same_text(mark: bytes, strict: bool) -> None:
    data = mark + TEXT.encode()
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            assert receive(split(data, first, second), strict=strict) == (TEXT, None)
    assert receive(one_by_one(data), strict=strict) == (TEXT, None)


@settings(deadline=None, max_examples=200)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.lists(st.integers(0, 120), max_size=5),
    st.booleans(),
)
def test_any_cut_of_any_text(text: str, cuts: list[int], strict: bool) -> None:
    data = text.encode()
    expected = text.removeprefix("\ufeff")
    yielded, error = receive(split(data, *sorted(min(c, len(data)) for c in cuts)))
    assert yielded == expected
    assert (error is None) == bool(expected)
    assert receive(one_by_one(data), strict=False) == (expected, None)


def test_never_half_a_character_and_each_as_soon_as_it_is_whole() -> None:
    decoder = build_decoder()
    receive_head(decoder)
    texts = [decoder.receive_data(chunk, now=11.0) for chunk in one_by_one("é😀a".encode())]
    assert texts == ["", "é", "", "", "", "😀", "a"]
    assert decoder.receive_eof(now=12.0) == ""


BYTES = st.binary(max_size=24) | st.lists(
    st.sampled_from(
        [BOM, b"\xef", b"\xef\xbb", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
        + [c.encode() for c in "aé€😀\ufeff\r\n"]
        + [b"\xe2\x82", b"\xf0\x9f\x98", b"\x80"]
    ),
    max_size=8,
).map(b"".join)


def expected_outcome(
    body: bytes, *, strict: bool, limit: int
) -> tuple[type[CromicleError] | None, str]:
    """By the rules alone, from the whole body: the error's class, and all the text there is."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict" if strict else "replace")
    try:
        text = decoder.decode(body[:limit])
        if len(body) > limit:
            return ReplyTooLargeError, text.removeprefix("\ufeff")
        text += decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        whole = body[:limit]
        good = next(
            whole[:end].decode() for end in range(len(whole), -1, -1) if _is_utf8(whole[:end])
        )
        return ReplyDecodeError, good.removeprefix("\ufeff")
    text = text.removeprefix("\ufeff")
    return (UnexpectedContentError if strict and not text else None), text


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@settings(deadline=None, max_examples=600)
@given(BYTES, st.booleans(), st.integers(1, 30), st.lists(st.integers(0, 24), max_size=3))
def test_any_body_whole_cut_or_byte_by_byte(
    body: bytes, strict: bool, limit: int, cuts: list[int]
) -> None:
    kind, text = expected_outcome(body, strict=strict, limit=limit)
    for chunks in (
        [body],
        one_by_one(body),
        split(body, *sorted(min(cut, len(body)) for cut in cuts)),
    ):
        yielded, error = receive(chunks, strict=strict, max_reply_bytes=limit)
        assert type(error) is (type(None) if kind is None else kind)
        if error is None:
            assert yielded == text
        else:
            assert text.startswith(yielded)
            assert error.partial_text == ("" if kind is UnexpectedContentError else text)


@settings(deadline=None, max_examples=300)
@given(BYTES, st.booleans(), st.integers(1, 30))
def test_an_error_says_the_same_however_the_bytes_came(
    body: bytes, strict: bool, limit: int
) -> None:
    _, whole = receive([body], strict=strict, max_reply_bytes=limit)
    _, chunks = receive(one_by_one(body), strict=strict, max_reply_bytes=limit)
    assert whole == chunks


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.integers(0, 40))
def test_a_cut_reply_leaves_an_exact_prefix(text: str, place: int) -> None:
    data = text.encode()
    for strict in (True, False):
        decoder = build_decoder(strict=strict)
        receive_head(decoder)
        decoder.receive_data(data[:place], now=11.0)
        error = decoder.receive_failure(APIConnectionError("x"))
        assert isinstance(error, IncompleteReplyError)
        assert text.removeprefix("\ufeff").startswith(error.partial_text)
        assert len(error.partial_text.encode()) >= len(data[:place]) - len(BOM) - 3


@pytest.mark.parametrize(
    ("body", "problem", "partial_text"),
    [
        (b"ab\xff", "invalid start byte at byte 2", "ab"),
        (b"a\xc3\xa9\xe2\x28", "invalid continuation byte at byte 3", "aé"),
        (b"ab\xe2\x82", "unexpected end of data at byte 2", "ab"),
        (b"\xed\xa0\x80", "invalid continuation byte at byte 0", ""),
        (BOM + b"a\x80", "invalid start byte at byte 4", "a"),
        (b"\xff\xfeh\0i\0", "invalid start byte at byte 0", ""),
    ],
)
def test_what_is_not_utf8(body: bytes, problem: str, partial_text: str) -> None:
    for chunks in ([body], one_by_one(body)):
        _, error = receive(chunks)
        assert isinstance(error, ReplyDecodeError)
        assert str(error) == (
            f"The reply from {URL} is not UTF-8: {problem}. The text before that is in "
            "partial_text; strict=False accepts such bytes."
        )
        assert error.partial_text == partial_text
        assert error.attempts == 2
        assert error.__context__ is None
    assert receive([body], strict=False) == (
        body.decode(errors="replace").removeprefix("\ufeff"),
        None,
    )


def test_the_place_of_a_bad_byte_is_right_past_the_limit_too() -> None:
    _, error = receive([b"abc\xff" + b"x" * 50], max_reply_bytes=10)
    assert isinstance(error, ReplyDecodeError)
    assert "at byte 3." in str(error)


def test_the_summary_of_a_reply_counts_the_chunks_before_a_bad_byte() -> None:
    decoder = build_decoder()
    receive_head(decoder)
    decoder.receive_data(b"a", now=11.0)
    decoder.receive_data(b"b", now=11.0)
    with pytest.raises(ReplyDecodeError):
        decoder.receive_data(b"c\xff", now=11.0)
    assert decoder.text == "abc"
    assert "4 bytes in 3 chunks" in decoder.summary


@pytest.mark.parametrize(
    ("size", "limit", "fits"),
    [(1, 1, True), (10, 10, True), (11, 10, False), (1000, 10, False), (2, 1, False)],
)
def test_max_reply_bytes(size: int, limit: int, fits: bool) -> None:
    for chunks in ([b"x" * size], one_by_one(b"x" * size)):
        _, error = receive(chunks, max_reply_bytes=limit)
        if fits:
            assert error is None
        else:
            assert isinstance(error, ReplyTooLargeError)
            assert error.partial_text == "x" * limit
            assert str(error) == (
                f"The reply from {URL} is longer than max_reply_bytes ({limit})."
                " Raise max_reply_bytes to accept a longer reply."
            )


@pytest.mark.parametrize(
    ("length", "rejected"),
    [
        (b"100", False),
        (b"101", True),
        (b"0000100", False),
        (b"9" * 4400, True),
        (b"-1", False),
        (b"x", False),
        (b"1_000", False),
        (b"", False),
        (b"500, 500", False),
        ("\u0665\u0665\u0665\u0665".encode(), False),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_length_past_the_limit_is_rejected_before_the_body(
    length: bytes, rejected: bool, strict: bool
) -> None:
    decoder = build_decoder(max_reply_bytes=100, strict=strict)
    headers = [(b"content-length", length)]
    if rejected:
        with pytest.raises(ReplyTooLargeError) as caught:
            receive_head(decoder, headers=headers)
        assert caught.value.partial_text == ""
        assert caught.value.attempts == 2
    else:
        receive_head(decoder, headers=headers)
        assert decoder.is_accepted


def test_a_long_page_is_a_page_not_a_long_reply() -> None:
    headers = [(b"content-type", b"text/html"), (b"content-length", b"5000")]
    error = receive_answer(200, b"<html>", *headers, max_reply_bytes=100)
    assert isinstance(error, UnexpectedContentError)
    assert error.body == "<html>"


# Before the text: heads


def test_before_and_after_the_head() -> None:
    decoder = build_decoder()
    before = (decoder.status_code, dict(decoder.headers), decoder.text, decoder.is_accepted)
    assert before == (None, {}, "", False)
    receive_head(decoder)
    assert decoder.status_code == 200
    assert decoder.headers["content-type"] == "text/plain"
    assert decoder.is_accepted


PLAIN = b"text/plain"
TEXT_TYPES = [
    *(b";charset=utf-8", b"; charset=utf-8"),  # no type, only a charset, which changes nothing
    *(None, b"", PLAIN, b"TEXT/PLAIN; charset=utf-8", b" text/plain ", b"text/markdown"),
    *(b"application/octet-stream", b"text/plain;charset=rot13", b"text/plain; charset=undefined"),
]
OTHER_TYPES = [
    *(b"text/html", b"Text/HTML; charset=utf-8", b"text/xml", b"application/json", b"image/png"),
    *(b"application/xml", b"application/problem+json", b"text/event-stream", b"x", b"multipart/x"),
    *(b"application/javascript", b"text/html;x", b"text/html ; x", b"application/xhtml+xml"),
]


@pytest.mark.parametrize("media_type", TEXT_TYPES)
@pytest.mark.parametrize("strict", [True, False])
def test_texts(media_type: bytes | None, strict: bool) -> None:
    headers = [(b"transfer-encoding", b"chunked")]
    if media_type is not None:
        headers.append((b"content-type", media_type))
    decoder = build_decoder(strict=strict)
    receive_head(decoder, headers=headers)
    assert decoder.receive_data("é".encode(), now=11.0) == "é"
    assert decoder.receive_eof(now=11.0) == ""


@pytest.mark.parametrize("media_type", OTHER_TYPES)
def test_what_is_no_text_is_rejected_with_its_body(media_type: bytes) -> None:
    headers = [(b"content-type", media_type), (b"transfer-encoding", b"chunked")]
    error = receive_answer(200, "<é>".encode(), *headers)
    assert isinstance(error, UnexpectedContentError)
    assert error.body == "<é>"
    assert error.partial_text == ""
    assert URL in str(error)
    assert media_type.decode().partition(";")[0].strip().lower() in str(error)
    decoder = build_decoder(strict=False)
    receive_head(decoder, headers=headers)
    assert decoder.receive_data(b"<html>", now=11.0) == "<html>"


@pytest.mark.parametrize(
    "media_type",
    [
        b"text/json",  # an old name of application/json
        b"text/x-json",
        b"text/html charset=utf-8",  # the semicolon is often left out
        b"text/html,text/plain",
    ],
)
def test_json_and_html_by_other_names_are_rejected(media_type: bytes) -> None:
    decoder = build_decoder()
    receive_head(
        decoder, headers=[(b"content-type", media_type), (b"transfer-encoding", b"chunked")]
    )
    assert not decoder.is_accepted


@pytest.mark.parametrize("status_code", [201, 202, 203, 204, 205, 206, 226, 299])
def test_a_success_that_is_not_200(status_code: int) -> None:
    decoder = build_decoder()
    with pytest.raises(UnexpectedContentError, match=rf"its status is {status_code}\b"):
        receive_head(decoder, status_code)
    lenient = build_decoder(strict=False)
    receive_head(lenient, status_code, ())
    assert lenient.receive_eof(now=11.0) == ""
    assert lenient.reply.status_code == status_code


@pytest.mark.parametrize(
    ("headers", "http_version", "framed"),
    [
        ([(b"Content-Length", b"5")], b"HTTP/1.1", True),
        ([(b"Content-Length", b"5")], b"HTTP/1.0", True),
        ([(b"Transfer-Encoding", b"chunked")], b"HTTP/1.1", True),
        ([], b"HTTP/2", True),
        ([], b"HTTP/1.1", False),
        ([], b"HTTP/1.0", False),
    ],
)
def test_framing(headers: list[tuple[bytes, bytes]], http_version: bytes, framed: bool) -> None:
    decoder = build_decoder()
    if framed:
        receive_head(decoder, headers=headers, http_version=http_version)
        assert decoder.is_accepted
    else:
        with pytest.raises(UnexpectedContentError) as caught:
            receive_head(decoder, headers=headers, http_version=http_version)
        assert str(caught.value) == (
            f"The response from {URL} is not a reply: it has neither a length nor chunks, so that a"
            " truncation would go unnoticed. Check that base_url is a Cromicle endpoint."
        )
    lenient = build_decoder(strict=False)
    receive_head(lenient, headers=headers, http_version=http_version)
    assert lenient.is_accepted


def test_a_response_that_came_over_no_network_needs_no_framing() -> None:
    """As that of a mock, or of an ASGI transport."""
    decoder = build_decoder()
    receive_head(decoder, headers=[], came_over_network=False)
    assert decoder.receive_data(b"Hello", now=11.0) == "Hello"
    decoder.receive_eof(now=12.0)
    assert decoder.reply.text == "Hello"


@pytest.mark.parametrize(
    "encoding", [b"gzip", b"GZIP", b"deflate", b"br", b"zstd", b"x", b"gzip, gzip", b"identity, br"]
)
@pytest.mark.parametrize("strict", [True, False])
def test_an_encoded_reply_is_rejected_in_either_mode(encoding: bytes, strict: bool) -> None:
    decoder = build_decoder(strict=strict)
    with pytest.raises(UnexpectedContentError) as caught:
        receive_head(decoder, headers=[*CHUNKED, (b"content-encoding", encoding)])
    assert f"it is compressed ({encoding.decode()}) although the request" in str(caught.value)
    assert caught.value.option == "base_url"
    assert caught.value.body == ""


@pytest.mark.parametrize("encoding", [b"identity", b" Identity ", b""])
def test_no_encoding_by_name(encoding: bytes) -> None:
    decoder = build_decoder()
    receive_head(decoder, headers=[*CHUNKED, (b"content-encoding", encoding)])
    assert decoder.is_accepted


@pytest.mark.parametrize("body", [b"", BOM])
def test_nothing_at_all(body: bytes) -> None:
    _, error = receive([body])
    assert isinstance(error, UnexpectedContentError)
    assert str(error) == (
        f"The response from {URL} is not a reply: it is empty. "
        "Check that base_url is a Cromicle endpoint."
    )
    assert receive([body], strict=False) == ("", None)


def test_an_empty_reply_with_a_finish_reason_is_the_models() -> None:
    decoder = build_decoder()
    receive_head(decoder)
    with pytest.raises(UnexpectedContentError) as caught:
        decoder.receive_eof(now=1.0, trailers=[(b"x-finish-reason", b"stop")])
    assert str(caught.value) == (
        f"The response from {URL} is not a reply: it is empty, with the finish reason 'stop'. "
        "The model ended without text: change the prompt, or pass strict=False."
    )
    assert caught.value.option == "strict"


# C1 controls are legal in a header, and commands to a terminal.
@pytest.mark.parametrize("name", [b"content-encoding", b"content-type", b"location"])
def test_what_a_server_says_is_quoted_safely(name: bytes) -> None:
    value = b"x/\x9b31m" + b"y" * 100_000
    error = receive_answer(
        302 if name == b"location" else 200, b"", (name, value), (b"content-length", b"0")
    )
    assert str(error).isprintable()
    assert len(str(error)) < 1000


# Replies


def test_reply() -> None:
    decoder = build_decoder()
    receive_head(decoder, headers=[*CHUNKED, (b"X-Request-Id", b"r-7")])
    for now, data in ((11.0, b"\xc3"), (11.5, b"\xa9"), (12.0, b""), (13.0, b"ab")):
        decoder.receive_data(data, now=now)
    assert decoder.summary == "status 200, request id r-7, 4 bytes in 2 chunks, 0.000 s"
    decoder.receive_eof(now=14.0)
    assert decoder.summary == "status 200, request id r-7, 4 bytes in 2 chunks, 4.000 s"
    reply = decoder.reply
    assert reply == Reply(
        text="éab",
        status_code=200,
        headers=decoder.headers,
        attempts=2,
        chunks=2,
        first_text_after=1.5,
        elapsed=4.0,
    )
    assert reply.request_id == "r-7"
    assert str(reply) == "éab"


@pytest.mark.parametrize(
    ("trailers", "finish_reason"),
    [
        ([], None),
        ([(b"x-finish-reason", b"length")], "length"),
        ([(b"X-Finish-Reason", b"content_filter")], "content_filter"),
        ([(b"x-other", b"1"), (b"x-finish-reason", b"MAX.tokens-2")], "MAX.tokens-2"),
        ([(b"x-finish-reason", b"x" * 64)], "x" * 64),
        # None of these is a reason to fail.
        ([(b"x-finish-reason", b"x" * 65)], None),
        ([(b"x-finish-reason", b"x" * 90_000)], None),
        ([(b"x-finish-reason", b"")], None),
        ([(b"x-finish-reason", b"two words")], None),
        ([(b"x-finish-reason", b"stop,length")], None),
        ([(b"x-finish-reason", b"stop"), (b"x-finish-reason", b"length")], None),
        ([(b"x-finish-reason", b"stop"), (b"x-finish-reason", b"stop")], None),
        ([(b"x-finish-reason", b"\xff\x1b[2J")], None),
        ([(b"finish-reason", b"stop")], None),
        ([(b"x-finish-reason", CANARY.encode())], None),
    ],
)
def test_the_finish_reason_is_one_word_of_the_trailers(
    trailers: list[tuple[bytes, bytes]], finish_reason: str | None
) -> None:
    decoder = build_decoder(redact=lambda text: text.replace(CANARY, "[redacted]"))
    receive_head(decoder)
    decoder.receive_data(b"text", now=11.0)
    decoder.receive_eof(now=12.0, trailers=trailers)
    assert decoder.reply.finish_reason == finish_reason


def test_an_empty_reply_has_no_first_text() -> None:
    decoder = build_decoder(strict=False)
    receive_head(decoder)
    decoder.receive_eof(now=14.0)
    reply = decoder.reply
    assert (reply.first_text_after, reply.chunks, str(reply)) == (None, 0, "")
    assert reply.request_id is None


def test_the_last_text_may_come_at_the_end() -> None:
    decoder = build_decoder(strict=False)
    receive_head(decoder)
    assert decoder.receive_data(b"\xe2\x82", now=11.0) == ""
    assert decoder.receive_eof(now=13.0) == "\ufffd"
    assert decoder.reply.first_text_after == 3.0


def test_a_reply_is_a_frozen_value() -> None:
    reply = Reply(
        text="x",
        status_code=200,
        headers=Headers([("a", "b")]),
        attempts=1,
        chunks=1,
        first_text_after=0.1,
        elapsed=0.2,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        reply.text = "y"  # type: ignore[misc]
    for twin in (
        copy.copy(reply),
        copy.deepcopy(reply),
        *(pickle.loads(pickle.dumps(reply, p)) for p in range(2, 6)),
    ):
        assert twin == reply
        assert hash(twin) == hash(reply)
        assert twin.headers == reply.headers


def test_many_small_chunks_cost_no_more_than_their_bytes() -> None:
    decoder = build_decoder()
    receive_head(decoder)
    for _ in range(100_000):
        decoder.receive_data(b"word ", now=11.0)
    assert len(decoder.text) == 500_000


# Failures


def test_a_failure_before_the_head_is_itself() -> None:
    failure = APIConnectionError("rejected")
    error = build_decoder().receive_failure(failure)
    assert error is failure
    assert (error.attempts, error.partial_text) == (2, "")


@pytest.mark.parametrize("phase", ["stall", "total", "first_byte"])
def test_a_timeout_in_a_reply_carries_the_text(phase: Any) -> None:
    decoder = build_decoder()
    receive_head(decoder)
    decoder.receive_data(b"ab\xc3", now=11.0)
    failure = APITimeoutError("slow", phase=phase)
    error = decoder.receive_failure(failure)
    assert error is failure
    assert (error.attempts, error.partial_text) == (2, "ab")


@pytest.mark.parametrize("is_final", [True, False])
def test_a_failure_in_a_reply_is_incomplete(is_final: bool) -> None:
    decoder = build_decoder()
    receive_head(decoder)
    decoder.receive_data("ab€".encode()[:-1], now=11.0)
    failure = APIConnectionError("x")
    failure.detail = "reset by peer"
    failure.is_final = is_final
    error = decoder.receive_failure(failure)
    assert isinstance(error, IncompleteReplyError)
    assert str(error) == (
        f"The reply from {URL} was truncated after 4 bytes: reset by peer. "
        "The text so far is in partial_text."
    )
    assert (error.attempts, error.partial_text, error.is_final) == (2, "ab", is_final)


@pytest.mark.parametrize(
    "failure", [APIConnectionError("x"), APITimeoutError("x", phase="stall")], ids=["cut", "slow"]
)
def test_a_failure_in_an_error_body_leaves_the_status(failure: APIConnectionError) -> None:
    decoder = build_decoder()
    receive_head(decoder, 503, ())
    decoder.receive_data(b"overlo", now=11.0)
    error = decoder.receive_failure(failure)
    assert isinstance(error, InternalServerError)
    assert error.body == "overlo"
    assert error.attempts == 2


# Statuses


def test_every_status_has_its_class_and_its_facts() -> None:
    for status_code in (*range(100, 200), *range(300, 1000)):
        error = status_error(status_code, "nö".encode(), (b"X-Request-Id", b"r"))
        assert type(error) is status_error_class(status_code)
        assert error.status_code == status_code
        assert error.body == "nö"
        assert error.headers == {"x-request-id": "r"}
        assert error.request_id == "r"
        assert error.retry_after is None
        assert str(error).startswith(f"{URL} responded with {status_code}")
        assert "nö" in str(error)
        assert "hunter2" not in str(error)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("status_code", "headers", "body", "message"),
    [
        (
            401,
            [],
            b'{"error": "no such token"}',
            (
                "responded with 401 Unauthorized: no such token. "
                "Check the token: the option token, or $CROMICLE_TOKEN."
            ),
        ),
        (
            404,
            [(b"content-type", b"text/html")],
            b"<html>",
            "responded with 404 Not Found. Check base_url: requests go to its path plus /chat.",
        ),
        (418, [], b"", "responded with 418 I'm a Teapot."),
        (499, [], b" so\n so. ", "responded with 499: so so."),
        (
            429,
            [(b"retry-after", b"1.5")],
            b"",
            (
                "responded with 429 Too Many Requests. The server requests a wait of 1.5 s. "
                "Retry after that time."
            ),
        ),
        (
            302,
            [(b"location", b"https://x/y")],
            b"",
            (
                "responded with 302 Found. It redirects to https://x/y. Redirects are not "
                "followed, because the body contains the token: set base_url to the right address."
            ),
        ),
        (
            300,
            [],
            b"",
            (
                "responded with 300 Multiple Choices. It redirects to nowhere. Redirects are not "
                "followed, because the body contains the token: set base_url to the right address."
            ),
        ),
        (
            400,
            [(b"location", b"/elsewhere")],
            b"",
            (
                "responded with 400 Bad Request. The server could not read the request: "
                "check that base_url is a Cromicle endpoint."
            ),
        ),
        (
            301,
            [],
            b"",
            (
                "responded with 301 Moved Permanently. It redirects to nowhere. Redirects are not "
                "followed, because the body contains the token: set base_url to the right address."
            ),
        ),
        (
            500,
            [],
            b"\xff",
            f"responded with 500 Internal Server Error: \ufffd. {FAILED}",
        ),
        (
            599,
            [],
            b"x" * 300,
            f"responded with 599: {'x' * 200}…. {FAILED}",
        ),
    ],
)
def test_messages(
    status_code: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    message: str,
    strict: bool,
) -> None:
    assert str(status_error(status_code, body, *headers, strict=strict)) == f"{URL} {message}"


@pytest.mark.parametrize(
    ("status_code", "code", "retry_after", "hint"),
    [
        (400, None, None, "check that base_url is a Cromicle endpoint"),
        (400, "bad_request", None, "check its fields"),
        (400, "unknown_field", None, "Omit that field"),
        (400, "context_length_exceeded", None, "The conversation is too long for the model"),
        (413, "context_length_exceeded", None, "The conversation is too long for the model"),
        (400, "content_filter", None, "A content filter rejected the prompt"),
        (
            400,
            "upstream_refused",
            None,
            "rejected the prompt or one of its options",
        ),
        (
            422,
            "invalid_request_error",
            None,
            "rejected the prompt or one of its options",
        ),
        (422, "hash_mismatch", None, "the same token"),
        (413, "request_too_large", None, "Send a shorter prompt"),
        (502, "upstream_denied", None, "A retry does not help: contact the operator of the server"),
        (
            502,
            "upstream_refused",
            None,
            "A retry does not help: contact the operator of the server",
        ),
        (
            502,
            "upstream_redirected",
            None,
            "A retry does not help: contact the operator of the server",
        ),
        (
            500,
            "upstream_refused",
            None,
            "A retry does not help: contact the operator of the server",
        ),
        (500, "upstream_failed", "7", "Retry after that time."),
        (502, "upstream_failed", None, FAILED),
        (502, "upstream_failed", "7", "Retry after that time."),
        (503, "upstream_loading", "5", "Retry after that time."),
        (503, "server_busy", "1", "Retry after that time."),
        (503, None, None, "Try again later."),
        (504, "upstream_timeout", None, "Try again later."),
        (408, None, "3", "Retry after that time."),
        (403, None, "3", "does not permit"),
        (403, "wrong_host", None, "Check base_url"),
        (403, "wrong_origin", None, "Omit the header origin."),
        (401, "wrong_token", None, "Check the token"),
        (429, "too_many_wrong_tokens", "9", "Check the token"),
        (501, None, None, "does not accept POST requests"),
    ],
)
def test_the_hint_fits_what_the_server_says(
    status_code: int, code: str | None, retry_after: str | None, hint: str
) -> None:
    body = b"" if code is None else json.dumps({"error": {"code": code, "message": "x"}}).encode()
    headers = [] if retry_after is None else [(b"retry-after", retry_after.encode())]
    error = status_error(status_code, body, *headers)
    assert error.code == code
    assert hint in error.hint
    assert error.option == ("token" if hint == "Check the token" else None)
    assert ("requests a wait" in error.problem) == (retry_after is not None)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "deep", "type": "x"}}', "deep"),
        ('{"message": "flat"}', "flat"),
        ('{"error": "short"}', "short"),
        ('{"error": null}', '{"error": null}'),
        ('{"error": {"code": 5}}', '{"error": {"code": 5}}'),
        ('{"detail": "other"}', '{"detail": "other"}'),
        ('"a string"', "a string"),
        ("[1, 2]", "[1, 2]"),
        ("{", "{"),
        ('{"error": "a\\u001b[31m\\ud800b"}', "a\ufffd[31m\ufffdb"),
        ('{"error": "two\\n lines"}', "two lines"),
        ("plain text.", "plain text"),
        ("no room for model X", "no room for model X"),
    ],
)
def test_what_the_server_said(body: str, said: str) -> None:
    error = status_error(500, body.encode())
    assert f"Error: {said}. The server" in str(error)
    assert error.body == body
    assert str(error).isprintable()


@pytest.mark.parametrize(
    "body", [b"[" * LIMIT, b"1" * LIMIT, b'{"error":' * 7000, b"\xff" * 99, b"\0" * 99, b" " * 9000]
)
def test_strange_bodies(body: bytes) -> None:
    error = status_error(500, body)
    assert len(str(error)) < 500
    assert str(error).isprintable()


def test_an_error_body_is_read_to_64_kib_and_no_further() -> None:
    decoder = build_decoder()
    receive_head(decoder, 500, ())
    assert decoder.receive_data(b"x" * (LIMIT - 1), now=11.0) == ""
    with pytest.raises(InternalServerError) as caught:
        decoder.receive_data(b"yz" * 10_000_000, now=11.0)
    assert caught.value.body == "x" * (LIMIT - 1) + "y"


def test_an_endless_error_body_ends_the_call_however_small_its_chunks() -> None:
    decoder = build_decoder()
    receive_head(decoder, 500, ())
    with pytest.raises(InternalServerError) as caught:
        for _ in range(100):
            decoder.receive_data(b"x" * 1024, now=11.0)
    assert caught.value.body == "x" * LIMIT


def test_an_error_body_ends_with_the_last_byte_that_is_read() -> None:
    decoder = build_decoder()
    receive_head(decoder, 500, ())
    # 8 KiB more are searched for secrets.
    assert decoder.receive_data(b"x" * (72 * 1024 - 1), now=11.0) == ""
    with pytest.raises(InternalServerError):
        decoder.receive_data(b"x", now=11.0)


@pytest.mark.parametrize("size", [LIMIT - 5000, LIMIT])
def test_an_error_body_of_up_to_64_kib_is_kept_whole(size: int) -> None:
    assert status_error(500, b"x" * size).body == "x" * size


def test_an_error_body_is_not_cut_within_a_character() -> None:
    assert status_error(500, b"x" * (LIMIT - 1) + "é".encode()).body == "x" * (LIMIT - 1)


def test_a_body_of_many_chunks() -> None:
    decoder = build_decoder()
    receive_head(decoder, 500, ())
    for chunk in one_by_one("größe".encode()):
        assert decoder.receive_data(chunk, now=11.0) == ""
    with pytest.raises(InternalServerError) as caught:
        decoder.receive_eof(now=11.0)
    assert caught.value.body == "größe"


def test_an_encoded_error_body_is_not_shown() -> None:
    error = status_error(500, b"\x1f\x8b", (b"content-encoding", b"gzip"))
    assert error.body == ""
    assert str(error).startswith(f"{URL} responded with 500 Internal Server Error. The")


def test_redirects() -> None:
    error = status_error(307, b"", (b"Location", b"/there?x=\xe9"))
    assert isinstance(error, RedirectError)
    assert error.location == "/there?x=é"


# The token and the hash, sent back by the server


def echo(text: str) -> CromicleError:
    return status_error(400, text.encode(), (b"x-echo", CANARY.encode()), redact=redact())


def redact(token: str = CANARY) -> Callable[[str], str]:
    options = build_options(token=Secret(token))
    return build_request("Hi", options, httpx_version="0").redact


def assert_hidden(error: CromicleError, *secrets: str) -> None:
    shown = f"{error}{error!r}{error.args}{vars(error)}{vars(error).get('headers')}"
    for secret in secrets or (CANARY, DIGEST):
        assert secret not in shown
        assert secret.encode() not in pickle.dumps(error)


@pytest.mark.parametrize(
    "body",
    [
        f"bad token {CANARY}",
        f"{CANARY}{CANARY}",
        f'{{"error": "{CANARY}", "hash": "{DIGEST}"}}',
        f'{{"error": {{"message": "the hash {DIGEST} is not of {CANARY}"}}}}',
        "x" * 700 + CANARY,
    ],
)
def test_an_echo_in_a_body_is_hidden(body: str) -> None:
    assert_hidden(echo(body))


def test_an_echo_in_a_header_is_hidden() -> None:
    headers = [(b"x-token", CANARY.encode()), (b"location", f"/x?h={DIGEST}".encode())]
    assert_hidden(status_error(302, b"", *headers, redact=redact()))
    for name in (b"content-encoding", b"content-type"):
        error = receive_answer(
            200, b"", (name, CANARY.encode()), (b"content-length", b"0"), redact=redact()
        )
        assert_hidden(error)
    decoder = build_decoder(redact=redact())
    note = (b"x-note", b"two words")
    receive_head(decoder, headers=[*CHUNKED, (b"x-token", f"{CANARY}".encode()), note])
    assert decoder.headers["x-token"] == "[redacted]"
    assert decoder.headers["x-note"] == "two words"


def test_an_echo_among_very_many_headers_takes_one_search() -> None:
    many = [(b"%x" % number, b"%d" % number) for number in range(12_000)]
    find = redact(token := f"-{CANARY}")
    searched: list[str] = []

    def search(text: str) -> str:
        searched.append(text)
        return find(text)

    error = status_error(400, b"", *many, (b"x", token.encode()), redact=search)
    assert error.headers["x"] == "[redacted]"
    assert error.headers["2edf"] == "11999"
    assert len(error.headers) == 12_001
    assert len(searched) < 5


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-one", b"sk-canary"), (b"123456", b"2")],
        [(b"x-%d" % number, b"sk-canary%0a123456") for number in range(1001)],
    ],
    ids=["one over two headers", "too many to locate"],
)
def test_of_an_echo_that_is_not_in_one_header_nothing_is_kept(
    headers: list[tuple[bytes, bytes]],
) -> None:
    token = "sk-canary\n123456"
    facts = [(b"X-Request-Id", b"7"), (b"content-type", b"text/html"), (b"x-other", b"1")]
    error = status_error(400, b"", *headers, *facts, redact=redact(token))
    assert dict(error.headers) == {"content-type": "text/html", "x-request-id": "7"}


def test_an_echo_in_the_name_of_a_header_is_hidden() -> None:
    error = status_error(400, b"", (b"X-Canary-4711", b"1"), redact=redact("Canary-4711"))
    assert dict(error.headers) == {"x-[redacted]": "1"}


def test_an_echo_in_a_page_is_hidden() -> None:
    headers = [(b"content-type", b"text/html"), (b"content-length", b"9")]
    assert_hidden(receive_answer(200, f"<p>{CANARY} {DIGEST}".encode(), *headers, redact=redact()))


@pytest.mark.parametrize(
    ("token", "escaped"),
    [
        ("sk/canary/123456", r"sk\/canary\/123456"),  # as PHP's json_encode writes a slash
        ("sk-cänary-123456", r"sk-c\u00e4nary-123456"),  # as Python's json.dumps writes it
        ('sk-"canary"-123456', r"sk-\"canary\"-123456"),
    ],
)
def test_an_echo_in_json_is_hidden_in_the_message_too(token: str, escaped: str) -> None:
    body = f'{{"error": "bad token {escaped}"}}'
    assert json.loads(body)["error"] == f"bad token {token}"
    error = status_error(400, body.encode(), redact=redact(token), token=Secret(token))
    assert token not in str(error)
    assert escaped not in error.body


@pytest.mark.parametrize("token", ["text", "identity", "5", "chunked"])
def test_a_token_that_is_a_word_of_the_head_changes_no_decision(token: str) -> None:
    decoder = build_decoder(redact=redact(token))
    head = [
        (b"content-type", b"text/plain"),
        (b"content-encoding", b"identity"),
        (b"content-length", b"5"),
    ]
    receive_head(decoder, headers=head)
    assert decoder.is_accepted
    assert decoder.receive_data(b"Hello", now=11.0) == "Hello"
    rejected = status_error(429, b"", (b"retry-after", b"5"), redact=redact(token))
    assert rejected.retry_after == 5
    assert token not in dict(rejected.headers).values()


@pytest.mark.parametrize("token", ["content", "type", "e", "id", "location", "x-request-id"])
def test_a_token_that_is_a_part_of_a_name_hides_no_fact(token: str) -> None:
    for head in ((b"content-type", b"text/html"), (b"content-encoding", b"br")):
        error = receive_answer(200, b"<p>", head, (b"content-length", b"3"), redact=redact(token))
        assert isinstance(error, UnexpectedContentError)
    moved = status_error(
        302, b"", (b"location", b"/x"), (b"x-request-id", b"7"), redact=redact(token)
    )
    assert isinstance(moved, RedirectError)
    assert (moved.location, moved.request_id) == ("/x", "7")
    echoed = status_error(400, b"", (f"x-{token}".encode(), b"1"), redact=redact(token))
    assert f"x-{token}" not in echoed.headers


def test_an_echo_over_and_over_is_hidden_to_the_last_chunk() -> None:
    # What is redacted is shorter, so that the end of what was read is within the limit.
    error = echo("x" * 5 + CANARY * 10_000)
    assert isinstance(error, APIStatusError)
    assert CANARY[:8] not in error.body


@pytest.mark.parametrize("kept", [8, 12, len(CANARY) - 1])
def test_an_echo_that_the_limit_cuts_is_hidden(kept: int) -> None:
    error = echo("x" * (LIMIT - kept) + CANARY)
    assert isinstance(error, APIStatusError)
    assert CANARY[:kept] not in error.body


def test_an_echo_in_broken_framing_is_hidden() -> None:
    # h11 quotes the line that it can't read: "illegal header line: bytearray(b'...')".
    failure = APIConnectionError(f"No answer came from {URL}: illegal header line: {CANARY}.")
    failure.detail = f"illegal header line: {CANARY}"
    assert_hidden(build_decoder(redact=redact()).receive_failure(failure))
    decoder = build_decoder(redact=redact())
    receive_head(decoder)
    assert_hidden(decoder.receive_failure(failure))


# Headers


def test_headers() -> None:
    headers = Headers([("Content-Type", "a"), ("X-Many", "1"), ("x-many", "2"), ("X-MANY", "3")])
    assert dict(headers) == {"content-type": "a", "x-many": "1, 2, 3"}
    assert headers["CONTENT-type"] == "a"
    assert "content-TYPE" in headers
    assert "x" not in headers
    assert headers.get("x") is None
    assert len(headers) == 2
    assert repr(headers) == "Headers({'content-type': 'a', 'x-many': '1, 2, 3'})"
    with pytest.raises(KeyError, match="nothing"):
        headers["nothing"]
    with pytest.raises(KeyError, match="5"):
        headers[5]  # type: ignore[index]
    with pytest.raises(TypeError):
        headers["a"] = "b"  # type: ignore[index]


def test_headers_are_values() -> None:
    headers = Headers([("A", "1"), ("B", "2")])
    same = Headers([("b", "2"), ("a", "1")])
    assert headers == same
    assert hash(headers) == hash(same)
    assert len({hash(Headers([("a", value)])) for value in "123"}) == 3
    assert headers == {"a": "1", "b": "2"}
    assert headers != Headers([("a", "1")])
    for twin in (
        copy.copy(headers),
        copy.deepcopy(headers),
        *(pickle.loads(pickle.dumps(headers, p)) for p in range(2, 6)),
    ):
        assert twin == headers
        assert twin["A"] == "1"


def test_any_key_may_be_asked_for() -> None:
    # A mapping says "not there" to a key of another type.
    headers: Any = Headers([("a", "1")])
    assert 5 not in headers
    assert headers.get(None) is None


# Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("007", 7),
        ("1.5", 1.5),
        ("9" * 5000, 1e9),
        ("1" + "0" * 400 + ".5", 1e9),
        # what says nothing
        *(
            (value, None)
            for value in (
                *(
                    "-1",
                    "+1",
                    "1e3",
                    "inf",
                    "nan",
                    "-inf",
                    "1_000",
                    "0x10",
                    "1,5",
                    ".5",
                    "5.",
                    "--",
                ),
                *("soon", "1 second", "\u0663", "²", "\0", "Mon", ",", "1 2", "(", "99:99", "GMT"),
                *("Mon, 32 Jan 2030 00:00:00 GMT", "Mon, 01 Foo 2030 00:00:00 GMT"),
                *("Mon, 01 Jan 99999 00:00:00 GMT", "Mon, 01 Jan 2030 25:00:00 GMT"),
                "Mon, 01 Jan 2030 00:00:00 +9999",
            )
        ),
        # dates; now is Sun, 09 Sep 2001 01:46:40 GMT
        ("Sun, 09 Sep 2001 01:47:40 GMT", 60),
        ("Sun, 09 Sep 2001 01:46:40 GMT", 0),
        ("Sun, 09 Sep 2001 01:45:00 GMT", 0),
        ("Sunday, 09-Sep-01 01:47:40 GMT", 60),
        ("Sun Sep  9 01:47:40 2001", 60),
        ("Sun, 09 Sep 2001 03:47:40 +0200", 60),
        ("Sun, 09 Sep 2001 01:47:40 -0000", 60),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("Mon, 01 Jan 0000 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 1e9),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now=1_000_000_000.0) == seconds


PARTS = ["Mon,", "Mon", "01", "Jan", "1", "0001", "9999", "99999", "00:00:00", "25:61:99", "GMT"]
PARTS += [
    "+0000",
    "-0000",
    "+9999",
    "-2359",
    "x",
    ",",
    "(",
    ")",
    "EST",
    "1.5",
    "-",
    "+",
    ":",
    "inf",
]
RETRY_AFTER = (
    st.text(max_size=20)
    | st.text("0123456789.:,+-eE_ GMTnaif", max_size=25)
    | st.lists(st.sampled_from(PARTS), max_size=7).map(" ".join)
    | st.floats().map(str)
    | st.integers().map(str)
    | st.datetimes().map(lambda date: date.strftime("%a, %d %b %Y %H:%M:%S GMT"))
)


@settings(deadline=None, max_examples=500)
@given(st.lists(RETRY_AFTER, min_size=20, max_size=20), st.floats(0, 1e11))
def test_ten_thousand_retry_afters(values: list[str], now: float) -> None:
    for value in values:
        seconds = parse_retry_after(value, now=now)
        assert seconds is None or (math.isfinite(seconds) and 0 <= seconds <= 1e9)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the system has one time zone")
def test_a_date_of_no_zone_is_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setenv("TZ", "EST+5")
        time.tzset()
        # RFC 5322, 3.3: "-0000" is UTC, of which the server's own zone is unknown.
        assert parse_retry_after("Thu, 01 Jan 1970 00:01:00 -0000", now=0) == 60
        assert parse_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", now=0) == 60
    time.tzset()


def test_a_rejection_says_how_long_to_wait() -> None:
    date = b"Sun, 09 Sep 2001 01:47:40 GMT"
    assert status_error(503, b"", (b"Retry-After", date)).retry_after == 60
    assert (
        status_error(429, b"", (b"Retry-After", b"5"), (b"retry-after", b"9")).retry_after is None
    )


def chunks_of(data: bytes) -> Iterator[bytes]:
    yield from one_by_one(data)


def test_a_reply_of_every_character() -> None:
    text = "".join(map(chr, (*range(1, 0xD800), *range(0xE000, 0x11000), 0x10FFFF)))
    assert receive(chunks_of(text.encode()), max_reply_bytes=10**6) == (text, None)


def test_a_reply_may_end_after_a_whole_character() -> None:
    decoder = build_decoder()
    receive_head(decoder)
    assert not decoder.may_end
    decoder.receive_data(b"a\xc3", now=11.0)
    assert not decoder.may_end
    decoder.receive_data(b"\xa9", now=11.0)
    assert decoder.may_end


def test_a_reply_may_end_after_one_chunk() -> None:
    decoder = build_decoder()
    receive_head(decoder)
    decoder.receive_data(b"a", now=11.0)
    assert decoder.may_end
