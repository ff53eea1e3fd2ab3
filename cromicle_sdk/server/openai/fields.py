"""Checks of the fields of a model server's JSON that are not read.

Model servers add their own fields and events: usage, billing, heartbeats, metadata. These are
ignored. A field that may contain a part of the reply or an error must not be ignored, because an
incomplete reply would look complete. Fields are classified by their name, and unknown names by
their value: a number, or a string in a format that is not text, is ignored.
"""

from __future__ import annotations

import enum
import functools
import re
from typing import cast

from .errors import build_invalid_error, build_reported_error, read_error

__all__ = ["check_unread", "is_failure", "is_heartbeat"]

# Known fields that are neither text of the reply nor an error, whatever their value.
_NOT_REPLY = frozenset(
    {
        "__verbose",  # llama.cpp, for debugging
        "annotations",
        "audio",
        "bot_usage",
        "citation_metadata",
        "citations",
        "content_filter",  # Zhipu: the severity of each role's text
        "content_filter_offsets",
        "content_filter_result",
        "content_filter_results",
        "context",  # Azure, On Your Data
        "copilot_references",
        "debug_output",  # xAI
        "documents",
        "encrypted_content",
        "executed_tools",  # Groq
        "finish_details",
        "follow_up_questions",
        "function_call",
        "groundingmetadata",
        "grounding_metadata",
        "images",
        "logprobs",
        "matched_stop",
        "moderation",
        "moderation_results",
        "note",  # Hunyuan: a disclaimer
        "prompt",
        "prompt_filter_results",
        "prompt_logprobs",
        "prompt_text",
        "references",
        "related_questions",
        "safety_ratings",
        "safetyratings",
        "search_queries",
        "search_results",
        "sources",
        "tool_call",
        "tool_calls",
        "tool_results",
        "usage",
        "usagemetadata",
        "usage_breakdown",
        "warning",
        "warnings",
        "web_search",
    }
)
# Parts of the names of fields with reasoning, or with the reason for the end of the reply.
_NOT_REPLY_PARTS = ("reason", "think", "thought")

# Labels, which are never text, even inside a field that may be.
_LABELS = frozenset(
    {
        "created",
        "created_at",
        "date",
        "fingerprint",
        "id",
        "model",
        "name",
        "obfuscation",  # OpenAI, like the next two: random characters hide the size of a token
        "p",
        "padding",
        "provider",
        "role",
        "service_tier",
        "system_fingerprint",
        "timestamp",
    }
)
# The last words of names whose values are identifiers, codes and addresses, if they are one word.
_LABEL_WORDS = frozenset(
    {
        *("cid", "etag", "guid", "hash", "id", "key", "nonce", "cursor", "oid", "pid", "rid"),
        *("checksum", "digest", "fingerprint", "sha256", "sid", "signature", "uid", "uuid"),
        *("session", "span", "trace", "traceparent", "request"),
        *("at", "created", "date", "duration", "elapsed", "eta", "expires", "latency", "ms"),
        *("seconds", "time", "timestamp", "timezone", "ts", "updated"),
        *("country", "locale", "location", "region", "zone", "datacenter", "cluster", "colo"),
        *("device", "gpu", "host", "hostname", "instance", "ip", "node", "pod", "replica"),
        *("server", "shard", "worker", "lang", "language"),
        *("arch", "architecture", "backend", "build", "deployment", "engine", "family", "model"),
        *("dtype", "encoding", "format", "precision", "quant", "quantization", "tokenizer"),
        *("provider", "release", "revision", "service", "vendor", "version"),
        *("algorithm", "category", "channel", "effort", "level", "method", "mode", "policy"),
        *("priority", "protocol", "schema", "severity", "strategy", "tier", "plan", "code"),
        *("cost", "count", "credits", "currency", "flag", "index", "length", "limit", "number"),
        *("percent", "price", "rank", "rate", "ratio", "score", "seed", "seq", "size", "total"),
        *("unit", "name", "role", "author", "client", "org", "organization", "owner"),
        *("account", "app", "project", "team", "tenant", "user"),
        *("domain", "endpoint", "href", "link", "mime", "mimetype", "path", "uri", "url"),
    }
)

# Containers of metadata, whose values may have several words.
_METADATA = frozenset(
    {
        "billing",
        "cost",
        "debug",
        "debug_info",
        "meta",
        "model_info",  # LM Studio
        "provider_specific_fields",  # LiteLLM
        "runtime",  # LM Studio
    }
)
_METADATA_PREFIXES = ("_", "x_", "x-", "amazon-bedrock-")
_METADATA_WORDS = frozenset({"metadata", "metrics", "stats", "statistics", "timings"})
# The kinds of events without a choice, as their name, `type`, `object` or `event`.
_HEARTBEATS = frozenset({"heartbeat", "keep-alive", "keepalive", "keep_alive", "ping"})
_METADATA_KINDS = _METADATA | _METADATA_WORDS | _HEARTBEATS | {"usage"}

