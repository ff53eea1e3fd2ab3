"""Plots: bars for each scenario, and lines for costs that depend on the number of streams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from .measure import Measure, Samples
from .scenarios import FAN_OUT_SIZES, SCENARIOS, Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot"]

_OURS, _THEIRS = "#b5179e", "#8d99ae"
_SCALES: dict[Measure, tuple[float, str]] = {
    "cpu": (1e6, "µs"),
    "wall": (1e6, "µs"),
    "memory": (1 / (1 << 20), "MiB"),
}


def plot(samples_by_scenario: Mapping[str, Samples], folder: Path) -> None:
    """Write `{scenario}.svg` for each scenario."""
    import matplotlib as mpl

    mpl.use("svg")
    # Makes the output reproducible.
    mpl.rcParams.update({"svg.hashsalt": "cromicle", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    for name, samples in samples_by_scenario.items():
        scenario = SCENARIOS[name]
        draw = _draw_lines if name == "fan-out" else _draw_bars
        height = 4.5 if name == "fan-out" else 1.2 + 0.3 * len(samples.taken)
        figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
        draw(axes, scenario, samples)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


def _draw_bars(axes: Axes, scenario: Scenario, samples: Samples) -> None:
    measure, column = _first_column(scenario)
    scale, unit = _SCALES[measure]
    costs = {
        name: median(getattr(sample, measure) for sample in taken) * scale
        for name, taken in samples.taken.items()
    }
    names = sorted(costs, key=costs.__getitem__, reverse=True)
    colours = [_OURS if "cromicle" in name else _THEIRS for name in names]
    bars = axes.barh(names, [costs[name] for name in names], color=colours)
    axes.bar_label(bars, fmt=_format_number, padding=3)
    # Costs often differ by a factor of a hundred.
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.margins(x=0.12)
    axes.set_xlabel(f"{column}, {unit} (less is better)")
    axes.set_title(f"{scenario.name}: {scenario.description}", loc="left")


def _draw_lines(axes: Axes, scenario: Scenario, samples: Samples) -> None:
    """Draw a line for each library and runtime. Names of cases end with the number of streams."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, taken in samples.taken.items():
        label, _, streams = name.rpartition(" ")
        wall = median(sample.wall for sample in taken)
        lines.setdefault(label, []).append((int(streams), wall))
    for label, points in lines.items():
        is_ours = label.startswith("cromicle")
        axes.plot(
            *zip(*sorted(points), strict=True),
            marker="o",
            label=label,
            linestyle="-" if is_ours else "--",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_yticks([1, 2, 5, 10, 20])
    axes.set_xticks(FAN_OUT_SIZES)
    axes.set_xlabel("concurrent streams")
    axes.set_ylabel("seconds until all have ended")
    axes.set_title(f"{scenario.name}: {scenario.description}", loc="left")
    axes.legend(frameon=False)


def _format_number(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _first_column(scenario: Scenario) -> tuple[Measure, str]:
    return next(iter(scenario.columns.items()))
