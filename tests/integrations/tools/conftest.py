"""Fixtures for the tests of the tools: each kind of client, and a network that stays unused."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from callers import CALLERS, TOKEN, Caller

from cromicle_sdk.server import LocalServer


@pytest.fixture(params=CALLERS, ids=str)
def caller(request: pytest.FixtureRequest) -> Caller:
    caller: Caller = request.param
    return caller


@pytest.fixture(autouse=True)
def _token(_clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROMICLE_TOKEN", TOKEN)


@pytest.fixture
def local() -> Iterator[LocalServer]:
    """A server that echoes, for the token of the environment."""
    with LocalServer(token=TOKEN) as server:
        yield server


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test where it resolves a name or opens a connection."""
    used: list[object] = []

    def refuse(*args: Any, **options: Any) -> None:
        used.append(args)
        raise ConnectionRefusedError("the test uses no network")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(socket.socket, "connect", refuse)
        yield
    assert used == []
