"""`ChatCromicle`, a chat model of LangChain.

Requires the extra `langchain`: `pip install "cromicle-sdk[langchain]"`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, ClassVar, cast

from cromicle_sdk import (
    AsyncClient,
    Client,
    ConfigurationError,
    InvalidMessageError,
    Message,
    Reply,
    Retry,
    TextPart,
    Timeout,
)
from cromicle_sdk._core.fields import ExtraBody

try:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import BaseChatModel, LangSmithParams
    from langchain_core.messages import (
        AIMessage,
        AIMessageChunk,
        BaseMessage,
        ChatMessage,
        HumanMessage,
        SystemMessage,
    )
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SecretStr
except ImportError as _error:
    raise ImportError(
        "cromicle_sdk.integrations.langchain requires langchain-core 1.0 or newer; "
        'install it with: pip install "cromicle-sdk[langchain]"'
    ) from _error

__all__ = ["ChatCromicle"]

# The options that are sent as fields of the request.
_FIELDS = ("model", "temperature", "max_tokens", "top_p", "seed", "stop")

# The options of a call, in `invoke(..., NAME=VALUE)` or `bind(NAME=VALUE)`.
_CALL_OPTIONS = frozenset({*_FIELDS, "extra_body", "timeout", "headers"})


def _read_token() -> SecretStr | None:
    token = os.environ.get("CROMICLE_TOKEN")
    return SecretStr(token) if token else None


class ChatCromicle(BaseChatModel):
    """A Cromicle endpoint as a chat model: `invoke`, `stream`, `batch` and their async variants.

    ```python
    from cromicle_sdk.integrations.langchain import ChatCromicle

    model = ChatCromicle(base_url="http://127.0.0.1:8000", temperature=0.2)
    print(model.invoke("Hello, how are you?").content)
    ```

    - `base_url`, `token` (or `api_key`): default to `$CROMICLE_BASE_URL` and `$CROMICLE_TOKEN`.
    - `timeout`: a `Timeout`, None for no limit, or seconds for every limit except `total` and
      `pool`.
    - `max_retries`: the number of retries of a call that failed before the first chunk, by
      default 2.
    - `model`, `temperature`, `max_tokens`, `top_p`, `seed`, `stop`: fields that are sent with each
      request unless they are None. The server must accept them, as `cromicle serve
      --allow-options` does.
    - `extra_body`: any other fields, by name.
    - `headers`: headers that are sent with each request.
    - `client`, `async_client`: your own clients, for any other options. They replace `base_url`,
      `token`, `timeout`, `max_retries` and `headers`.

    The fields, `extra_body`, `timeout` and `headers` may also be passed to a call. The messages are
    sent with their roles. The protocol has no tools, no structured output and no token usage.

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
    token: SecretStr | None = Field(
        default_factory=_read_token, validation_alias=AliasChoices("token", "api_key")
    )
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
    streaming: bool = False
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
            "send_messages": True,
        }
        # Revealed here, so that the token is not a local of a frame in the traceback of an error.
        self._client = self.client or Client(token=_reveal(self.token), **options)
        self._async_client = self.async_client or AsyncClient(token=_reveal(self.token), **options)

    @property
    def _llm_type(self) -> str:
        return "cromicle"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """The key of a model in LangChain's caches of replies."""
        return {
            "endpoint": repr(self._client),
            "extra_body": self.extra_body,
            **self._get_fields(),
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params.setdefault("ls_model_name", "cromicle")
        return params

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        options = self._build_call_options(stop, kwargs)
        reply = self._client.chat(_build_messages(messages), **options)
        return _build_result(reply, options)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        options = self._build_call_options(stop, kwargs)
        reply = await self._async_client.chat(_build_messages(messages), **options)
        return _build_result(reply, options)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        options = self._build_call_options(stop, kwargs)
        with self._client.stream(_build_messages(messages), **options) as stream:
            for text in stream:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                if run_manager is not None:
                    run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk
            yield _build_last_chunk(stream.reply, options)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        options = self._build_call_options(stop, kwargs)
        async with self._async_client.stream(_build_messages(messages), **options) as stream:
            async for text in stream:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                if run_manager is not None:
                    await run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk
            yield _build_last_chunk(stream.reply, options)

    def _get_fields(self) -> dict[str, Any]:
        """Return the fields to send. An empty `stop` is not sent."""
        given = {name: getattr(self, name) for name in _FIELDS}
        return {name: value for name, value in given.items() if value not in (None, [])}

    def _build_call_options(
        self, stop: list[str] | None, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        """Build the options of a client's call. Raises `ConfigurationError`, which names one."""
        for name in arguments.keys() - _CALL_OPTIONS:
            known = ", ".join(sorted(_CALL_OPTIONS))
            raise ConfigurationError(
                "a call has no such option", option=name, hint=f"the options of a call are {known}"
            )
        given = {name: arguments[name] for name in arguments if arguments[name] is not None}
        fields = {**self._get_fields(), **({"stop": stop} if stop else {})}
        fields |= {name: given.pop(name) for name in _FIELDS if name in given}
        own = given.pop("extra_body", {})
        # Checked before it is merged, so that an error names it.
        ExtraBody.build(own)
        extra_body = {**(self.extra_body or {}), **own, **fields}
        return {**given, "extra_body": extra_body, "send_messages": True}


def _reveal(token: SecretStr | None) -> str | None:
    return None if token is None else token.get_secret_value()


def _build_retry(max_retries: int) -> Retry:
    if max_retries < 0:
        raise ConfigurationError(
            f"expected a number of at least 0, not {max_retries}", option="max_retries"
        )
    return Retry(attempts=max_retries + 1)


def _build_messages(messages: list[BaseMessage]) -> list[Message]:
    """Convert messages, with their roles and texts. Raises `InvalidMessageError`."""
    built: list[Message] = []
    for index, message in enumerate(messages):
        content: str | list[TextPart]
        if isinstance(message.content, str):
            content = message.content
        else:
            content = [_build_part(part) for part in cast("list[Any]", message.content)]
        built.append(Message(role=_find_role(message, index), content=content))
    return built


def _build_part(part: Any) -> TextPart:
    """Convert a part for the clients, which reject one that is not text."""
    return TextPart(type="text", text=part) if isinstance(part, str) else cast("TextPart", part)


def _find_role(message: BaseMessage, index: int) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    if isinstance(message, AIMessage) and not message.tool_calls:
        return "assistant"
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, SystemMessage):
        return "system"
    raise InvalidMessageError(
        f"the protocol has no tools, so it cannot carry a {type(message).__name__}", index=index
    )


def _describe(reply: Reply, options: Mapping[str, Any]) -> dict[str, Any]:
    facts = {
        "finish_reason": reply.finish_reason,
        "request_id": reply.request_id,
        "model_name": options["extra_body"].get("model"),
        "model_provider": "cromicle",
    }
    return {name: value for name, value in facts.items() if value is not None}


def _build_result(reply: Reply, options: Mapping[str, Any]) -> ChatResult:
    message = AIMessage(content=reply.text, response_metadata=_describe(reply, options))
    return ChatResult(generations=[ChatGeneration(message=message)])


def _build_last_chunk(reply: Reply, options: Mapping[str, Any]) -> ChatGenerationChunk:
    message = AIMessageChunk(
        content="", response_metadata=_describe(reply, options), chunk_position="last"
    )
    return ChatGenerationChunk(message=message)
