"""The pytest plugin: the fixtures `cromicle_server` and `cromicle_faults`.

pytest imports this module in every run in an environment that has the package, so everything
else is imported where it is used.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cromicle_sdk import AsyncClient, Client
    from cromicle_sdk.server import LocalServer

    from .faulty_server import FaultyServer

_TOKEN = "test-token"  # noqa: S105 - valid only for the server of one test
_HOST = "127.0.0.1"


@pytest.fixture
def cromicle_server(
    monkeypatch: pytest.MonkeyPatch, _cromicle_earlier_clients: None
) -> Iterator[LocalServer]:
    """A running `LocalServer` that echoes prompts. Each test has its own.

    During the test, `CROMICLE_BASE_URL` and `CROMICLE_TOKEN` refer to it, so a client created
    without options connects to it. The test fails if it uses a client that was created before and
    would connect to another server. Requires the extra `server`, and fails without it.
    """
    try:
        from cromicle_sdk.server import LocalServer
    except ImportError as error:
        pytest.fail(
            f"The fixture cromicle_server requires the extra server ({error}); "
            "install it with: pip install 'cromicle-sdk[server]'",
            pytrace=False,
        )
    with LocalServer(token=_TOKEN) as server:
        _set_environment(server.base_url, monkeypatch)
        yield server


@pytest.fixture
def cromicle_faults(
    monkeypatch: pytest.MonkeyPatch, _cromicle_earlier_clients: None
) -> Iterator[FaultyServer]:
    """A running `FaultyServer` with an empty script. Each test has its own.

    During the test, `CROMICLE_BASE_URL` and `CROMICLE_TOKEN` refer to it, so a client created
    without options connects to it. The test fails if it uses a client that was created before and
    would connect to another server. In a test that requests both fixtures, the environment refers
    to the server of the last one.
    """
    from .faulty_server import FaultyServer

    with FaultyServer() as server:
        _set_environment(server.base_url, monkeypatch)
        yield server


@pytest.fixture
def _cromicle_earlier_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that uses a client created before the fixtures changed the environment.

    Clients read the environment when they are created. A client created at import, or in a
    fixture of a wider scope, would send the prompts of a test to a real endpoint.
    """
    from cromicle_sdk import AsyncClient, Client
    from cromicle_sdk._core.options import DEFAULT_BASE_URL

    earlier = {DEFAULT_BASE_URL, os.environ.get("CROMICLE_BASE_URL", "").rstrip("/")}

    def check(client: Client | AsyncClient) -> None:
        base_url = client._options.endpoint.base_url  # pyright: ignore[reportPrivateUsage]
        if base_url in earlier:
            pytest.fail(
                f"This {type(client).__name__} was created before the fixture and would connect to "
                f"{base_url}: create it in the test, or in a fixture of function scope."
            )

    for kind in (Client, AsyncClient):
        for name in ("chat", "stream"):
            monkeypatch.setattr(kind, name, _call_first(check, getattr(kind, name)))


def _call_first(check: Callable[[Any], None], method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method to call `check(self)` first. A coroutine function stays one."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        check(self)
        return method(self, *args, **options)

    @functools.wraps(method)
    async def call_async(self: Any, *args: Any, **options: Any) -> Any:
        check(self)
        return await method(self, *args, **options)

    return call_async if inspect.iscoroutinefunction(method) else call


def _set_environment(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROMICLE_BASE_URL", base_url)
    monkeypatch.setenv("CROMICLE_TOKEN", _TOKEN)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Allow the address of the servers if pytest-socket blocks connections.

    A marker on the test overrides the options of pytest-socket. A marker of the user is kept.
    """
    fixtures = {"cromicle_server", "cromicle_faults"}
    if fixtures.isdisjoint(getattr(item, "fixturenames", ())):
        return
    is_blocked = item.config.getoption("disable_socket", False)
    hosts = item.config.getoption("allow_hosts", None)
    markers = ("allow_hosts", "disable_socket", "enable_socket")
    if (is_blocked or hosts) and not any(map(item.get_closest_marker, markers)):
        item.add_marker(pytest.mark.allow_hosts([*(hosts.split(",") if hosts else ()), _HOST]))
