"""The plugin of llm (https://llm.datasette.io): the model `cromicle`, blocking and async.

Requires the extra `llm`; or install it into llm with `llm install cromicle-sdk`. llm loads it by
its entry point.
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

# The options that are sent as fields of the request.
_FIELDS = ("model", "temperature", "max_tokens", "top_p", "seed", "stop")


class CromicleOptions(llm.KeyModel.Options):
    """The options of a prompt: `llm -m cromicle -o NAME VALUE`."""

    base_url: str | None = Field(
        default=None, description="URL of the endpoint; defaults to $CROMICLE_BASE_URL"
    )
    total: float | None = Field(
        default=None,
        description="Time limit for the whole call, including retries, in seconds; default 600",
    )
    attempts: int | None = Field(
        default=None,
        description="Maximum number of attempts, including the first; default 3",
    )
    model: str | None = Field(
        default=None, description="Name of the model, for a gateway with several"
    )
    temperature: float | None = Field(default=None, description="Sampling temperature")
    max_tokens: int | None = Field(
        default=None, description="Maximum number of tokens in the reply"
    )
    top_p: float | None = Field(default=None, description="Nucleus sampling probability")
    seed: int | None = Field(default=None, description="Sampling seed")
    stop: str | None = Field(default=None, description="Text at which the reply ends")


class _Key:
    """The key of both models: the token, which is optional."""

    needs_key: str | None = MODEL_ID
    key_env_var: str | None = "CROMICLE_TOKEN"
    key: str | None

    def get_key(self, explicit_key: str | None = None) -> str | None:
        """Return the explicit key, that of `llm keys set cromicle`, or `$CROMICLE_TOKEN`.

        None, if there is none of these, stands for the well-known token, which a server without its
        own token accepts.
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
        """Yield the reply chunk by chunk, or at once if `stream` is false.

        Raises the errors of `Client`.
        """
        # A traceback of an error about an option may print the locals of this frame.
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
        """Yield the reply chunk by chunk, or at once if `stream` is false.

        Raises the errors of `AsyncClient`.
        """
        # A traceback of an error about an option may print the locals of this frame.
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
    """Register the blocking and the async model. llm calls this."""
    register(Cromicle(), AsyncCromicle())


def _build_options(prompt: llm.Prompt) -> dict[str, Any]:
    """Build the options of the client."""
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
    """Build the messages of the conversation. Raises `InvalidMessageError`."""
    messages: list[Message] = []
    for index, message in enumerate(prompt.messages):
        texts: list[str] = []
        for part in message.parts:
            if isinstance(part, TextPart):
                texts.append(part.text)
            elif not isinstance(part, ReasoningPart):
                raise InvalidMessageError(
                    f"the protocol supports only text, not a {type(part).__name__}", index=index
                )
        messages.append(Message(role=message.role, content="".join(texts)))
    return messages


def _describe(reply: Reply) -> dict[str, Any]:
    """Return the metadata for `llm logs`."""
    facts = {"finish_reason": reply.finish_reason, "request_id": reply.request_id}
    return {name: value for name, value in facts.items() if value is not None}
