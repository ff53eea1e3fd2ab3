"""`Cromicle`, a language model of LlamaIndex.

Requires the extra `llama-index`: `pip install "cromicle-sdk[llama-index]"`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast

from cromicle_sdk import (
    AsyncClient,
    Client,
    ConfigurationError,
    InvalidMessageError,
    Message,
    Reply,
    Retry,
    Timeout,
)
from cromicle_sdk._core.fields import ExtraBody

try:
    from llama_index.core.base.llms.types import (
        ChatMessage,
        ChatResponse,
        ChatResponseAsyncGen,
        ChatResponseGen,
        CompletionResponse,
        CompletionResponseAsyncGen,
        CompletionResponseGen,
        LLMMetadata,
        MessageRole,
    )
    from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
    from llama_index.core.llms.callbacks import (
        llm_chat_callback,  # pyright: ignore[reportUnknownVariableType] - it is not annotated
        llm_completion_callback,  # pyright: ignore[reportUnknownVariableType]
    )
    from llama_index.core.llms.llm import LLM
    from pydantic import ConfigDict, Field, PrivateAttr, SecretStr
except ImportError as _error:
    raise ImportError(
        "cromicle_sdk.integrations.llama_index requires llama-index-core 0.13 or 0.14; "
        'install it with: pip install "cromicle-sdk[llama-index]"'
    ) from _error

__all__ = ["Cromicle"]

# The options that are sent as fields of the request.
_FIELDS = ("model", "temperature", "max_tokens", "top_p", "seed", "stop")

# The options of a call, in `chat(..., NAME=VALUE)`.
_CALL_OPTIONS = frozenset({*_FIELDS, "extra_body", "timeout", "headers"})

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "developer",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}

F = TypeVar("F", bound=Callable[..., Any])


def _chat(method: F) -> F:
    """Apply LlamaIndex's decorator, which notifies its observers of a call."""
    return cast("F", llm_chat_callback()(method))


def _completion(method: F) -> F:
    return cast("F", llm_completion_callback()(method))


def _read_token() -> SecretStr | None:
    token = os.environ.get("CROMICLE_TOKEN")
    return SecretStr(token) if token else None


