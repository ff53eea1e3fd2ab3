"""The keyboard while no prompt reads it: nothing that is typed appears in the output."""

from __future__ import annotations

import os
import sys

import pytest
from screens import PATIENCE

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


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo terminals")
def test_what_is_typed_meanwhile_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty
    import termios

    main, side = pty.openpty()
    with os.fdopen(side) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        before = termios.tcgetattr(side)
        with without_echo():
            assert not termios.tcgetattr(side)[3] & termios.ECHO
        assert termios.tcgetattr(side) == before
    os.close(main)


def test_without_a_terminal_there_is_no_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    with without_echo():
        pass
    monkeypatch.setattr(sys, "stdin", None)
    with without_echo():
        pass
    monkeypatch.setitem(sys.modules, "termios", None)
    with without_echo():
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo terminals")
def test_a_process_in_the_background_is_not_stopped(faults: FaultyServer) -> None:
    import pexpect  # type: ignore[import-untyped]  # not annotated

    faults.reply("Good morning.")
    command = [sys.executable, "-m", "cromicle_sdk", "ask", "--base-url", faults.base_url, "Hello"]
    shell = pexpect.spawn(sys.executable, ["-c", IN_THE_BACKGROUND, *command], timeout=PATIENCE)
    shell.expect(pexpect.EOF)
    output = shell.before.decode()
    shell.close()
    assert "Good morning." in output
    assert "ended with 0" in output
