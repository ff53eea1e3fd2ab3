"""The script of a faulty server: an ordered list of behaviours, the last of which repeats."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from cromicle_sdk._core.response import FINISH_REASON_HEADER

from .connection import Connection
from .request import RecordedRequest
from .response import (
    CONTENT_TYPE,
    LAST_CHUNK,
    Headers,
    build_chunk,
    build_encoded,
    build_head,
    build_last_chunk,
    has_body,
    to_bytes,
    to_pairs,
)
from .scripted_response import End, ScriptedResponse, Step, When, add_pauses, space_out, split_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TEXT", "Behaviour", "Framing", "Script"]

Behaviour = Callable[[Connection, RecordedRequest], None]
"""Responds to a request over its connection, for `script()`."""

Framing = Literal["chunked", "length", "none"]

TEXT = "Hello from the faulty server."

_BOM = b"\xef\xbb\xbf"
# The number of missing bytes that a truncated response announces.
_MISSING_BYTES = 64
_FLOOD_BLOCK_BYTES = 1 << 16
_INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"
_DUE: dict[When, tuple[When, ...]] = {"accept": ("accept",), "head": ("accept", "head")}


class Script:
    """An ordered list of behaviours, one for each request. Every method appends one.

    The last behaviour repeats, so `cut()` alone cuts off every response, including those to
    retries. An empty script replies with "Hello from the faulty server." The methods return the
    script itself, so calls can be chained: `server.fail(503).fail(503).reply("At last.")`.

    A text is a `str`, which is sent as UTF-8, or `bytes`, which are sent unchanged.

    In `cut`, `reset` and `stall`, `after` is the part of the response that is sent before the
    fault: None for nothing, "" for the head, or a text for the head and that part of the body.

    `when` is the moment of the behaviour: "request", the default, after the request has been read;
    "head", before the body of the request is read, after which the connection is closed; or
    "accept", on the new connection, before TLS and before a request is read or recorded (on a
    connection that is kept alive, at the next request).
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._behaviours: list[ScriptedResponse | Behaviour] = []
        self._taken = 0

    def reply(
        self,
        text: str | bytes = TEXT,
        *,
        chunks: Iterable[str | bytes] | None = None,
        delay: float = 0.0,
        gate: threading.Event | None = None,
        status: int = 200,
        content_type: str | None = CONTENT_TYPE,
        headers: Headers | None = None,
        length: Literal["chunked", "exact", "none"] | int = "chunked",
        bom: bool = False,
        finish_reason: str | None = None,
        close: bool = False,
    ) -> Self:
        """Reply with `text`, or with `chunks`, `delay` seconds apart.

        - `chunks`: an iterable of texts, sent one by one. Empty ones are skipped.
        - `gate`: an event. Everything after the first chunk, including the end, waits for it.
        - `status`, `content_type`: those of the response. None omits the content type.
        - `headers`: a mapping or a list of pairs, added unchecked.
        - `length`: the framing. "chunked"; "exact", a correct content-length; "none", a body that
          ends with the connection; or a number, which is sent as the content-length. If the body
          is shorter than that, the connection closes after it; a longer body is sent completely.
        - `bom`: add a byte order mark at the start.
        - `finish_reason`: sent unchecked as the trailer `x-finish-reason` after the last chunk.
        - `close`: send `connection: close`, and close the connection.

        Raises `ValueError` for `finish_reason` with a framing other than "chunked".
        """
        if finish_reason is not None and length != "chunked":
            raise ValueError("finish_reason requires length='chunked'.")
        parts = [to_bytes(part) for part in ([text] if chunks is None else chunks)]
        if bom:
            parts[:1] = [_BOM + b"".join(parts[:1])]
        total = sum(map(len, parts))
        announced = total if length == "exact" else length
        is_short = isinstance(announced, int) and announced > total
        head = build_head(
            status,
            content_type=content_type,
            length=announced,
            headers=[
                *to_pairs(headers),
                *([] if finish_reason is None else [("trailer", FINISH_REASON_HEADER)]),
                *([("connection", "close")] if close else []),
            ],
        )
        trailers = {} if finish_reason is None else {FINISH_REASON_HEADER: finish_reason}
        body = space_out([_frame(part, length) for part in parts if part], delay, gate)
        last = (build_last_chunk(trailers),) if length == "chunked" else ()
        end: End = "close" if close or is_short or length == "none" else "keep"
        return self._append(ScriptedResponse(steps=(head, *body, *last), end=end))

    def fail(
        self,
        status: int = 503,
        *,
        retry_after: float | str | None = None,
        body: str | bytes | None = None,
        content_type: str | None = CONTENT_TYPE,
        headers: Headers | None = None,
        close: bool = False,
        when: When = "request",
    ) -> Self:
        """Respond with an error status and `body`, by default a sentence.

        `retry_after` is the value of the `Retry-After` header, unchecked. `close` sends
        `connection: close` and closes the connection. `when="head"` responds before the body of
        the request is read, as servers do with a 413.
        """
        sentence = f"The faulty server responds with {status}." if has_body(status) else ""
        data = to_bytes(sentence if body is None else body)
        closing = close or when != "request"
        head = build_head(
            status,
            content_type=content_type,
            length=len(data),
            headers=[
                *([] if retry_after is None else [("retry-after", str(retry_after))]),
                *([("connection", "close")] if closing else []),
                *to_pairs(headers),
            ],
        )
        return self._append(
            ScriptedResponse(steps=(head, data), end="close" if closing else "keep", when=when)
        )

    def redirect(self, status: int = 302, *, location: str | None = "/elsewhere") -> Self:
        """Respond with a redirect to `location`, which is not checked. None omits the header."""
        headers = {} if location is None else {"location": location}
        return self.fail(status, headers=headers)

    def cut(
        self,
        after: str | bytes | None = None,
        *,
        framing: Framing = "chunked",
        inside_chunk: bool = False,
        when: When = "request",
    ) -> Self:
        """Close the connection (FIN) before the response is complete.

        `framing` is the framing in the head: "chunked"; "length", a content-length; or "none",
        with which a truncated body looks complete. `inside_chunk` closes in the middle of a
        chunk. Raises `ValueError` for `inside_chunk` without a text in `after`, or with another
        framing than "chunked".
        """
        if inside_chunk and (not after or framing != "chunked"):
            raise ValueError("inside_chunk requires a text in after=, and framing='chunked'.")
        return self._append_fault(
            after, end="close", when=when, framing=framing, inside_chunk=inside_chunk
        )

    def reset(self, after: str | bytes | None = None, *, when: When = "request") -> Self:
        """Reset the connection (RST) before the response is complete.

        Bytes sent before may be lost, as on a real network: Linux still delivers them to a
        client that has not read them yet; other systems do not. With `when="accept"`, the reset
        may reach a client while it connects. Over TLS, CPython's `ssl` may report it as an end
        of file.
        """
        return self._append_fault(after, end="reset", when=when)

    def stall(self, after: str | bytes | None = None, *, when: When = "request") -> Self:
        """Send nothing more until the client disconnects or `stop()` is called.

        With `when="head"`, the body of the request is never read, so a client blocks while it
        sends a long one. Because unread bytes also hide a disconnect, that connection stays open
        until `stop()`.
        """
        return self._append_fault(after, end="stall", when=when)

    def drip(
        self,
        text: str | bytes = TEXT,
        *,
        interval: float = 0.01,
        where: Literal["head", "informational", "body"] = "body",
        forever: bool = False,
    ) -> Self:
        """Reply with `text` slowly, one byte (not character) every `interval` seconds.

        `where` selects the slow part: "head", its bytes; "informational", a 102 response for each
        byte of the text; or "body", each byte in its own chunk. With `forever`, this part never
        ends: it is a header line without end, 102 responses, or the repeated text.
        """
        data = to_bytes(text)
        head = build_head()
        body = (build_chunk(data), LAST_CHUNK)
        endless: tuple[Step, ...]
        if where == "head":
            endless = (b"x", interval)
            steps = (
                (head[:-2] + b"x-drip: ",)
                if forever
                else (*add_pauses(split_bytes(head), interval), *body)
            )
        elif where == "informational":
            endless = (_INTERIM, interval)
            steps = () if forever else (*endless * len(data), head, *body)
        else:
            endless = add_pauses([build_chunk(byte) for byte in split_bytes(data)], interval)
            steps = (head,) if forever else (head, *endless, LAST_CHUNK)
        return self._append(ScriptedResponse(steps=steps, endless=endless if forever else ()))

    def flood(
        self,
        text: str | bytes = TEXT,
        *,
        size: int | None = None,
        newline: bool = True,
        status: int = 200,
    ) -> Self:
        """Reply with `text` repeated, as fast as the client reads.

        The body has `size` bytes, or never ends if it is None. `newline` adds a line feed after
        each text; without it, the body is a single line.
        """
        line = to_bytes(text) + (b"\n" if newline else b"")
        block = line * (_FLOOD_BLOCK_BYTES // len(line) + 1)
        head, chunk = build_head(status), build_chunk(block)
        if size is None:
            return self._append(ScriptedResponse(steps=(head,), endless=(chunk,)))
        whole, rest = divmod(size, len(block))
        last = (build_chunk(block[:rest]), LAST_CHUNK) if rest else (LAST_CHUNK,)
        return self._append(ScriptedResponse(steps=(head, *[chunk] * whole, *last)))

    def encoded(
        self, text: str | bytes = TEXT, *, coding: str = "gzip", size: int | None = None
    ) -> Self:
        """Reply with a content coding that the request does not accept.

        `coding` is the value of the header: "gzip", "deflate", several separated by commas, or
        an unknown one, which leaves the bytes unchanged. `size` builds a decompression bomb: the
        text is repeated up to that many bytes before it is compressed, at about 200 MB a second.
        For invalid data, use `reply(data, headers={"content-encoding": "gzip"})`.
        """
        data = build_encoded(text, coding=coding, size=size)
        return self.reply(data, length="exact", headers={"content-encoding": coding})

    def trailing(self, text: str | bytes = TEXT, *, second: str | bytes = "Not yours.") -> Self:
        """Reply with `text`, and send a second complete response in the same write."""
        bodies = (text, second)
        return self.raw(b"".join(build_head() + _frame(body) + LAST_CHUNK for body in bodies))

    def close_idle(self, text: str | bytes = TEXT) -> Self:
        """Reply with `text` without `connection: close`, then close the connection."""
        return self._append(
            ScriptedResponse(steps=(build_head(), _frame(text), LAST_CHUNK), end="close")
        )

    def raw(
        self,
        data: bytes | Iterable[bytes],
        *,
        delay: float = 0.0,
        gate: threading.Event | None = None,
        end: Literal["keep", "close", "reset"] = "keep",
        when: When = "request",
    ) -> Self:
        """Send bytes unchanged. `build_head` and `build_chunk` build well-formed parts.

        Several parts are sent `delay` seconds apart. Everything after the first part, including
        `end`, waits for the event `gate`. `end` keeps the connection open for the next request,
        closes it (FIN), or resets it (RST).
        """
        parts = [data] if isinstance(data, bytes) else list(data)
        return self._append(
            ScriptedResponse(steps=space_out(parts, delay, gate), end=end, when=when)
        )

    def script(self, behaviour: Behaviour) -> Self:
        """Call `behaviour(connection, request)` in the thread of that connection.

        It is called with a `Connection`, to send bytes, wait and close, and with the
        `RecordedRequest`. An exception other than `DisconnectedError` closes the connection and is
        passed to `threading.excepthook`.
        """
        return self._append(behaviour)

    def clear(self) -> Self:
        """Remove all behaviours. Responses in progress continue."""
        with self._changed:
            self._behaviours.clear()
            self._taken = 0
        return self

    def take(self) -> ScriptedResponse | Behaviour:
        """Return the behaviour for a request that has been read, and advance."""
        with self._changed:
            behaviour = self._next()
            self._taken = min(self._taken + 1, len(self._behaviours))
        return behaviour

    def take_early(self, when: When) -> ScriptedResponse | None:
        """Return the next behaviour and advance if it is due at this moment; otherwise None."""
        with self._changed:
            behaviour = self._next()
            if isinstance(behaviour, ScriptedResponse) and behaviour.when in _DUE[when]:
                self.take()
                return behaviour
        return None

    def _next(self) -> ScriptedResponse | Behaviour:
        if not self._behaviours:
            return _DEFAULT
        return self._behaviours[min(self._taken, len(self._behaviours) - 1)]

    def _append(self, behaviour: ScriptedResponse | Behaviour) -> Self:
        with self._changed:
            self._behaviours.append(behaviour)
        return self

    def _append_fault(
        self,
        after: str | bytes | None,
        *,
        end: End,
        when: When,
        framing: Framing = "chunked",
        inside_chunk: bool = False,
    ) -> Self:
        steps = () if after is None else _build_truncated(to_bytes(after), framing, inside_chunk)
        return self._append(ScriptedResponse(steps=steps, end=end, when=when))


def _build_truncated(data: bytes, framing: Framing, inside_chunk: bool) -> tuple[bytes, bytes]:
    """Build the head of a response, and the part of its body before it is cut off."""
    more = len(data) + _MISSING_BYTES
    head = build_head(length=more if framing == "length" else framing)
    if inside_chunk:
        return head, build_chunk(data, size=more, end=b"")
    return head, _frame(data, framing)


def _frame(text: str | bytes, framing: object = "chunked") -> bytes:
    """Build a part of a body. An empty part is not a chunk, which would end the body."""
    return build_chunk(text) if text and framing == "chunked" else to_bytes(text)


_DEFAULT = ScriptedResponse(steps=(build_head(), build_chunk(TEXT), LAST_CHUNK))
