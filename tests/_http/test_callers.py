"""Exceptions of signal handlers and hooks, which are known by the frames of their tracebacks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import httpcore
import pytest

from cromicle_sdk._http.callers import find_callers_error


class MineError(Exception):
    pass


def fail() -> None:
    raise MineError("mine")


def catch(call: Callable[..., object], *arguments: object) -> Exception:
    with pytest.raises(MineError) as caught:
        call(*arguments)
    return caught.value


def build(module: str, name: str) -> Callable[[Callable[[], object]], object]:
    """A function of this module and name, which calls another one."""
    namespace: dict[str, Any] = {"__name__": module}
    exec(f"def {name}(call): return call()", namespace)
    function: Callable[[Callable[[], object]], object] = namespace[name]
    return function


def first_name(error: BaseException) -> str:
    assert error.__traceback__ is not None
    return error.__traceback__.tb_frame.f_code.co_name


def handle(number: int, frame: FrameType) -> None:
    raise MineError(number)


def handle_any(*arguments: object) -> None:
    raise MineError(arguments)


@pytest.mark.parametrize("handler", [handle, handle_any])
def test_a_signal_handler_gets_the_frame_that_it_interrupts(handler: Callable[..., None]) -> None:
    def interrupted() -> None:
        handler(2, sys._getframe())

    error = catch(interrupted)
    assert find_callers_error(error) is error
    # The frames above, which hold the request, are gone.
    assert first_name(error) == handler.__name__


def test_a_function_that_gets_another_frame_is_no_handler() -> None:
    def outer() -> None:
        handle_any(sys._getframe().f_back, (1, 2), "text")

    assert find_callers_error(catch(outer)) is None
    assert find_callers_error(MineError("never raised")) is None
    assert find_callers_error(MineError()) is None


@pytest.mark.parametrize("chained", ["cause", "argument"])
def test_an_error_may_be_caused_by_that_of_a_handler(chained: str) -> None:
    def interrupted() -> None:
        handle(2, sys._getframe())

    mine = catch(interrupted)
    outer: Exception
    if chained == "cause":
        outer = httpcore.ReadError("closed")
        outer.__cause__ = mine
    else:
        # httpcore passes the error below it on as an argument.
        outer = httpcore.ReadError(mine)
    assert find_callers_error(httpcore.ReadError(outer)) is mine


@pytest.mark.parametrize(
    ("module", "name", "found"),
    [
        ("httpx._client", "_send_handling_auth", True),
        ("httpx._client", "_send_handling_redirects", True),
        ("httpx2._client", "_send_handling_auth", True),
        ("httpx2._client", "_send_handling_redirects", True),
        ("httpx._auth", "sync_auth_flow", True),
        ("httpx2._auth", "async_auth_flow", True),
        ("httpx._client", "send", False),
        ("httpx._transports", "_send_handling_auth", False),
        ("requests._client", "_send_handling_auth", False),
        ("requests._auth", "sync_auth_flow", False),
    ],
)
def test_a_hook_is_what_httpx_calls(module: str, name: str, found: bool) -> None:
    error = catch(build(module, name), fail)
    assert (find_callers_error(error) is error) == found
    if found:
        assert first_name(error) == "fail"


@pytest.mark.parametrize("library", ["httpx._models", "httpx2._transports.default"])
def test_a_function_of_httpx_is_no_hook(library: str) -> None:
    caller = build("httpx._client", "_send_handling_auth")
    assert find_callers_error(catch(caller, build_failing(library))) is None


def build_failing(module: str) -> Callable[[], object]:
    namespace: dict[str, Any] = {"__name__": module, "MineError": MineError}
    exec("def read(): raise MineError('inside')", namespace)
    function: Callable[[], object] = namespace["read"]
    return function


@pytest.mark.parametrize(
    "sender", ["_send_single_request", "handle_request", "handle_async_request"]
)
def test_a_tool_that_wraps_the_sending_is_no_hook(sender: str) -> None:
    send_it = build("httpx._client", sender)

    def wrapper() -> object:
        return send_it(fail)

    assert find_callers_error(catch(build("httpx._client", "_send_handling_auth"), wrapper)) is None


def test_a_hook_may_send_a_request_itself() -> None:
    send, send_single = build("httpx._client", "send"), build("httpx._client", "handle_request")

    def hook() -> object:
        return send(lambda: send_single(fail))

    error = catch(build("httpx._client", "_send_handling_redirects"), hook)
    assert find_callers_error(error) is error
    assert first_name(error) == "hook"
