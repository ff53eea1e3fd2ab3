"""The bounds on JSON values that callers add to a request, on either side of the protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import cast

from .messages import find_lone_surrogate

__all__ = ["MAX_DEPTH", "PROTOCOL_FIELDS", "find_json_problem"]

# The names of the fields that the protocol itself defines.
PROTOCOL_FIELDS = frozenset({"message", "token", "hash", "messages"})

# How deep a value may be nested: more than the JSON schema of any structured output, and far less
# than what exhausts the stack of a JSON library.
MAX_DEPTH = 64


def find_json_problem(value: object) -> str | None:
    """Why every JSON parser could not read the value back as it is, or None.

    The answer never quotes the value.
    """
    pending: list[tuple[object, int]] = [(value, 1)]
    while pending:
        each, depth = pending.pop()
        if depth > MAX_DEPTH:
            return f"it is nested more than {MAX_DEPTH} levels deep"
        if isinstance(each, Mapping):
            fields = cast("Mapping[object, object]", each)
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
        return None if found is None else "it has a lone surrogate, which UTF-8 cannot encode"
    if isinstance(value, float) and not math.isfinite(value):
        return "it has a number that is not finite"
    if value is None or isinstance(value, (bool, int, float)):
        return None
    return f"JSON has no {type(value).__name__}"
