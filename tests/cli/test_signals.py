"""SIGTERM at any moment: the action comes first, and the signal has its former effect."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from cromicle_sdk.cli.signals import called_before_termination


@pytest.fixture
def events() -> Iterator[list[str]]:
    """What has been called; SIGTERM appends "signal"."""
    events: list[str] = []
    previous = signal.signal(signal.SIGTERM, lambda *_: events.append("signal"))
    yield events
    signal.signal(signal.SIGTERM, previous)


def test_the_action_comes_before_the_former_handler(events: list[str]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with called_before_termination(lambda: events.append("action")):
        signal.raise_signal(signal.SIGTERM)
    assert events == ["action", "signal"]
    assert signal.getsignal(signal.SIGTERM) is handler
    signal.raise_signal(signal.SIGTERM)
    assert events == ["action", "signal", "signal"]


def test_a_signal_that_arrives_while_the_handler_is_installed(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install = signal.signal

    def install_and_raise(number: signal.Signals, handler: Any) -> Any:
        monkeypatch.setattr(signal, "signal", install)
        former = install(number, handler)
        signal.raise_signal(number)
        return former

    monkeypatch.setattr(signal, "signal", install_and_raise)
    with called_before_termination(lambda: events.append("action")):
        assert events == ["action", "signal"]


def test_an_action_that_fails_does_not_keep_the_process_alive(events: list[str]) -> None:
    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError), called_before_termination(fail):
        signal.raise_signal(signal.SIGTERM)
    assert events == ["signal"]
