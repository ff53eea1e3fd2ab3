"""Each kind of client on each runtime, for tests of tools that hook into httpx or the network."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from runtimes import RUNTIMES, Runtime

from cromicle_sdk import CromicleError, Reply, Retry

PROMPT = "Hello, how are you?"

# Passed in the environment, never as an option: a tool that records the local variables of frames
# would find it in the frames of the tests.
TOKEN = "canary-token-4711"


@dataclass(frozen=True)
class Caller:
    """One kind of client on one runtime. Each call has its own client."""

    runtime: Runtime
    brings_http_client: bool = False

    def __str__(self) -> str:
        return f"{self.runtime.name}, {'http_client' if self.brings_http_client else 'default'}"

    def chat(self, base_url: str, *prompts: str, **options: Any) -> list[Reply]:
        """Send the prompts one after the other, and return the replies."""
        replies: list[Reply] = []

        async def scenario() -> None:
            async with self._client(base_url, options) as client:
                replies.extend([await client.chat(prompt) for prompt in prompts or (PROMPT,)])

        self.runtime.run(scenario)
        return replies

    def stream(self, base_url: str, **options: Any) -> list[str]:
        """Return the chunks of one streamed reply."""
        chunks: list[str] = []

        async def scenario() -> None:
            async with self._client(base_url, options) as client, client.stream(PROMPT) as stream:
                chunks.extend([chunk async for chunk in stream])

        self.runtime.run(scenario)
        return chunks

    def fail(self, base_url: str, **options: Any) -> CromicleError:
        """Return the error that a call raises."""
        with pytest.raises(CromicleError) as caught:
            self.chat(base_url, **options)
        return caught.value

    @asynccontextmanager
    async def _client(self, base_url: str, options: dict[str, Any]) -> AsyncIterator[Any]:
        options = {"base_url": base_url, "retry": Retry(attempts=1), **options}
        if not self.brings_http_client:
            async with self.runtime.client(**options) as client:
                yield client
        elif self.runtime.is_blocking:
            with httpx.Client() as http_client:
                async with self.runtime.client(http_client=http_client, **options) as client:
                    yield client
        else:
            async with httpx.AsyncClient() as http_client:
                async with self.runtime.client(http_client=http_client, **options) as client:
                    yield client


# Without uvloop: the tools hook into the same functions as on asyncio.
DEFAULT_CALLERS = [Caller(runtime) for runtime in RUNTIMES if runtime.name != "uvloop"]
CALLERS = DEFAULT_CALLERS + [
    Caller(caller.runtime, brings_http_client=True) for caller in DEFAULT_CALLERS
]


def has_secret(text: str | bytes) -> bool:
    """Whether a text contains the token or the hash of `PROMPT`."""
    secrets = (TOKEN, hashlib.sha256((TOKEN + PROMPT).encode()).hexdigest())
    haystack = text if isinstance(text, str) else text.decode("utf-8", "replace")
    return any(secret in haystack for secret in secrets)
