"""A streamed chat completion as OpenAI's API has it, event by event: data in, text out."""

from __future__ import annotations

import json
from typing import Any, cast

from cromicle_sdk._core.messages import find_lone_surrogate

from .errors import build_invalid

__all__ = ["Completion", "is_completion"]

_DONE = "[DONE]"

# What servers call the end of an answer that they could not finish: OpenRouter, vLLM and SGLang,
# DeepSeek.
_INTERRUPTIONS = ("error", "abort", "cancelled", "insufficient_system_resource")

# Parts of a content that are text, and thoughts and references, which are no part of the answer.
_TEXT_PARTS = ("text", "output_text")
_OTHER_PARTS = ("thinking", "reasoning", "reference")


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
        _check_error(event)
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise build_invalid("it sends an event without choices")
        texts = [self._read_choice(choice, name) for choice in cast("list[object]", choices)]
        return "".join(texts)

    def _read_choice(self, choice: object, name: str) -> str:
        if not isinstance(choice, dict):
            raise build_invalid("it sends a choice that is no object")
        fields = cast("dict[str, Any]", choice)
        _check_error(fields)
        if not _is_first(fields):
            return ""
        self._note_reason(fields.get("finish_reason"))
        delta: Any = fields.get(name) or {}
        # The older completions have a text instead; dropped, it would not be missed.
        if not isinstance(delta, dict) or fields.get("text"):
            raise build_invalid(f"it sends a choice without a {name}")
        parts = cast("dict[str, Any]", delta)
        return _read_content(parts.get("content")) + _read_content(parts.get("refusal"))

    def _note_reason(self, reason: object) -> None:
        if reason in _INTERRUPTIONS:
            raise build_invalid("it says that its answer was interrupted")
        if isinstance(reason, str) and reason not in ("", "null"):
            self.finish_reason = reason


def is_completion(data: str) -> bool:
    """Whether an event's data is of a completion, whatever the event is called."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and ("choices" in event or "error" in event)


def _check_error(fields: dict[str, Any]) -> None:
    if fields.get("error") is not None:
        raise build_invalid("it reports an error in its answer")


def _is_first(choice: dict[str, Any]) -> bool:
    """Whether it is the choice that counts; one without an index is the only one."""
    index = choice.get("index")
    if index is not None and type(index) is not int:
        raise build_invalid("it sends a choice whose index is no number")
    return not index


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
    if isinstance(part, str):
        return _check_text(part)
    fields = cast("dict[str, Any]", part if isinstance(part, dict) else {})
    text = fields.get("text")
    if fields.get("type") in _TEXT_PARTS and isinstance(text, str):
        return _check_text(text)
    if fields.get("type") not in _OTHER_PARTS:
        raise build_invalid("it sends a part of a content that may be a text, and may be none")
    return ""


def _check_text(text: str) -> str:
    if find_lone_surrogate(text) is not None:
        raise build_invalid("it sends half a character, an escape of a lone surrogate")
    return text
