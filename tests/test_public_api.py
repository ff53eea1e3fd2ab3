"""The public API is the recorded one, and each change is described."""

from __future__ import annotations

import sys
import types
from unittest.mock import patch

import pytest
from public_api import Interface, compare, describe, describe_module, read

RECORD_IT = "record it: python tests/public_api.py"


def test_the_public_interface_is_the_recorded_one() -> None:
    changes = compare(read(), describe())
    assert not changes.breaking, "\n".join(
        [
            "These changes are incompatible with code that uses the package.",
            "Undo them; or list them in CHANGELOG.md, and " + RECORD_IT,
            *changes.breaking,
        ]
    )
    assert not changes.compatible, "\n".join([RECORD_IT, *changes.compatible])


def interface(source: str) -> Interface:
    module = types.ModuleType("shop")
    with patch.dict(sys.modules, shop=module):  # required by dataclasses
        exec("from __future__ import annotations\n" + source, vars(module))
    ours = {name: value for name, value in vars(module).items() if _is_defined_here(value)}
    vars(module)["__all__"] = [name for name in ours if not name.startswith("_")]
    return describe_module(module)


def _is_defined_here(value: object) -> bool:
    return getattr(value, "__module__", None) == "shop" or isinstance(value, int)


BREAKING = {
    "a name is removed": (
        "def buy(): ...\nLIMIT = 3",
        "def buy(): ...",
        "shop.LIMIT: the name was removed",
    ),
    "a function is removed": (
        "def buy(item): ...\ndef sell(): ...",
        "def sell(): ...",
        "shop.buy: the function was removed",
    ),
    "a method is removed": (
        "class Shop:\n def buy(self, item): ...",
        "class Shop: ...",
        "shop.Shop.buy: the function was removed",
    ),
    "a parameter is removed": (
        "def buy(item, *, count=1): ...",
        "def buy(item): ...",
        "shop.buy(count): the parameter was removed",
    ),
    "a required parameter is added": (
        "def buy(): ...",
        "def buy(item): ...",
        "shop.buy(item): the parameter is new and required",
    ),
    "a default changes": (
        "def buy(*, count=1): ...",
        "def buy(*, count=2): ...",
        "shop.buy(count): the default was 1, and is 2",
    ),
    "a default is removed": (
        "def buy(count=1): ...",
        "def buy(count): ...",
        "shop.buy(count): the default was 1, and it is required now",
    ),
    "a parameter becomes keyword-only": (
        "def buy(item): ...",
        "def buy(*, item): ...",
        "shop.buy(item): was given by position or keyword, and is given by keyword only",
    ),
    "a parameter becomes positional-only": (
        "class Shop:\n def __init__(self, item): ...",
        "class Shop:\n def __init__(self, item, /): ...",
        "shop.Shop(item): was given by position or keyword, and is given by position only",
    ),
    "a parameter moves": (
        "def buy(item, count=1): ...",
        "def buy(item, note='', count=1): ...",
        "shop.buy(count): was parameter 2, and is parameter 3",
    ),
    "an annotation changes": (
        "def buy(item: str | int): ...",
        "def buy(item: str): ...",
        "shop.buy(item): the annotation was str | int, and is str",
    ),
    "an annotation is removed": (
        "def buy() -> int: ...",
        "def buy(): ...",
        "shop.buy: the annotation was int, and is missing",
    ),
    "the annotation of a property changes": (
        "class Shop:\n @property\n def open(self) -> bool: ...",
        "class Shop:\n @property\n def open(self) -> bool | None: ...",
        "shop.Shop.open: the annotation was bool, and is bool | None",
    ),
    "a function becomes async": (
        "def buy(): ...",
        "async def buy(): ...",
        "shop.buy: was a function, and is an async function",
    ),
    "a property becomes a method": (
        "class Shop:\n @property\n def open(self): ...",
        "class Shop:\n def open(self): ...",
        "shop.Shop.open: was an attribute, and is a function",
    ),
    "a base class is removed": (
        "class Closed(ValueError): ...",
        "class Closed(Exception): ...",
        "shop.Closed: ValueError is no longer a base class",
    ),
    "a member of an enum is removed": (
        "import enum\nclass Size(enum.Enum):\n S = 1\n M = 2",
        "import enum\nclass Size(enum.Enum):\n S = 1",
        "shop.Size.M: the enum member was removed",
    ),
    "the value of an enum changes": (
        "import enum\nclass Size(enum.Enum):\n S = 1",
        "import enum\nclass Size(enum.Enum):\n S = 's'",
        "shop.Size.S: the value was 1, and is 's'",
    ),
    "a key of a TypedDict is removed": (
        "import typing\nclass Item(typing.TypedDict):\n name: str\n price: int",
        "import typing\nclass Item(typing.TypedDict):\n name: str",
        "shop.Item.price: the key was removed",
    ),
    "a required key is added to a TypedDict": (
        "import typing\nclass Item(typing.TypedDict):\n name: str",
        "import typing\nclass Item(typing.TypedDict):\n name: str\n price: int",
        "shop.Item.price: the key is new and required",
    ),
    "a key of a TypedDict becomes optional": (
        "import typing\nclass Item(typing.TypedDict):\n name: str",
        "import typing\nclass Item(typing.TypedDict, total=False):\n name: str",
        "shop.Item.name: was required, and is optional",
    ),
    "the type of a key changes": (
        "import typing\nclass Item(typing.TypedDict):\n name: str",
        "import typing\nclass Item(typing.TypedDict):\n name: bytes",
        "shop.Item.name: the annotation was str, and is bytes",
    ),
    "a field of a dataclass is removed": (
        "import dataclasses\n@dataclasses.dataclass\nclass Item:\n name: str\n price: int = 0",
        "import dataclasses\n@dataclasses.dataclass\nclass Item:\n name: str",
        "shop.Item.price: the attribute was removed",
    ),
    "an inherited method is removed": (
        "class _Base:\n def buy(self): ...\nclass Shop(_Base): ...",
        "class _Base: ...\nclass Shop(_Base): ...",
        "shop.Shop.buy: the function was removed",
    ),
}


