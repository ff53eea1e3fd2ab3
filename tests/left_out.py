"""The packages of the extra `test` that have no wheel for the free-threaded Python 3.13.

That of Python 3.14 has wheels of them all. On any other Python, a missing package is an error.
`python tests/left_out.py WHEEL` prints the requirements that remain, for pip.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

__all__ = ["find_requirements", "is_left_out", "skip_if_left_out"]

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
LEFT_OUT = ("distributed", "trustme", "uvloop", "vcrpy")
# The extra of this package that needs one of them.
EXTRA = "dask"

IS_HERE = sys.version_info[:2] == (3, 13) and bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def is_left_out(name: str) -> bool:
    return IS_HERE and name in LEFT_OUT


def skip_if_left_out(name: str) -> None:
    """Skip the test, or the module, that needs the package."""
    import pytest  # missing where this module runs as a program

    if is_left_out(name):
        reason = f"{name} has no wheel for the free-threaded Python 3.13"
        pytest.skip(reason, allow_module_level=True)


def find_requirements(project: str, wheel: str) -> list[str]:
    """The requirements of the extra `test` but those left out; of this package it is the wheel."""
    import tomllib  # missing in Python 3.10

    requirements: list[str] = tomllib.loads(project)["project"]["optional-dependencies"]["test"]
    found = []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement)[0]
        if name == "cromicle-sdk":
            found.append(requirement.replace(name, wheel).replace(f"{EXTRA},", ""))
        elif name not in LEFT_OUT:
            found.append(requirement)
    return found


if __name__ == "__main__":
    print("without", *LEFT_OUT, file=sys.stderr)
    print(*find_requirements(PROJECT.read_text(encoding="utf-8"), sys.argv[1]), sep="\n")
