"""JSON fields that callers add to a request, and their limits for clients and servers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

from .errors import ConfigurationError
from .messages import LONE_SURROGATE, find_lone_surrogate

__all__ = ["PROTOCOL_FIELDS", "ExtraBody", "find_json_problem"]

# The names of the fields that the protocol itself defines.
PROTOCOL_FIELDS = frozenset({"message", "token", "hash", "messages"})

# The maximum nesting: deeper than the JSON schema of any structured output, and far below the depth
# that exhausts the stack of a JSON library.
_MAX_DEPTH = 64

# The maximum length of a whole number: Python reads and writes at most 4,300 digits.
_MAX_DIGITS = 4000


def find_json_problem(value: object) -> str | None:
    """Describe why a JSON parser could not read the value back from its JSON, or return None.

    The description never quotes the value.
    """
    pending: list[tuple[object, int]] = [(value, 1)]
    while pending:
        each, depth = pending.pop()
        if depth > _MAX_DEPTH:
            return f"it is nested more than {_MAX_DEPTH} levels deep"
        if isinstance(each, dict):
            fields = cast("dict[object, object]", each)
            if not all(isinstance(name, str) for name in fields):
                return "it has a name that is not a str"
            inner: Iterable[object] = (*fields, *fields.values())
        elif isinstance(each, (list, tuple)):
            inner = cast("Iterable[object]", each)
        else:
            problem = _find_scalar_problem(each)
            if problem is not None:
                return problem
            continue
        pending.extend((one, depth + 1) for one in inner)
    return None


def _find_scalar_problem(value: object) -> str | None:
    if isinstance(value, str):
        found = find_lone_surrogate(value)
        return None if found is None else LONE_SURROGATE
    if isinstance(value, float):
        return None if math.isfinite(value) else "it has a number that is not finite"
    if isinstance(value, int):
        return None if abs(value) < _TOO_LONG else f"it has a number of over {_MAX_DIGITS} digits"
    return None if value is None else f"JSON has no {type(value).__name__}"


_TOO_LONG = 10**_MAX_DIGITS


class ExtraBody(NamedTuple):
    """The checked option `extra_body`: the JSON of each field by its name.

    The values may be private, so the repr shows only the names.
    """

    json_by_name: Mapping[str, str]

    @classmethod
    def build(cls, value: object) -> ExtraBody:
        """Copy the fields of a mapping; None means no fields.

        Raises `ConfigurationError`, which names the field and never quotes its value.
        """
        if value is None:
            return cls({})
        if not isinstance(value, Mapping):
            raise _invalid(f"expected a mapping of str to JSON values, not {_kind(value)}")
        fields = cast("Mapping[object, object]", value)
        return cls({_check_name(name): _write(name, field) for name, field in fields.items()})

    def merge(self, other: ExtraBody) -> ExtraBody:
        """Return these fields and those of `other`, which replace fields of the same name."""
        return ExtraBody({**self.json_by_name, **other.json_by_name})

    def __repr__(self) -> str:
        return f"<ExtraBody {', '.join(self.json_by_name) or 'without fields'}>"


def _check_name(name: object) -> str:
    if not isinstance(name, str):
        raise _invalid(f"the name of a field must be a str, not {_kind(name)}")
    if name in PROTOCOL_FIELDS:
        raise _invalid(
            f"the protocol sets the field {name!r}, which cannot be replaced",
            hint="send_messages=True sends the messages" if name == "messages" else "",
        )
    if find_lone_surrogate(name) is not None:
        raise _invalid(f"the name {name!r} has a lone surrogate, which UTF-8 cannot encode")
    return str.__str__(name)


def _write(name: object, value: object) -> str:
    problem = find_json_problem(value)
    if problem is not None:
        raise _invalid(f"the field {name!r} is not JSON: {problem}")
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _invalid(problem: str, *, hint: str = "") -> ConfigurationError:
    return ConfigurationError(problem, option="extra_body", hint=hint)


def _kind(value: object) -> str:
    return type(value).__name__
