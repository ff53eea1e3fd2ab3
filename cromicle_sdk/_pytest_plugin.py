"""The pytest fixtures: a server that works, and one that does not.

pytest imports this file in every run of an environment that has the package, so all else is
imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .server import LocalServer
    from .testing import FaultyServer

_TOKEN = "test-token"  # noqa: S105 - it opens nothing but the server of one test


@pytest.fixture
def cromicle_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """A running `LocalServer` that echoes, fresh for each test.

    For the test's length `CROMICLE_BASE_URL` and `CROMICLE_TOKEN` name it, so that a client
    made without options talks to it. Needs the extra `[server]`; fails, saying so, without.
    """
    try:
        from .server import LocalServer
    except ImportError as error:
        pytest.fail(
            f"The fixture cromicle_server needs the extra [server] ({error}): "
            "pip install 'cromicle-sdk[server]'",
            pytrace=False,
        )
    with LocalServer(token=_TOKEN) as server:
        _point_clients_at(server.base_url, monkeypatch)
        yield server


@pytest.fixture
def cromicle_faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A running `FaultyServer` with an empty script, fresh for each test.

    For the test's length `CROMICLE_BASE_URL` and `CROMICLE_TOKEN` name it, so that a client
    made without options talks to it; in a test with both fixtures the last one asked for wins.
    """
    from .testing import FaultyServer

    with FaultyServer() as server:
        _point_clients_at(server.base_url, monkeypatch)
        yield server


def _point_clients_at(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROMICLE_BASE_URL", base_url)
    monkeypatch.setenv("CROMICLE_TOKEN", _TOKEN)
