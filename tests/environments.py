"""Virtual environments beside that of the tests, `.venv-NAME` in the repository, made on demand.

They are for packages whose dependencies conflict with those of the tests, or are many. An
installation that fails is an error of the tests that need it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "install", "install_with_project"]

ROOT = Path(__file__).parents[1]


def install(name: str, *arguments: str) -> Path:
    """The folder of the commands that `pip install` with these arguments has installed."""
    return _install(name, arguments, wanted=" ".join(arguments))


def install_with_project(name: str, extras: str, *arguments: str) -> Path:
    """The same, with this project and its extras, whose own versions may change."""
    project = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    arguments = ("--editable", f"{ROOT}[{extras}]", *arguments)
    return _install(name, arguments, wanted=f"{project} {' '.join(arguments)}")


def _install(name: str, arguments: tuple[str, ...], wanted: str) -> Path:
    environment = ROOT / f".venv-{name}"
    installed = environment / "installed"
    if not installed.exists() or installed.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        pip = [str(environment / "bin" / "pip"), "install", "--quiet"]
        done = subprocess.run(
            [*pip, "--disable-pip-version-check", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stdout)
        installed.write_text(wanted)
    return environment / "bin"
