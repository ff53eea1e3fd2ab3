"""`cromicle completion`, in the shells that are installed, on a terminal."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cromicle_sdk.cli import run

if sys.platform == "win32":
    pytest.skip("pexpect needs the terminals of POSIX", allow_module_level=True)

import pexpect  # type: ignore[import-untyped]  # it has no types

Capture = pytest.CaptureFixture[str]

PATIENCE = 20
PROMPT = "READY> "

# How each starts without the user's own files, and what it is told first.
SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], f"PS1='{PROMPT}'; source ./script"),
    "zsh": (
        ["--no-rcs", "-i"],
        f"PS1='{PROMPT}'; autoload -Uz compinit; compinit -u -d ./dump; source ./script",
    ),
    "fish": (["--no-config"], f"function fish_prompt; echo -n '{PROMPT}'; end; source ./script"),
}


@pytest.fixture
def folder(tmp_path: Path, config_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start a shell in; the command is on its PATH, and it has two profiles."""
    config_folder.mkdir(parents=True)
    text = '[profile.home]\nmodel = "a"\n[profile.office]\nmodel = "b"\n'
    (config_folder / "config.toml").write_text(text)
    (config_folder / "config.toml").chmod(0o600)
    command = tmp_path / "bin" / "cromicle"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cromicle_sdk "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    # Where it is imported from here.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("TERM", "xterm")
    return tmp_path


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, folder: Path, capsys: Capture) -> Iterator[Any]:
    """A shell on a terminal that has read the script."""
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    assert run(["completion", name]) == 0
    (folder / "script").write_text(capsys.readouterr().out)
    arguments, setup = SHELLS[name]
    with pexpect.spawn(
        name, arguments, cwd=folder, encoding="utf-8", timeout=PATIENCE, dimensions=(24, 200)
    ) as child:
        # Wait for the first prompt, of whatever form, by what is printed after it.
        child.sendline(setup)
        child.sendline("echo be''gin")
        child.expect("begin\r")
        child.expect_exact(PROMPT)
        yield child
        child.sendline("exit")
        child.expect(pexpect.EOF)


# Python warns of its `forkpty` in a process with threads, of which the child uses none.
@pytest.mark.filterwarnings("ignore:.*use of forkpty:DeprecationWarning")
def test_the_shell_completes_commands_options_and_profiles(shell: Any) -> None:
    for typed, completed in (
        ("cromicle comp", "cromicle completion"),
        ("cromicle ask --syst", "cromicle ask --system"),
        ("cromicle ask --profile off", "cromicle ask --profile office"),
        ("cromicle config set base", "cromicle config set base_url"),
    ):
        shell.send(typed + "\t")
        # What the shell adds to the line.
        shell.expect_exact(completed[len(typed) :])
        # Ctrl-U, for an empty line.
        shell.send("\x15")


def test_a_request_of_a_script_is_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("_CROMICLE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "cromicle ask --profile ")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert run([]) == 0
    assert capsys.readouterr().out == "plain,home\nplain,office\n"
    monkeypatch.setenv("COMP_WORDS", "cromicle config unset ex")
    assert run([]) == 0
    assert capsys.readouterr().out == "plain,extra_body\n"
    monkeypatch.setenv("_CROMICLE_COMPLETE", "nonsense")
    assert run([]) == 1


def test_another_shell_is_rejected(capsys: Capture) -> None:
    assert run(["completion", "tcsh"]) == 2
    assert "'tcsh' is not one of" in capsys.readouterr().err
