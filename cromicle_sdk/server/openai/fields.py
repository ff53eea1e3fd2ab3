"""The fields of a model server's JSON that are not read: none of them may hold text or an error.

Model servers add fields and events of their own: usage, billing, heartbeats, metadata. Those are
ignored. A field that may hold a part of the answer or an error is not, because ignoring it would
make an incomplete reply look complete. Which is which is decided by names, and for unknown names
by the value: text is written in words, metadata in numbers and identifiers.
"""

from __future__ import annotations

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
_FAILED_KINDS = ("error", "exception", "fail", "abort")
# What a status says that is not an error: `{"code": 0, "message": "Success"}`.
_SUCCESS = ("0", "ok", "success", "succeeded")


def check_unread(fields: dict[str, object], *, read: frozenset[str], kind: str = "message") -> None:
    """Raise `BackendError` where a field may hold text or an error and is not one of `read`.

    `kind` is the name of the event that the fields are those of.
    """
    kinds = [kind, *(fields.get(name) for name in _KIND_NAMES)]
    is_metadata = any(isinstance(each, str) and each.lower() in _METADATA_KINDS for each in kinds)
    _check_error(fields)
    pending = [
        (name.lower(), value, False, is_metadata)
        for name, value in fields.items()
        if name not in read
    ]
    while pending:
        name, value, is_text, is_metadata = pending.pop()
        if not value or _is_not_answer(name):
            continue
        is_text = is_text or name in _TEXT_NAMES
        is_metadata = is_metadata or name in _METADATA or name.startswith(_METADATA_PREFIXES)
        if isinstance(value, dict):
            inner = cast("dict[str, object]", value)
            _check_error(inner)
            pending += [(key.lower(), each, is_text, is_metadata) for key, each in inner.items()]
        elif isinstance(value, list):
            items = cast("list[object]", value)
            pending += [(name, each, is_text, is_metadata) for each in items]
        elif name not in _LABELS and _may_be_text(value, is_text=is_text, is_metadata=is_metadata):
            raise build_invalid_error("it sent an unknown field that may hold text")


def is_heartbeat(word: str) -> bool:
    """Whether the name or the data of an event says that it only keeps the connection alive."""
    return word.lower() in _HEARTBEATS


def is_failure(word: str) -> bool:
    """Whether the name of an event, or its type, is that of an error."""
    lowered = word.lower()
    return any(part in lowered for part in _FAILED_KINDS)


def _check_error(fields: dict[str, object]) -> None:
    if any(_is_error(name.lower(), value) for name, value in fields.items()):
        raise build_reported_error(read_error(fields))


def _is_error(name: str, value: object) -> bool:
    """Whether a field reports an error. Servers also send null, false, 0 or "" for none."""
    if name in _ERROR_NAMES:
        if isinstance(value, str):
            return bool(value) and value.lower() not in _SUCCESS
        return value is not None and value is not False and value != 0 and value != []
    if name in _KIND_NAMES and isinstance(value, str):
        return is_failure(value)
    if name in ("code", "status_code"):
        return type(value) is int and value != 0 and not 100 <= value < 400
    if name == "status":
        return type(value) is int and 400 <= value <= 599
    return name in ("ok", "success") and value is False


def _may_be_text(value: object, *, is_text: bool, is_metadata: bool) -> bool:
    if not isinstance(value, str) or value.lower() in _SUCCESS:
        return False
    return is_text or not (is_metadata or _is_identifier(value))


def _is_identifier(value: str) -> bool:
    """Whether it is one word of ASCII, as identifiers, dates, URLs and base64 are."""
    return value.isascii() and len(value.split(None, 1)) == 1 and value == value.strip()


def _is_not_answer(name: str) -> bool:
    return name in _NOT_ANSWER or any(part in name for part in _NOT_ANSWER_PARTS)
