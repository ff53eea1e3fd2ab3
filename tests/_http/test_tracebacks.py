"""Exceptions lose the frames whose locals hold requests."""

from __future__ import annotations

import gc
import json
import sys
import traceback
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import httpcore
import httpx
import pytest

from cromicle_sdk._http.tracebacks import strip_frames, strip_library_frames

CANARY = "sk-canary-123456"
URL = "https://server.test/chat"


def raise_through(token: str) -> None:
    """A chain of three, each from a frame that holds the token."""
    try:
        try:
            raise OSError("lowest")
        except OSError as lowest:
            raise httpcore.ConnectError("lower") from lowest
    except httpcore.ConnectError as lower:
        request = httpx.Request("POST", URL, content=token.encode())
        raise httpx.ConnectError("upper", request=request) from lower


def test_strip_frames() -> None:
    with pytest.raises(httpx.ConnectError) as caught:
        raise_through(CANARY)
    error = caught.value
    assert strip_frames(error) is error
    assert error.__traceback__ is None
    with pytest.raises(RuntimeError):
        error.request  # noqa: B018
    assert error.__context__ is None
    below = error.__cause__
    assert isinstance(below, httpcore.ConnectError)
    assert below.__traceback__ is None
    assert isinstance(below.__cause__, OSError)
    assert below.__cause__.__traceback__ is None
    assert [str(e) for e in (error, below, below.__cause__)] == ["upper", "lower", "lowest"]


def test_strip_frames_of_a_cycle() -> None:
    one, other = httpx.ReadError("one"), OSError("other")
    one.__cause__, other.__context__ = other, one
    assert strip_frames(one) is one


def names_of(error: BaseException | None) -> list[str]:
    """The functions that an exception has passed."""
    assert error is not None
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def in_library(module: str, function: Callable[[], Any]) -> Callable[[], Any]:
    """Calls it from a function of a module of this name, whose frame holds a secret."""
    scope: dict[str, Any] = {"__name__": module, "function": function, "secret": CANARY}
    exec("def of_library():\n    held = [secret]\n    return function(), held", scope)
    called: Callable[[], Any] = scope["of_library"]
    return called


def fail_in_a_hook() -> None:
    raise ValueError("mine")


def fail_with_a_key() -> None:
    raise KeyError("mine")


def parse_in_a_hook() -> None:
    json.loads("{")


@pytest.mark.parametrize("module", ["httpcore._sync.http11", "httpx", "h11", "ssl", "contextlib"])
def test_the_frames_of_libraries_are_stripped(module: str) -> None:
    """Those of the standard library belong to whatever has called them."""
    call = in_library("cromicle_sdk._sync.pool", in_library(module, fail_in_a_hook))
    with pytest.raises(ValueError, match="mine") as caught:
        call()
    error = strip_library_frames(caught.value)
    assert "of_library" not in names_of(error)
    assert names_of(error)[-1] == "fail_in_a_hook"
    step = error.__traceback__
    while step is not None:
        frame: FrameType | None = step.tb_frame
        # What has called it, and so on.
        while frame is not None:
            assert CANARY not in repr(frame.f_locals.get("held"))
            frame = frame.f_back
        step = step.tb_next


def test_the_frames_of_the_standard_library_that_come_first_are_stripped() -> None:
    """Whatever has called them may be this package."""
    with pytest.raises(ValueError, match="mine") as caught:
        in_library("contextlib", fail_in_a_hook)()
    error = caught.value
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    assert names_of(error) == ["of_library", "fail_in_a_hook"]
    assert names_of(strip_library_frames(error)) == ["fail_in_a_hook"]


def test_errors_that_refer_to_each_other_are_stripped() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__context__ = other, one
    assert strip_library_frames(one) is one


def test_an_error_is_freed_without_the_cyclic_gc() -> None:
    """With it goes what its frames hold: a slot, where an interrupt has left one there."""

    class MyError(Exception):
        pass

    def fail() -> None:
        raise MyError

    def run() -> weakref.ref[BaseException]:
        try:
            in_library("httpx", fail)()
        except MyError as error:
            return weakref.ref(strip_library_frames(error))
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        assert run()() is None
    finally:
        gc.enable()


def test_what_a_hook_calls_keeps_its_frames() -> None:
    with pytest.raises(ValueError, match="Expecting") as caught:
        in_library("httpx._client", parse_in_a_hook)()
    names = names_of(strip_library_frames(caught.value))
    assert names[-4:] == ["parse_in_a_hook", "loads", "decode", "raw_decode"]


def test_the_errors_behind_one_are_stripped_as_well() -> None:
    def wrap() -> None:
        try:
            in_library("httpcore", fail_with_a_key)()
        except KeyError as error:
            try:
                in_library("httpx", fail_in_a_hook)()
            except ValueError:
                raise RuntimeError("mine") from error

    with pytest.raises(RuntimeError) as caught:
        in_library("cromicle_sdk", wrap)()
    error = strip_library_frames(caught.value)
    assert "of_library" not in names_of(error)
    assert names_of(error)[-1] == "wrap"
    assert names_of(error.__cause__) == ["wrap", "fail_with_a_key"]
    assert names_of(error.__context__) == ["wrap", "fail_in_a_hook"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup came with Python 3.11")
def test_the_errors_in_a_group_are_stripped_as_well() -> None:
    def fail(hook: Callable[[], None]) -> Exception:
        try:
            in_library("httpx", hook)()
        except (KeyError, ValueError) as error:
            return error
        raise AssertionError

    def wrap() -> None:
        # Not while one of them is handled, which would be the context of the group as well.
        errors = [fail(fail_in_a_hook), fail(fail_with_a_key)]
        raise ExceptionGroup("mine", errors)  # noqa: F821 - as above

    with pytest.raises(BaseException, match="mine") as caught:
        in_library("anyio", wrap)()
    group: Any = strip_library_frames(caught.value)
    assert [names_of(error) for error in group.exceptions] == [
        ["fail", "fail_in_a_hook"],
        ["fail", "fail_with_a_key"],
    ]


def test_an_error_that_the_caller_is_handling_keeps_all_of_its_frames() -> None:
    names: list[list[str]] = []
    try:
        in_library("httpx", fail_in_a_hook)()
    except ValueError as handled:
        names.append(names_of(handled))
        with pytest.raises(KeyError) as caught:
            in_library("cromicle_sdk", fail_with_a_key)()
        names.append(names_of(strip_library_frames(caught.value)))
        names.append(names_of(handled))
    before, stripped, after = names
    assert "of_library" in before
    assert "of_library" not in stripped
    assert after == before
