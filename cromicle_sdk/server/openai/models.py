"""The models and the health of a model server."""

from __future__ import annotations

import json
import time
from typing import Any, cast

from cromicle_sdk.server.backends import BackendError

__all__ = ["UpstreamHealth", "is_listed", "parse_models"]

# The model server works, but rejects the prompt.
_CALLER_STATUSES = (400, 413, 422)


class UpstreamHealth:
    """The last result of the model server, for `GET /health`."""

    def __init__(self) -> None:
        self._result: str | None = None
        self._seen = 0.0

    def record(self, error: BackendError | None) -> None:
        """Record a response of the model server: an error, or None for text."""
        is_failure = error is not None and error.status not in _CALLER_STATUSES
        self._result = error.code if error is not None and is_failure else "ok"
        self._seen = time.monotonic()

    def describe(self) -> dict[str, Any]:
        """Return `last_result`, "ok" or the code of an error, and `seconds_ago`.

        Both are None before the first response.
        """
        if self._result is None:
            return {"last_result": None, "seconds_ago": None}
        seconds = round(time.monotonic() - self._seen, 1)
        return {"last_result": self._result, "seconds_ago": seconds}


def parse_models(body: bytes | bytearray) -> list[str] | None:
    """Return the names in the response to `GET /models`, or None if it is not a list of models."""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        # llama.cpp sends both.
        value = fields.get("data", fields.get("models"))
    if not isinstance(value, list):
        return None
    names = [_find_name(each) for each in cast("list[object]", value)]
    return [name for name in names if name is not None]


def is_listed(model: str, names: list[str]) -> bool:
    """Whether `model` is one of the names that a model server lists.

    Ollama lists a model without a tag as `NAME:latest`, and Gemini lists `models/NAME`.
    """
    return not {model, f"{model}:latest", f"models/{model}"}.isdisjoint(names)


def _find_name(item: object) -> str | None:
    if isinstance(item, str):
        return item
    if not isinstance(item, dict):
        return None
    fields = cast("dict[str, object]", item)
    found = (fields.get(name) for name in ("id", "model", "name"))
    return next((name for name in found if isinstance(name, str) and name), None)
