"""The provider `Cromicle` of gpt4free, for code that uses it; gpt4free itself is not needed."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator
from typing import Any

from cromicle_sdk import AsyncClient, Messages
from cromicle_sdk._core.options import DEFAULT_BASE_URL
from cromicle_sdk._core.secrets import hide_token

__all__ = ["Cromicle"]


class Cromicle:
    """A replacement for `g4f.Provider.Cromicle`: only the import changes.

    `url` is the endpoint: set it, here or in a subclass, or pass `base_url=` for one call. While
    it is the public service, `$CROMICLE_BASE_URL` replaces it. `working` is false, as gpt4free
    marked the public service as not working.
    """

    url = DEFAULT_BASE_URL
    working = False
    supports_gpt_35_turbo = True

    @classmethod
    async def create_async_generator(
        cls, model: str, messages: Messages, proxy: str | None = None, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """Yield the reply to `messages`, each chunk as it arrives; for asyncio and trio.

        ```python
        async for message in Cromicle.create_async_generator(
            model="gpt-3.5-turbo",
            messages=[{"role": "user", "content": "Hello, how are you?"}],
        ):
            print(message, end="")
        ```

        `model` is not sent: the protocol has no such field. Of `kwargs`, the options of
        `AsyncClient` (`base_url`, `token`, `timeout` in seconds, `headers`, …) are used unless
        they are None. All others are ignored, because gpt4free passes every provider all options
        of its caller.

        The first iteration raises the errors of `AsyncClient` and its `stream`. The connection is
        closed at the end of the iteration. To close it earlier, use `contextlib.aclosing`, as for
        any async generator under trio.
        """
        options = _select_options(hide_token(kwargs))
        if cls.url != DEFAULT_BASE_URL:
            options.setdefault("base_url", cls.url)
        async with _open_client(proxy, options) as client, client.stream(messages) as stream:
            async for text in stream:
                yield text


def _select_options(extras: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(AsyncClient).parameters
    return {name: extras[name] for name in known if extras.get(name) is not None}


def _open_client(proxy: str | None, options: dict[str, Any]) -> AsyncClient:
    hidden = options.pop("token", None)
    return AsyncClient(proxy=proxy, token=None if hidden is None else hidden.reveal(), **options)