@pytest.mark.parametrize(("old", "new", "sentence"), BREAKING.values(), ids=BREAKING)
def test_a_breaking_change_is_named(old: str, new: str, sentence: str) -> None:
    assert sentence in compare(interface(old), interface(new)).breaking


COMPATIBLE = {
    "a function is new": (
        "",
        "def buy(item): ...",
        ["shop.buy: the function is new", "shop.buy(item): the parameter is new"],
    ),
    "a parameter with a default is new": (
        "def buy(item): ...",
        "def buy(item, *, count=1): ...",
        ["shop.buy(count): the parameter is new"],
    ),
    "any keyword is accepted": (
        "def buy(item): ...",
        "def buy(item, **options): ...",
        ["shop.buy(options): the parameter is new"],
    ),
    "a required parameter gets a default": (
        "def buy(count): ...",
        "def buy(count=1): ...",
        ["shop.buy(count): was required, and has the default 1"],
    ),
    "a keyword may be given by position": (
        "def buy(*, count=1): ...",
        "def buy(count=1): ...",
        ["shop.buy(count): was given by keyword only, and is given by position or keyword"],
    ),
    "a base class is new": (
        "class Closed(Exception): ...",
        "class Closed(ValueError, Exception): ...",
        ["shop.Closed: ValueError is a new base class"],
    ),
    "a member of an enum is new": (
        "import enum\nclass Size(enum.Enum):\n S = 1",
        "import enum\nclass Size(enum.Enum):\n S = 1\n M = 2",
        ["shop.Size.M: the enum member is new"],
    ),
    "an optional key is new": (
        "import typing\nclass Item(typing.TypedDict, total=False):\n name: str",
        "import typing\nclass Item(typing.TypedDict, total=False):\n name: str\n price: int",
        ["shop.Item.price: the key is new"],
    ),
}


@pytest.mark.parametrize(("old", "new", "sentences"), COMPATIBLE.values(), ids=COMPATIBLE)
def test_an_addition_is_only_to_be_recorded(old: str, new: str, sentences: list[str]) -> None:
    changes = compare(interface(old), interface(new))
    assert changes.breaking == []
    assert changes.compatible == sentences


def test_what_a_class_had_is_not_named_again_when_the_class_is_removed() -> None:
    changes = compare(interface("class Shop:\n def buy(self, item): ..."), interface(""))
    assert changes.breaking == ["shop.Shop: the class was removed"]
