"""A backend that asks a model server which speaks OpenAI's API: prompts in, deltas out."""

from __future__ import annotations

import json
import logging
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal, cast

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.messages import Message
from cromicle_sdk._core.options import (
    DEFAULT_TIMEOUT,
    Timeout,
    check_flag,
    check_text,
    check_timeout,
)
from cromicle_sdk._core.secrets import Secret
from cromicle_sdk.server.backends import Backend

from .client import Call, Upstream
from .completion import Completion, is_completion
from .errors import build_invalid
from .prompt import parse_prompt
from .sse import Events

if TYPE_CHECKING:
    from cromicle_sdk._http.proxies import ProxyOption

__all__ = ["openai_backend"]

# An answer in one piece is in memory as a whole; a million words fit.
_MAX_WHOLE_BYTES = 16 * 1024 * 1024

# Why a model ends: it has said all, or calls a tool; or it had more to say. Other reasons are a
# server's own words, which are not repeated.
_GOOD_ENDS = (
    "stop",
    "eos",
    "eos_token",
    "end_turn",
    "stop_sequence",
    "tool_calls",
    "function_call",
)
_EARLY_ENDS = ("length", "model_length", "content_filter")

# What can stand in a header after "Bearer ": visible ASCII.
_KEY = re.compile(r"[\x21-\x7e]+\Z")


def openai_backend(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    timeout: float | Timeout | None = DEFAULT_TIMEOUT,
    system: str | None = None,
    parse_roles: bool = False,
    proxy: ProxyOption | None = None,
    verify: Literal[True] | ssl.SSLContext = True,
) -> Backend:
    """A backend that streams the answers of `model` from an OpenAI-compatible model server.

    Each prompt is one `POST {base_url}/chat/completions` with `stream: true`; each delta is a
    piece, as soon as it has come. `base_url` usually ends in `/v1`. The prompt is one user's
    message; with `parse_roles`, one that `format_prompt` made becomes its messages again, if it
    parses without rest. `system`, where given, is a message before them.

    - `api_key`: sent as `Authorization: Bearer …`, and shown nowhere.
    - `timeout`: as of the clients: seconds, for every phase but `total`, which stays at 600; or
      a `Timeout`; None for no limit. `stall` is from one read to the next; comments that keep a
      stream alive count.
    - `proxy`, `verify`: as of the clients; without `proxy` the environment's, never for loopback.

    What goes wrong before the first text is a `BackendError`: 502 where the server can't be
    reached, refuses (its 401 too, for the key is not the caller's), or makes no sense; 429, with
    its `Retry-After`, where it says that; 504 where it does not begin in time. After that the
    reply is cut off. Only a clean end is one: `[DONE]`, or a finish reason and the body's end.
    Nothing is asked twice, no redirect followed, no cookie kept.

    A caller that goes away ends its call upstream, at once; one that reads slowly slows it down.
    More than 1,000 calls at once wait their turn, within `timeout.total`. It works on asyncio and
    trio, on several event loops too, and needs no closing.

    Raises `ConfigurationError`, which names the option that is wrong.
    """
    key = None if api_key is None else Secret(api_key)
    # An error about another option leaves through this frame, whose locals may be printed.
    del api_key
    _check_key(key)
    check_text("model", model)
    if system is not None:
        check_text("system", system)
    check_flag("parse_roles", parse_roles)
    upstream = Upstream(
        base_url, key=key, timeout=check_timeout(timeout), proxy=proxy, verify=verify
    )

    async def answer(prompt: str) -> AsyncIterator[str]:
        messages = _build_messages(prompt, system, parse_roles=parse_roles)
        call = upstream.start(_build_body(model, messages))
        try:
            await call.send()
            async with aclosing(_read_texts(call)) as texts:
                async for text in texts:
                    yield text
            await call.finish()
        finally:
            call.drop()

    return answer


async def _read_texts(call: Call) -> AsyncGenerator[str, None]:
    """The texts of an answer whose head has come, none of them empty."""
    completion = Completion()
    is_empty = True
    async with aclosing(_read_deltas(call, completion)) as deltas:
        async for text in deltas:
            if text:
                is_empty = False
                yield text
    completion.receive_eof()
    reason = completion.finish_reason
    if is_empty or (reason is not None and reason not in _GOOD_ENDS):
        logging.getLogger("cromicle_sdk.server").warning(
            "the model ended its answer %s: %s",
            "without a text" if is_empty else "early",
            reason if reason in _EARLY_ENDS else "no reason that is known",
        )


async def _read_deltas(call: Call, completion: Completion) -> AsyncGenerator[str, None]:
    if not call.is_stream:
        yield completion.receive_whole(await call.read_whole(_MAX_WHOLE_BYTES))
        return
    async with aclosing(Events(call.read)) as events:
        while not completion.is_done and (event := await events.take()) is not None:
            if event.event in ("error", "exception"):
                raise build_invalid("it reports an error in its answer")
            # Events of other names are not the API's, but for what they hold.
            if event.event == "message" or is_completion(event.data):
                yield completion.receive_event(event.data)


def _check_key(key: Secret | None) -> None:
    if key is not None and not _is_key(key):
        raise ConfigurationError(
            "expected a str of visible ASCII characters without spaces, or None", option="api_key"
        )


def _is_key(key: Secret) -> bool:
    # Nothing is raised from here: the text is the key in clear.
    text = cast("object", key.reveal())
    return isinstance(text, str) and _KEY.match(text) is not None


def _build_messages(prompt: str, system: str | None, *, parse_roles: bool) -> list[Message]:
    parsed = parse_prompt(prompt) if parse_roles else None
    messages = parsed or [Message(role="user", content=prompt)]
    return messages if system is None else [Message(role="system", content=system), *messages]


def _build_body(model: str, messages: list[Message]) -> bytes:
    content = {"model": model, "messages": messages, "stream": True}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
