"""Which values JSON can carry everywhere, and the option `extra_body`."""

from __future__ import annotations

import enum
import json
import math
import pickle
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.fields import ExtraBody, find_json_problem

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers()
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=10,
)


def nest(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


class Color(str, enum.Enum):
    RED = "red"


@given(JSON)
def test_json_is_sent_as_it_is(value: Any) -> None:
    assert find_json_problem(value) is None
    text = ExtraBody.build({"field": value}).json_by_name["field"]
    assert json.loads(text.encode()) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (("a", 1), '["a",1]'),
        ({"ä": "ö\n"}, '{"ä":"ö\\n"}'),
        (OrderedDict(a=None), '{"a":null}'),
        (Color.RED, '"red"'),
        (1e300, "1e+300"),
        (10**3999, "1" + "0" * 3999),
        (nest(64), "[" * 64 + "]" * 64),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_json_of_a_value(value: Any, text: str) -> None:
    assert ExtraBody.build({"field": value}).json_by_name["field"] == text


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (math.nan, "not finite"),
        ([-math.inf], "not finite"),
        ("\ud800", "lone surrogate"),
        ({"a": ["private\udfff"]}, "lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        ({1: "private"}, "a name that is not a str"),
        ({None: 1}, "a name that is not a str"),
        (b"private", "JSON has no bytes"),
        ({"a": object()}, "JSON has no object"),
        ({"private"}, "JSON has no set"),
        (MappingProxyType({"a": 1}), "JSON has no mappingproxy"),
        (1j, "JSON has no complex"),
        ([10**4000], "4000 digits"),
        ([-(10**5000)], "4000 digits"),
        (nest(65), "64 levels"),
        (circular(), "64 levels"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else None,
)
def test_a_value_that_is_not_json_is_rejected_by_the_name_of_its_field(
    value: Any, problem: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ExtraBody.build({"fine": 1, "custom": value})
    assert str(caught.value).startswith("extra_body: the field 'custom' is not JSON: ")
    assert problem in str(caught.value)
    assert "private" not in str(caught.value)
    assert caught.value.option == "extra_body"


@pytest.mark.parametrize("name", ["message", "token", "hash", "messages"])
def test_the_fields_of_the_protocol_cannot_be_replaced(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"extra_body: .* '{name}'") as caught:
        ExtraBody.build({name: "private"})
    assert "private" not in str(caught.value)
    assert ("send_messages" in caught.value.hint) == (name == "messages")


@pytest.mark.parametrize("name", [1, None, b"temperature", ("a",), "\ud800"])
def test_a_name_is_a_str_that_utf_8_can_encode(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="extra_body: the name"):
        ExtraBody.build({name: 1})


@pytest.mark.parametrize("value", ["temperature", [("temperature", 1)], 5, True])
def test_it_must_be_a_mapping(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="extra_body: expected a mapping"):
        ExtraBody.build(value)


def test_names_and_values_are_copied() -> None:
    stop = ["a"]
    given = {Color.RED: stop}
    extra = ExtraBody.build(MappingProxyType(given))
    stop.append("b")
    given.clear()
    assert extra.json_by_name == {"red": '["a"]'}
    assert {type(name) for name in extra.json_by_name} == {str}


def test_merged_fields_replace_those_of_the_same_name() -> None:
    extra = ExtraBody.build({"a": 1, "b": {"c": 1}})
    merged = extra.merge(ExtraBody.build({"b": {"d": 2}, "e": 3}))
    assert merged.json_by_name == {"a": "1", "b": '{"d":2}', "e": "3"}
    assert extra.json_by_name == {"a": "1", "b": '{"c":1}'}


def test_its_repr_shows_names_alone() -> None:
    extra = ExtraBody.build({"seed": 4711, "user": "private"})
    assert repr(extra) == "<ExtraBody seed, user>"
    assert repr(ExtraBody.build(None)) == "<ExtraBody without fields>"
    assert pickle.loads(pickle.dumps(extra)) == extra
