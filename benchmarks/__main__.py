"""`python -m benchmarks`: run the scenarios, print the figures beside their bounds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ._measure import Samples, Setting, allow_many_files, run_rounds
from ._plot import plot
from ._report import build_json, format_figures, format_scenario, judge, list_versions
from ._scenarios import SCENARIOS
from ._server import serve_apart

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the arguments ask for. A figure that is missed is no failure: it is printed."""
    options = _parse(arguments)
    allow_many_files()
    _print(", ".join(f"{name} {version}" for name, version in list_versions().items()) + "\n\n")
    results: dict[str, Samples] = {}
    with serve_apart() as base_url:
        setting = Setting(base_url, quick=options.quick)
        for name in options.only or SCENARIOS:
            scenario = SCENARIOS[name]
            results[name] = run_rounds(
                scenario.contenders, setting, rounds=scenario.rounds_in(setting)
            )
            _print(format_scenario(scenario, results[name]) + "\n")
    verdicts = judge(results)
    if options.quick:
        _print("A quick run shows that it works; its figures say little.\n")
    _print(format_figures(verdicts))
    if options.json:
        options.json.write_text(json.dumps(build_json(results, verdicts), indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples as JSON")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write an SVG for each scenario")
    parser.add_argument(
        "--only",
        action="append",
        choices=SCENARIOS,
        metavar="NAME",
        help=f"this scenario only, may be given more than once: {', '.join(SCENARIOS)}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="see that it works: one short round, no good figures"
    )
    return parser.parse_args(arguments)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
