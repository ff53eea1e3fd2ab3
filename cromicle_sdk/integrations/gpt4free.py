"""A replacement for the provider `Cromicle` of gpt4free, which itself is not required."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from cromicle_sdk import AsyncClient, Client, Messages, Timeout
from cromicle_sdk._core.compat import Self
from cromicle_sdk._core.options import DEFAULT_BASE_URL, check_timeout
from cromicle_sdk._core.secrets import hide_token

if TYPE_CHECKING:
    # gpt4free has no types.
    _Provider = object
    _FinishReason = object
else:
    try:
        from g4f.providers.base_provider import AsyncGeneratorProvider as _Provider
        from g4f.providers.response import FinishReason as _FinishReason
    except ImportError:
        _Provider = _FinishReason = object

__all__ = ["Cromicle"]

T = TypeVar("T")


class Cromicle(_Provider):
    """A replacement for `g4f.Provider.Cromicle`: only the import changes.

    If gpt4free is installed, its clients accept it as a provider:

    ```python
    from g4f.client import Client

    client = Client(provider=Cromicle)
    response = client.chat.completions.create("Hello, how are you?", model="any")
    ```

    `url` is the endpoint. Set it on this class or on a subclass, or pass `base_url=` to a call.
    `$CROMICLE_BASE_URL` overrides the default, the public service. `working` is false, because
    gpt4free marked the public service as not working.
    """

    url = DEFAULT_BASE_URL
    working = False
    supports_gpt_35_turbo = True
    supports_stream = True
    supports_system_message = True
    supports_message_history = True

    @classmethod
    async def create_async_generator(
        cls, model: str, messages: Messages, proxy: str | None = None, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """Yield the reply to `messages` chunk by chunk, on asyncio and trio.

        ```python
        async for message in Cromicle.create_async_generator(
            model="gpt-3.5-turbo",
            messages=[{"role": "user", "content": "Hello, how are you?"}],
        ):
            print(message, end="")
        ```

        - `model`: ignored, because the protocol has no such field.
        - `messages`, `proxy`: as for `AsyncClient`.
        - `stream`: False yields the complete reply at once.
        - `stream_timeout`: the maximum time to the first chunk and between two chunks, in seconds.
        - The options of `AsyncClient`, such as `base_url`, `token`, `timeout` (seconds) and
          `headers`, are used unless they are None.

        Any other options are ignored, because gpt4free passes all options of its caller to every
        provider. Each call has its own client, because gpt4free runs each call on its own event
        loop.

        The first iteration raises the errors of `AsyncClient` and its `stream`. The connection is
        closed at the end of the iteration. To close it earlier, use `contextlib.aclosing`, as for
        any async generator under trio.
        """
        whole = kwargs.get("stream") is False
        options = cls._select_options(hide_token(kwargs), proxy)
        async with _open(AsyncClient, options) as client:
            if whole:
                reply = await client.chat(messages)
                yield reply.text
            else:
                async with client.stream(messages) as stream:
                    async for text in stream:
                        yield text
                reply = stream.reply
        for end in _describe_end(reply.finish_reason):
            yield end

    @classmethod
    def create_completion(
        cls, model: str, messages: Messages, proxy: str | None = None, **kwargs: Any
    ) -> Iterator[str]:
        """Yield the reply to `messages` chunk by chunk, in blocking code.

        The options and errors are those of `create_async_generator`, for `Client`.
        """
        whole = kwargs.get("stream") is False
        options = cls._select_options(hide_token(kwargs), proxy)
        with _open(Client, options) as client:
            if whole:
                reply = client.chat(messages)
                yield reply.text
            else:
                with client.stream(messages) as stream:
                    yield from stream
                reply = stream.reply
        yield from _describe_end(reply.finish_reason)

    @classmethod
    def _select_options(cls, extras: dict[str, Any], proxy: str | None) -> dict[str, Any]:
        known = inspect.signature(AsyncClient).parameters
        options = {name: extras[name] for name in known if extras.get(name) is not None}
        options["proxy"] = proxy
        if cls.url != DEFAULT_BASE_URL:
            options.setdefault("base_url", cls.url)
        limit = extras.get("stream_timeout")
        if limit is not None:
            timeout = check_timeout(options.get("timeout", Timeout()))
            options["timeout"] = replace(timeout, first_byte=limit, stall=limit)
        return options


def _open(kind: Callable[..., T], options: dict[str, Any]) -> T:
    hidden = options.pop("token", None)
    return kind(token=None if hidden is None else hidden.reveal(), **options)


class _End(str, _FinishReason):  # noqa: SLOT000 - it has an attribute
    """The finish reason of a reply in the form of gpt4free, which is an empty text elsewhere."""

    def __new__(cls, reason: str) -> Self:
        return super().__new__(cls)

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _describe_end(finish_reason: str | None) -> Iterator[str]:
    """Yield the finish reason for gpt4free, unless it is `stop`."""
    if _FinishReason is not object and finish_reason is not None and finish_reason != "stop":
        yield _End(finish_reason)
