"""The bound on arrays and objects, without a parser."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cromicle_sdk.server import nesting as _nesting
from cromicle_sdk.server.nesting import MAX_CONTAINERS, MAX_DEPTH, find_nesting_problem

DEEP = "nested more than 100 levels deep"
MANY = "more than 10000 arrays and objects"


def nest(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (nest(MAX_DEPTH), None),
        (nest(MAX_DEPTH + 1), DEEP),
        (b'{"a":' * (MAX_DEPTH + 1), DEEP),
        (b'[{"a":' * (MAX_DEPTH // 2) + b"1", None),
        (b'[{"a":' * (MAX_DEPTH // 2) + b"[", DEEP),
        (b"[" + b"[]," * (MAX_CONTAINERS - 1) + b"]", None),
        (b"[" + b"{}," * MAX_CONTAINERS + b"]", MANY),
        (b"[" * 500_000, MANY),
        (b"]" * 1000 + b"[" * MAX_DEPTH, None),
        (b'"' + b"[" * 100_000 + b'"', None),
        (rb'"\"' + b"[" * 100_000 + b'"', None),
        (rb'"\\"' + nest(MAX_DEPTH + 1), DEEP),
        (rb'"\\\"' + nest(MAX_DEPTH + 1) + b'"', None),
        (b"[" * 200 + b'"', DEEP),
        (b"", None),
    ],
)
def test_arrays_and_objects_outside_of_strings_count(body: bytes, problem: str | None) -> None:
    found = find_nesting_problem(body)
    assert found is None if problem is None else problem in (found or "")


def measure_depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(measure_depth, value.values()), default=0)
    return 1 + max(map(measure_depth, value), default=0) if isinstance(value, list) else 0


TEXTS = st.text(alphabet='[]{}"\\a,:\n')


@given(
    value=st.recursive(
        TEXTS | st.none(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)
    )
)
@settings(deadline=None)
def test_the_depth_is_that_of_the_parsed_text(value: Any) -> None:
    body = json.dumps(value).encode()
    depth = measure_depth(value)
    for limit in range(depth + 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_nesting, "MAX_DEPTH", limit)
            assert (find_nesting_problem(body) is None) == (limit >= depth)


@pytest.mark.parametrize(
    "piece",
    [nest(900) + b",", nest(30) + b",", b"[],", b'{"a":0},', b'"",', rb'"\"",', b"0,", b"[", b"x["],
)
def test_a_mebibyte_takes_milliseconds(piece: bytes) -> None:
    body = piece * (1024 * 1024 // len(piece))
    started = time.process_time()
    find_nesting_problem(body)
    assert time.process_time() - started < 0.1