# The names of text in the APIs of model servers, and of the message of an error.
_TEXT = frozenset(
    {
        "body",
        "candidates",
        "choice",
        "choices",
        "chunk",
        "contents",
        "delta",
        "detail",
        "generation",
        "generations",
        "messages",
        "outputs",
        "parts",
        "refusal",
        "result",
        "results",
        "token",
        "transcript",
    }
)
_TEXT_WORDS = frozenset(
    {"answer", "completion", "content", "message", "msg", "output", "reply", "response", "text"}
)
# A number under these names may be a token of the reply.
_TEXT_OF_NUMBERS = frozenset({"content", "generated_text", "output_text", "text"})
# Beside a code or a flag, the text under these names may report success.
_STATUS_TEXTS = ("detail", "message", "msg", "result")

_ERRORS = frozenset({"block_reason", "blockreason", "blocked", "errcode"})
_ERROR_WORDS = frozenset(
    {
        *("err", "errmsg", "errno", "error", "errors", "exception", "exceptions"),
        *("abort", "aborted", "canceled", "cancelled", "fail", "failed", "failure", "fault"),
        *("incomplete", "interrupted"),
    }
)
_KINDS = frozenset({"type", "object", "event", "status"})
_KIND_WORDS = _KINDS | {"kind", "phase", "stage", "state"}
_CODES = frozenset(
    {
        *("code", "http_code", "http_status_code", "httpstatuscode", "ret", "ret_code"),
        *("retcode", "return_code", "response_code", "result_code", "status_code", "statuscode"),
    }
)
_SUCCESS_WORDS = frozenset({"ok", "success", "successful"})

# The `object` of nearly every event.
_COMMON_KINDS = ("chat.completion.chunk", "chat.completion")
_FAILED_KINDS = (
    *("abort", "cancel", "crash", "denied", "disconnect", "error", "exception", "expire", "fail"),
    *("incomplete", "interrupt", "overload", "reject", "throttl", "timed out", "timed_out"),
    *("timeout", "unavailable"),
)
# Values of a status that report success, as in `{"code": 0, "message": "Success"}`.
_SUCCESS = ("", "0", "ok", "success", "succeeded", "successful")
_NO_ERROR = (*_SUCCESS, "false", "none", "null")
_YES = (*_SUCCESS[2:], "1", "true", "yes")

_MAX_CACHED_NAME_LENGTH = 64

# The words of a name: `createdAt`, `created_at` and `HTTPStatusCode` have two, two and three.
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+[0-9]*")

# Formats that are not text: UUIDs, dates, hashes, signatures, base64 and URLs. A hash of fewer than
# 64 characters must have letters and digits.
_OPAQUE = re.compile(
    r"""
    [0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}
    | [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{4,20}(?:Z|[+-][0-9]{2}:?[0-9]{2})?
    | (?=[^0-9]*[0-9])(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9+/_=-]{16,}
    | [A-Za-z0-9+/_=-]{64,}
    | (?:https?|data):[!-~]+
    """,
    re.VERBOSE,
)


class _Role(enum.Enum):
    """The meaning of a field according to its name."""

    SKIPPED = enum.auto()
    LABEL = enum.auto()
    WORD = enum.auto()
    KIND = enum.auto()
    STATE = enum.auto()
    CODE = enum.auto()
    SUCCESS = enum.auto()
    ERROR = enum.auto()
    METADATA = enum.auto()
    TEXT = enum.auto()
    OTHER = enum.auto()


# Their values are never text of the reply. An error under KIND or ERROR is raised before.
_ANY_TEXT = (_Role.LABEL, _Role.KIND, _Role.ERROR)
# Their values are not text of the reply if they are one word. An error under CODE or SUCCESS is
# raised before.
_ONE_WORD = (_Role.WORD, _Role.STATE, _Role.CODE, _Role.SUCCESS)


def check_unread(fields: dict[str, object], *, read: frozenset[str], kind: str = "message") -> bool:
    """Raise `BackendError` if a field that is not one of `read` may contain text or an error.

    `kind` is the name of the event that has the fields. Returns True if a value was ignored only
    because of its format: it may still be the text of a reply that has no other text.
    """
    is_form_ignored = is_unclear = False
    # Objects, and whether they are inside a field of text or of metadata.
    pending = [(fields, False, False)]
    while pending:
        inner, is_text, is_metadata = pending.pop()
        for name, value in inner.items():
            if value is None or (inner is fields and name in read):
                continue
            role = _find_role(name)
            if role is _Role.SKIPPED:
                continue
            if _is_error(role, value):
                raise build_reported_error(read_error(inner))
            if isinstance(value, (int, float)):
                is_number = not isinstance(value, bool)
                is_unclear |= is_number and name.lower() in _TEXT_OF_NUMBERS
                continue
            if role in _ANY_TEXT and isinstance(value, str):
                continue
            in_text = is_text or role is _Role.TEXT
            in_metadata = is_metadata or role is _Role.METADATA
            objects, strings = _flatten(value)
            pending += [(each, in_text, in_metadata) for each in objects]
            if not strings or _is_understood(role, strings):
                continue
            if in_text:
                is_unclear |= not _is_status_text(name, strings, inner)
            elif in_metadata or _is_metadata_event(fields, kind):
                continue
            elif all(map(_is_opaque, strings)):
                is_form_ignored = True
            else:
                is_unclear = True
    # Raised last, because an error of the model server is more informative.
    if is_unclear:
        raise build_invalid_error("it sent an unknown field that may contain text")
    return is_form_ignored


