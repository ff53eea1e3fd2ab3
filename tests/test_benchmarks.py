"""The benchmarks: their figures are about what they measure, and they run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks._figures import FIGURES, Figure
from benchmarks._measure import Contender, Sample, Setting, Unavailable, compare, run_rounds
from benchmarks._scenarios import SCENARIOS


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f"{f.scenario} {f.subject} {f.rival}")
def test_a_figure_names_contenders_and_a_column_of_its_scenario(figure: Figure) -> None:
    scenario = SCENARIOS[figure.scenario]
    names = [contender.name for contender in scenario.contenders]
    assert {figure.subject, figure.rival} <= set(names)
    assert len(set(names)) == len(names)
    assert figure.measure in scenario.columns


def test_a_quick_run_prints_its_figures_beside_their_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    main(["--quick", "--only", "import", "--json", str(file)])
    printed = capsys.readouterr().out
    assert "cromicle_sdk" in printed
    assert "1.15" in printed
    assert "held" in printed or "MISSED" in printed
    written = json.loads(file.read_text())
    assert [figure["scenario"] for figure in written["figures"]] == ["import"]
    assert written["scenarios"]["import"]["samples"]["httpx"][0]["cpu"] > 0


def test_contenders_take_turns_and_are_compared_round_by_round() -> None:
    order: list[str] = []

    def take(name: str, costs: list[float]) -> Sample:
        order.append(name)
        return Sample(cpu=costs.pop(0))

    def fail(setting: Setting) -> Sample:
        raise Unavailable("not here")

    first, second = [1.0, 8.0, 3.0], [2.0, 2.0, 2.0]
    contenders = [
        Contender("first", lambda _: take("first", first)),
        Contender("absent", fail),
        Contender("second", lambda _: take("second", second)),
    ]
    samples = run_rounds(contenders, Setting("http://127.0.0.1", quick=True), rounds=3)
    assert order == ["first", "second", "second", "first", "second", "first"]
    assert samples.unavailable == {"absent": "not here"}
    ratio = compare(samples.taken, "first", "second", "cpu")
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (1.5, 0.5, 4.0, 3)
    assert math.isnan(samples.taken["first"][0].wall)
