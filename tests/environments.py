"""Additional virtual environments, `.venv-NAME` in the repository, created on demand.

They are for packages with many dependencies, or with dependencies that conflict with those of the
tests. If an installation fails, the tests that need it fail.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "install", "install_with_project"]

ROOT = Path(__file__).parents[1]


def install(name: str, *arguments: str) -> Path:
    """Run `pip install` with these arguments, and return the folder of the commands."""
    return _install(name, arguments, key=" ".join(arguments))


def install_with_project(name: str, extras: str, *arguments: str) -> Path:
    """Like `install`, with this project and its extras. Reinstall if pyproject.toml has changed."""
    project = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    arguments = ("--editable", f"{ROOT}[{extras}]", *arguments)
    return _install(name, arguments, key=f"{project} {' '.join(arguments)}")


def _install(name: str, arguments: tuple[str, ...], key: str) -> Path:
    environment = ROOT / f".venv-{name}"
    installed = environment / "installed"
    if not installed.exists() or installed.read_text() != key:
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
        installed.write_text(key)
    return environment / "bin"
