"""Measuring: interleaved rounds, CPU and wall time of this process, paired ratios."""

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
    """A case cannot run here, because a package is not installed."""


@dataclass(frozen=True)
class Settings:
    """The base URL of the server, and whether this is a quick run."""

    base_url: str
    quick: bool

    def scale(self, count: int) -> int:
        """The number of repetitions: `count` in a full run, a tenth of it in a quick one."""
        return max(1, count // 10) if self.quick else count


@dataclass(frozen=True)
class Sample:
    """The cost of one unit (a call, a token, a stream), in seconds and bytes."""

    cpu: float = math.nan
    wall: float = math.nan
    memory: float = math.nan


@dataclass(frozen=True)
class Case:
    """Something to measure in a scenario. `rounds` limits a case that takes very long."""

    name: str
    measure: Callable[[Settings], Sample]
    rounds: int | None = None


@dataclass
class Samples:
    """The samples of each case, one a round, and why a case could not run."""

    taken: dict[str, list[Sample]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """The median, lowest and highest of the ratios of all rounds, and their number."""

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


def run_rounds(cases: Sequence[Case], settings: Settings, *, rounds: int) -> Samples:
    """Run each case once a round, so that a slow phase of the machine affects all of them."""
    samples = Samples()
    for number in range(rounds):
        for case in _rotate(cases, number):
            is_done = case.rounds is not None and number >= case.rounds
            if is_done or case.name in samples.unavailable:
                continue
            # So that no case collects the garbage of the one before.
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
    """The cost of the subject divided by that of the baseline, in each round."""
    ratios = [
        getattr(one, measure) / getattr(other, measure)
        for one, other in zip(samples[subject], samples[baseline], strict=False)
    ]
    return Ratio(median(ratios), min(ratios), max(ratios), len(ratios))


def peak_memory() -> int:
    """The peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which a child inherits from its parent.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def allow_many_files() -> None:
    """Raise the limit of open files to what 2,000 streams need, if the system permits it."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _rotate(cases: Sequence[Case], by: int) -> Iterator[Case]:
    # So that no case always runs first.
    start = by % len(cases)
    yield from cases[start:]
    yield from cases[:start]
