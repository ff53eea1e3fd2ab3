"""The endpoints for the tests of the packages, and an environment without surprises."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cromicle_sdk import Message
from cromicle_sdk.server import BackendRequest, LocalServer
from cromicle_sdk.testing import FaultyServer


@dataclasses.dataclass
class Endpoint:
    """The embedded server, which replies with the last message and remembers what it got."""

    base_url: str = ""
    prompts: list[str] = dataclasses.field(default_factory=list)
    messages: list[list[Message] | None] = dataclasses.field(default_factory=list)
    options: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    async def reply(self, prompt: str, request: BackendRequest) -> AsyncIterator[str]:
        messages = None if request.messages is None else list(request.messages)
        self.prompts.append(prompt)
        self.messages.append(messages)
        self.options.append(dict(request.options))
        text = str(messages[-1]["content"]) if messages else prompt
        yield text[:2]
        if text[2:]:
            yield text[2:]
        request.finish_reason = "stop"


FIELDS = ("model", "temperature", "max_tokens", "top_p", "seed", "stop", "best_of")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    endpoint = Endpoint()
    with LocalServer(endpoint.reply, allow_options=FIELDS) as server:
        endpoint.base_url = server.base_url
        monkeypatch.setenv("CROMICLE_BASE_URL", server.base_url)
        yield endpoint


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        monkeypatch.setenv("CROMICLE_BASE_URL", server.base_url)
        yield server


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("CROMICLE_BASE_URL", "CROMICLE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # Where the packages keep their files: usage, logs, keys, caches.
    for name in ("HOME", "LLM_USER_PATH", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
