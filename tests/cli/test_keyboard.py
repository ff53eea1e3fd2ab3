"""The keyboard while no prompt reads it: nothing that is typed appears in the output."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from screens import COMMAND, Process, isolate

from cromicle_sdk.cli.keyboard import without_echo
from cromicle_sdk.testing import FaultyServer

# Starts a command as a shell does for `command &`, and prints how it ended, or that it stopped.
IN_THE_BACKGROUND = """
import os, subprocess, sys
command = subprocess.Popen(sys.argv[1:], preexec_fn=os.setpgrp)
_, status = os.waitpid(command.pid, os.WUNTRACED)
if os.WIFSTOPPED(status):
    command.kill()
print("stopped" if os.WIFSTOPPED(status) else f"ended with {os.WEXITSTATUS(status)}")
"""


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The descriptor of a pseudo terminal, which is stdin."""
    if sys.platform == "win32":
        pytest.skip("it has no pseudo terminals")
    import pty

    main, side = pty.openpty()
    with os.fdopen(side) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield side
    os.close(main)


def test_what_is_typed_meanwhile_is_not_shown(terminal: int) -> None:
    import termios

    before = termios.tcgetattr(terminal)
    with without_echo():
        assert not termios.tcgetattr(terminal)[3] & termios.ECHO
    assert termios.tcgetattr(terminal) == before


def test_the_terminal_belongs_to_the_shell_while_it_runs_the_process_in_the_background(
    terminal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import termios

    before = termios.tcgetattr(terminal)
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    with without_echo():
        assert termios.tcgetattr(terminal) == before
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
    with without_echo():
        during = termios.tcgetattr(terminal)
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    assert termios.tcgetattr(terminal) == during != before


def test_without_a_terminal_there_is_nothing_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    with without_echo():
        pass
    monkeypatch.setattr(sys, "stdin", None)
    with without_echo():
        pass
    monkeypatch.setitem(sys.modules, "termios", None)
    with without_echo():
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo terminals")
def test_a_process_in_the_background_is_not_stopped(faults: FaultyServer, tmp_path: Path) -> None:
    faults.reply("Good morning.")
    command = (*COMMAND, "ask", "--base-url", faults.base_url, "Hello")
    shell = (sys.executable, "-c", IN_THE_BACKGROUND)
    with Process(*command, program=shell, environment=isolate(tmp_path)) as process:
        assert process.wait() == 0
        assert "Good morning." in process.screen.lines
        assert "ended with 0" in process.screen.lines


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo terminals")
@pytest.mark.parametrize("where", ["ask", "chat", "reply in chat"])
def test_the_terminal_echoes_again_after_sigterm(
    where: str, faults: FaultyServer, tmp_path: Path
) -> None:
    faults.reply(chunks=["First", " reply."], gate=threading.Event())
    command, question = ("ask", ["Hello"]) if where == "ask" else ("chat", [])
    arguments = (command, "--base-url", faults.base_url, *question)
    with Process(*arguments, environment=isolate(tmp_path)) as process:
        if command == "chat":
            process.wait_for_prompt()
        if where == "reply in chat":
            process.type("Hello\r")
        if where != "chat":
            process.wait_for("First")
        assert not process.echoes
        process.terminate()
        assert process.wait() == -signal.SIGTERM
        assert process.echoes


@pytest.mark.skipif(not shutil.which("bash"), reason="it needs a shell with job control")
def test_ctrl_z_suspends_the_chat(faults: FaultyServer, tmp_path: Path) -> None:
    faults.reply("Good.")
    program = ("bash", "--norc", "--noprofile", "-i")
    with Process(program=program, environment={**isolate(tmp_path), "PS1": "$ "}) as shell:
        shell.wait_until(lambda screen: screen.visible[-1:] == ["$"])
        shell.type(shlex.join([*COMMAND, "chat", "--base-url", faults.base_url]) + "\r")
        shell.wait_for_prompt()
        shell.type("Hello")
        shell.wait_for("> Hello")
        shell.type("\x1a")
        shell.wait_for("Stopped")
        shell.type("fg\r")
        shell.wait_until(lambda screen: screen.visible[-1:] == ["> Hello"])
        shell.type(" there\r")
        shell.wait_for("Good.")
    assert faults.requests[0].message == "Hello there"
