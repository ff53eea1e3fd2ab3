"""Fixtures for all tests: the runtimes, the two servers, an environment without surprises."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

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
def _default_signal_handlers() -> Iterator[None]:
    """Let signals end the test and its child processes.

    A shell script ignores SIGINT in commands that it starts with `&`, `nohup` ignores SIGHUP, and
    children inherit that.
    """
    defaults: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler}
    if hasattr(signal, "SIGHUP"):
        defaults[signal.SIGHUP] = signal.SIG_DFL
    handlers = {number: signal.signal(number, default) for number, default in defaults.items()}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def interrupt() -> Callable[[], None]:
    """Interrupts the main thread once, as Ctrl-C does; for any thread.

    A signal that comes just before a system call does not end it, and Python runs the handler when
    it returns. So the signal is repeated until the handler has run.
    """
    raised = threading.Event()

    def handle(*args: object) -> None:
        if not raised.is_set():
            raised.set()
            raise KeyboardInterrupt

    # `_default_signal_handlers` restores the handler that was there before.
    signal.signal(signal.SIGINT, handle)

    def interrupt() -> None:
        while not raised.is_set():
            os.kill(os.getpid(), signal.SIGINT)
            raised.wait(0.1)

    return interrupt


@pytest.fixture(autouse=True)
def config_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of the command's `config.toml`, not there yet; the user's own is out of reach."""
    home = tmp_path_factory.getbasetemp() / f"config-{uuid4().hex}"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    return home / "cromicle"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in (
        *("CROMICLE_BASE_URL", "CROMICLE_TOKEN", "CROMICLE_UPSTREAM_KEY"),
        *("CROMICLE_PROFILE", "FORWARDED_ALLOW_IPS"),
    ):
        monkeypatch.delenv(name, raising=False)
