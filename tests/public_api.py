"""The record of the public API: names, parameters, fields and base classes.

`python tests/public_api.py` writes it to `tests/public_api.txt`. If a change removes or modifies a
line of that file, it breaks code of users and must be listed in CHANGELOG.md.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path

__all__ = ["MODULES", "RECORD", "describe", "main"]

MODULES = (
    "cromicle_sdk",
    "cromicle_sdk.bulk",
    "cromicle_sdk.server",
    "cromicle_sdk.testing",
)

RECORD = Path(__file__).with_suffix(".txt")


def describe() -> str:
    """Return a line for each public name, and for each public member of a class."""
    return "".join(f"{line}\n" for module in MODULES for line in _describe_module(module))


def _describe_module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    for public in sorted(module.__all__):
        value: object = getattr(module, public)
        yield from _describe(f"{name}.{public}", value)


def _describe(name: str, value: object) -> Iterator[str]:
    if typing.get_origin(value) is not None:
        yield name  # an alias such as Callable[[str], str], which is a class in Python 3.10
    elif isinstance(value, type):
        bases = [base.__name__ for base in value.__bases__ if base is not object]
        yield f"class {name}({', '.join(bases)})"
        if not issubclass(value, enum.Enum):
            yield from (f"{name}{line}" for line in _describe_members(value))
    elif callable(value):
        yield f"{name}{_signature(value)}"
    else:
        yield name


def _describe_members(kind: type) -> Iterator[str]:
    if dataclasses.is_dataclass(kind) or "__init__" in vars(kind):
        yield _signature(kind)
    for member in sorted(vars(kind)):
        value: object = inspect.getattr_static(kind, member)
        if member.startswith("_"):
            continue
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        yield f".{member}{_signature(value) if inspect.isfunction(value) else ''}"
    fields = getattr(kind, "__annotations__", {})
    yield from (
        f".{field}" for field in sorted(fields) if field not in vars(kind) and field[0] != "_"
    )


def _signature(value: object) -> str:
    """Return the parameters without annotations, which differ between Python versions."""
    try:
        signature = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    parameters = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    text = str(signature.replace(parameters=parameters, return_annotation=signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def main() -> None:
    RECORD.write_text(describe(), encoding="utf-8")


if __name__ == "__main__":
    main()
