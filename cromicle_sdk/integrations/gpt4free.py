"""gpt4free's provider `Cromicle`, for code that was written for it; it needs no gpt4free."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator
from typing import Any

from cromicle_sdk._async.client import AsyncClient
from cromicle_sdk._core.messages import Messages
from cromicle_sdk._core.options import DEFAULT_BASE_URL
from cromicle_sdk._core.secrets import hide_token

__all__ = ["Cromicle"]


class Cromicle:
    """What gpt4free knew as `g4f.Provider.Cromicle`: change the import, and it runs.

    `url` is the public service, and `working` says what gpt4free came to say of it: it is not
    to be relied on. Point `$CROMICLE_BASE_URL`, or `base_url=`, at an endpoint of your own.
    """

    url = DEFAULT_BASE_URL
    working = False
    supports_gpt_35_turbo = True

    @classmethod
    async def create_async_generator(
        cls, model: str, messages: Messages, proxy: str | None = None, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """The reply to `messages`, piece by piece as it arrives; for asyncio and trio.

        ```python
        async for message in Cromicle.create_async_generator(
            model="gpt-3.5-turbo",
            messages=[{"role": "user", "content": "Hello, how are you?"}],
        ):
            print(message, end="")
        ```

        `model` is accepted and not sent: the protocol has no such field. Of `kwargs`, the options
        of `AsyncClient` (`base_url`, `token`, `timeout` in seconds, `headers`, …) are used, one
        that is None as if it were left out; all others are ignored, since gpt4free hands every
        provider whatever its caller passed.

        Raises, once it is iterated, what `AsyncClient` and its `stream` raise. Its connection is
        closed however it ends; to end it early at a defined point, use it in
        `contextlib.aclosing`, without which trio warns about any async generator.
        """
        options = _select_options(hide_token(kwargs))
        async with _open_client(proxy, options) as client, client.stream(messages) as stream:
            async for text in stream:
                yield text


def _select_options(extras: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(AsyncClient).parameters
    return {name: extras[name] for name in known if extras.get(name) is not None}


def _open_client(proxy: str | None, options: dict[str, Any]) -> AsyncClient:
    hidden = options.pop("token", None)
    return AsyncClient(proxy=proxy, token=None if hidden is None else hidden.reveal(), **options)
