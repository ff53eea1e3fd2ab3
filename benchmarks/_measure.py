"""How it is measured: interleaved rounds, CPU time of this process and wall time, paired ratios."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Contender",
    "Measure",
    "Ratio",
    "Sample",
    "Samples",
    "Setting",
    "Stopwatch",
    "Unavailable",
    "allow_many_files",
    "compare",
    "peak_memory",
    "run_rounds",
]

Measure = Literal["cpu", "wall", "memory"]


class Unavailable(Exception):  # noqa: N818 - not an error: the table says so in its place
    """A contender can't run here: its package or its option is not there."""


@dataclass(frozen=True)
class Setting:
    """Where a sample is taken: the server's base URL, and how much may be spent."""

    base_url: str
    quick: bool

    def scale(self, count: int) -> int:
        """So many repetitions in a full run, far fewer in a quick one."""
        return max(1, count // 10) if self.quick else count


@dataclass(frozen=True)
class Sample:
    """What one unit (a call, a token, a stream) cost: seconds, and bytes where they count."""

    cpu: float = math.nan
    wall: float = math.nan
    memory: float = math.nan


@dataclass(frozen=True)
class Contender:
    """Who is measured, in one scenario. `rounds` holds back one that takes very long."""

    name: str
    measure: Callable[[Setting], Sample]
    rounds: int | None = None


@dataclass
class Samples:
    """A scenario's samples by contender, one for each round; and who could not run, and why."""

    taken: dict[str, list[Sample]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of the rounds, the lowest, the highest, and how many."""

    median: float
    low: float
    high: float
    rounds: int


class Stopwatch:
    """CPU and wall time of this process from the start of a block to its end."""

    def __enter__(self) -> Self:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self._cpu
        self.wall = time.perf_counter() - self._wall

    def per(self, count: int) -> Sample:
        return Sample(cpu=self.cpu / count, wall=self.wall / count)


def run_rounds(contenders: Sequence[Contender], setting: Setting, *, rounds: int) -> Samples:
    """Let them take turns, each once a round, so that a slow minute of the machine hits all."""
    samples = Samples()
    for number in range(rounds):
        for contender in _rotate(contenders, number):
            is_done = contender.rounds is not None and number >= contender.rounds
            if is_done or contender.name in samples.unavailable:
                continue
            # No contender pays for the garbage of the one before.
            gc.collect()
            try:
                sample = contender.measure(setting)
            except Unavailable as error:
                samples.unavailable[contender.name] = str(error)
            except ModuleNotFoundError as error:
                samples.unavailable[contender.name] = f"{error.name} is not installed"
            else:
                samples.taken.setdefault(contender.name, []).append(sample)
    return samples


def compare(
    samples: Mapping[str, Sequence[Sample]], subject: str, rival: str, measure: Measure
) -> Ratio:
    """The subject's cost in units of the rival's, round by round."""
    ratios = [
        getattr(one, measure) / getattr(other, measure)
        for one, other in zip(samples[subject], samples[rival], strict=False)
    ]
    return Ratio(median(ratios), min(ratios), max(ratios), len(ratios))


def peak_memory() -> int:
    """The most that this process has held in memory so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: a child begins with its parent's there.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def allow_many_files() -> None:
    """Let this process open as many sockets as 2,000 streams need, if the system permits."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _rotate(contenders: Sequence[Contender], by: int) -> Iterator[Contender]:
    # Nobody always runs after the same neighbour.
    start = by % len(contenders)
    yield from contenders[start:]
    yield from contenders[:start]