def is_heartbeat(word: str) -> bool:
    """Whether the name or the data of an event marks it as a heartbeat."""
    return word.lower() in _HEARTBEATS


def is_failure(word: str) -> bool:
    """Whether the name or the type of an event is that of an error."""
    lowered = word.lower()
    return any(part in lowered for part in _FAILED_KINDS)


def _find_role(name: str) -> _Role:
    # Servers send the same few names in every event. Long names would fill the memory.
    return _classify_cached(name) if len(name) <= _MAX_CACHED_NAME_LENGTH else _classify(name)


def _classify(name: str) -> _Role:
    lowered = name.lower()
    words = [word.lower() for word in _WORDS.findall(name)] or [""]
    last = words[-1]
    if lowered in _NOT_REPLY:
        return _Role.SKIPPED
    if lowered in _ERRORS or not _ERROR_WORDS.isdisjoint(words):
        return _Role.ERROR
    if any(part in lowered for part in _NOT_REPLY_PARTS):
        return _Role.SKIPPED
    if lowered.startswith(_METADATA_PREFIXES) and last not in _TEXT_WORDS:
        return _Role.METADATA
    for role, names, last_words in _ROLES:
        # The plural of a label is a list of labels.
        if lowered in names or last in last_words or last.removesuffix("s") in last_words:
            return role
    return _Role.OTHER


_classify_cached = functools.lru_cache(maxsize=1024)(_classify)

_NONE: frozenset[str] = frozenset()
# Each role, its exact names in lower case, and the last words of its other names.
_ROLES: tuple[tuple[_Role, frozenset[str], frozenset[str]], ...] = (
    (_Role.KIND, _KINDS, _NONE),
    (_Role.CODE, _CODES, _NONE),
    (_Role.LABEL, _LABELS, _NONE),
    (_Role.METADATA, _METADATA, _METADATA_WORDS),
    (_Role.TEXT, _TEXT, _TEXT_WORDS),
    (_Role.SUCCESS, _NONE, _SUCCESS_WORDS),
    (_Role.STATE, _NONE, _KIND_WORDS),
    (_Role.WORD, _NONE, _LABEL_WORDS),
)


def _is_error(role: _Role, value: object) -> bool:
    """Whether a field reports an error. Null, false, 0 and "" stand for no error."""
    if role is _Role.ERROR:
        if isinstance(value, str):
            return value.lower() not in _NO_ERROR
        return value is not False and value != 0 and value != []
    if role is _Role.KIND or role is _Role.STATE:
        if isinstance(value, str):
            return value not in _COMMON_KINDS and is_failure(value)
        return type(value) is int and 400 <= value <= 599
    if role is _Role.CODE:
        if isinstance(value, str):
            return value.lower() not in _SUCCESS and not re.fullmatch("[123][0-9]{2}", value)
        return type(value) is int and value != 0 and not 100 <= value < 400
    if role is _Role.SUCCESS:
        return value is False or (isinstance(value, str) and value.lower() not in _YES)
    return False


def _flatten(value: object) -> tuple[list[dict[str, object]], list[str]]:
    """Return the objects and the non-empty strings in a value, which may be nested lists."""
    objects: list[dict[str, object]] = []
    strings: list[str] = []
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, str):
            strings += [each] if each else []
        elif isinstance(each, dict):
            objects.append(cast("dict[str, object]", each))
        elif isinstance(each, list):
            pending += cast("list[object]", each)
    return objects, strings


def _is_metadata_event(fields: dict[str, object], kind: str) -> bool:
    kinds = [kind, *(fields.get(name) for name in _KINDS)]
    return any(isinstance(each, str) and each.lower() in _METADATA_KINDS for each in kinds)


def _is_status_text(name: str, strings: list[str], inner: dict[str, object]) -> bool:
    """Whether the field is the text of a status that reports success."""
    return (
        name.lower().endswith(_STATUS_TEXTS)
        and all(each.lower() in _SUCCESS for each in strings)
        and any(_find_role(each) in (_Role.CODE, _Role.SUCCESS) for each in inner)
    )


def _is_understood(role: _Role, strings: list[str]) -> bool:
    return role in _ANY_TEXT or (role in _ONE_WORD and all(map(_is_word, strings)))


def _is_word(value: str) -> bool:
    """Whether it is ASCII without white space, like identifiers, dates, URLs and base64."""
    return value.isascii() and value.split(None, 1) == [value]


def _is_opaque(value: str) -> bool:
    return _OPAQUE.fullmatch(value) is not None
