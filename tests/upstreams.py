"""An OpenAI-compatible model server made of a faulty one: its events, and a gateway before it."""

from __future__ import annotations

import json
from typing import Any

from cromicle_sdk.server import LocalServer, create_app, openai_backend
from cromicle_sdk.testing import FaultyServer

EVENTS = "text/event-stream"
DONE = "data: [DONE]\n\n"
KEY = "sk-a-very-private-key"


def event(data: Any) -> str:
    """An event with this JSON, non-ASCII as it is."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def choice(delta: Any, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, **more}]}


def say(*texts: str) -> list[str]:
    """An event for each text."""
    return [event(choice({"content": text})) for text in texts]


STOP = event(choice({}, "stop"))


def answer(upstream: FaultyServer, *events: str | bytes, **options: Any) -> None:
    """The next answer is a stream of these events, each a chunk."""
    upstream.reply(chunks=events, content_type=EVENTS, **options)


def answer_texts(upstream: FaultyServer, *texts: str, **options: Any) -> None:
    """The next answer is a sound stream of these texts."""
    answer(upstream, *say(*texts), STOP, DONE, **options)


def serve_gateway(upstream: FaultyServer, **options: Any) -> LocalServer:
    """A gateway before the upstream, with the well-known token."""
    backend = openai_backend(f"{upstream.base_url}/v1", "a-model", **options)
    return LocalServer(app=create_app(backend))
