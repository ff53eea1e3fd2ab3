"""Receiving and checking a request of OpenAI's API: its model, messages and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

from starlette.requests import Request

from cromicle_sdk._core.errors import InvalidMessageError
from cromicle_sdk._core.messages import Message, check_messages
from cromicle_sdk.server.errors import RequestRejected
from cromicle_sdk.server.openai.options import CALLER_OPTIONS, find_expected
from cromicle_sdk.server.protections import Protections
from cromicle_sdk.server.request import check_token, is_field_name, receive_object

__all__ = ["CompletionRequest", "check_authorization", "receive_completion_request"]

# Fields that do not affect the reply. Any value is accepted and ignored.
_WITHOUT_EFFECT = frozenset(
    {
        *("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
        *("service_tier", "user"),
    }
)

# Fields that this server does not support, and their values that request nothing.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
}

# `include_usage` is accepted and ignored: the protocol does not count tokens, and clients must not
# rely on the event with the usage, since an interrupted stream has none.
_STREAM_OPTIONS = ("include_obfuscation", "include_usage")

# Each event of a stream repeats the name.
_MAX_MODEL_LENGTH = 256

_TOOL_ROLES = ("function", "tool")


@dataclass(frozen=True)
class CompletionRequest:
    """A request that passed every check."""

    model: str
    messages: list[Message] = field(repr=False)
    is_streamed: bool
    options: Mapping[str, Any] = field(repr=False)


def check_authorization(request: Request, protections: Protections) -> None:
    """Check the token in `Authorization: Bearer TOKEN`, and store it in the request's scope.

    Raises `RequestRejected`: 401, or 429 after too many wrong tokens from the client's address.
    """
    values = [value for name, value in request.scope["headers"] if name == b"authorization"]
    scheme, _, token = b"".join(values).partition(b" ")
    if len(values) != 1 or scheme.lower() != b"bearer":
        raise RequestRejected(
            401, "invalid_api_key", "the header 'Authorization: Bearer TOKEN' is required"
        )
    check_token(request, token.strip().decode(errors="replace"), protections)


async def receive_completion_request(
    request: Request,
    protections: Protections,
    *,
    models: Sequence[str],
    allow_options: frozenset[str],
) -> CompletionRequest:
    """Receive and check a request, and store its token in its scope.

    `models` are the accepted models; if empty, any model is accepted. `allow_options` are the
    options that are passed on.

    Raises `RequestRejected` with the status of the first failed check: 401 or 429 token, those of
    `receive_object`, 400 for a field, which it names, 404 model. Raises `ClientDisconnect`.
    """
    check_authorization(request, protections)
    fields = await receive_object(request, protections)
    # OpenAI's API treats null like an absent field.
    given = {name: value for name, value in fields.items() if value is not None}
    return CompletionRequest(
        model=_take_model(given, models),
        messages=_take_messages(given),
        is_streamed=_take_stream(given),
        options=_take_options(given, allow_options),
    )


def _take_model(given: dict[str, Any], models: Sequence[str]) -> str:
    model = given.pop("model", None)
    if not isinstance(model, str) or not 1 <= len(model) <= _MAX_MODEL_LENGTH:
        _reject("model", f"is required and must be a string of 1 to {_MAX_MODEL_LENGTH} characters")
    if models and model not in models:
        known = ", ".join(map(repr, models))
        raise RequestRejected(
            404, "model_not_found", f"the model must be one of {known}", param="model"
        )
    return model


def _take_messages(given: dict[str, Any]) -> list[Message]:
    messages = given.pop("messages", None)
    if not isinstance(messages, list):
        _reject("messages", "is required and must be an array")
    for index, message in enumerate(cast("list[object]", messages)):
        if isinstance(message, dict):
            _check_message(cast("dict[str, Any]", message), f"messages[{index}]")
    try:
        return check_messages(cast("list[object]", messages))
    except InvalidMessageError as error:
        param = "messages" if error.index is None else f"messages[{error.index}]"
        problem = error.problem
    # Raised here, so that the InvalidMessageError is not its context.
    raise RequestRejected(400, "invalid_value", problem, param=param)


def _check_message(message: dict[str, Any], path: str) -> None:
    """Reject content other than text, which the protocol cannot carry."""
    if message.get("role") in _TOOL_ROLES:
        _reject_unsupported(f"{path}.role")
    _check_rest(message, path, ("role", "content"))
    content = message.get("content")
    if isinstance(content, list):
        for index, part in enumerate(cast("list[object]", content)):
            if isinstance(part, dict):
                fields = cast("dict[str, Any]", part)
                if fields.get("type") != "text":
                    _reject_unsupported(f"{path}.content[{index}].type")
                _check_rest(fields, f"{path}.content[{index}]", ("type", "text"))


def _check_rest(fields: dict[str, Any], path: str, known: Sequence[str]) -> None:
    for name, value in fields.items():
        # Clients send an assistant's message back with the empty fields that they received.
        if name not in known and value not in (None, [], {}, ""):
            _reject_unsupported(_extend(path, name))


def _take_stream(given: dict[str, Any]) -> bool:
    stream = given.pop("stream", False)
    if not isinstance(stream, bool):
        _reject("stream", "must be a boolean")
    options = given.pop("stream_options", {})
    if not isinstance(options, dict):
        _reject("stream_options", "must be an object")
    for name, value in cast("dict[str, Any]", options).items():
        if name not in _STREAM_OPTIONS:
            _reject_unsupported(_extend("stream_options", name))
        if not isinstance(value, bool):
            _reject(f"stream_options.{name}", "must be a boolean")
    return stream


def _take_options(given: dict[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    """Return the remaining fields: the options for the endpoint, by the endpoint's names."""
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name in _WITHOUT_EFFECT or _is_neutral(name, value):
            continue
        option = "max_tokens" if name == "max_completion_tokens" else name
        if option not in CALLER_OPTIONS:
            _reject_unsupported(_extend("", name))
        if option not in allowed:
            raise RequestRejected(
                400,
                "unsupported_parameter",
                f"this server does not pass on the field {name!r}",
                param=name,
            )
        if option in options:
            _reject(name, "must not be combined with 'max_tokens'")
        expected = find_expected(option, value)
        if expected is not None:
            _reject(name, f"must be {expected}")
        options[option] = value
    return options


def _is_neutral(name: str, value: object) -> bool:
    # The types are compared, too, because True equals 1.
    return any(type(value) is type(each) and value == each for each in _NEUTRAL.get(name, ()))


def _reject(name: str, problem: str) -> NoReturn:
    raise RequestRejected(400, "invalid_value", f"the field {name!r} {problem}", param=name)


def _reject_unsupported(path: str) -> NoReturn:
    message = f"the field {path!r} is not supported: this server passes on text only"
    raise RequestRejected(400, "unsupported_parameter", message, param=path)


def _extend(path: str, name: str) -> str:
    """Return the path of a field, without a name that is unsafe to quote."""
    shown = name if is_field_name(name) else "?"
    return f"{path}.{shown}" if path else shown
