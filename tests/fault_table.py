"""The table of faults: behaviours of servers and networks, and the expected results of calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cromicle_sdk import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    CromicleError,
    IncompleteReplyError,
    InternalServerError,
    RedirectError,
    Reply,
    ReplyDecodeError,
    ReplyTooLargeError,
    Retry,
    Timeout,
    UnexpectedContentError,
)
from cromicle_sdk.testing import FaultyServer, build_chunk

__all__ = ["FAULTS", "QUICK", "TEXT", "Fault", "check"]

QUICK = Retry(attempts=2, first_delay=0)
LAST = b"0\r\n\r\n"
TEXT = "Hello, wörld: 😀!"
BYTES = TEXT.encode()


@dataclass(frozen=True)
class Fault:
    """A behaviour of the server, and the expected result of a `chat` with two attempts.

    `expected` is the text of the reply or the class of the error, `partial` the text so far,
    `facts` are further attributes of the error, and `requests` is the number of requests.
    """

    name: str
    script: Callable[[FaultyServer], object]
    expected: Any
    partial: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    requests: int = 1
    options: dict[str, Any] = field(default_factory=dict)


def broken(name: str, script: Callable[[FaultyServer], object], partial: str = "Hello") -> Fault:
    """The reply is truncated. The call is retried, then raises with the text so far."""
    return Fault(name, script, IncompleteReplyError, partial, requests=2)


def rejected(name: str, script: Callable[[FaultyServer], object], **facts: Any) -> Fault:
    """The response is not a reply. The call raises without a retry."""
    return Fault(name, script, UnexpectedContentError, facts=facts)


def unanswered(name: str, script: Callable[[FaultyServer], object]) -> Fault:
    """There is no response. The call is retried, then raises."""
    return Fault(name, script, APIConnectionError, requests=2)


def slow(name: str, script: Callable[[FaultyServer], object], phase: str, **more: Any) -> Fault:
    """A timeout expires, also on a busy machine before those that are not under test."""
    limits = {"first_byte": 30.0, "stall": 30.0, "total": 30.0}
    # `total` includes the time until the request is sent.
    limits[phase] = 1.0 if phase == "total" else 0.2
    if phase == "first_byte":
        # The limit of httpx2's own transport once it has the head.
        limits["stall"] = 0.2
    options = {"timeout": Timeout(**limits)}
    return Fault(name, script, APITimeoutError, facts={"phase": phase}, options=options, **more)


def fine(name: str, script: Callable[[FaultyServer], object], text: str = TEXT) -> Fault:
    return Fault(name, script, text)


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def redirect(status: int, location: str | None) -> Callable[[FaultyServer], object]:
    return lambda s: s.redirect(status, location=location)


def charset_of(charset: str) -> Callable[[FaultyServer], object]:
    return lambda s: s.reply(TEXT, content_type=f"text/plain; charset={charset}")


CHUNKED = head("content-type: text/plain", "transfer-encoding: chunked")

FAULTS = [
    # Before the head.
    unanswered("reset before the head", lambda s: s.reset()),
    unanswered("closed before the head", lambda s: s.cut()),
    unanswered("half a head, closed", lambda s: s.raw(b"HTTP/1.1 200 O", end="close")),
    unanswered("half a head, reset", lambda s: s.raw(b"HTTP/1.1 200 OK\r\nx: ", end="reset")),
    unanswered("garbage status line", lambda s: s.raw(b"BANANA\r\n\r\n", end="close")),
    unanswered("HTTP/0.9", lambda s: s.raw(b"Hello", end="close")),
    unanswered("another protocol", lambda s: s.raw(b"SSH-2.0-OpenSSH_9.2\r\n", end="close")),
    unanswered("a head of 1 MB", lambda s: s.raw(head("x: " + "y" * 1_000_000), end="close")),
    unanswered(
        "20,000 headers", lambda s: s.raw(head(*[f"x-{n}: 1" for n in range(20_000)]), end="close")
    ),
    unanswered(
        "two lengths",
        lambda s: s.raw(head("content-length: 3", "content-length: 5") + b"Hello", end="close"),
    ),
    unanswered("a negative length", lambda s: s.raw(head("content-length: -5"), end="close")),
    unanswered(
        "a transfer coding that is not chunked",
        lambda s: s.raw(head("transfer-encoding: gzip") + BYTES, end="close"),
    ),
    unanswered("a header without a colon", lambda s: s.raw(head("nonsense"), end="close")),
    unanswered("a NUL in a header", lambda s: s.raw(head("x: a\x00b"), end="close")),
    unanswered(
        "101",
        lambda s: s.raw(
            head("connection: upgrade", "upgrade: x", status="101 Go") + BYTES, end="close"
        ),
    ),
    # In the body.
    broken("closed in the body", lambda s: s.cut(after="Hello")),
    broken("reset in the body", lambda s: s.reset(after="Hello")),
    broken("closed inside a chunk", lambda s: s.cut(after="Hello", inside_chunk=True)),
    broken("closed before a length is full", lambda s: s.cut(after="Hello", framing="length")),
    broken("closed right after the head", lambda s: s.cut(after=""), partial=""),
    broken("closed inside a character", lambda s: s.cut(after=b"Hello\xf0\x9f")),
    broken(
        "an invalid chunk size",
        lambda s: s.raw(CHUNKED + build_chunk("Hello") + b"zz\r\nx\r\n" + LAST),
    ),
    broken(
        "a chunk size of 30 digits",
        lambda s: s.raw(CHUNKED + build_chunk("Hello") + b"f" * 30 + b"\r\nx\r\n", end="close"),
    ),
    broken(
        "a chunk longer than its size",
        lambda s: s.raw(CHUNKED + build_chunk("Hello") + b"2\r\nxyz\r\n" + LAST, end="close"),
        partial="Helloxy",
    ),
    broken(
        "an endless chunk extension",
        lambda s: s.raw(
            CHUNKED + build_chunk("Hello") + b"5;" + b"x" * 1_000_000 + b"\r\nHello\r\n" + LAST,
            end="close",
        ),
    ),
    broken(
        "broken trailers",
        lambda s: s.raw(CHUNKED + build_chunk("Hello") + b"0\r\nnonsense\r\n\r\n", end="close"),
    ),
    broken(
        "endless trailers",
        lambda s: s.raw(CHUNKED + build_chunk("Hello") + b"0\r\nx: " + b"y" * 500_000, end="close"),
    ),
    # Time.
    slow("stalled head", lambda s: s.stall(), "first_byte", requests=2),
    slow("stalled after the head", lambda s: s.stall(after=""), "first_byte", requests=2),
    slow("stalled body", lambda s: s.stall(after="Hello"), "stall", partial="Hello", requests=2),
    slow("dripped head", lambda s: s.drip(where="head", forever=True), "total"),
    slow("endless 1xx", lambda s: s.drip(where="informational", forever=True), "total"),
    slow("no response at all", lambda s: s.stall(), "total"),
    # Responses that are not replies.
    rejected(
        "HTML",
        lambda s: s.reply("<html>Log in</html>", content_type="text/html; charset=utf-8"),
        body="<html>Log in</html>",
    ),
    rejected(
        "JSON", lambda s: s.reply('{"a": 1}', content_type="application/json"), body='{"a": 1}'
    ),
    rejected(
        "problem JSON", lambda s: s.reply("{}", content_type="application/problem+json"), body="{}"
    ),
    rejected("server-sent events", lambda s: s.reply("data: x", content_type="text/event-stream")),
    rejected("a picture", lambda s: s.reply(b"\x89PNG", content_type="image/png")),
    rejected("nothing, chunked", lambda s: s.reply("")),
    rejected("nothing, with a length", lambda s: s.reply("", length="exact")),
    rejected("only a byte order mark", lambda s: s.reply("", bom=True)),
    rejected("201", lambda s: s.reply(TEXT, status=201)),
    rejected("204", lambda s: s.raw(head(status="204 No Content"))),
    rejected("205", lambda s: s.raw(head("content-length: 0", status="205 Reset Content"))),
    rejected("206", lambda s: s.reply(TEXT, status=206)),
    rejected("neither length nor chunks", lambda s: s.reply(TEXT, length="none")),
    rejected("gzip", lambda s: s.encoded(TEXT)),
    rejected("gzip twice", lambda s: s.encoded(TEXT, coding="gzip, gzip")),
    rejected("a gzip bomb", lambda s: s.encoded("x", size=100_000_000)),
    rejected("an unknown coding", lambda s: s.encoded(TEXT, coding="sdch")),
    rejected("endless HTML", lambda s: s.reply(b"x" * 200_000, content_type="text/html")),
    # Error statuses.
    Fault("503", lambda s: s.fail(), InternalServerError, requests=2),
    Fault(
        "a 503 that is cut",
        lambda s: s.raw(head("content-length: 99", status="503 No") + b"Sorry", end="close"),
        InternalServerError,
        facts={"body": "Sorry"},
        requests=2,
    ),
    Fault(
        "a 400 that stalls",
        lambda s: s.raw(head("content-length: 99", status="400 No") + b"Sorry"),
        APIStatusError,
        facts={"status_code": 400, "body": "Sorry"},
        options={"timeout": Timeout(stall=0.2)},
    ),
    Fault("an endless 500", lambda s: s.flood(status=500), InternalServerError, requests=2),
    Fault(
        "a compressed 400",
        lambda s: s.reply(b"\x1f\x8b", status=400, headers={"content-encoding": "gzip"}),
        APIStatusError,
        facts={"body": ""},
    ),
    Fault("a status of no class", lambda s: s.fail(799), APIStatusError),
    *(
        Fault(
            f"{status} to {location!r}",
            redirect(status, location),
            RedirectError,
            facts={"location": location},
        )
        for status in (301, 302, 303, 307, 308)
        for location in ("/elsewhere", "http://[broken", None)
    ),
    # Text.
    Fault(
        "not UTF-8",
        lambda s: s.reply("Hällo".encode("latin-1")),
        ReplyDecodeError,
        partial="H",
    ),
    Fault(
        "a character cut at the end",
        lambda s: s.reply(BYTES[:-2]),
        ReplyDecodeError,
        partial=TEXT[:-2],
    ),
    Fault(
        "longer than allowed",
        lambda s: s.reply(chunks=["Hello", ", world"]),
        ReplyTooLargeError,
        partial="Hello, w",
        options={"max_reply_bytes": 8},
    ),
    Fault(
        "a length longer than allowed",
        lambda s: s.reply("Hello, world", length="exact"),
        ReplyTooLargeError,
        options={"max_reply_bytes": 8},
    ),
    Fault(
        "endless", lambda s: s.flood("x"), ReplyTooLargeError, "x\n" * 50_000,
        options={"max_reply_bytes": 100_000},
    ),
    Fault(
        "endless in one line",
        lambda s: s.flood("x", newline=False),
        ReplyTooLargeError,
        "x" * 100_000,
        options={"max_reply_bytes": 100_000},
    ),
    fine("whole", lambda s: s.reply(TEXT)),
    fine("with a length", lambda s: s.reply(TEXT, length="exact")),
    fine("byte by byte", lambda s: s.reply(chunks=[bytes([byte]) for byte in BYTES])),
    fine("a byte order mark", lambda s: s.reply(TEXT, bom=True)),
    fine("two byte order marks", lambda s: s.reply("\ufeff" + TEXT, bom=True), "\ufeff" + TEXT),
    fine("a dripped head that ends", lambda s: s.drip(TEXT, interval=0.0, where="head")),
    fine(
        "informational responses first",
        lambda s: s.drip(TEXT, interval=0.0, where="informational"),
    ),
    fine("no content type", lambda s: s.reply(TEXT, content_type="")),
    fine("another text type", lambda s: s.reply(TEXT, content_type="text/markdown")),
    fine("identity", lambda s: s.reply(TEXT, headers={"content-encoding": "identity"})),
    fine(
        "trailers", lambda s: s.raw(CHUNKED + build_chunk(TEXT) + b"0\r\nx-sum: 1\r\n\r\n")
    ),
    fine(
        "chunk extensions",
        lambda s: s.raw(CHUNKED + b"5;name=value\r\nHello\r\n" + LAST),
        "Hello",
    ),
    fine("a length too short", lambda s: s.reply(TEXT, length=5), "Hello"),
    fine("a second response", lambda s: s.trailing(TEXT)),
    fine("close announced", lambda s: s.reply(TEXT, close=True)),
    fine("close not announced", lambda s: s.close_idle(TEXT)),
    fine("HTTP/1.0 with a length", lambda s: s.raw(
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nHello", end="close"), "Hello"),
    *(
        fine(
            f"charset {charset}",
            charset_of(charset),
        )
        for charset in ("rot13", "base64_codec", "idna", "undefined", "utf-7", "latin-1", '"')
    ),
    # Lenient.
    *(
        Fault(f"lenient: {fault.name}", fault.script, fault.expected, options={"strict": False})
        for fault in [
            fine("HTML", lambda s: s.reply("<html>", content_type="text/html"), "<html>"),
            fine("JSON", lambda s: s.reply("{}", content_type="application/json"), "{}"),
            fine("nothing", lambda s: s.reply(""), ""),
            fine("204", lambda s: s.raw(head(status="204 No Content")), ""),
            fine("neither length nor chunks", lambda s: s.reply(TEXT, length="none")),
            fine("not UTF-8", lambda s: s.reply(b"H\xe4llo"), "H\ufffdllo"),
            fine("a character cut at the end", lambda s: s.reply(BYTES[:-2]), TEXT[:-2] + "\ufffd"),
        ]
    ),
    Fault(
        "lenient: gzip", lambda s: s.encoded(TEXT), UnexpectedContentError,
        options={"strict": False},
    ),
]  # fmt: skip


def check(fault: Fault, result: Any) -> None:
    if isinstance(fault.expected, str):
        if not isinstance(result, Reply):
            raise result
        assert result.text == fault.expected
        return
    assert type(result) is fault.expected or (
        fault.expected is APIStatusError and isinstance(result, APIStatusError)
    ), repr(result)
    assert isinstance(result, CromicleError)
    assert result.partial_text == fault.partial
    assert result.attempts == fault.requests
    for name, value in fault.facts.items():
        assert getattr(result, name) == value
    assert "127.0.0.1" in str(result)
    assert len(str(result)) < 700
    if isinstance(result, (APIStatusError, UnexpectedContentError)):
        assert len(result.body) <= 64 * 1024
