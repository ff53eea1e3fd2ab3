"""Type checkers find the mistakes in `typed/wrong.py` and none in `typed/right.py`.

mypy also checks both files in its usual run over the tests. Here it runs without the settings of
this project, as in a project of a user.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("typed")
FILES = ("right.py", "wrong.py")

CHECKERS = {
    "mypy": ["mypy", "--strict", "--config-file=", f"--cache-dir={os.devnull}", *FILES],
    "pyright": ["pyright", "--project", ".", "--pythonpath", sys.executable],
}


@pytest.mark.slow  # in one environment only, since the names of errors differ between versions
@pytest.mark.parametrize("checker", CHECKERS)
def test_types_are_right_and_mistakes_are_found(checker: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *CHECKERS[checker]],
        capture_output=True,
        text=True,
        cwd=FOLDER,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
