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
        (math.nan, "it has a number that is not finite"),
        ([-math.inf], "it has a number that is not finite"),
        ("\ud800", "it has a lone surrogate, which UTF-8 cannot encode"),
        ({"a": ["private\udfff"]}, "it has a lone surrogate, which UTF-8 cannot encode"),
        ({"\ud800": 1}, "it has a lone surrogate, which UTF-8 cannot encode"),
        ({1: "private"}, "it has a name that is not a str"),
        ({None: 1}, "it has a name that is not a str"),
        (b"private", "JSON has no bytes"),
        ({"a": object()}, "JSON has no object"),
        ({"private"}, "JSON has no set"),
        (MappingProxyType({"a": 1}), "JSON has no mappingproxy"),
        (1j, "JSON has no complex"),
        ([10**4000], "it has a number of over 4000 digits"),
        ([-(10**5000)], "it has a number of over 4000 digits"),
        (nest(65), "it is nested more than 64 levels deep"),
        (circular(), "it is nested more than 64 levels deep"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else None,
)
def test_a_value_that_is_not_json_is_rejected_by_the_name_of_its_field(
    value: Any, problem: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ExtraBody.build({"fine": 1, "custom": value})
    assert str(caught.value) == f"extra_body: the field 'custom' is not JSON: {problem}"
    assert caught.value.option == "extra_body"


@pytest.mark.parametrize("name", ["message", "token", "hash", "messages"])
def test_the_fields_of_the_protocol_cannot_be_replaced(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"extra_body: .* '{name}'") as caught:
        ExtraBody.build({name: "private"})
    assert "private" not in str(caught.value)
    hint = "send_messages=True sends the messages" if name == "messages" else ""
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("name", "kind"),
    [(1, "int"), (None, "NoneType"), (b"temperature", "bytes"), (("a",), "tuple")],
)
def test_a_name_is_a_str(name: Any, kind: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ExtraBody.build({name: 1})
    assert str(caught.value) == f"extra_body: the name of a field must be a str, not {kind}"


def test_utf_8_can_encode_a_name() -> None:
    with pytest.raises(ConfigurationError, match=r"^extra_body: the name '\\ud800' has a lone"):
        ExtraBody.build({"\ud800": 1})


@pytest.mark.parametrize(
    ("value", "kind"),
    [("temperature", "str"), ([("temperature", 1)], "list"), (5, "int"), (True, "bool")],
)
def test_it_must_be_a_mapping(value: Any, kind: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ExtraBody.build(value)
    assert str(caught.value) == f"extra_body: expected a mapping of str to JSON values, not {kind}"


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
