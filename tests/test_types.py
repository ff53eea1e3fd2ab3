"""What type checkers see of the package: `typed/right.py` and `typed/wrong.py` say what they must.

mypy also checks both in its ordinary run over the tests. Here its errors are those of a user, whose
project has no settings for this package.
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