class Cromicle(LLM):
    """A Cromicle endpoint as a language model: `chat`, `complete`, streams and async variants.

    ```python
    from cromicle_sdk.integrations.llama_index import Cromicle

    model = Cromicle(base_url="http://127.0.0.1:8000", temperature=0.2)
    print(model.complete("Hello, how are you?"))
    ```

    - `base_url`, `token`: default to `$CROMICLE_BASE_URL` and `$CROMICLE_TOKEN`.
    - `timeout`: a `Timeout`, None for no limit, or seconds for every limit except `total` and
      `pool`.
    - `max_retries`: the number of retries of a call that failed before the first chunk, by
      default 2.
    - `model`, `temperature`, `max_tokens`, `top_p`, `seed`, `stop`: fields that are sent with each
      request unless they are None. The server must accept them, as `cromicle serve
      --allow-options` does.
    - `extra_body`: any other fields, by name.
    - `headers`: headers that are sent with each request.
    - `context_window`: the context window of the model in tokens, which LlamaIndex uses to pack
      prompts.
    - `client`, `async_client`: your own clients, for any other options. They replace `base_url`,
      `token`, `timeout`, `max_retries` and `headers`.

    The fields, `extra_body`, `timeout` and `headers` may also be passed to a call. The messages are
    sent with their roles. The protocol has no tools.

    An unknown option raises pydantic's `ValidationError`, and an unknown option of a call raises
    `ConfigurationError`; both name it. A message with anything other than text raises
    `InvalidMessageError`. All other errors are those of `Client`.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        arbitrary_types_allowed=True,
        extra="forbid",
        # The value of an invalid option may be the token.
        hide_input_in_errors=True,
    )

    # The URL may contain a user name and a password.
    base_url: str | None = Field(
        default_factory=lambda: os.environ.get("CROMICLE_BASE_URL"), repr=False
    )
    token: SecretStr | None = Field(default_factory=_read_token, exclude=True)
    timeout: float | Timeout | None = Timeout()
    max_retries: int = 2
    headers: Mapping[str, str] | None = Field(default=None, exclude=True, repr=False)
    extra_body: Mapping[str, Any] | None = Field(default=None, repr=False)
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    context_window: int = DEFAULT_CONTEXT_WINDOW
    client: Client | None = Field(default=None, exclude=True, repr=False)
    async_client: AsyncClient | None = Field(default=None, exclude=True, repr=False)

    _client: Client = PrivateAttr()
    _async_client: AsyncClient = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Create the clients, which check their options."""
        super().model_post_init(context)
        options: dict[str, Any] = {
            "base_url": self.base_url or None,
            "timeout": self.timeout,
            "retry": _build_retry(self.max_retries),
            "headers": self.headers,
        }
        # Revealed here, so that the token is not a local of a frame in the traceback of an error.
        self._client = self.client or Client(token=_reveal(self.token), **options)
        self._async_client = self.async_client or AsyncClient(token=_reveal(self.token), **options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class for LlamaIndex's serialization."""
        return "Cromicle"

    @property
    def metadata(self) -> LLMMetadata:
        """The properties of the model for LlamaIndex."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens or -1,
            is_chat_model=True,
            model_name=self.model or "cromicle",
        )

    @_chat
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the reply to the messages."""
        reply = self._client.chat(_build_messages(messages), **self._build_call_options(kwargs))
        return _build_chat_response(reply)

    @_chat
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the reply to the messages."""
        options = self._build_call_options(kwargs)
        return _build_chat_response(
            await self._async_client.chat(_build_messages(messages), **options)
        )

    @_chat
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Yield the reply to the messages as it arrives: the text so far, and the new chunk."""
        options = self._build_call_options(kwargs)
        with self._client.stream(_build_messages(messages), **options) as stream:
            for text in stream:
                yield _build_chat_delta(stream.text, text)
            yield _build_chat_response(stream.reply, delta="")

    @_chat
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Yield the reply to the messages as it arrives: the text so far, and the new chunk."""
        options = self._build_call_options(kwargs)

        async def generate() -> ChatResponseAsyncGen:
            async with self._async_client.stream(_build_messages(messages), **options) as stream:
                async for text in stream:
                    yield _build_chat_delta(stream.text, text)
                yield _build_chat_response(stream.reply, delta="")

        return generate()

    @_completion
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return the reply to the prompt."""
        prompt = self._format(prompt, formatted)
        return _build_completion(self._client.chat(prompt, **self._build_call_options(kwargs)))

    @_completion
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Return the reply to the prompt."""
        prompt = self._format(prompt, formatted)
        options = self._build_call_options(kwargs)
        return _build_completion(await self._async_client.chat(prompt, **options))

    @_completion
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Yield the reply to the prompt as it arrives: the text so far, and the new chunk."""
        prompt = self._format(prompt, formatted)
        with self._client.stream(prompt, **self._build_call_options(kwargs)) as stream:
            for text in stream:
                yield CompletionResponse(text=stream.text, delta=text)
            yield _build_completion(stream.reply, delta="")

    @_completion
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Yield the reply to the prompt as it arrives: the text so far, and the new chunk."""
        prompt = self._format(prompt, formatted)
        options = self._build_call_options(kwargs)

        async def generate() -> CompletionResponseAsyncGen:
            async with self._async_client.stream(prompt, **options) as stream:
                async for text in stream:
                    yield CompletionResponse(text=stream.text, delta=text)
                yield _build_completion(stream.reply, delta="")

        return generate()

    def _format(self, prompt: str, formatted: bool) -> str:
        assert self.completion_to_prompt is not None, "LlamaIndex sets a default"
        return prompt if formatted else self.completion_to_prompt(prompt)

    def _build_call_options(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Build the options of a client's call. Raises `ConfigurationError`, which names one."""
        for name in arguments.keys() - _CALL_OPTIONS:
            known = ", ".join(sorted(_CALL_OPTIONS))
            raise ConfigurationError(
                "a call has no such option", option=name, hint=f"the options of a call are {known}"
            )
        given = {name: getattr(self, name) for name in (*_FIELDS, "extra_body")}
        given |= arguments
        given = {name: value for name, value in given.items() if value is not None}
        fields = {name: given.pop(name) for name in _FIELDS if name in given}
        own = given.pop("extra_body", {})
        # Checked before it is merged, so that an error names it.
        ExtraBody.build(own)
        extra_body = {**own, **fields}
        return {**given, "extra_body": extra_body, "send_messages": True}


def _reveal(token: SecretStr | None) -> str | None:
    return None if token is None else token.get_secret_value()


def _build_retry(max_retries: int) -> Retry:
    if max_retries < 0:
        raise ConfigurationError(
            f"expected a number of at least 0, not {max_retries}", option="max_retries"
        )
    return Retry(attempts=max_retries + 1)


def _build_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Convert messages, with their roles and texts. Raises `InvalidMessageError`."""
    built: list[Message] = []
    for index, message in enumerate(messages):
        if message.role not in _ROLES or message.additional_kwargs.get("tool_calls"):
            raise InvalidMessageError("the protocol has no tools", index=index)
        for block in message.blocks:
            if block.block_type not in ("text", "thinking"):
                raise InvalidMessageError(
                    f"the protocol supports only text, not a {type(block).__name__}", index=index
                )
        built.append(Message(role=_ROLES[message.role], content=message.content or ""))
    return built


def _build_chat_delta(text: str, delta: str) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta)


def _build_chat_response(reply: Reply, delta: str | None = None) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=reply.text)
    return ChatResponse(message=message, delta=delta, additional_kwargs=_describe(reply))


def _build_completion(reply: Reply, delta: str | None = None) -> CompletionResponse:
    return CompletionResponse(text=reply.text, delta=delta, additional_kwargs=_describe(reply))


def _describe(reply: Reply) -> dict[str, Any]:
    facts = {"finish_reason": reply.finish_reason, "request_id": reply.request_id}
    return {name: value for name, value in facts.items() if value is not None}
