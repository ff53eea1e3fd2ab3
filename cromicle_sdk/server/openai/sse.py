"""The parser of server-sent events: bytes in, events out.

The format is that of the HTML standard, section 9.2.6, with one difference: a line that is neither
a known field nor a comment is an error instead of being ignored, because proxies and model servers
write errors in such lines.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO

from .errors import build_invalid_error

__all__ = ["MAX_EVENT_BYTES", "Event", "EventParser"]

# An event is kept in memory until it is complete. An event with a token has a few hundred bytes;
# one with an image or a complete reply may have some megabytes.
MAX_EVENT_BYTES = 16 * 1024 * 1024

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class Event:
    """One event. `name` defaults to "message". The repr does not show the data."""

    name: str
    data: str

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.data)} characters>"


class EventParser:
    """Parses a stream of events.

    Call `receive_data` with each chunk of bytes, and `receive_eof` at the end. Both yield the
    events in order. They raise `BackendError`, which never quotes the stream, if it is not UTF-8,
    contains an invalid line, or contains an event longer than `MAX_EVENT_BYTES`.
    """

    def __init__(self) -> None:
        # "utf-8-sig" drops one leading byte order mark, as the standard requires.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        # Not a list of str: if a line arrives byte by byte, each str takes 50 bytes.
        self._line = StringIO()
        self._ends_in_cr = False
        self._name = ""
        self._data: list[str] = []
        self._pending_bytes = 0

    @property
    def pending(self) -> Event | None:
        """The event that has arrived without the empty line after it, or None."""
        if not self._data and not self._line.tell():
            return None
        name, _, value = self._line.getvalue().partition(":")
        data = [*self._data, value.removeprefix(" ")] if name == "data" else self._data
        return Event(self._name or "message", "\n".join(data))

    def receive_data(self, data: bytes | bytearray) -> Iterator[Event]:
        """Yield the events that these bytes complete."""
        self._pending_bytes += len(data)
        yield from self._decode(data, final=False)
        if self._pending_bytes > MAX_EVENT_BYTES:
            raise build_invalid_error(f"it sent {MAX_EVENT_BYTES} bytes without an event")

    def receive_eof(self) -> Iterator[Event]:
        """Yield the last event even if there is no empty line after it.

        The standard discards such an event. It is not discarded here, because it may contain text.
        """
        yield from self._decode(b"", final=True)
        yield from self._receive_text("\n\n")

    def _decode(self, data: bytes | bytearray, *, final: bool) -> Iterator[Event]:
        is_utf8 = True
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            is_utf8 = False
            text = error.object[: error.start].decode()
        yield from self._receive_text(text)
        if not is_utf8:
            # Raised here, so that the UnicodeDecodeError, which holds bytes, is not its context.
            raise build_invalid_error("it sent bytes that are not UTF-8")

    def _receive_text(self, text: str) -> Iterator[Event]:
        if not text:
            return
        # The two characters of CR LF may arrive separately.
        if self._ends_in_cr:
            text = text.removeprefix("\n")
        *lines, rest = _LINE_END.split(text)
        self._ends_in_cr = text.endswith("\r")
        for line in lines:
            if self._line.tell():
                self._line.write(line)
                line = self._line.getvalue()  # noqa: PLW2901 - the line is now complete
                self._line = StringIO()
            event = self._receive_line(line)
            if event is not None:
                self._pending_bytes = 0
                yield event
        self._line.write(rest)

    def _receive_line(self, line: str) -> Event | None:
        if not line:
            return self._end_event()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        # "" is the name of a comment. The ID and the time to reconnect are not used.
        elif name not in ("", "id", "retry") and not line.isspace():
            raise build_invalid_error("it sent a line that is not part of an event")
        return None

    def _end_event(self) -> Event | None:
        # The standard discards an event without data, but its name may be that of an error.
        if not self._name and not self._data:
            return None
        event = Event(self._name or "message", "\n".join(self._data))
        self._name = ""
        self._data = []
        return event
