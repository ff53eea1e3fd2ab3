"""Chat completions in the format of OpenAI's API: as events, as one JSON object, and errors."""

from __future__ import annotations

import json
import time
from typing import Any

from cromicle_sdk.server.backends import BackendError

__all__ = ["EventStream", "WholeCompletion", "build_error"]

# The finish reason of a complete reply if the endpoint sends none.
_DEFAULT_FINISH_REASON = "stop"

# Tokens are not counted, but some clients fail without the object (llm 0.36).
_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

_DONE = b"data: [DONE]\n\n"


def build_error(
    status: int, code: str, message: str, *, param: str | None = None
) -> dict[str, Any]:
    """Return the JSON of an error of OpenAI's API."""
    if status == 429:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Completion:
    """The base class of both forms of a completion."""

    has_trailer = False

    def build_error(
        self, status: int, code: str, message: str, *, param: str | None = None
    ) -> dict[str, Any]:
        return build_error(status, code, message, param=param)


class EventStream(_Completion):
    """The form of a streamed completion: server-sent events, the last of them `[DONE]`."""

    media_type = "text/event-stream; charset=utf-8"

    def __init__(self, request_id: str, model: str) -> None:
        # The beginning of each event is the same, so it is serialized once.
        common = _build_common_fields("chat.completion.chunk", request_id, model)
        self._before = _dump(common)[:-1] + ',"choices":[{"index":0,"delta":{'
        self._role = '"role":"assistant",'

    def encode(self, text: str) -> bytes:
        role, self._role = self._role, ""
        content = f'{role}"content":{json.dumps(text)}}}'
        return f'data: {self._before}{content},"finish_reason":null}}]}}\n\n'.encode()

    def encode_end(self, finish_reason: str | None) -> bytes:
        # An empty reply has no event before this one.
        start = b"" if not self._role else self.encode("")
        reason = json.dumps(finish_reason or _DEFAULT_FINISH_REASON)
        last = f'data: {self._before}}},"finish_reason":{reason}}}]}}\n\n'
        return start + last.encode() + _DONE

    def encode_failure(self, error: BackendError) -> bytes:
        content = build_error(error.status, error.code, error.message)
        return f"data: {_dump(content)}\n\n".encode()


class WholeCompletion(_Completion):
    """The form of a completion in one JSON object, which is sent at its end."""

    media_type = "application/json"

    def __init__(self, request_id: str, model: str) -> None:
        self._common = _build_common_fields("chat.completion", request_id, model)
        self._texts: list[str] = []

    def encode(self, text: str) -> bytes:
        self._texts.append(text)
        return b""

    def encode_end(self, finish_reason: str | None) -> bytes:
        message = {"role": "assistant", "content": "".join(self._texts), "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason or _DEFAULT_FINISH_REASON,
        }
        return _dump({**self._common, "choices": [choice], "usage": _NO_USAGE}).encode()

    def encode_failure(self, error: BackendError) -> bytes:
        return b""


def _build_common_fields(kind: str, request_id: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _dump(content: dict[str, Any]) -> str:
    # ASCII only: some parsers of events also split lines at U+2028.
    return json.dumps(content, separators=(",", ":"))
