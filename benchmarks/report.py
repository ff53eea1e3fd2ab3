"""Formatting the results as tables and as JSON."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count
from statistics import median
from typing import Any

from .bounds import BOUNDS, Bound
from .measure import Ratio, Sample, Samples, compare
from .scenarios import Scenario

__all__ = [
    "Result",
    "build_json",
    "check_bounds",
    "format_bounds",
    "format_scenario",
    "list_versions",
]

_PACKAGES = (
    "cromicle-sdk", "httpx", "httpx2", "httpcore", "anyio", "aiohttp", "openai", "ollama",
    "uvloop", "trio",
)  # fmt: skip
_ABSENT = "-"


@dataclass(frozen=True)
class Result:
    """A bound, and the measured ratio or the reason why it is missing."""

    bound: Bound
    ratio: Ratio | None
    reason: str = ""

    @property
    def label(self) -> str:
        if self.ratio is None:
            return f"not available: {self.reason}"
        return "held" if self.ratio.median <= self.bound.at_most else "MISSED"


def check_bounds(samples_by_scenario: Mapping[str, Samples]) -> list[Result]:
    """Compare the samples with the bounds of the scenarios that were run."""
    results: list[Result] = []
    for bound in BOUNDS:
        samples = samples_by_scenario.get(bound.scenario)
        if samples is None:
            continue
        reasons = [
            samples.unavailable[name]
            for name in (bound.subject, bound.baseline)
            if name in samples.unavailable
        ]
        if reasons:
            results.append(Result(bound, None, reasons[0]))
        else:
            ratio = compare(samples.taken, bound.subject, bound.baseline, bound.measure)
            results.append(Result(bound, ratio))
    return results


def format_scenario(scenario: Scenario, samples: Samples) -> str:
    """Format the table of a scenario: medians, with minimum and maximum in parentheses."""
    rows = [["", *scenario.columns.values(), "rounds"]]
    for case in scenario.cases:
        if case.name not in samples.taken:
            continue
        taken = samples.taken[case.name]
        cells = [_format_cell(taken, measure) for measure in scenario.columns]
        rows.append([case.name, *cells, str(len(taken))])
    absent: dict[str, list[str]] = {}
    for name, why in samples.unavailable.items():
        absent.setdefault(why, []).append(name)
    notes = [f"not available: {', '.join(names)} ({why})" for why, names in absent.items()]
    return "\n".join([f"{scenario.name}: {scenario.description}", *_align(rows), *notes, ""])


def format_bounds(results: Sequence[Result]) -> str:
    """Format the table of all measured ratios and their bounds."""
    rows = [["scenario", "of", "against", "", "measured", "spread", "at most", ""]]
    for result in results:
        bound, ratio = result.bound, result.ratio
        measured, spread = _ABSENT, _ABSENT
        if ratio is not None:
            measured = f"{ratio.median:.2f}"
            spread = f"{ratio.low:.2f} to {ratio.high:.2f} in {ratio.rounds}"
        names = [bound.scenario, bound.subject, bound.baseline, bound.measure]
        rows.append([*names, measured, spread, f"{bound.at_most:.2f}", result.label])
    missed = sum(result.label == "MISSED" for result in results)
    absent = sum(result.ratio is None for result in results)
    held = len(results) - missed - absent
    summary = f"{held} held, {missed} missed, {absent} not available"
    return "\n".join([*_align(rows), summary, ""])


def list_versions() -> dict[str, str]:
    """Return the system and the versions of the compared packages."""
    versions = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} on {platform.machine()}, {cpu_count()} cores",
    }
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def build_json(
    samples_by_scenario: Mapping[str, Samples], results: Sequence[Result]
) -> dict[str, Any]:
    """Build the JSON of all samples and ratios, in seconds and bytes."""
    return {
        "versions": list_versions(),
        "scenarios": {
            name: {
                "samples": {
                    case: [_drop_nan(sample) for sample in taken]
                    for case, taken in samples.taken.items()
                },
                "unavailable": samples.unavailable,
            }
            for name, samples in samples_by_scenario.items()
        },
        "bounds": [
            {
                **asdict(result.bound),
                "ratio": None if result.ratio is None else asdict(result.ratio),
                "result": result.label,
            }
            for result in results
        ],
    }


def _drop_nan(sample: Sample) -> dict[str, float]:
    return {name: value for name, value in asdict(sample).items() if not math.isnan(value)}


def _format_cell(taken: Sequence[Sample], measure: str) -> str:
    values: list[float] = [getattr(sample, measure) for sample in taken]
    if not values or math.isnan(values[0]):
        return _ABSENT
    form = _format_bytes if measure == "memory" else _format_seconds
    return f"{form(median(values))} ({form(min(values))} to {form(max(values))})"


def _format_seconds(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _format_bytes(count: float) -> str:
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
