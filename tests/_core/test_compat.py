"""The collections and types that depend on the version of Python."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypedDict

import pydantic
import pytest

from cromicle_sdk._core.compat import HAS_GIL, accept_in_pydantic, build_ordered_dict


def test_an_ordered_dict_is_one_that_threads_can_share() -> None:
    # Without the GIL, threads that share an OrderedDict corrupt it.
    assert type(build_ordered_dict()) is (OrderedDict if HAS_GIL else dict)


def accept(version: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Any:
    class Point(TypedDict):
        x: int
        y: int

    with monkeypatch.context() as patch:
        patch.setattr("sys.version_info", version)
        assert accept_in_pydantic(Point) is Point
    return Point


def test_pydantic_validates_a_typed_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = pydantic.TypeAdapter(accept((3, 11), monkeypatch))
    assert adapter.validate_python({"x": "1", "y": 2}) == {"x": 1, "y": 2}
    assert adapter.json_schema()["title"] == "Point"
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_python({"x": 1})


def test_a_typed_dict_is_unchanged_where_pydantic_accepts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert hasattr(accept((3, 11), monkeypatch), "__get_pydantic_core_schema__")
    assert not hasattr(accept((3, 12), monkeypatch), "__get_pydantic_core_schema__")
