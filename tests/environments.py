"""Additional virtual environments, `.venv-NAME` in the repository, created on demand.

They are for packages with many dependencies, for dependencies that conflict with those of the
tests, and for code that must run where only its own requirements are installed. If an installation
fails, the tests that need it fail.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["ROOT", "install", "install_only", "install_with_project"]

ROOT = Path(__file__).parents[1]


def install(name: str, *arguments: str) -> Path:
    """Run `pip install` with these arguments, and return the folder of the commands."""
    return _install(name, arguments, key=" ".join(arguments))


def install_with_project(name: str, extras: str, *arguments: str) -> Path:
    """Like `install`, with this project and its extras. Reinstall if pyproject.toml has changed."""
    arguments = ("--editable", f"{ROOT}[{extras}]", *arguments)
    return _install(name, arguments, key=f"{_hash_metadata()} {' '.join(arguments)}")


def install_only(requirements: Iterable[str]) -> Path:
    """Install the wheel of this project and these requirements, and nothing else.

    `[NAME]` is an extra of the project. Return the folder of the commands.
    """
    requirements = sorted(requirements)
    extras = [requirement[1:-1] for requirement in requirements if requirement[0] == "["]
    others = [requirement for requirement in requirements if requirement[0] != "["]
    wheel = build_wheel()
    name = "-".join(("only", *re.findall(r"\w+", " ".join(requirements))))
    commands = _install(
        name,
        (f"cromicle-sdk[{','.join(extras)}] @ {wheel.as_uri()}", *others),
        key=f"{_hash_metadata()} {' '.join(requirements)}",
    )
    # The dependencies stay if only the package itself has changed.
    version = commands.parent / "wheel"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if not version.exists() or version.read_text() != digest:
        _run_pip(commands.parent, "--no-deps", "--force-reinstall", str(wheel))
        version.write_text(digest)
    return commands


@functools.cache
def build_wheel() -> Path:
    """Build the wheel of the project, once in a process."""
    folder = ROOT / "build" / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    _run([*command, "--wheel-dir", str(folder), str(ROOT)])
    (wheel,) = folder.iterdir()
    return wheel


def _hash_metadata() -> str:
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()


def _install(name: str, arguments: tuple[str, ...], key: str) -> Path:
    environment = ROOT / f".venv-{name}"
    installed = environment / "installed"
    if not installed.exists() or installed.read_text() != key:
        _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(environment)])
        _run_pip(environment, *arguments)
        installed.write_text(key)
    return environment / "bin"


def _run_pip(environment: Path, *arguments: str) -> None:
    """Run `pip install` for the environment, which needs no pip of its own."""
    python = environment / "bin" / "python"
    options = ("--quiet", "--disable-pip-version-check", "--no-compile")
    _run([str(_install_pip()), "--python", str(python), "install", *options, *arguments])


@functools.cache
def _install_pip() -> Path:
    """Return a pip that has `--python`, unlike those of the older Pythons (before 22.3)."""
    environment = ROOT / ".venv-pip"
    pip = environment / "bin" / "pip"
    if not pip.exists():
        _run([sys.executable, "-m", "venv", str(environment)])
        _run([str(pip), "install", "--quiet", "--upgrade", "pip"])
    return pip


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stdout)
