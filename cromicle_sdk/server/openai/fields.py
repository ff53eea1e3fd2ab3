"""The fields of a model server's JSON that are not read: none of them may hold text or an error.

Model servers add fields and events of their own: usage, billing, heartbeats, metadata. Those are
ignored. A field that may hold a part of the answer or an error is not, because ignoring it would
make an incomplete reply look complete. Which is which is decided by names, and for unknown names
by the value: text is written in words, metadata in numbers and identifiers.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Collection
from typing import cast

from .errors import build_invalid_error, build_reported_error, read_error

__all__ = ["check_unread", "is_failure", "is_heartbeat"]

# Understood, and neither text of the answer nor an error, whatever they hold.
_NOT_ANSWER = frozenset(
    {
        "__verbose",  # llama.cpp, for debugging
        "annotations",
        "audio",
        "citations",
        "content_filter_offsets",
        "content_filter_result",
        "content_filter_results",
        "finish_details",
        "function_call",
        "images",
        "logprobs",
        "matched_stop",
        "prompt_filter_results",
        "prompt_logprobs",
        "references",
        "related_questions",
        "search_results",
        "tool_calls",
        "usage",
    }
)
# Parts of the names of fields that hold thoughts, or why the answer ended.
_NOT_ANSWER_PARTS = ("reason", "think", "thought")

# Labels: never text, also inside of a field that may be.
_LABELS = frozenset(
    {
        "created_at",
        "date",
        "fingerprint",
        "id",
        "model",
        "name",
        "object",
        "provider",
        "role",
        "service_tier",
        "system_fingerprint",
        "timestamp",
        "type",
    }
)

# Containers of metadata, whose values may have several words.
_METADATA = frozenset(
    {
        "billing",
        "cost",
        "meta",
        "metadata",
        "metrics",
        "provider_specific_fields",
        "stats",
        "statistics",
        "timings",
    }
)
_METADATA_PREFIXES = ("_", "x_", "x-")
# What an event without a choice may call itself, as its name, `type`, `object` or `event`.
_METADATA_KINDS = _METADATA | {
    "heartbeat",
    "keep-alive",
    "keepalive",
    "keep_alive",
    "ping",
    "usage",
}
_HEARTBEATS = frozenset({"heartbeat", "keep-alive", "keepalive", "keep_alive", "ping"})

# Names of text in the APIs of model servers, and of the message of an error.
_TEXT_NAMES = frozenset(
    {
        "answer",
        "body",
        "candidates",
        "choice",
        "choices",
        "chunk",
        "completion",
        "content",
        "contents",
        "delta",
        "detail",
        "generated_text",
        "generation",
        "generations",
        "message",
        "messages",
        "msg",
        "output",
        "output_text",
        "outputs",
        "parts",
        "refusal",
        "reply",
        "response",
        "result",
        "results",
        "text",
        "token",
        "transcript",
    }
)

_ERROR_NAMES = frozenset(
    {"err", "errmsg", "error", "error_code", "error_message", "error_msg", "errors", "exception"}
)
_KIND_NAMES = ("type", "object", "event", "status")
# The `object` of nearly every event.
_COMMON_KINDS = ("chat.completion.chunk", "chat.completion")
_FAILED_KINDS = ("error", "exception", "fail", "abort")
# What a status says that is not an error: `{"code": 0, "message": "Success"}`.
_SUCCESS = ("", "0", "ok", "success", "succeeded")

_LONGEST_CACHED_NAME = 64


class _Role(enum.Enum):
    """What the name of a field says about its value."""

    SKIPPED = enum.auto()
    LABEL = enum.auto()
    KIND = enum.auto()
    CODE = enum.auto()
    SUCCESS = enum.auto()
    ERROR = enum.auto()
    METADATA = enum.auto()
    TEXT = enum.auto()
    OTHER = enum.auto()


def check_unread(fields: dict[str, object], *, read: frozenset[str], kind: str = "message") -> None:
    """Raise `BackendError` if a field that is not one of `read` may hold text or an error.

    `kind` is the name of the event that the fields are those of.
    """
    # Objects, and whether they are inside of a field of text or of metadata.
    pending = [(fields, False, False)]
    while pending:
        inner, is_text, is_metadata = pending.pop()
        for name, value in inner.items():
            if value is None or (inner is fields and name in read):
                continue
            role = _find_role(name) if len(name) <= _LONGEST_CACHED_NAME else _classify(name)
            if _is_error(role, value):
                raise build_reported_error(read_error(inner))
            if role is _Role.SKIPPED or isinstance(value, (int, float)):
                continue
            is_label = role is _Role.LABEL or role is _Role.KIND
            if is_label and isinstance(value, str):
                continue
            in_text = is_text or role is _Role.TEXT
            in_metadata = is_metadata or role is _Role.METADATA
            objects, strings = _flatten(value)
            pending += [(each, in_text, in_metadata) for each in objects]
            if is_label or all(map(_is_empty, strings)):
                continue
            if in_text or not (
                in_metadata or all(map(_is_identifier, strings)) or _is_metadata_event(fields, kind)
            ):
                raise build_invalid_error("it sent an unknown field that may hold text")


def is_heartbeat(word: str) -> bool:
    """Whether the name or the data of an event says that it only keeps the connection alive."""
    return word.lower() in _HEARTBEATS


def is_failure(word: str) -> bool:
    """Whether the name of an event, or its type, is that of an error."""
    lowered = word.lower()
    return any(part in lowered for part in _FAILED_KINDS)


@functools.lru_cache(maxsize=1024)
def _find_role(name: str) -> _Role:
    # Servers send the same few names in every event.
    return _classify(name)


def _classify(name: str) -> _Role:
    lowered = name.lower()
    if lowered in _NOT_ANSWER or any(part in lowered for part in _NOT_ANSWER_PARTS):
        return _Role.SKIPPED
    if lowered in _LABELS:
        return _Role.KIND if lowered in _KIND_NAMES else _Role.LABEL
    for role, names in _ROLES.items():
        if lowered in names:
            return role
    return _Role.METADATA if lowered.startswith(_METADATA_PREFIXES) else _Role.OTHER


_ROLES: dict[_Role, Collection[str]] = {
    _Role.KIND: _KIND_NAMES,
    _Role.CODE: ("code", "status_code"),
    _Role.SUCCESS: ("ok", "success"),
    _Role.ERROR: _ERROR_NAMES,
    _Role.METADATA: _METADATA,
    _Role.TEXT: _TEXT_NAMES,
}


def _is_error(role: _Role, value: object) -> bool:
    """Whether a field reports an error. Servers also send null, false, 0 or "" for none."""
    if role is _Role.ERROR:
        if isinstance(value, str):
            return value.lower() not in _SUCCESS
        return value is not False and value != 0 and value != []
    if role is _Role.KIND:
        if isinstance(value, str):
            return value not in _COMMON_KINDS and is_failure(value)
        return type(value) is int and 400 <= value <= 599
    if role is _Role.CODE:
        return type(value) is int and value != 0 and not 100 <= value < 400
    return role is _Role.SUCCESS and value is False


def _flatten(value: object) -> tuple[list[dict[str, object]], list[str]]:
    """The objects and the strings that are a value, or are in a list that is a value."""
    objects: list[dict[str, object]] = []
    strings: list[str] = []
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, str):
            strings.append(each)
        elif isinstance(each, dict):
            objects.append(cast("dict[str, object]", each))
        elif isinstance(each, list):
            pending += cast("list[object]", each)
    return objects, strings


def _is_metadata_event(fields: dict[str, object], kind: str) -> bool:
    kinds = [kind, *(fields.get(name) for name in _KIND_NAMES)]
    return any(isinstance(each, str) and each.lower() in _METADATA_KINDS for each in kinds)


def _is_empty(value: str) -> bool:
    return value.lower() in _SUCCESS


def _is_identifier(value: str) -> bool:
    """Whether it has no white space and is ASCII, as identifiers, dates, URLs and base64 are."""
    return value.isascii() and value.split(None, 1) == [value]
