"""pytest-socket: a blocked socket raises its own error, once, and nothing is sent."""

from __future__ import annotations

import pytest
from callers import CALLERS, Caller
from pytest_socket import (
    SocketBlockedError,
    SocketConnectBlockedError,
    disable_socket,
    socket_allow_hosts,
)

from cromicle_sdk import Retry
from cromicle_sdk.testing import FaultyServer

# It warns and raises; the warning alone would be the error here.
pytestmark = pytest.mark.filterwarnings("ignore:A test tried to use")

RETRY = Retry(attempts=3, first_delay=0)


# httpx's async pool may wrap the error of the plugin in an exception group.
@pytest.fixture(
    params=[c for c in CALLERS if c.runtime.is_blocking or not c.brings_http_client], ids=str
)
def caller(request: pytest.FixtureRequest) -> Caller:
    caller: Caller = request.param
    return caller


@pytest.mark.parametrize("url", ["http://blocked.test", "http://192.0.2.1:8000"])
def test_a_blocked_socket_raises_the_error_of_the_plugin(url: str, caller: Caller) -> None:
    # An event loop needs a pair of Unix sockets. The plugin lifts the block after the test.
    disable_socket(allow_unix_socket=True)
    with pytest.raises(SocketBlockedError):
        caller.chat(url, retry=RETRY)


@pytest.mark.parametrize(
    "caller", [c for c in CALLERS if not c.runtime.is_blocking and c.brings_http_client], ids=str
)
def test_an_async_client_of_your_own_raises_it_as_httpx_does(caller: Caller) -> None:
    disable_socket(allow_unix_socket=True)
    with pytest.raises(Exception) as caught:
        caller.chat("http://192.0.2.1:8000", retry=RETRY)
    # On asyncio, anyio connects in a task group.
    (error,) = getattr(caught.value, "exceptions", [caught.value])
    assert isinstance(error, SocketBlockedError)


def test_a_host_that_is_not_allowed_gets_nothing(caller: Caller, faults: FaultyServer) -> None:
    socket_allow_hosts(["192.0.2.1"])
    with pytest.raises(SocketConnectBlockedError, match=r"host \"127\.0\.0\.1\""):
        caller.chat(faults.base_url, retry=RETRY)
    assert faults.requests == []


def test_an_allowed_host_is_reached(caller: Caller, faults: FaultyServer) -> None:
    faults.reply("Allowed.")
    socket_allow_hosts(["127.0.0.1"])
    (reply,) = caller.chat(faults.base_url)
    assert reply.text == "Allowed."
