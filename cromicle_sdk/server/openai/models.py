"""What is known of a model server: its models, and how its last response was."""

from __future__ import annotations

import json
import time
from typing import Any, cast

from cromicle_sdk.server.backends import BackendError

__all__ = ["UpstreamHealth", "is_listed", "parse_models"]

# 400 and the like: the model server works, and rejects a prompt.
_CALLER_STATUSES = (400, 413, 422)


class UpstreamHealth:
    """The last result of the model server, for `GET /health`."""

    def __init__(self) -> None:
        self._result: str | None = None
        self._seen = 0.0

    def record(self, error: BackendError | None) -> None:
        """It has responded, with this error or with text."""
        is_failure = error is not None and error.status not in _CALLER_STATUSES
        self._result = error.code if error is not None and is_failure else "ok"
        self._seen = time.monotonic()

    def describe(self) -> dict[str, Any]:
        """`last_result` is "ok" or the code of an error, None if there was no response yet."""
        if self._result is None:
            return {"last_result": None, "seconds_ago": None}
        seconds = round(time.monotonic() - self._seen, 1)
        return {"last_result": self._result, "seconds_ago": seconds}


def parse_models(body: bytes | bytearray) -> list[str] | None:
    """The names in the response to `GET /models`; None if it is not understood."""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        # llama.cpp has both.
        value = fields.get("data", fields.get("models"))
    if not isinstance(value, list):
        return None
    names = [_find_name(each) for each in cast("list[object]", value)]
    return [name for name in names if name is not None]


def is_listed(model: str, names: list[str]) -> bool:
    """Whether a model server with these models has `model`.

    Ollama lists a model without a tag as `latest`, and Gemini lists `models/NAME`.
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
