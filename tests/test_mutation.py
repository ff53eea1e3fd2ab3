"""The mutation tests find every mutant that survives, and no other one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import find_mutants
from mutation import MODULES, PACKAGE, Result, is_fine

TESTS = Path(__file__).parent

MODULE = """
import asyncio


async def is_late(wait: float) -> bool:
    try:
        await asyncio.wait_for(asyncio.sleep(wait), 0.01)
    except asyncio.TimeoutError:
        return True
    return False


async def name_delay(wait: float) -> str:
    late = await is_late(wait)
    return "late" if late else "on time"


def add(first: int, second: int) -> int:
    return first + second


def not_tested(number: int) -> int:
    return -number
"""

TEST = '''
import asyncio
from pathlib import Path

from cromicle_sdk._core.retry import add, name_delay, not_tested


def test_delay() -> None:
    assert asyncio.run(name_delay(1)) == "late"
    assert asyncio.run(name_delay(0)) == "on time"


def test_add() -> None:
    assert add(2, 3) == 5


def test_that_fails_by_chance() -> None:
    """It fails once without a mutant, and once with the mutant of this function."""
    not_tested(1)
    runs = Path(__file__).with_name("runs")
    with runs.open("a") as file:
        file.write(".")
    assert runs.stat().st_size not in (1, 3)
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one small module, in place of `_core/retry.py`."""
    for path, text in {
        "cromicle_sdk/__init__.py": "",
        "cromicle_sdk/_core/__init__.py": "",
        "cromicle_sdk/_core/retry.py": MODULE.lstrip(),
        "tests/_core/test_retry.py": TEST.lstrip(),
        "tests/mutants_accepted.toml": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for name in ("mutation.py", "mutants.py"):
        shutil.copy(TESTS / name, tmp_path / "tests")
    return tmp_path


def test_what_survives_is_what_no_test_checks(project: Path) -> None:
    """Not what a test that fails by chance kills, nor what only runs after a timeout."""
    done = subprocess.run(
        [sys.executable, "tests/mutation.py", "_core/retry.py"],
        cwd=project,
        # The plugin of pytest in the package is not in this one.
        env={**os.environ, "PYTHONPATH": str(project), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert re.findall(r"^[-+] .*", done.stdout, re.MULTILINE) == [
        "- return -number",
        "+ return +number",
    ], done.stdout
    assert done.returncode == 1


def test_one_unexplained_survivor_fails_the_sample() -> None:
    mutants = find_mutants(TESTS / "mutants.py")[:100]
    survivors = mutants[:1]
    unexplained = Result(mutants, set(), killed=mutants[1:], survivors=survivors)
    assert not is_fine([unexplained], is_sample=True)
    explained = Result(mutants, {survivors[0].diff}, killed=mutants[1:], survivors=survivors)
    assert is_fine([explained], is_sample=True)


def test_every_module_of_the_clients_is_tested() -> None:
    assert set(MODULES) == {
        path.relative_to(PACKAGE).as_posix()
        for folder in ("_core", "_http", "_async")
        for path in (PACKAGE / folder).glob("*.py")
        if path.name != "__init__.py"
    }
