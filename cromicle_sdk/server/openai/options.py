"""Checks of the options of a gateway that become fields and headers of its requests."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.fields import find_json_problem
from cromicle_sdk._core.messages import find_lone_surrogate
from cromicle_sdk._core.options import check_text, find_header_problem
from cromicle_sdk._core.secrets import Secret
from cromicle_sdk.server.backends import BackendError

__all__ = [
    "CALLER_OPTIONS",
    "HiddenHeaders",
    "check_allowed",
    "check_caller_options",
    "check_fields",
    "check_headers",
    "check_models",
    "find_expected",
    "hide_headers",
]

# The options of a caller that are passed on if the operator allows them.
CALLER_OPTIONS = (
    *("temperature", "top_p", "max_tokens", "stop", "seed"),
    *("presence_penalty", "frequency_penalty", "reasoning_effort"),
)

# The gateway sets these. With `n` there would be several replies.
_RESERVED = frozenset({"messages", "model", "n", "stream"})

_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


def _is_number(value: object, minimum: float, maximum: float) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        # A long int is compared without being converted.
        and (isinstance(value, int) or math.isfinite(value))
        and minimum <= value <= maximum
    )


def _is_whole(value: object, minimum: int, maximum: int) -> bool:
    return type(value) is int and minimum <= value <= maximum


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and find_lone_surrogate(value) is None


def _is_stop(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        texts = cast("Sequence[object]", value)
        return bool(texts) and all(map(_is_text, texts))
    return _is_text(value)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and _WORD.match(value) is not None


# The check of each field, and the description of valid values. Models may have stricter limits.
_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "temperature": (lambda value: _is_number(value, 0, math.inf), "a number, 0 or more"),
    "top_p": (lambda value: _is_number(value, 0, 1), "a number from 0 to 1"),
    "max_tokens": (lambda value: _is_whole(value, 1, 2**31), "a whole number, 1 or more"),
    "stop": (_is_stop, "a non-empty string, or a list of non-empty strings"),
    "seed": (lambda value: _is_whole(value, -(2**63), 2**64 - 1), "a whole number of 64 bits"),
    "presence_penalty": (lambda value: _is_number(value, -2, 2), "a number from -2 to 2"),
    "frequency_penalty": (lambda value: _is_number(value, -2, 2), "a number from -2 to 2"),
    "reasoning_effort": (_is_word, "a word, such as low"),
}


def check_models(model: object, *, option: str = "model") -> tuple[str, ...]:
    """Return the models of a gateway, the default first; empty if the option is None.

    Raises `ConfigurationError`.
    """
    if model is None:
        return ()
    if isinstance(model, str) or not isinstance(model, Sequence):
        return (check_text(option, model),)
    models = tuple(check_text(option, each) for each in cast("Sequence[object]", model))
    if not models:
        raise ConfigurationError("expected at least one model", option=option)
    for each in models:
        if models.count(each) > 1:
            raise ConfigurationError(f"{each!r} is given twice", option=option)
    return models


def check_fields(given: Mapping[str, object], extra_body: object) -> dict[str, Any]:
    """Return the fields that the operator adds to each request.

    `given` are the operator's options by name, None if not set. Raises `ConfigurationError`
    with the name of the option, or with "extra_body".
    """
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if value is not None:
            is_valid, expected = _CHECKS[name]
            if not is_valid(value):
                raise ConfigurationError(f"expected {expected}", option=name)
            fields[name] = value
    return {**fields, **_check_extra_body(extra_body, taken=fields)}


def check_allowed(value: object) -> frozenset[str]:
    """Return the names of the fields that callers may send, from the option `allow_options`.

    True stands for all of them, False for `model` only. Raises `ConfigurationError`.
    """
    option = "allow_options"
    # Always allowed, because the operator already chooses the models.
    model = frozenset({"model"})
    if isinstance(value, bool):
        return model.union(CALLER_OPTIONS) if value else model
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ConfigurationError(
            f"expected True, False or an iterable of names, not {type(value).__name__}",
            option=option,
        )
    names = list(cast("Iterable[object]", value))
    for name in names:
        if name not in (*CALLER_OPTIONS, "model"):
            raise ConfigurationError(
                f"{name!r} is not an option that callers can set",
                option=option,
                hint=f"choose from {', '.join(CALLER_OPTIONS)}",
            )
    return model.union(cast("list[str]", names))


def check_caller_options(options: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """Check the fields of a caller, and return them for the model server.

    Raises `BackendError` 400, which names the invalid field.
    """
    for name, value in options.items():
        if name == "model":
            if value not in models:
                known = ", ".join(map(repr, models))
                raise _reject(f"the field 'model' must be one of {known}")
        elif name not in _CHECKS:
            shown = f"the field {name!r}" if _WORD.match(name) else "a field of the body"
            raise _reject(f"this server does not accept {shown}", code="unknown_field")
        elif (expected := find_expected(name, value)) is not None:
            raise _reject(f"the field {name!r} must be {expected}")
    return dict(options)


def find_expected(name: str, value: object) -> str | None:
    """Return None if `value` is valid for a caller's option, else a description of valid values."""
    is_valid, expected = _CHECKS[name]
    return None if is_valid(value) else expected


def _reject(message: str, code: str = "bad_request") -> BackendError:
    # The message may quote the caller, so it is not logged.
    return BackendError(400, code, message, detail="an option of the caller is invalid")


def _check_extra_body(value: object, *, taken: Mapping[str, Any]) -> dict[str, Any]:
    option = "extra_body"
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise ConfigurationError(f"expected a mapping of str to JSON, not {kind}", option=option)
    fields = dict(cast("Mapping[object, object]", value))
    for name, field in fields.items():
        if not isinstance(name, str) or not name:
            raise ConfigurationError("the name of a field must be a str", option=option)
        if name in _RESERVED:
            raise ConfigurationError(f"the gateway sets the field {name!r} itself", option=option)
        if name in taken:
            raise ConfigurationError(f"the field {name!r} is given twice", option=option)
        problem = find_json_problem({name: field})
        if problem is not None:
            raise ConfigurationError(f"the field {name!r} is not JSON: {problem}", option=option)
        if name in _CHECKS and not _CHECKS[name][0](field):
            expected = _CHECKS[name][1]
            raise ConfigurationError(f"the field {name!r} must be {expected}", option=option)
    # A deep copy, because the caller may change the original later.
    copy: dict[str, Any] = json.loads(json.dumps(fields))
    return copy


# The headers of the operator, whose values may be secrets, or the type of an invalid option.
HiddenHeaders = Mapping[object, Secret] | type


def hide_headers(headers: Mapping[str, str] | None) -> HiddenHeaders:
    """Wrap the values before any check, because a traceback of its error may print them."""
    if headers is None:
        return {}
    if not isinstance(cast("object", headers), Mapping):
        return type(headers)
    return {name: Secret(value) for name, value in headers.items()}


def check_headers(headers: HiddenHeaders) -> dict[str, Secret]:
    """Return the headers by lower-case name. Raises `ConfigurationError`, which quotes no value."""
    option = "headers"
    if isinstance(headers, type):
        raise ConfigurationError(
            f"expected a mapping of str to str, not {headers.__name__}", option=option
        )
    checked: dict[str, Secret] = {}
    for name, value in headers.items():
        problem = find_header_problem(name, value.reveal())
        if problem is not None:
            raise ConfigurationError(problem, option=option)
        lowered = str(name).lower()
        if lowered in checked:
            raise ConfigurationError(f"{name} is given twice", option=option)
        checked[lowered] = value
    return checked
