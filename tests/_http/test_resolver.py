"""Look-ups in threads: shared while they are young, and never in anybody's way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from cromicle_sdk._http import resolver

ANSWER = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]
ADDRESSES = [(socket.AF_INET, ("192.0.2.1", 80))]


class Resolver:
    """A resolver that answers when it is released."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.released = threading.Event()
        self.answer: Callable[[], Any] = lambda: ANSWER

    def getaddrinfo(self, *arguments: Any, **options: Any) -> Any:
        self.calls.put(arguments)
        assert self.released.wait(20)
        return self.answer()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    slow = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", slow.getaddrinfo)
    # A lookup of the test before may not have ended yet.
    monkeypatch.setattr(resolver, "_lookups", {})
    before = set(threading.enumerate())
    yield slow
    slow.released.set()
    # One that starts late would call the resolver of the next test.
    for thread in set(threading.enumerate()) - before:
        thread.join(20)


def start(host: str = "h.example") -> resolver.Lookup:
    lookup = resolver.start_lookup(host, 80)
    assert lookup is not None
    return lookup


def wait_for(lookup: resolver.Lookup) -> None:
    done = threading.Event()
    lookup.add_callback(done.set)
    assert done.wait(20)


def test_calls_at_the_same_time_share_a_look_up(slow: Resolver) -> None:
    first, second = start(), start()
    other = start("other.example")
    slow.released.set()
    for lookup in (first, second, other):
        wait_for(lookup)
        assert lookup.result() == ADDRESSES
    assert first is second is not other
    assert slow.calls.qsize() == 2


def test_a_result_is_not_kept(slow: Resolver) -> None:
    slow.released.set()
    first = start()
    wait_for(first)
    assert start() is not first


def test_a_look_up_that_hangs_is_not_shared_for_long(
    slow: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start()
    monkeypatch.setattr(resolver, "_SHARED_SECONDS", 0)
    second = start()
    assert second is not first
    slow.released.set()
    for lookup in (first, second):
        wait_for(lookup)
    assert slow.calls.qsize() == 2


def test_a_look_up_that_hangs_does_not_delay_the_end_of_the_process(slow: Resolver) -> None:
    start()
    slow.calls.get(timeout=20)
    threads = [each for each in threading.enumerate() if each.name == "cromicle-resolve"]
    assert threads
    assert all(thread.daemon for thread in threads)


def test_the_result_of_a_look_up_is_asked_for_too_early(slow: Resolver) -> None:
    with pytest.raises(AssertionError, match=r"^the result comes after the callback"):
        start().result()


def test_an_address_is_there_once() -> None:
    """Not once for each type of socket."""
    assert resolver.look_up("127.0.0.1", 80) == [(socket.AF_INET, ("127.0.0.1", 80))]


def test_each_call_raises_an_error_of_its_own(slow: Resolver) -> None:
    def fail() -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    slow.answer = fail
    slow.released.set()
    lookup = start()
    wait_for(lookup)
    errors: list[socket.gaierror] = []
    for _ in range(2):
        with pytest.raises(socket.gaierror, match="not known") as caught:
            lookup.result()
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert errors[0].errno == socket.EAI_NONAME


def test_where_no_thread_starts_there_is_no_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> Any:
        raise RuntimeError("daemon threads are disabled in this interpreter")

    monkeypatch.setattr(resolver, "threading", SimpleNamespace(Thread=refuse))
    assert resolver.start_lookup("h.example", 80) is None
    monkeypatch.undo()
    # Nothing is left behind that a later call would wait for.
    wait_for(start("127.0.0.1"))
