"""An OpenAI-compatible model server scripted with `FaultyServer`, and a gateway to it."""

from __future__ import annotations

import json
from typing import Any

from cromicle_sdk.server import LocalServer, create_app, openai_backend
from cromicle_sdk.testing import FaultyServer

EVENTS = "text/event-stream"
DONE = "data: [DONE]\n\n"
KEY = "sk-a-very-private-key"


def event(data: Any) -> str:
    """Build an event with this JSON. Non-ASCII characters are not escaped."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def choice(delta: Any, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, **more}]}


def say(*texts: str) -> list[str]:
    """Build an event for each text."""
    return [event(choice({"content": text})) for text in texts]


STOP = event(choice({}, "stop"))


def answer(upstream: FaultyServer, *events: str | bytes, **options: Any) -> None:
    """Respond to the next request with these events, each as a chunk."""
    upstream.reply(chunks=events, content_type=EVENTS, **options)


def answer_models(upstream: FaultyServer, *names: str) -> None:
    """Respond to the next request with a list of models."""
    models = [{"id": name, "object": "model"} for name in names]
    upstream.reply(json.dumps({"object": "list", "data": models}), content_type="application/json")


def answer_texts(upstream: FaultyServer, *texts: str, **options: Any) -> None:
    """Respond to the next request with a complete stream of these texts."""
    answer(upstream, *say(*texts), STOP, DONE, **options)


def serve_gateway(
    upstream: FaultyServer, model: str | list[str] | None = "a-model", **options: Any
) -> LocalServer:
    """Return a gateway to the upstream, with the well-known token."""
    backend = openai_backend(f"{upstream.base_url}/v1", model, **options)
    return LocalServer(app=create_app(backend))
