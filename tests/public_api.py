"""The record of the public API: names, parameters, types, defaults and base classes.

`python tests/public_api.py` writes it to `tests/public_api.json`. An incompatible change must be
listed in CHANGELOG.md. griffe is not used because it does not compare the annotations of parameters
and attributes, and reports no additions.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["MODULES", "RECORD", "Changes", "compare", "describe", "describe_module", "main", "read"]

MODULES = (
    "cromicle_sdk",
    "cromicle_sdk.bulk",
    "cromicle_sdk.server",
    "cromicle_sdk.testing",
)

RECORD = Path(__file__).with_suffix(".json")

# The facts about a public name. The name of a parameter is `function(parameter)`.
Facts = dict[str, Any]
Interface = dict[str, Facts]

KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "by position only",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "by position or keyword",
    inspect.Parameter.VAR_POSITIONAL: "as *",
    inspect.Parameter.KEYWORD_ONLY: "by keyword only",
    inspect.Parameter.VAR_KEYWORD: "as **",
}
# Changes that keep every existing call valid.
WIDENED = {
    ("by position only", "by position or keyword"),
    ("by keyword only", "by position or keyword"),
}


def describe() -> Interface:
    """Return the public API of the package."""
    return dict(
        each for name in MODULES for each in describe_module(importlib.import_module(name)).items()
    )


def describe_module(module: types.ModuleType) -> Interface:
    """Return the names in `__all__`, and the public members of classes."""
    values: dict[str, object] = {name: getattr(module, name) for name in sorted(module.__all__)}
    return dict(
        fact
        for name, value in values.items()
        for fact in _describe(f"{module.__name__}.{name}", value, list(values.values()))
    )


def _describe(name: str, value: object, public: list[object]) -> Iterator[tuple[str, Facts]]:
    if isinstance(value, type) and typing.get_origin(value) is None:
        yield name, {"is": "class", "bases": [base.__name__ for base in value.__bases__]}
        if issubclass(value, enum.Enum):
            for member in value:
                yield f"{name}.{member.name}", {"is": "enum member", "value": repr(member.value)}
        elif typing.is_typeddict(value):
            yield from _describe_fields(name, value)
        else:
            yield from _describe_members(name, value, public)
    elif inspect.isroutine(value):
        yield from _describe_function(name, value, value)
    else:
        yield name, {"is": "name"}  # its value may change


def _describe_fields(name: str, value: Any) -> Iterator[tuple[str, Facts]]:
    for field, annotation in sorted(value.__annotations__.items()):
        required = field in value.__required_keys__
        yield f"{name}.{field}", {"is": "key", "type": _text(annotation), "required": required}


def _describe_members(name: str, kind: type, public: list[object]) -> Iterator[tuple[str, Facts]]:
    # Its own members, and those of private base classes of this package.
    package = kind.__module__.partition(".")[0]
    owners = [
        each
        for each in kind.__mro__
        if each is kind or (each not in public and each.__module__.partition(".")[0] == package)
    ]
    if any("__init__" in vars(owner) for owner in owners):
        yield from _describe_parameters(name, kind, value=kind)
    members: dict[str, object] = {}
    types_: dict[str, object] = {}
    for owner in reversed(owners):
        members.update(vars(owner))
        types_.update(inspect.get_annotations(owner))
    for member in sorted(members.keys() | types_.keys()):
        if member.startswith("_"):
            continue
        path, value = f"{name}.{member}", members.get(member)
        if isinstance(value, property):
            returns = inspect.get_annotations(value.fget).get("return")  # type: ignore[arg-type]
            yield path, {"is": "attribute", "type": _text(returns)}
        elif inspect.isroutine(value):
            yield from _describe_function(path, value, getattr(kind, member))
        else:
            yield path, {"is": "attribute", "type": _text(types_.get(member))}


def _describe_function(name: str, value: object, bound: Any) -> Iterator[tuple[str, Facts]]:
    function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    asynchronous = inspect.iscoroutinefunction(function)
    returns = getattr(function, "__annotations__", {}).get("return")
    yield name, {"is": "async function" if asynchronous else "function", "type": _text(returns)}
    yield from _describe_parameters(name, bound, value)


def _describe_parameters(name: str, bound: Any, value: object) -> Iterator[tuple[str, Facts]]:
    parameters = list(inspect.signature(bound).parameters.values())
    if inspect.isfunction(value) and [each.name for each in parameters[:1]] == ["self"]:
        del parameters[0]
    for position, each in enumerate(parameters):
        facts: Facts = {
            "is": "parameter",
            "given": KINDS[each.kind],
            "type": _text(each.annotation),
        }
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD):
            facts["position"] = position + 1
        if each.default is not each.empty:
            facts["default"] = re.sub(r" at 0x[0-9a-f]+", "", repr(each.default))
        yield f"{name}({each.name})", facts


def _text(annotation: object) -> str:
    if annotation in (None, inspect.Parameter.empty):
        return ""
    if isinstance(annotation, typing.ForwardRef):
        return annotation.__forward_arg__
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


@dataclasses.dataclass(frozen=True)
class Changes:
    """Descriptions of the incompatible and of the compatible changes."""

    breaking: list[str]
    compatible: list[str]


def compare(old: Interface, new: Interface) -> Changes:
    """Return the changes, one sentence each."""
    breaking: list[str] = []
    compatible: list[str] = []
    for name, facts in old.items():
        owner = name.rpartition("(" if name.endswith(")") else ".")[0]
        if name in new:
            for sentence, is_breaking in _compare_facts(facts, new[name]):
                (breaking if is_breaking else compatible).append(f"{name}: {sentence}")
        elif owner not in old or owner in new:  # otherwise the removed owner is reported
            breaking.append(f"{name}: the {_noun(facts)} was removed")
    for name, facts in new.items():
        if name not in old:
            owner = name.rpartition("(" if name.endswith(")") else ".")[0]
            if owner in old and _is_required(facts):
                breaking.append(f"{name}: the {_noun(facts)} is new and required")
            else:
                compatible.append(f"{name}: the {_noun(facts)} is new")
    return Changes(breaking, compatible)


def _noun(facts: Facts) -> str:
    return str(facts["is"])


def _is_required(facts: Facts) -> bool:
    if facts["is"] == "parameter":
        return "default" not in facts and not facts["given"].startswith("as ")
    return facts.get("required", False) is True


def _compare_facts(old: Facts, new: Facts) -> Iterator[tuple[str, bool]]:
    """Yield the changes of one name, and whether they are incompatible."""
    if old["is"] != new["is"]:
        yield f"was {_article(old['is'])}, and is {_article(new['is'])}", True
        return
    for base in old.get("bases", ()):
        if base not in new["bases"]:
            yield f"{base} is no longer a base class", True
    for base in new.get("bases", ()):
        if base not in old["bases"]:
            yield f"{base} is a new base class", False
    if old.get("given") != new.get("given"):
        ways = (old["given"], new["given"])
        yield "was given {}, and is given {}".format(*ways), ways not in WIDENED
    elif old.get("position") != new.get("position"):
        yield f"was parameter {old['position']}, and is parameter {new['position']}", True
    if old.get("required") != new.get("required"):
        was, now = ("required" if each["required"] else "optional" for each in (old, new))
        # Code that reads a mapping relies on required keys, code that builds it on optional ones.
        yield f"was {was}, and is {now}", True
    if old.get("default") != new.get("default"):
        if "default" not in new:
            yield f"the default was {old['default']}, and it is required now", True
        elif "default" not in old:
            yield f"was required, and has the default {new['default']}", False
        else:
            yield f"the default was {old['default']}, and is {new['default']}", True
    for fact, noun in (("type", "annotation"), ("value", "value")):
        if old.get(fact) != new.get(fact):
            was, now = (each[fact] or "missing" for each in (old, new))
            yield f"the {noun} was {was}, and is {now}", True


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def read() -> Interface:
    """Return the recorded API."""
    interface: Interface = json.loads(RECORD.read_text(encoding="utf-8"))
    return interface


def main() -> None:
    lines = [f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in describe().items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
