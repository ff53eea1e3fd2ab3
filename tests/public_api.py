"""What other people's code relies on: the public names, their parameters, fields and bases.

`python tests/public_api.py` writes `tests/public_api.txt`. A change of that file which takes a line
away, or changes one, is a change that breaks somebody's code: it belongs into CHANGELOG.md.
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
    """A line for each public name, and for each of the public members of a class."""
    return "".join(f"{line}\n" for module in MODULES for line in _describe_module(module))


def _describe_module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    for public in sorted(module.__all__):
        value: object = getattr(module, public)
        yield from _describe(f"{name}.{public}", value)


def _describe(name: str, value: object) -> Iterator[str]:
    if typing.get_origin(value) is not None:
        yield name  # an alias such as Callable[[str], str], which Python 3.10 takes for a class
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
    """The parameters without annotations, which differ from one Python to another."""
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
