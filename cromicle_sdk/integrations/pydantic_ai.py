"""`CromicleModel`, a model of Pydantic AI.

Requires the extra `pydantic-ai`: `pip install "cromicle-sdk[pydantic-ai]"`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from cromicle_sdk import (
    APIStatusError,
    AsyncClient,
    AsyncStream,
    ConfigurationError,
    CromicleError,
    InvalidMessageError,
    Message,
    Retry,
)
from cromicle_sdk._core.fields import ExtraBody
from cromicle_sdk._core.secrets import hide_token

try:
    from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, UserError
    from pydantic_ai.messages import (
        CachePoint,
        FinishReason,
        ModelMessage,
        ModelRequest,
        ModelRequestPart,
        ModelResponse,
        ModelResponsePart,
        ModelResponseStreamEvent,
        SystemPromptPart,
        TextContent,
        TextPart,
        ThinkingPart,
        UserContent,
        UserPromptPart,
    )
    from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
    from pydantic_ai.profiles import ModelProfile
    from pydantic_ai.settings import ModelSettings
    from pydantic_ai.tools import RunContext
except ImportError as _error:
    raise ImportError(
        "cromicle_sdk.integrations.pydantic_ai requires pydantic-ai-slim 2.2 or newer; "
        'install it with: pip install "cromicle-sdk[pydantic-ai]"'
    ) from _error

__all__ = ["CromicleModel"]

# The settings that are sent as fields of the request, and the names of the fields.
_FIELDS = {
    "temperature": "temperature",
    "max_tokens": "max_tokens",
    "top_p": "top_p",
    "seed": "seed",
    "stop_sequences": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}

# Settings of Pydantic AI that are rejected, because neither the protocol nor the gateway has them.
_NOT_SENT = frozenset({"top_k", "logit_bias", "service_tier"})

_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
}


class CromicleModel(Model):
    """A Cromicle endpoint as a model of Pydantic AI.

    ```python
    from pydantic_ai import Agent

    from cromicle_sdk.integrations.pydantic_ai import CromicleModel

    agent = Agent(CromicleModel(base_url="http://127.0.0.1:8000"))
    print(agent.run_sync("Hello, how are you?").output)
    ```

    - `model_name`: sent as the field `model`, for a gateway with several models. None, the default,
      for the default model of the gateway.
    - `base_url`, `token`: as for `AsyncClient`.
    - `client`: instead of these, your own `AsyncClient`, which is not closed.
    - `settings`: `temperature`, `max_tokens`, `top_p`, `seed`, `stop_sequences`,
      `presence_penalty` and `frequency_penalty` are sent as fields of the request, which the server
      must accept, as `cromicle serve --allow-options` does. `timeout`, `max_retries`,
      `extra_headers` and `extra_body` are options of the call.
    - `profile`: overrides of the model profile of Pydantic AI.

    The messages are sent with their roles. The protocol has no token usage and no tools: an
    `output_type` is requested in the prompt, and an agent with tools raises `UserError`.

    `top_k`, `logit_bias`, `service_tier` and a setting that is unknown to Pydantic AI raise
    `ConfigurationError`, which names the setting. Settings for tools, thinking, prompt caching and
    citations have no effect. A message with anything other than text raises `InvalidMessageError`.
    All other errors are the `ModelHTTPError` and `ModelAPIError` of Pydantic AI, so that
    `FallbackModel` works; their `__cause__` is the error of `AsyncClient`.
    """

    def __init__(
        self,
        model_name: str | None = None,
        *,
        base_url: str | None = None,
        token: str | None = None,
        client: AsyncClient | None = None,
        settings: ModelSettings | None = None,
        profile: ModelProfile | None = None,
    ) -> None:
        # A traceback of an error about an option may print the locals of this frame.
        hidden = hide_token({"token": token})
        is_given = {"base_url": base_url is not None, "token": token is not None}
        token = None
        super().__init__(settings=settings, profile={**_PROFILE, **(profile or {})})
        if client is not None:
            for name in (name for name in is_given if is_given[name]):
                raise ConfigurationError("set it on your own client instead", option=name)
        self._requested_model = model_name
        self._client = client or AsyncClient(base_url=base_url, token=hidden["token"].reveal())

    @property
    def model_name(self) -> str:
        """The requested model, or `cromicle`."""
        return self._requested_model or "cromicle"

    @property
    def system(self) -> str:
        """The name of the provider."""
        return "cromicle"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Return the complete reply. Pydantic AI calls this."""
        built, options = self._prepare(messages, model_settings, model_request_parameters)
        try:
            reply = await self._client.chat(built, **options)
        except CromicleError as error:
            raise _translate(error, self.model_name) from error
        return ModelResponse(
            parts=[TextPart(content=reply.text)],
            model_name=self.model_name,
            provider_name=self.system,
            provider_response_id=reply.request_id,
            finish_reason=_FINISH_REASONS.get(reply.finish_reason or ""),
        )

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse, None]:
        """Yield the reply as it arrives. Pydantic AI calls this."""
        built, options = self._prepare(messages, model_settings, model_request_parameters)
        stream = self._client.stream(built, **options)
        try:
            try:
                await stream.__aenter__()
            except CromicleError as error:
                raise _translate(error, self.model_name) from error
            yield _Response(
                model_request_parameters=model_request_parameters,
                stream=stream,
                name=self.model_name,
                system=self.system,
            )
        finally:
            await stream.aclose()

    def _prepare(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> tuple[list[Message], dict[str, Any]]:
        """Return the messages to send, and the options of the call."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        if parameters.function_tools:
            raise UserError("The Cromicle protocol has no tools. Remove the tools of the agent.")
        options = _build_options(dict(settings or {}))
        if self._requested_model is not None:
            options["extra_body"] = {"model": self._requested_model, **options["extra_body"]}
        return _build_messages(messages, parameters), options


# The capabilities of the protocol.
_PROFILE = ModelProfile(
    supports_tools=False,
    supports_json_schema_output=False,
    supports_json_object_output=False,
    default_structured_output_mode="prompted",
)


@dataclass(kw_only=True)
class _Response(StreamedResponse):
    """A reply while it arrives, as events of Pydantic AI."""

    stream: AsyncStream = field(repr=False)
    name: str
    system: str
    begun: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    @property
    def model_name(self) -> str:
        return self.name

    @property
    def provider_name(self) -> str:
        return self.system

    @property
    def provider_url(self) -> None:
        """None, because the URL may contain a password."""

    @property
    def timestamp(self) -> datetime:
        return self.begun

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        self.provider_response_id = self.stream.headers.get("x-request-id")
        try:
            async for text in self.stream:
                for event in self._parts_manager.handle_text_delta(
                    vendor_part_id="content", content=text
                ):
                    yield event
        except CromicleError as error:
            raise _translate(error, self.name) from error
        self.finish_reason = _FINISH_REASONS.get(self.stream.reply.finish_reason or "")

    async def close_stream(self) -> None:
        await self.stream.aclose()

    def get_stream_cancel_errors(self) -> tuple[type[BaseException], ...]:
        return (ModelAPIError,)


def _translate(error: CromicleError, model_name: str) -> Exception:
    if isinstance(error, (ConfigurationError, InvalidMessageError)):
        return error
    if isinstance(error, APIStatusError):
        return ModelHTTPError(error.status_code, model_name, str(error))
    return ModelAPIError(model_name, str(error))


def _build_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Build the options of a call. Raises `ConfigurationError`, which names the setting."""
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if name in _NOT_SENT or name not in ModelSettings.__annotations__:
            raise ConfigurationError("the model has no such setting", option=name)
    extra_body = given.get("extra_body", {})
    # Checked before it is merged, so that an error names it.
    ExtraBody.build(extra_body)
    fields = {_FIELDS[name]: given[name] for name in _FIELDS if name in given}
    options: dict[str, Any] = {
        "extra_body": {**extra_body, **fields},
        "headers": given.get("extra_headers", {}),
        "send_messages": True,
    }
    if "timeout" in given:
        options["timeout"] = given["timeout"]
    if "max_retries" in given:
        options["retry"] = _build_retry(given["max_retries"])
    return options


def _build_retry(max_retries: object) -> Retry:
    if type(max_retries) is not int or max_retries < 0:
        raise ConfigurationError("expected a whole number, 0 or more", option="max_retries")
    return Retry(attempts=max_retries + 1)


def _build_messages(
    messages: Sequence[ModelMessage], parameters: ModelRequestParameters
) -> list[Message]:
    """Convert messages, with their roles. Raises `InvalidMessageError`, with the index of one."""
    built: list[Message] = []
    instructions = _find_instructions(messages, parameters)
    if instructions:
        built.append(Message(role="system", content=instructions))
    for index, message in enumerate(messages):
        parts: Sequence[ModelRequestPart | ModelResponsePart] = message.parts
        built += [_build_message(part, index) for part in parts if not _is_thinking(part)]
    return built


def _find_instructions(
    messages: Sequence[ModelMessage], parameters: ModelRequestParameters
) -> str | None:
    """Return the instructions of the agent or, without an agent, those of the last request."""
    if parameters.instruction_parts is not None:
        return "\n\n".join(part.content for part in parameters.instruction_parts)
    requests = [message for message in messages if isinstance(message, ModelRequest)]
    return requests[-1].instructions if requests else None


def _is_thinking(part: ModelRequestPart | ModelResponsePart) -> bool:
    return isinstance(part, ThinkingPart)


def _build_message(part: ModelRequestPart | ModelResponsePart, index: int) -> Message:
    if isinstance(part, SystemPromptPart):
        return Message(role="system", content=part.content)
    if isinstance(part, UserPromptPart):
        return Message(role="user", content=_join_content(part.content, index))
    if isinstance(part, TextPart):
        return Message(role="assistant", content=part.content)
    # Newer versions of Pydantic AI convert it to a user prompt themselves.
    if part.part_kind == "retry-prompt" and part.tool_name is None:
        return Message(role="user", content=part.model_response())
    raise InvalidMessageError(
        f"the protocol supports only text, not a {type(part).__name__}", index=index
    )


def _join_content(content: str | Sequence[UserContent], index: int) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for item in content:
        if isinstance(item, (str, TextContent)):
            texts.append(item if isinstance(item, str) else item.content)
        elif not isinstance(item, CachePoint):
            raise InvalidMessageError(
                f"the protocol supports only text, not a {type(item).__name__}", index=index
            )
    return "\n\n".join(texts)
