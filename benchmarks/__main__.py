"""Run the benchmarks, and print each ratio and its bound.

Without a NAME, all scenarios run, which takes about ten minutes. An idle machine gives better
results: costs are compared within a round, but not between runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .measure import Samples, Settings, allow_many_files, run_rounds
from .plot import plot
from .report import build_json, check_bounds, format_bounds, format_scenario, list_versions
from .scenarios import SCENARIOS
from .server import run_server

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the named scenarios. A missed bound is not an error."""
    options = _parse(arguments)
    allow_many_files()
    _print(", ".join(f"{name} {version}" for name, version in list_versions().items()) + "\n\n")
    samples: dict[str, Samples] = {}
    with run_server() as base_url:
        settings = Settings(base_url, quick=options.quick)
        for name in options.names or SCENARIOS:
            scenario = SCENARIOS[name]
            samples[name] = run_rounds(
                scenario.cases, settings, rounds=scenario.rounds_in(settings)
            )
            _print(format_scenario(scenario, samples[name]) + "\n")
    results = check_bounds(samples)
    if options.quick:
        _print("A quick run only shows that the benchmarks work; its results are not accurate.\n")
    _print(format_bounds(results))
    if options.json:
        options.json.write_text(json.dumps(build_json(samples, results), indent=1) + "\n")
    if options.plot:
        plot(samples, options.plot)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    width = max(map(len, SCENARIOS))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="scenarios:\n"
        + "\n".join(f"  {name:{width}}  {SCENARIOS[name].description}" for name in SCENARIOS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a scenario to run, see below")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples as JSON")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write an SVG for each scenario")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run one short round of each scenario, to check that it works",
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name!r}: choose from {', '.join(SCENARIOS)}")
    return options


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
