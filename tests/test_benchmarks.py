"""The benchmarks: they run, and their bounds refer to existing cases."""

from __future__ import annotations

import json
import math
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from benchmarks import faults, isolated, scenarios
from benchmarks.__main__ import main
from benchmarks.bounds import BOUNDS, Bound
from benchmarks.libraries import BLOCKING, Call, Received
from benchmarks.measure import Case, Sample, Settings, Unavailable, compare, run_rounds
from benchmarks.scenarios import SCENARIOS
from benchmarks.server import ReplySpec, run_server
from cromicle_sdk.testing import FaultyServer


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda b: f"{b.scenario} {b.subject} {b.baseline}")
def test_a_bound_names_cases_and_a_column_of_its_scenario(bound: Bound) -> None:
    scenario = SCENARIOS[bound.scenario]
    names = [case.name for case in scenario.cases]
    assert {bound.subject, bound.baseline} <= set(names)
    assert len(set(names)) == len(names)
    assert bound.measure in scenario.columns


def test_a_quick_run_prints_the_ratios_of_the_named_scenarios_beside_their_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    main(["import", "flood", "--quick", "--json", str(file)])
    printed = capsys.readouterr().out
    assert "from cromicle_sdk import Client" in printed
    assert "1.15" in printed
    assert "held" in printed or "MISSED" in printed
    written = json.loads(file.read_text())
    assert {bound["scenario"] for bound in written["bounds"]} == {"import", "flood"}
    assert written["scenarios"]["import"]["samples"]["import httpx"][0]["cpu"] > 0
    assert written["scenarios"]["flood"]["samples"]["cromicle trio"][0]["wall"] >= 0


def test_the_server_survives_clients_that_leave_an_endless_reply() -> None:
    request = b"POST %s/chat HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
    with run_server() as base_url:
        address = ("127.0.0.1", int(base_url.rpartition(":")[2]))
        for _ in range(50):
            with socket.create_connection(address, timeout=20) as leaving:
                leaving.sendall(request % ReplySpec(tokens=0).path.encode())
                assert leaving.recv(65536)
            with socket.create_connection(address, timeout=20) as other:
                other.sendall(request % ReplySpec(tokens=1).path.encode())
                assert other.recv(65536)


@pytest.mark.parametrize("case", isolated.ISOLATED["flood"])
def test_the_limit_of_a_flood_is_raised_until_text_arrives_within_it(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_FLOOD_SECONDS", (0.2, 1.0, 5.0, 20.0))
    with FaultyServer() as server:
        server.stall(after="").flood()
        sample = isolated.ISOLATED["flood"][case](Settings(server.base_url, quick=True))
        assert len(server.requests) >= 2
    assert sample.wall >= 0


def test_a_failed_call_in_threads_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def library(url: str) -> Iterator[Call]:
        numbers = count()

        def call() -> Received:
            if next(numbers) == 5:
                raise ConnectionError("mine")
            return Received(ReplySpec(tokens=20).characters, 0.0)

        yield call

    monkeypatch.setitem(BLOCKING, "failing", library)
    with pytest.raises(ConnectionError, match="mine"):
        scenarios._call_in_threads("failing", Settings("http://127.0.0.1", quick=True))


def test_help_lists_all_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(scenario.description in printed for scenario in SCENARIOS.values())


def test_an_unknown_scenario_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["nothing"])
    assert "no scenario 'nothing': choose from call, burst," in capsys.readouterr().err


def test_cases_are_interleaved_and_compared_within_each_round() -> None:
    order: list[str] = []

    def take(name: str, costs: list[float]) -> Sample:
        order.append(name)
        return Sample(cpu=costs.pop(0))

    def fail(settings: Settings) -> Sample:
        raise Unavailable("not here")

    first, second = [1.0, 8.0, 3.0], [2.0, 2.0, 2.0]
    cases = [
        Case("first", lambda _: take("first", first)),
        Case("absent", fail),
        Case("second", lambda _: take("second", second)),
    ]
    samples = run_rounds(cases, Settings("http://127.0.0.1", quick=True), rounds=3)
    assert order == ["first", "second", "second", "first", "second", "first"]
    assert samples.unavailable == {"absent": "not here"}
    ratio = compare(samples.taken, "first", "second", "cpu")
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (1.5, 0.5, 4.0, 3)
    assert math.isnan(samples.taken["first"][0].wall)


def test_the_table_of_faults_shows_which_clients_accept_a_wrong_reply(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("aiohttp", reason="requires the extra bench")
    faults.main()
    *lines, shares = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(faults.FAULTS)
    own, *others = shares.split()[-len(faults.CLIENTS) :]
    assert own == "0%"
    assert all(int(share.rstrip("%")) > 0 for share in others)


def test_the_table_of_faults_names_the_extra_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SystemExit, match=r"pip install --editable \"\.\[bench\]\""):
        faults.main()


@pytest.mark.parametrize("fault", faults.FAULTS)
def test_no_reply_with_a_fault_is_accepted(fault: str) -> None:
    assert not faults.accepts("cromicle", fault)
