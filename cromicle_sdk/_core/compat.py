"""Typing constructs for old Pythons and pydantic, and collections for Pythons without the GIL."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any, TypeVar, get_type_hints

if sys.version_info >= (3, 11):  # pragma: no cover - one of the two, on each version
    from typing import Self, Unpack
else:  # pragma: no cover - as above
    from typing_extensions import Self, Unpack

__all__ = ["HAS_GIL", "Self", "Unpack", "accept_in_pydantic", "build_ordered_dict"]

T = TypeVar("T")

# Python has the function since 3.13, which is also the first without a GIL.
HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


def build_ordered_dict() -> dict[Any, Any]:
    """A dict in insertion order, of which each operation is atomic, also without the GIL.

    There, threads that share an OrderedDict corrupt it. With the GIL it is the better one: after
    many deletions, a dict takes long to find its first key.
    """
    return OrderedDict() if HAS_GIL else {}


def accept_in_pydantic(kind: type[T]) -> type[T]:
    """Make pydantic accept a TypedDict of this package as the type of a field.

    Before Python 3.12, pydantic accepts only a TypedDict of typing_extensions. Importing that takes
    a tenth of the time of importing httpx, so it is imported only if pydantic needs it.
    """
    if sys.version_info < (3, 12):  # pragma: no cover - not on every version
        setattr(kind, "__get_pydantic_core_schema__", _build_schema)  # noqa: B010 - not declared
    return kind


def _build_schema(kind: Any, handler: Any) -> Any:  # pragma: no cover - as above
    from typing_extensions import TypedDict

    build: Any = TypedDict
    return handler.generate_schema(build(kind.__name__, get_type_hints(kind)))
