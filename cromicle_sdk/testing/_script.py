"""What the faulty server does next: its behaviours in order, the last one repeated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from ._connection import Connection
from ._plan import End, Plan, Step, When, interleave, single_bytes, space_out
from ._request import RecordedRequest
from ._wire import (
    CONTENT_TYPE,
    LAST_CHUNK,
    Headers,
    build_chunk,
    build_encoded,
    build_head,
    has_body,
    to_bytes,
    to_pairs,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TEXT", "Behaviour", "Framing", "Script"]

Behaviour = Callable[[Connection, RecordedRequest], None]
Framing = Literal["chunked", "length", "none"]

TEXT = "Hello from the faulty server."

_BOM = b"\xef\xbb\xbf"
# How much more than it sends a cut promises, so that the cut shows.
_MISSING_BYTES = 64
_FLOOD_BLOCK_BYTES = 1 << 16
_INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"
_DUE: dict[When, tuple[When, ...]] = {"accept": ("accept",), "head": ("accept", "head")}


class Script:
    """An ordered list of behaviours, one for each request; every method appends one.

    Each request takes the next; once the script has run out its last one repeats, so that
    `cut()` alone cuts every time, as a retrying client has to see it. An empty script replies
    with `TEXT`. Methods return the script itself, so that calls chain:
    `server.fail(503).fail(503).reply("At last.")`.

    A text may be `str`, sent as UTF-8, or `bytes`, sent as they are. In `cut`, `reset` and
    `stall`, `after=None` acts before any byte of the response, `after=""` after its head, and
    any other text once that much of the body has been sent. `when` moves a behaviour forward:
    "accept" acts on the bare connection, before TLS and before a request is read or recorded
    (on a kept-alive connection there is no such moment, so there it acts on the request);
    "head" acts when a request's body is still unread, and the connection ends with it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._behaviours: list[Plan | Behaviour] = []
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
        close: bool = False,
    ) -> Self:
        """Answer with `text`, or with `chunks` (empty ones are left out), `delay` seconds apart.

        All that follows the first chunk, the end included, waits for `gate`. `headers`, a
        mapping or a list of pairs, are added unchecked. `length` is the framing: "chunked";
        "exact", a right content-length; "none", a body that ends with the connection; a number,
        a content-length of your own: where it promises more than there is the connection
        closes, where it promises less the rest follows all the same. `bom` puts a byte order
        mark in front. `close` says `connection: close` and does it.
        """
        pieces = [to_bytes(piece) for piece in ([text] if chunks is None else chunks)]
        if bom:
            pieces[:1] = [_BOM + b"".join(pieces[:1])]
        total = sum(map(len, pieces))
        promised = total if length == "exact" else length
        broken = isinstance(promised, int) and promised > total
        head = build_head(
            status,
            content_type=content_type,
            length=promised,
            headers=[*to_pairs(headers), *([("connection", "close")] if close else [])],
        )
        body = space_out([_framed(piece, length) for piece in pieces if piece], delay, gate)
        last = (LAST_CHUNK,) if length == "chunked" else ()
        end: End = "close" if close or broken or length == "none" else "keep"
        return self._append(Plan(steps=(head, *body, *last), end=end))

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
        """Answer with an error status, `body` (default: a sentence) and its length.

        `retry_after` is the header's value as it is: seconds, a date, or nonsense. `close` says
        `connection: close` and does it. With `when="head"` a long body is refused before it is
        read, as servers do with 413.
        """
        sentence = f"The faulty server says {status}." if has_body(status) else ""
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
        return self._append(Plan(steps=(head, data), end="close" if closing else "keep", when=when))

    def redirect(self, status: int = 302, *, location: str | None = "/elsewhere") -> Self:
        """Answer with a redirect; `location` goes out unchecked, None leaves it away."""
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
        """Close the connection (FIN) before the answer is complete.

        `framing` is what the head has promised: a last chunk, more bytes, or nothing, so that
        the cut cannot be told from an end. `inside_chunk` breaks off in the middle of a chunk;
        it raises `ValueError` without a text to be in the chunk, or with another framing.
        """
        if inside_chunk and (not after or framing != "chunked"):
            raise ValueError("inside_chunk takes a text in `after`, and framing 'chunked'.")
        return self._break(
            after, end="close", when=when, framing=framing, inside_chunk=inside_chunk
        )

    def reset(self, after: str | bytes | None = None, *, when: When = "request") -> Self:
        """Reset the connection (RST) before the answer is complete.

        What was sent before may be lost with it, as on a real network: Linux still hands it to
        a client that has not read it yet, other systems do not. With `when="accept"` a client
        may see it while it connects. Over TLS, CPython's `ssl` shows it as an end.
        """
        return self._break(after, end="reset", when=when)

    def stall(self, after: str | bytes | None = None, *, when: When = "request") -> Self:
        """Fall silent before the answer is complete, until the client leaves or `stop()`.

        With `when="head"` the request's body is never read, so that the client blocks while it
        sends; that connection lasts until `stop()`, for nobody can see past unread bytes that
        the client has left.
        """
        return self._break(after, end="stall", when=when)

    def drip(
        self,
        text: str | bytes = TEXT,
        *,
        interval: float = 0.01,
        where: Literal["head", "informational", "body"] = "body",
        forever: bool = False,
    ) -> Self:
        """Answer with `text`, slowly: one byte (not character) every `interval` seconds.

        `where` says what drips: the bytes of the response's head; informational responses
        (102), one for every byte of the text; or the body, each byte a chunk. `forever` never
        gets past it: a header line, informational responses, or the text again and again.
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
                else (*interleave(single_bytes(head), interval), *body)
            )
        elif where == "informational":
            endless = (_INTERIM, interval)
            steps = () if forever else (*endless * len(data), head, *body)
        else:
            endless = interleave([build_chunk(byte) for byte in single_bytes(data)], interval)
            steps = (head,) if forever else (head, *endless, LAST_CHUNK)
        return self._append(Plan(steps=steps, endless=endless if forever else ()))

    def flood(
        self,
        text: str | bytes = TEXT,
        *,
        size: int | None = None,
        newline: bool = True,
        status: int = 200,
    ) -> Self:
        """Answer with `text` over and over, as fast as it is taken: `size` bytes or for ever.

        `newline` puts one after each; without it the whole body is a single line.
        """
        line = to_bytes(text) + (b"\n" if newline else b"")
        block = line * (_FLOOD_BLOCK_BYTES // len(line) + 1)
        head, chunk = build_head(status), build_chunk(block)
        if size is None:
            return self._append(Plan(steps=(head,), endless=(chunk,)))
        whole, rest = divmod(size, len(block))
        last = (build_chunk(block[:rest]), LAST_CHUNK) if rest else (LAST_CHUNK,)
        return self._append(Plan(steps=(head, *[chunk] * whole, *last)))

    def encoded(
        self, text: str | bytes = TEXT, *, coding: str = "gzip", size: int | None = None
    ) -> Self:
        """Answer under a content coding that nobody has asked for.

        `coding` is the header's value: "gzip", "deflate", several with commas, or one that
        does not exist, which leaves the bytes alone. `size` makes a bomb: the number of bytes
        that the text, repeated, unpacks to. It is packed here, at some 200 MB a second. For
        broken codings: `reply(data, headers={"content-encoding": "gzip"})`.
        """
        data = build_encoded(text, coding=coding, size=size)
        return self.reply(data, length="exact", headers={"content-encoding": coding})

    def trailing(self, text: str | bytes = TEXT, *, second: str | bytes = "Not yours.") -> Self:
        """Answer, and in the same breath send a second whole response that nobody awaits."""
        bodies = (text, second)
        return self.raw(b"".join(build_head() + _framed(body) + LAST_CHUNK for body in bodies))

    def close_idle(self, text: str | bytes = TEXT) -> Self:
        """Answer well, keeping the connection alive as far as the head says, then close it."""
        return self._append(Plan(steps=(build_head(), _framed(text), LAST_CHUNK), end="close"))

    def raw(
        self,
        data: bytes | Iterable[bytes],
        *,
        delay: float = 0.0,
        gate: threading.Event | None = None,
        end: Literal["keep", "close", "reset"] = "keep",
        when: When = "request",
    ) -> Self:
        """Send bytes as they are; `build_head` and `build_chunk` make the sound parts of them.

        Several are sent one by one, `delay` seconds apart; all after the first, `end` included,
        wait for `gate`. `end="keep"` leaves the connection open for the next request.
        """
        pieces = [data] if isinstance(data, bytes) else list(data)
        return self._append(Plan(steps=space_out(pieces, delay, gate), end=end, when=when))

    def script(self, behaviour: Behaviour) -> Self:
        """Let `behaviour(connection, request)` answer; it runs on that connection's thread.

        See `Connection` for what it can do. What it raises, other than `DisconnectedError`,
        closes the connection and goes to `threading.excepthook`.
        """
        return self._append(behaviour)

    def clear(self) -> Self:
        """Forget every behaviour; what has begun goes on."""
        with self._changed:
            self._behaviours.clear()
            self._taken = 0
        return self

    def take(self) -> Plan | Behaviour:
        """The behaviour for a request that has been read."""
        with self._changed:
            behaviour = self._next()
            self._taken = min(self._taken + 1, len(self._behaviours))
        return behaviour

    def take_early(self, when: When) -> Plan | None:
        """The next behaviour if it is due at this moment already, else None."""
        with self._changed:
            behaviour = self._next()
            if isinstance(behaviour, Plan) and behaviour.when in _DUE[when]:
                self.take()
                return behaviour
        return None

    def _next(self) -> Plan | Behaviour:
        if not self._behaviours:
            return _DEFAULT
        return self._behaviours[min(self._taken, len(self._behaviours) - 1)]

    def _append(self, behaviour: Plan | Behaviour) -> Self:
        with self._changed:
            self._behaviours.append(behaviour)
        return self

    def _break(
        self,
        after: str | bytes | None,
        *,
        end: End,
        when: When,
        framing: Framing = "chunked",
        inside_chunk: bool = False,
    ) -> Self:
        steps = () if after is None else _beginning(to_bytes(after), framing, inside_chunk)
        return self._append(Plan(steps=steps, end=end, when=when))


def _beginning(data: bytes, framing: Framing, inside_chunk: bool) -> tuple[bytes, bytes]:
    """A response up to the point where it breaks off: head and body."""
    more = len(data) + _MISSING_BYTES
    head = build_head(length=more if framing == "length" else framing)
    if inside_chunk:
        return head, build_chunk(data, size=more, end=b"")
    return head, _framed(data, framing)


def _framed(text: str | bytes, framing: object = "chunked") -> bytes:
    """A piece of a body; an empty one is no chunk, for that would be the last."""
    return build_chunk(text) if text and framing == "chunked" else to_bytes(text)


_DEFAULT = Plan(steps=(build_head(), build_chunk(TEXT), LAST_CHUNK))
