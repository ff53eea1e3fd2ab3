"""Fixtures for all tests: the runtimes, the two servers, an environment without surprises."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from runtimes import RUNTIMES, Runtime

from cromicle_sdk.server import LocalServer
from cromicle_sdk.testing import FaultyServer

pytest_plugins = ["pytester"]


@pytest.fixture(params=RUNTIMES, ids=lambda runtime: runtime.name)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    runtime: Runtime = request.param
    return runtime


@pytest.fixture(scope="session")
def echo() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


@pytest.fixture
def faults() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _default_sigint_handler() -> Iterator[None]:
    """Let SIGINT interrupt the test and its child processes.

    A shell script ignores it in commands that it starts with `&`, and children inherit that.
    """
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("CROMICLE_BASE_URL", "CROMICLE_TOKEN", "CROMICLE_UPSTREAM_KEY"):
        monkeypatch.delenv(name, raising=False)
