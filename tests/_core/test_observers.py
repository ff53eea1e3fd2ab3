"""The observers that are installed in a process."""

from __future__ import annotations

from cromicle_sdk._core.observers import Observers


def test_no_observer_is_installed_by_default() -> None:
    assert vars(Observers()) == {
        "start_call": None,
        "trace_request": None,
        "build_headers": None,
    }
