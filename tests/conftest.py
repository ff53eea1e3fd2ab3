"""Fixtures for all tests: the runtimes, the two servers, and a clean environment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from runtimes import RUNTIMES, Runtime

from cromicle_sdk._http import resolver
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
    """Restore the default handlers of SIGINT and SIGHUP.

    Shell scripts ignore SIGINT in commands that are started with `&`, `nohup` ignores SIGHUP, and
    child processes inherit this.
    """
    defaults: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler}
    if hasattr(signal, "SIGHUP"):
        defaults[signal.SIGHUP] = signal.SIG_DFL
    handlers = {number: signal.signal(number, default) for number, default in defaults.items()}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """A function that interrupts the main thread once, like Ctrl-C. Callable from any thread.

    A signal that arrives just before a system call does not interrupt it, and Python runs the
    handler only when the call returns. Therefore the signal is repeated until the handler has run.
    """
    raised = threading.Event()
    sending = threading.Lock()

    def handle(*args: object) -> None:
        if not raised.is_set():
            raised.set()
            raise KeyboardInterrupt

    # `_default_signal_handlers` restores the previous handler.
    signal.signal(signal.SIGINT, handle)

    def interrupt() -> None:
        while not raised.is_set():
            with sending:
                # Not after the end of the test, when another handler is installed.
                if not raised.is_set():
                    os.kill(os.getpid(), signal.SIGINT)
            raised.wait(0.1)

    yield interrupt
    with sending:
        raised.set()


@pytest.fixture
def interrupter(faults: FaultyServer) -> threading.Thread:
    """A thread that interrupts itself, not a system call of the main thread, after a request."""

    def interrupt() -> None:
        faults.wait_for_requests(1)
        # Nothing tells when the system call of the main thread has begun.
        time.sleep(0.3)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    return threading.Thread(target=interrupt)


@pytest.fixture(autouse=True)
def config_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of the command's `config.toml`, which does not exist, in place of the user's."""
    home = tmp_path_factory.getbasetemp() / f"config-{uuid4().hex}"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    return home / "cromicle"


@pytest.fixture(autouse=True)
def _own_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test not share a lookup with the test before it, whose thread may still be ending."""
    monkeypatch.setattr(resolver, "_lookups", {})


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
