"""The plugin of llm (https://llm.datasette.io): the model `cromicle`, blocking and async.

It needs the extra `llm`, or llm itself: `llm install cromicle-sdk`. llm finds it by its entry
point.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from cromicle_sdk import (
    AsyncClient,
    Client,
    InvalidMessageError,
    Message,
    Reply,
    Retry,
    Timeout,
)
from cromicle_sdk._core.secrets import hide_token

try:
    import llm
    from llm.parts import ReasoningPart, TextPart
    from pydantic import Field
except ImportError as _error:
    raise ImportError(
        "cromicle_sdk.integrations.llm requires llm 0.32 or newer; "
        'install it with: pip install "cromicle-sdk[llm]"'
    ) from _error

__all__ = ["AsyncCromicle", "Cromicle", "CromicleOptions", "register_models"]

MODEL_ID = "cromicle"

# Sent beside the prompt, by the names that servers here take.
_FIELDS = ("model", "temperature", "max_tokens", "top_p", "seed", "stop")


class CromicleOptions(llm.KeyModel.Options):
    """The options of a prompt: `llm -m cromicle -o NAME VALUE`."""

    base_url: str | None = Field(
        default=None, description="URL of the endpoint, else $CROMICLE_BASE_URL"
    )
    total: float | None = Field(
        default=None, description="Seconds for the whole call, with its retries; 600 by default"
    )
    attempts: int | None = Field(
        default=None, description="Requests at most, the first one included; 3 by default"
    )
    model: str | None = Field(
        default=None, description="One of the models of a gateway that has several"
    )
    temperature: float | None = Field(default=None, description="Sampling temperature")
    max_tokens: int | None = Field(default=None, description="Tokens of the reply at most")
    top_p: float | None = Field(default=None, description="Nucleus sampling")
    seed: int | None = Field(default=None, description="Seed of the sampling")
    stop: str | None = Field(default=None, description="Text at which the reply ends")


class _Key:
    """The key of either model: the token, which is optional."""

    needs_key: str | None = MODEL_ID
    key_env_var: str | None = "CROMICLE_TOKEN"
    key: str | None

    def get_key(self, explicit_key: str | None = None) -> str | None:
        """The key given, that of `llm keys set cromicle`, or `$CROMICLE_TOKEN`.

        None for the well-known token, which a server without tokens of its own takes.
        """
        if self.key is not None:
            return self.key
        return llm.get_key(input=explicit_key, alias=self.needs_key, env=self.key_env_var)


class Cromicle(_Key, llm.KeyModel):
    """A Cromicle endpoint as a blocking model of llm."""

    model_id = MODEL_ID
    can_stream = True

    class Options(CromicleOptions):
        """The options of a prompt."""

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
        key: str | None,
    ) -> Iterator[str]:
        """Yield the reply, each chunk as it arrives; all of it at once unless `stream`.

        Raises the errors of `Client`.
        """
        # An error about an option leaves through this frame, whose locals may be printed.
        hidden = hide_token({"token": key})
        key = None
        messages = _build_messages(prompt)
        with Client(token=hidden["token"].reveal(), **_build_options(prompt)) as client:
            if stream:
                with client.stream(messages) as chunks:
                    yield from chunks
                    reply = chunks.reply
            else:
                reply = client.chat(messages)
                yield reply.text
        response.response_json = _describe(reply)


class AsyncCromicle(_Key, llm.AsyncKeyModel):
    """A Cromicle endpoint as an async model of llm."""

    model_id = MODEL_ID
    can_stream = True

    class Options(CromicleOptions):
        """The options of a prompt."""

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
        key: str | None,
    ) -> AsyncGenerator[str, None]:
        """Yield the reply, each chunk as it arrives; all of it at once unless `stream`.

        Raises the errors of `AsyncClient`.
        """
        # An error about an option leaves through this frame, whose locals may be printed.
        hidden = hide_token({"token": key})
        key = None
        messages = _build_messages(prompt)
        async with AsyncClient(token=hidden["token"].reveal(), **_build_options(prompt)) as client:
            if stream:
                async with client.stream(messages) as chunks:
                    async for text in chunks:
                        yield text
                    reply = chunks.reply
            else:
                reply = await client.chat(messages)
                yield reply.text
        response.response_json = _describe(reply)


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Called by llm: the model, in both forms."""
    register(Cromicle(), AsyncCromicle())


def _build_options(prompt: llm.Prompt) -> dict[str, Any]:
    """The options of the client."""
    given: dict[str, Any] = {name: value for name, value in prompt.options if value is not None}
    options: dict[str, Any] = {
        "base_url": given.get("base_url"),
        "extra_body": {name: given[name] for name in _FIELDS if name in given},
        "send_messages": True,
    }
    if "total" in given:
        options["timeout"] = Timeout(total=given["total"])
    if "attempts" in given:
        options["retry"] = Retry(attempts=given["attempts"])
    return options


def _build_messages(prompt: llm.Prompt) -> list[Message]:
    """The whole conversation, with its roles. Raises `InvalidMessageError`."""
    messages: list[Message] = []
    for index, message in enumerate(prompt.messages):
        texts: list[str] = []
        for part in message.parts:
            if isinstance(part, TextPart):
                texts.append(part.text)
            elif not isinstance(part, ReasoningPart):
                raise InvalidMessageError(
                    f"the protocol has only text, no {type(part).__name__}", index=index
                )
        messages.append(Message(role=message.role, content="".join(texts)))
    return messages


def _describe(reply: Reply) -> dict[str, Any]:
    """What `llm logs` keeps beside the text."""
    facts = {"finish_reason": reply.finish_reason, "request_id": reply.request_id}
    return {name: value for name, value in facts.items() if value is not None}
