"""A backend for model servers that are compatible with OpenAI's API."""

from __future__ import annotations

import json
import logging
import math
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, cast

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
from cromicle_sdk.server.backends import BackendError, BackendRequest

from .client import Call, Upstream
from .completion import Completion
from .models import UpstreamHealth, is_listed
from .options import (
    check_allowed,
    check_caller_options,
    check_fields,
    check_headers,
    check_models,
    hide_headers,
)
from .prompt import parse_prompt

if TYPE_CHECKING:
    from cromicle_sdk._http.proxies import ProxyOption

__all__ = ["OpenAIBackend", "openai_backend"]

# How long the rest of a response may take after the finish reason, in seconds. `[DONE]` and usage
# follow at once or not at all.
GRACE_SECONDS = 2.0

# The characters allowed in a header after "Bearer ": visible ASCII.
_KEY = re.compile(r"[\x21-\x7e]+\Z")


class OpenAIBackend:
    """The backend that `openai_backend` returns."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        models: tuple[str, ...],
        fields: Mapping[str, Any],
        system: str | None,
        parse_roles: bool,
        allow_options: frozenset[str],
    ) -> None:
        self._upstream = upstream
        self._models = models
        self._fields = fields
        self._system = system
        self._parse_roles = parse_roles
        self._health = UpstreamHealth()
        self.allow_options: frozenset[str] = allow_options

    @property
    def base_url(self) -> str:
        """The base URL of the model server, without userinfo."""
        return self._upstream.base_url

    @property
    def models(self) -> tuple[str, ...]:
        """The models that callers may choose from, the default first. Empty while unknown."""
        return self._models

    def describe_health(self) -> dict[str, Any]:
        """Return the last result of the model server, for `GET /health`."""
        return self._health.describe()

    async def find_models(self) -> list[str]:
        """Request the names of the model server's models, within 5 seconds and without retries.

        If the backend has no model and the list has exactly one, that model is used from now on.
        Raises `BackendError` if the model server does not respond with a list.
        """
        try:
            names = await self._upstream.list_models()
        except BackendError as error:
            self._health.record(error)
            raise
        self._health.record(None)
        if not self._models and len(names) == 1:
            self._models = tuple(names)
        return names

    def find_unlisted(self, names: list[str]) -> list[str]:
        """Return those of `models` that are missing in `names`, the list of the model server."""
        return [model for model in self._models if not is_listed(model, names)]

    async def __call__(
        self, prompt: str, request: BackendRequest | None = None
    ) -> AsyncIterator[str]:
        request = request or BackendRequest()
        if not self._models:
            await self.find_models()
        body = self._build_body(prompt, request)
        call = self._upstream.start(body)
        completion = Completion()
        try:
            await call.send()
            async with aclosing(_read_chunks(call, completion)) as chunks:
                async for chunk in chunks:
                    self._health.record(None)
                    yield chunk
            self._health.record(None)
            request.finish_reason = completion.finish_reason
            _log_end(completion, request.id)
            # `[DONE]` comes before the end of the body.
            await call.finish(wait=completion.is_done)
        except BackendError as error:
            self._health.record(error)
            raise
        finally:
            call.abandon()

    def _build_body(self, prompt: str, request: BackendRequest) -> bytes:
        if not self._models:
            raise BackendError(
                502,
                "upstream_refused",
                "the gateway has no model",
                detail="the model server does not have exactly one model; set the option model",
            )
        content = {
            "model": self._models[0],
            "messages": self._build_messages(prompt, request.messages),
            "stream": True,
            **self._fields,
            **check_caller_options(request.options, self._models),
        }
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()

    def _build_messages(self, prompt: str, sent: list[Message] | None) -> list[Message]:
        own = [] if self._system is None else [Message(role="system", content=self._system)]
        if sent is None and self._parse_roles:
            sent = parse_prompt(prompt, system=not own)
        return own + (sent or [Message(role="user", content=prompt)])


def openai_backend(
    base_url: str,
    model: str | Sequence[str] | None = None,
    *,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | Timeout | None = DEFAULT_TIMEOUT,
    system: str | None = None,
    parse_roles: bool = False,
    temperature: float | None = None,
    max_tokens: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    allow_options: bool | Iterable[str] = False,
    proxy: ProxyOption | None = None,
    verify: Literal[True] | ssl.SSLContext = True,
) -> OpenAIBackend:
    """Return a backend that streams replies from an OpenAI-compatible model server.

    For each prompt, the backend sends one `POST {base_url}/chat/completions` with `stream: true`,
    and yields each delta as it arrives. `base_url` usually ends in `/v1`. Messages that the caller
    sent with their roles are sent unchanged; any other prompt is sent as one user message.

    - `model`: the name of the model, or a sequence of names from which callers may choose with the
      field `model`, the default first. None, the default, for the only model of the model server,
      which is requested at first use.
    - `api_key`: sent as `Authorization: Bearer …`. It is never logged or shown.
    - `headers`: additional headers. Their values are never logged or shown.
    - `timeout`: as for the clients: a `Timeout`, None for no limit, or seconds for every limit
      except `total` and `pool`, which keep their defaults. `stall` is the time between two reads;
      comments that keep the stream alive reset it.
    - `system`: a system message that is sent before all others. A caller's own system message
      follows it.
    - `parse_roles`: send a prompt that `format_prompt` built as its messages, if it can be parsed
      completely. Text of a caller can then forge a role, so with `system` no line of a prompt is
      parsed as a system message.
    - `temperature`, `max_tokens`, `top_p`, `seed`, `stop`: fields of each request.
    - `extra_body`: any other fields of each request, by name.
    - `allow_options`: the fields that callers may send with `extra_body` of the clients, in place
      of those above. True for `temperature`, `top_p`, `max_tokens`, `stop`, `seed`,
      `presence_penalty`, `frequency_penalty` and `reasoning_effort`, or some of these names. Any
      other field is rejected with a 400 that names it.
    - `proxy`, `verify`: as for the clients. `proxy` defaults to the proxy of the environment, which
      is never used for loopback addresses.

    An error before the first text is raised as a `BackendError`:

    - 400, 413 and 422 are caused by the caller's prompt or options. The code is, for example,
      `context_length_exceeded`.
    - 429 and 503, with the `Retry-After` of the model server if it sends one: the model server
      limits the rate of requests, is overloaded, or is still loading the model.
    - 502: the model server is unreachable, fails, or sends an invalid response. The codes
      `upstream_denied`, `upstream_redirected` and `upstream_refused` mean that the operator has to
      act; the clients do not retry them.
    - 504: the model server does not respond in time.

    A later error truncates the reply. So does any part of the response that is not understood and
    may be text or an error. A reply is complete only if all of its text has arrived and the model
    server has marked its end, by `[DONE]` or a finish reason. The finish reason of the
    `BackendRequest` is set to `stop`, `length`, `content_filter`, `tool_calls` or None. Requests
    are not retried, redirects are not followed, and cookies are not kept.

    If the caller disconnects, the request to the model server is closed immediately. If the caller
    reads slowly, so does the backend. Calls beyond 1,000 concurrent ones are queued, within
    `timeout.pool`. The backend works on asyncio and trio, on several event loops at once, and does
    not need to be closed.

    Raises `ConfigurationError`, which names the invalid option.
    """
    key = None if api_key is None else Secret(api_key)
    hidden = hide_headers(headers)
    # A traceback of an error about another option may print the locals of this frame.
    del api_key, headers
    _check_key(key)
    own_headers = check_headers(hidden)
    if key is not None and "authorization" in own_headers:
        raise ConfigurationError(
            "pass authorization here or as api_key, not both", option="headers"
        )
    models = check_models(model)
    if system is not None:
        check_text("system", system)
    check_flag("parse_roles", parse_roles)
    given = {
        "temperature": temperature,
        "max_tokens": max_tokens,
        "top_p": top_p,
        "seed": seed,
        "stop": stop,
    }
    fields = check_fields(given, extra_body)
    allowed = check_allowed(allow_options)
    upstream = Upstream(
        base_url,
        key=key,
        headers=own_headers,
        timeout=check_timeout(timeout),
        proxy=proxy,
        verify=verify,
    )
    return OpenAIBackend(
        upstream,
        models=models,
        fields=fields,
        system=system,
        parse_roles=parse_roles,
        allow_options=allowed,
    )


async def _read_chunks(call: Call, completion: Completion) -> AsyncGenerator[str, None]:
    """Yield the text of the completion in a response, in non-empty chunks."""
    deadline = math.inf
    while not completion.is_done:
        data = await _read_before(deadline, call, completion)
        texts = completion.receive_data(data) if data else completion.receive_eof()
        for text in texts:
            yield text
        if not data:
            return
        if not completion.is_finished:
            deadline = math.inf
        elif deadline == math.inf:
            deadline = anyio.current_time() + GRACE_SECONDS


async def _read_before(deadline: float, call: Call, completion: Completion) -> bytes | bytearray:
    """Return the next bytes, or b"" at the end of the body.

    Once the completion is finished, the deadline or an error of the network also ends the body.
    """
    # A read that finds bytes does not wait, and is therefore not cancelled at the deadline.
    if anyio.current_time() >= deadline:
        return b""
    try:
        with anyio.CancelScope(deadline=deadline):
            return await call.read()
    except BackendError:
        if not completion.is_finished:
            raise
    return b""


def _log_end(completion: Completion, request_id: str) -> None:
    logger = logging.getLogger("cromicle_sdk.server")
    reason = completion.finish_reason or "no finish reason"
    if completion.is_empty:
        logger.warning("the model sent no text: %s (request %s)", reason, request_id)
    elif completion.finish_reason in ("length", "content_filter"):
        logger.warning("the model ended its reply early: %s (request %s)", reason, request_id)


def _check_key(key: Secret | None) -> None:
    if key is not None and not _is_key(key):
        raise ConfigurationError(
            "expected a str of visible ASCII characters without spaces, or None", option="api_key"
        )


def _is_key(key: Secret) -> bool:
    # Must not raise: a local of this frame is the key in plain text.
    text = cast("object", key.reveal())
    return isinstance(text, str) and _KEY.match(text) is not None
