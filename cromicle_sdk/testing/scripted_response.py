"""One scripted response as data: the steps of sending and waiting, and the end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["End", "ScriptedResponse", "Step", "When", "add_pauses", "space_out", "split_bytes"]

# Bytes are sent, a number is a pause in seconds, an event is awaited.
Step = bytes | float | threading.Event

End = Literal["keep", "close", "reset", "stall"]

When = Literal["accept", "head", "request"]


@dataclass(frozen=True, kw_only=True)
class ScriptedResponse:
    """The behaviour on one connection: `steps` once, `endless` repeatedly, then `end`.

    `when` is the moment of the behaviour: when the connection is accepted, after the head of a
    request, or after the complete request.
    """

    steps: tuple[Step, ...] = ()
    endless: tuple[Step, ...] = ()
    end: End = "keep"
    when: When = "request"


def space_out(
    chunks: Sequence[bytes], delay: float, gate: threading.Event | None
) -> tuple[Step, ...]:
    """Build the steps that send chunks `delay` seconds apart, with `gate` after the first."""
    gates: tuple[Step, ...] = () if gate is None else (gate,)
    rest = [step for chunk in chunks[1:] for step in (delay, chunk)]
    return (*chunks[:1], *gates, *rest)


def add_pauses(chunks: Sequence[bytes], seconds: float) -> tuple[Step, ...]:
    """Build the steps that send chunks with a pause after each."""
    return tuple(step for chunk in chunks for step in (chunk, seconds))


def split_bytes(data: bytes) -> list[bytes]:
    """Split into single bytes."""
    return [data[index : index + 1] for index in range(len(data))]
