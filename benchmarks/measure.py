"""Measuring in interleaved rounds: CPU time, wall time and memory, and paired ratios."""

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
    "Case",
    "Measure",
    "Ratio",
    "Sample",
    "Samples",
    "Settings",
    "Stopwatch",
    "Unavailable",
    "allow_many_files",
    "compare",
    "peak_memory",
    "run_rounds",
]

Measure = Literal["cpu", "wall", "memory"]


class Unavailable(Exception):  # noqa: N818 - not an error: the table reports it
    """A case cannot run, because a package is not installed."""


@dataclass(frozen=True)
class Settings:
    """The base URL of the server, and whether this is a quick run."""

    base_url: str
    quick: bool

    def scale(self, count: int) -> int:
        """Return the number of repetitions: `count`, or a tenth of it in a quick run."""
        return max(1, count // 10) if self.quick else count


@dataclass(frozen=True)
class Sample:
    """The cost of one unit (a call, a token, a stream), in seconds and bytes."""

    cpu: float = math.nan
    wall: float = math.nan
    memory: float = math.nan


@dataclass(frozen=True)
class Case:
    """A case of a scenario. `rounds` limits a case that takes very long."""

    name: str
    measure: Callable[[Settings], Sample]
    rounds: int | None = None


@dataclass
class Samples:
    """The samples of each case, one per round, or the reason why a case cannot run."""

    taken: dict[str, list[Sample]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """The median, minimum and maximum of the ratios of all rounds, and their number."""

    median: float
    low: float
    high: float
    rounds: int


class Stopwatch:
    """The CPU and wall time of this process during a block."""

    def __enter__(self) -> Self:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self._cpu
        self.wall = time.perf_counter() - self._wall

    def per(self, count: int) -> Sample:
        return Sample(cpu=self.cpu / count, wall=self.wall / count)


def run_rounds(cases: Sequence[Case], settings: Settings, *, rounds: int) -> Samples:
    """Run each case once per round, so that a slow phase of the machine affects all of them."""
    samples = Samples()
    for number in range(rounds):
        for case in _rotate(cases, number):
            is_done = case.rounds is not None and number >= case.rounds
            if is_done or case.name in samples.unavailable:
                continue
            # Otherwise a case would collect the garbage of the previous one.
            gc.collect()
            try:
                sample = case.measure(settings)
            except Unavailable as error:
                samples.unavailable[case.name] = str(error)
            except ModuleNotFoundError as error:
                samples.unavailable[case.name] = f"{error.name} is not installed"
            else:
                samples.taken.setdefault(case.name, []).append(sample)
    return samples


def compare(
    samples: Mapping[str, Sequence[Sample]], subject: str, baseline: str, measure: Measure
) -> Ratio:
    """Return the cost of the subject divided by that of the baseline, over all rounds."""
    ratios = [
        getattr(one, measure) / getattr(other, measure)
        for one, other in zip(samples[subject], samples[baseline], strict=False)
    ]
    return Ratio(median(ratios), min(ratios), max(ratios), len(ratios))


def peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which a child process inherits.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def allow_many_files() -> None:
    """Raise the limit of open files for 2,000 streams, if the system permits it."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if soft != resource.RLIM_INFINITY and soft < raised:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))


def _rotate(cases: Sequence[Case], by: int) -> Iterator[Case]:
    # Otherwise the same case would always run first.
    start = by % len(cases)
    yield from cases[start:]
    yield from cases[:start]
