"""A backend for model servers that are compatible with the API of OpenAI."""

from __future__ import annotations

import json
import logging
import math
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal, cast

import anyio

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
from cromicle_sdk.server.backends import Backend, BackendError

from .client import Call, Upstream
from .completion import Completion
from .prompt import parse_prompt

if TYPE_CHECKING:
    from cromicle_sdk._http.proxies import ProxyOption

__all__ = ["openai_backend"]

# How long the rest of a response may take once the model server has given its finish reason, in
# seconds. `[DONE]` and usage follow at once, or not at all.
GRACE_SECONDS = 2.0

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
    """A backend that streams the replies of `model` from an OpenAI-compatible model server.

    Each prompt is one `POST {base_url}/chat/completions` with `stream: true`; each delta is yielded
    as it arrives. `base_url` usually ends in `/v1`. The prompt is sent as one user message. With
    `parse_roles`, a prompt that `format_prompt` built is sent as its messages, if it parses
    completely. `system`, if given, is a message before them.

    - `api_key`: sent as `Authorization: Bearer …`, and never shown.
    - `timeout`: as for the clients: seconds for every phase but `total`, which remains 600; or a
      `Timeout`; None for no limit. `stall` is the time from one read to the next, so comments
      that keep the stream alive reset it.
    - `proxy`, `verify`: as for the clients; `proxy` defaults to that of the environment, which is
      never used for loopback addresses.

    An error before the first text is raised as a `BackendError`:

    - 400, 413 and 422 of the model server, which the caller's prompt causes: the same status, with
      a code such as `context_length_exceeded`.
    - 429 and 503, with `Retry-After`: it limits the rate of requests, is overloaded, or is still
      loading the model.
    - 502: it is unreachable, fails, or sends an invalid response. The codes `upstream_denied`,
      `upstream_redirected` and `upstream_refused` mean that the operator has to act.
    - 504: it does not respond in time.

    A later error truncates the reply. So does everything that may hold text or an error and is not
    understood: a reply is complete only if it has all of the text and the model server has said
    that it is over, by `[DONE]` or by a finish reason. Requests are not retried, redirects are not
    followed, and cookies are not kept.

    If the caller disconnects, the request to the model server is closed immediately; if it reads
    slowly, so does the gateway. More than 1,000 calls at once are queued, within `timeout.total`.
    The backend works on asyncio and trio, on several event loops at once, and needs no closing.

    Raises `ConfigurationError`, which names the invalid option.
    """
    key = None if api_key is None else Secret(api_key)
    # An error about another option passes through this frame, whose locals may be printed.
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
        completion = Completion()
        try:
            await call.send()
            async with aclosing(_read_chunks(call, completion)) as chunks:
                async for chunk in chunks:
                    yield chunk
            _log_end(completion)
            # `[DONE]` comes before the end of the body.
            await call.finish(wait=completion.is_done)
        finally:
            call.abandon()

    return answer


async def _read_chunks(call: Call, completion: Completion) -> AsyncGenerator[str, None]:
    """The text of the completion in a response, none of it empty."""
    deadline = math.inf
    received = 0
    while not completion.is_done:
        data = await _read_before(deadline, call, completion)
        texts = completion.receive_data(data) if data else completion.receive_eof()
        for text in texts:
            yield text
        if not data:
            return
        if not completion.is_finished:
            deadline = math.inf
        elif deadline == math.inf or completion.received > received:
            deadline = anyio.current_time() + GRACE_SECONDS
        received = completion.received


async def _read_before(deadline: float, call: Call, completion: Completion) -> bytes | bytearray:
    """The next bytes; b"" at the end of the body.

    Once the completion is finished, the deadline and errors of the network are such ends as well.
    """
    # A read that finds bytes need not wait, and is then not cancelled.
    if anyio.current_time() >= deadline:
        return b""
    try:
        with anyio.CancelScope(deadline=deadline):
            return await call.read()
    except BackendError:
        if not completion.is_finished:
            raise
    return b""


def _log_end(completion: Completion) -> None:
    logger = logging.getLogger("cromicle_sdk.server")
    if completion.is_empty:
        logger.warning("the model sent no text: %s", completion.finish_reason or "no finish reason")
    elif completion.finish_reason in ("length", "content_filter"):
        logger.warning("the model ended its reply early: %s", completion.finish_reason)


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
