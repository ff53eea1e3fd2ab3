"""One scripted answer as data: what to send, when to wait, how to end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["End", "Plan", "Step", "When", "interleave", "single_bytes", "space_out"]

# Bytes are sent, a number is a pause in seconds, an event is waited for.
Step = bytes | float | threading.Event

End = Literal["keep", "close", "reset", "stall"]

When = Literal["accept", "head", "request"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What happens on one connection: `steps`, then `endless` over and over, then `end`.

    `when` is the moment at which it happens: as the connection is accepted, once a request's
    head has been read, or once the whole request has.
    """

    steps: tuple[Step, ...] = ()
    endless: tuple[Step, ...] = ()
    end: End = "keep"
    when: When = "request"


def space_out(
    pieces: Sequence[bytes], delay: float, gate: threading.Event | None
) -> tuple[Step, ...]:
    """The pieces `delay` seconds apart, all but the first behind `gate`."""
    gates: tuple[Step, ...] = () if gate is None else (gate,)
    rest = [step for piece in pieces[1:] for step in (delay, piece)]
    return (*pieces[:1], *gates, *rest)


def interleave(pieces: Sequence[bytes], pause: float) -> tuple[Step, ...]:
    """The pieces with a pause, in seconds, after each."""
    return tuple(step for piece in pieces for step in (piece, pause))


def single_bytes(data: bytes) -> list[bytes]:
    """The bytes one by one, each still `bytes`."""
    return [data[index : index + 1] for index in range(len(data))]
