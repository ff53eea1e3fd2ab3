"""The parser of chat completions: bytes in, text out, and an error for anything ambiguous.

Parts of a response that are known to be neither text nor an error are ignored. Unknown parts that
may be either are an error. A completion is complete only if all of its text has been yielded and
the server has marked its end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, cast

from cromicle_sdk.server.backends import BackendError

from .choices import UNKNOWN_REASON, Choices, Part
from .errors import build_invalid_error, build_reported_error, parse_error
from .fields import check_unread, is_failure, is_heartbeat
from .sse import MAX_EVENT_BYTES, Event, EventParser

__all__ = ["Completion"]

_DONE = "[DONE]"

# Known finish reasons, in lower case and snake case, by their standard name. Any other reason, such
# as "error" or "timeout", means that the reply is incomplete.
_FINISH_REASONS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("complete", "completed", "done", "end", "end_of_text", "end_of_turn", "end_turn"),
            *("endoftext", "eos", "eos_found", "eos_token", "finish", "finish_reason_stop"),
            *("finished", "message_stop", "normal", "stop", "stop_sequence", "stop_token"),
            *("stopped",),
        ),
        "stop",
    ),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls", "tool_use"), "tool_calls"),
    **dict.fromkeys(
        (
            *("length", "length_limit", "max_completion_tokens", "max_length", "max_new_tokens"),
            *("max_output_tokens", "max_tokens", "max_tokens_reached", "token_limit"),
            *("finish_reason_length", "finish_reason_max_tokens", "model_context_window_exceeded"),
            *("context_length", "context_length_exceeded", "context_window_exceeded"),
            *("model_length", "truncated"),
        ),
        "length",
    ),
    **dict.fromkeys(
        (
            *("blocked", "blocklist", "content_filter", "content_filtered", "content_policy"),
            *("content_policy_violation", "finish_reason_safety", "guardrail_intervened"),
            *("image_safety", "moderation", "prohibited_content", "recitation", "refusal"),
            *("safety", "sensitive", "spii"),
        ),
        "content_filter",
    ),
}
_NO_REASON = ("", "null", "none")

# Empty JSON values.
_EMPTY = ("", "null", "{}", "[]", '""')

# The types of content parts: text, and those that are not part of the reply.
_TEXT_PARTS = ("text", "output_text", None)
_OTHER_PARTS = ("thinking", "reasoning", "reference")

# Usually a field of the choice. Some servers send it beside the choices, or in the delta.
_REASON_NAMES = ("finish_reason", "finishReason")

_READ_IN_EVENT = frozenset({"choices", *_REASON_NAMES})
_READ_IN_CHOICE = frozenset({"delta", "index", "message", "text", *_REASON_NAMES})
_READ_IN_DELTA = frozenset({"content", "refusal", "role", *_REASON_NAMES})
_READ_IN_PART = frozenset({"refusal", "text"})
_NONE: frozenset[str] = frozenset()

_SURROGATE = re.compile("[\ud800-\udfff]")

# A byte order mark and white space are skipped in order to find out the format.
_SPACE = b" \t\r\n"
_PREFIX = b"\xef\xbb\xbf" + _SPACE

# The total number of bytes parsed in order to find out whether JSON has arrived completely. Nearly
# always the first attempt succeeds.
_MAX_TRIED_BYTES = 4 * MAX_EVENT_BYTES


class Completion:
    """One completion, as events or as one JSON object. The first bytes determine the format.

    Call `receive_data` with each chunk of the body until `is_done`, and `receive_eof` at the end of
    the body. Both yield the text in order, and raise `BackendError`, which never quotes the body.
    The text is the content of the reply, or a refusal in its place; reasoning, tool calls and
    usage are ignored.
    """

    def __init__(self) -> None:
        self._body = bytearray()
        self._is_json = False
        self._is_json_whole = False
        self._is_end_pending = False
        self._tried_bytes = 0
        self._events: EventParser | None = None
        self._choices = Choices()
        self._is_done = False
        self._is_form_ignored = False
        self._has_delta = False
        self._half = ""
        self._length = 0
        self._digest = hashlib.sha256()

    @property
    def is_done(self) -> bool:
        """Whether the completion has ended, so that nothing follows."""
        return self._is_done

    @property
    def is_finished(self) -> bool:
        """Whether the server has sent its finish reason. Usage or `[DONE]` may follow.

        This includes an event without the empty line after it. If a server has sent text after a
        finish reason, only `[DONE]` or the end of the body marks the end.
        """
        has_reason = self._choices.finish_reason is not None and not self._choices.has_gone_on
        is_ended = has_reason or self._is_end_pending
        return self._is_done or self._is_json_whole or is_ended

    @property
    def finish_reason(self) -> str | None:
        """`stop`, `length`, `content_filter` or `tool_calls`; None if the server sends none."""
        return self._choices.finish_reason

    @property
    def is_empty(self) -> bool:
        """Whether no text has been yielded."""
        return not self._length

    def receive_data(self, data: bytes | bytearray) -> Iterator[str]:
        """Yield the non-empty texts that these bytes complete."""
        if self._events is None and not self._is_json:
            self._body += data
            first = bytes(self._body.lstrip(_PREFIX)[:1])
            self._is_json = first in (b"{", b"[")
            if first and not self._is_json:
                self._events = EventParser()
            if first:
                data, self._body = self._body, bytearray()
        if self._events is not None:
            yield from self._receive_events(self._events.receive_data(data))
            self._is_end_pending = _ends_in_brace(data) and self._is_end(self._events.pending)
        elif self._is_json:
            yield from self._receive_json(data)
        elif len(self._body) > MAX_EVENT_BYTES:
            raise build_invalid_error(f"it sent {MAX_EVENT_BYTES} bytes without an event")

    def receive_eof(self) -> Iterator[str]:
        """Yield the remaining text. Raises `BackendError` if the completion is incomplete."""
        if self._is_done:
            return
        if self._events is not None:
            yield from self._receive_events(self._events.receive_eof())
        elif self._is_json:
            if not self._is_json_whole:
                yield from self._receive_whole(_parse_json(self._body))
            self._is_done = True
        yield from self._end()
        if not self._is_done and self._choices.finish_reason is None:
            raise build_invalid_error("its response ended without a finish_reason")

    def _receive_json(self, data: bytes | bytearray) -> Iterator[str]:
        if self._is_json_whole:
            if data.strip(_SPACE):
                raise build_invalid_error("it sent more than one JSON object")
            return
        self._body += data
        if len(self._body) > MAX_EVENT_BYTES:
            raise build_invalid_error(f"it sent more than {MAX_EVENT_BYTES} bytes of JSON")
        if _ends_in_brace(data) and self._may_try(len(self._body)):
            value = _parse_json(self._body)
            if value is not None:
                self._is_json_whole = True
                self._body.clear()
                yield from self._receive_whole(value)

    def _receive_whole(self, value: object) -> Iterator[str]:
        _check_list(value)
        yield from self._receive_fields(_check_object(value), "message", is_whole=True)

    def _may_try(self, size: int) -> bool:
        self._tried_bytes += size
        return self._tried_bytes <= _MAX_TRIED_BYTES

    def _is_end(self, event: Event | None) -> bool:
        """Whether an event without an empty line after it is the end of the reply."""
        if event is None or not self._may_try(len(event.data)):
            return False
        last = event.data.rpartition("\n")[2].strip()
        may_end = not self._choices.has_gone_on
        return _is_done(last) or (may_end and _has_finish_reason(_parse_json(last)))

    def _receive_events(self, events: Iterator[Event]) -> Iterator[str]:
        for event in events:
            yield from self._receive_event(event.name, event.data.strip())
            if self._is_done:
                yield from self._end()
                return

    def _receive_event(self, name: str, data: str) -> Iterator[str]:
        if is_failure(name):
            raise build_reported_error(parse_error(data.encode()))
        if _is_done(data):
            self._is_done = True
        elif data in _EMPTY or is_heartbeat(data) or (is_heartbeat(name) and not _is_json(data)):
            return
        elif data.startswith("data:"):
            # Some proxies prefix lines with the name of the field twice.
            yield from self._receive_event(name, data.removeprefix("data:").strip())
        elif "\n" in data and not _is_json(data):
            # Some servers omit the empty line between two events.
            for line in data.split("\n"):
                if not self._is_done:
                    yield from self._receive_event(name, line.strip())
        else:
            fields = _check_object(_parse_json(data))
            yield from self._receive_fields(fields, name, is_whole=False)

    def _receive_fields(
        self, fields: dict[str, object], kind: str, *, is_whole: bool
    ) -> Iterator[str]:
        self._check_unread(fields, _READ_IN_EVENT, kind)
        choices = fields.get("choices")
        if choices and not isinstance(choices, list):
            raise build_invalid_error("it sent choices that are not a list")
        if is_whole and not choices:
            raise build_invalid_error("it sent a JSON object without choices")
        parts = [self._read_choice(each) for each in cast("list[object]", choices or []) if each]
        reason = _read_finish_reason(fields)
        if reason is not None:
            parts.append(Part(None, finish_reason=reason))
        yield from self._emit(self._choices.receive(parts))
        if self._choices.finish_reason == UNKNOWN_REASON:
            raise build_invalid_error("it ended its reply with an unknown finish_reason")

    def _read_choice(self, choice: object) -> Part:
        if not isinstance(choice, dict):
            raise build_invalid_error("it sent a choice that is not an object")
        fields = cast("dict[str, object]", choice)
        self._check_unread(fields, _READ_IN_CHOICE)
        delta, message = _get_object(fields, "delta"), _get_object(fields, "message")
        text = self._read_text(delta)
        self._has_delta = self._has_delta or bool(text)
        whole = self._read_text(message)
        if whole and not self._has_delta:
            # A message may be the next text, or repeat all of the text so far.
            if self._is_beginning(whole):
                raise build_invalid_error("it sent a message that repeats its text")
            text = whole
        elif whole and whole != text and not self._is_sent(text, whole):
            raise build_invalid_error("it sent a message that differs from its deltas")
        # Together sends the text of a delta twice. Legacy completions have only this field.
        if fields.get("text") and fields["text"] != text:
            raise build_invalid_error("it sent a choice whose text is not in a delta")
        return Part(
            index=_read_index(fields.get("index")),
            text=text,
            finish_reason=_read_finish_reason(fields, delta, message),
            has_role=bool(delta.get("role") or message.get("role")),
        )

    def _read_text(self, delta: dict[str, object]) -> str:
        """Return the content of a delta or a message, or the refusal in its place."""
        self._check_unread(delta, _READ_IN_DELTA)
        return _read_content(delta.get("content")) + _read_content(delta.get("refusal"))

    def _check_unread(
        self, fields: dict[str, object], read: frozenset[str], kind: str = "message"
    ) -> None:
        self._is_form_ignored |= check_unread(fields, read=read, kind=kind)

    def _is_beginning(self, whole: str) -> bool:
        """Whether `whole` begins with all of the text so far."""
        beginning = whole[: self._length]
        return not self.is_empty and self._digest.digest() == _hash(beginning)

    def _is_sent(self, text: str, whole: str) -> bool:
        """Whether `whole` is all of the text so far, followed by `text`."""
        digest = self._digest.copy()
        digest.update(_encode(text))
        return digest.digest() == _hash(whole)

    def _emit(self, texts: list[str]) -> Iterator[str]:
        for text in texts:
            joined = self._join_surrogates(text)
            if joined:
                self._length += len(joined)
                self._digest.update(joined.encode())
                yield joined

    def _end(self) -> Iterator[str]:
        yield from self._emit(self._choices.receive_eof())
        if self._half:
            raise _half_character()
        if self.is_empty and self._is_form_ignored:
            raise build_invalid_error("it sent no text, but an unknown field that may contain it")

    def _join_surrogates(self, text: str) -> str:
        """Replace surrogate pairs with the characters that they encode.

        JSON may escape a character as two surrogates, which a server may split between two texts.
        Therefore the first half of a pair at the end is held back until the second arrives.
        """
        if not self._half and not _SURROGATE.search(text):
            return text
        text = self._half + text
        self._half = text[-1] if "\ud800" <= text[-1:] <= "\udbff" else ""
        try:
            return _encode_utf16(text.removesuffix(self._half)).decode("utf-16-le")
        except UnicodeDecodeError:
            pass
        # Raised here, so that the UnicodeDecodeError, which holds the text, is not its context.
        raise _half_character()


def _half_character() -> BackendError:
    return build_invalid_error("it sent half a character, an escape of a lone surrogate")


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _hash(text: str) -> bytes:
    return hashlib.sha256(_encode(text)).digest()


def _encode_utf16(text: str) -> bytes:
    return text.encode("utf-16-le", errors="surrogatepass")


def _ends_in_brace(data: bytes | bytearray) -> bool:
    """Whether JSON may end here, or `[DONE]`."""
    return data[-16:].rstrip(_SPACE).endswith((b"}", b"]"))


def _is_done(data: str) -> bool:
    return data.strip('"').upper() == _DONE


def _is_json(data: str) -> bool:
    return _parse_json(data) is not None


def _parse_json(data: str | bytes | bytearray) -> object:
    """Return the value, or None if the data is not JSON.

    Raises `BackendError` if a duplicate name has a value that may be text.
    """
    try:
        # Decoded here, because `json.loads` also accepts bytes in UTF-16 and UTF-32.
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        # `dict` keeps the last of two values with the same name, and the first may be text.
        for name, value in pairs:
            if value and built[name] != value:
                check_unread({name: value}, read=_NONE)
                if name in _REASON_NAMES:
                    raise ValueError("two finish reasons")
    return built


_DECODER = json.JSONDecoder(object_pairs_hook=_build_object)


def _check_list(value: object) -> None:
    """Raise the error in a list, in which Gemini sends it."""
    for each in cast("list[object]", value) if isinstance(value, list) else []:
        if isinstance(each, dict):
            check_unread(cast("dict[str, object]", each), read=_READ_IN_EVENT)


def _check_object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise build_invalid_error("it sent data that is not a JSON object")
    return cast("dict[str, object]", value)


def _get_object(choice: dict[str, object], name: str) -> dict[str, object]:
    value: object = choice.get(name) or {}
    if not isinstance(value, dict):
        raise build_invalid_error(f"it sent a {name} that is not an object")
    return cast("dict[str, object]", value)


def _read_index(index: object) -> int | None:
    if index is not None and type(index) is not int:
        raise build_invalid_error("it sent a choice whose index is not a number")
    return index


def _read_finish_reason(*objects: dict[str, object]) -> str | None:
    """Return the first reason in these objects, which is a known one or `UNKNOWN_REASON`."""
    for fields in objects:
        for name in _REASON_NAMES:
            reason = fields.get(name)
            if reason is None or reason is False:
                continue
            if not isinstance(reason, str):
                return UNKNOWN_REASON
            words = reason.strip().lower().replace("-", "_").replace(" ", "_")
            if words not in _NO_REASON:
                return _FINISH_REASONS.get(words, UNKNOWN_REASON)
    return None


def _has_finish_reason(value: object) -> bool:
    """Whether the JSON of an event has a finish reason."""
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, object]", value)
    choices = fields.get("choices")
    objects = [fields, *(cast("list[object]", choices) if isinstance(choices, list) else [])]
    found = [cast("dict[str, object]", each) for each in objects if isinstance(each, dict)]
    return _read_finish_reason(*found) is not None


def _read_content(content: object) -> str:
    """Return the text of a content: a string, a list of parts, or None for no text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_read_part(part) for part in cast("list[object]", content))
    raise build_invalid_error("it sent content that is not text")


def _read_part(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise build_invalid_error("it sent a content part that may be text")
    fields = cast("dict[str, object]", part)
    kind = fields.get("type")
    if kind in _OTHER_PARTS:
        return ""
    check_unread(fields, read=_READ_IN_PART)
    texts = [fields.get("text"), fields.get("refusal")]
    if kind not in _TEXT_PARTS and kind != "refusal" and any(texts):
        raise build_invalid_error("it sent a content part that may be text")
    if not all(text is None or isinstance(text, str) for text in texts):
        raise build_invalid_error("it sent a content part that is not text")
    return "".join(text for text in texts if isinstance(text, str))
