"""A streamed chat completion as OpenAI's API has it, event by event: data in, text out."""

from __future__ import annotations

import json
from typing import Any, cast

from ._failures import build_invalid

__all__ = ["Completion"]

_DONE = "[DONE]"


class Completion:
    """One answer of a model. Feed it events until `is_done`, then or at the end `receive_eof`.

    Only the choice 0 counts, and of that the content, and a refusal in its place; reasoning, tool
    calls, roles and usage are no part of the answer. Whatever is no completion raises
    `BackendError`, which never quotes it.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.finish_reason: str | None = None

    def receive_event(self, data: str) -> str:
        """The text that an event's data adds, "" for none."""
        if data.strip() == _DONE:
            self.is_done = True
            return ""
        # An event of nothing but an id or a time to reconnect.
        return self._receive(_parse(data), "delta") if data else ""

    def receive_whole(self, body: bytes) -> str:
        """The text of an answer in one piece, from a server that does not stream."""
        text = self._receive(_parse(body), "message")
        self.is_done = True
        return text

    def receive_eof(self) -> None:
        """The answer has ended. Raises `BackendError` where it was not complete."""
        if not self.is_done and self.finish_reason is None:
            raise build_invalid("its answer ended without a finish_reason, so it is not complete")

    def _receive(self, event: dict[str, Any], name: str) -> str:
        if event.get("error"):
            raise build_invalid("it reports an error in its answer")
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise build_invalid("it sends an event without choices")
        texts = [
            self._read_choice(cast("dict[str, Any]", choice), name)
            for choice in cast("list[object]", choices)
            if isinstance(choice, dict) and cast("dict[str, Any]", choice).get("index", 0) == 0
        ]
        return "".join(texts)

    def _read_choice(self, choice: dict[str, Any], name: str) -> str:
        reason = choice.get("finish_reason")
        if reason == "error":
            raise build_invalid("it reports an error in its answer")
        if isinstance(reason, str) and reason:
            self.finish_reason = reason
        delta: Any = choice.get(name) or {}
        if not isinstance(delta, dict):
            raise build_invalid(f"it sends a {name} that is no object")
        fields = cast("dict[str, Any]", delta)
        return _read_content(fields.get("content")) + _read_content(fields.get("refusal"))


def _parse(data: str | bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        # Out here, for the error above quotes what it can't read.
        raise build_invalid("it sends an event that is no JSON object")
    return cast("dict[str, Any]", event)


def _read_content(content: object) -> str:
    """A text, or the text parts of a list; None is none."""
    if content is None:
        return ""
    if isinstance(content, str):
        return _check_text(content)
    if isinstance(content, list):
        parts = cast("list[object]", content)
        return "".join(_read_part(part) for part in parts)
    raise build_invalid("it sends a content that is no text")


def _read_part(part: object) -> str:
    if isinstance(part, dict):
        fields = cast("dict[str, Any]", part)
        # Other parts are thoughts and references.
        return _read_content(fields.get("text")) if fields.get("type") == "text" else ""
    return _read_content(part)


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        is_sound = False
    else:
        is_sound = True
    if not is_sound:
        raise build_invalid("it sends half a character, an escape of a lone surrogate")
    return text
