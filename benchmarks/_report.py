"""What was measured, as tables to read and as JSON."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count
from statistics import median
from typing import Any

from ._figures import FIGURES, Figure
from ._measure import Ratio, Sample, Samples, compare
from ._scenarios import Scenario

__all__ = ["Verdict", "build_json", "format_figures", "format_scenario", "judge", "list_versions"]

_PACKAGES = (
    "cromicle-sdk", "httpx", "httpx2", "httpcore", "anyio", "aiohttp", "openai", "ollama",
    "uvloop", "trio",
)  # fmt: skip
_ABSENT = "-"


@dataclass(frozen=True)
class Verdict:
    """A figure, and what came of it: `ratio`, or the reason why there is none."""

    figure: Figure
    ratio: Ratio | None
    reason: str = ""

    @property
    def word(self) -> str:
        if self.ratio is None:
            return f"not available: {self.reason}"
        return "held" if self.ratio.median <= self.figure.at_most else "MISSED"


def judge(results: Mapping[str, Samples]) -> list[Verdict]:
    """The figures of all scenarios that were run."""
    verdicts: list[Verdict] = []
    for figure in FIGURES:
        samples = results.get(figure.scenario)
        if samples is None:
            continue
        reasons = [
            samples.unavailable[name]
            for name in (figure.subject, figure.rival)
            if name in samples.unavailable
        ]
        if reasons:
            verdicts.append(Verdict(figure, None, reasons[0]))
        else:
            ratio = compare(samples.taken, figure.subject, figure.rival, figure.measure)
            verdicts.append(Verdict(figure, ratio))
    return verdicts


def format_scenario(scenario: Scenario, samples: Samples) -> str:
    """A scenario's table: medians, and in brackets the lowest and the highest."""
    rows = [["", *scenario.columns.values(), "rounds"]]
    for contender in scenario.contenders:
        if contender.name not in samples.taken:
            continue
        taken = samples.taken[contender.name]
        cells = [_format_cell(taken, measure) for measure in scenario.columns]
        rows.append([contender.name, *cells, str(len(taken))])
    absent: dict[str, list[str]] = {}
    for name, why in samples.unavailable.items():
        absent.setdefault(why, []).append(name)
    notes = [f"not available: {', '.join(names)} ({why})" for why, names in absent.items()]
    return "\n".join([f"{scenario.name}: {scenario.does}", *_align(rows), *notes, ""])


def format_figures(verdicts: Sequence[Verdict]) -> str:
    """Each figure beside its bound."""
    rows = [["figure", "of", "against", "", "measured", "spread", "at most", ""]]
    for verdict in verdicts:
        figure, ratio = verdict.figure, verdict.ratio
        measured, spread = _ABSENT, _ABSENT
        if ratio is not None:
            measured = f"{ratio.median:.2f}"
            spread = f"{ratio.low:.2f} to {ratio.high:.2f} in {ratio.rounds}"
        names = [figure.scenario, figure.subject, figure.rival, figure.measure]
        rows.append([*names, measured, spread, f"{figure.at_most:.2f}", verdict.word])
    missed = sum(verdict.word == "MISSED" for verdict in verdicts)
    absent = sum(verdict.ratio is None for verdict in verdicts)
    held = len(verdicts) - missed - absent
    summary = f"{held} held, {missed} missed, {absent} not available"
    return "\n".join([*_align(rows), summary, ""])


def list_versions() -> dict[str, str]:
    """The machine in words, and the version of every package that took part."""
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


def build_json(results: Mapping[str, Samples], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """All samples and all figures; seconds and bytes, null for what does not apply."""
    return {
        "versions": list_versions(),
        "scenarios": {
            name: {
                "samples": {
                    contender: [_drop_nan(sample) for sample in taken]
                    for contender, taken in samples.taken.items()
                },
                "unavailable": samples.unavailable,
            }
            for name, samples in results.items()
        },
        "figures": [
            {
                **asdict(verdict.figure),
                "ratio": None if verdict.ratio is None else asdict(verdict.ratio),
                "verdict": verdict.word,
            }
            for verdict in verdicts
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
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
