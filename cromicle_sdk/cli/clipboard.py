"""Copying to the clipboard, by a program or by the terminal."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys

__all__ = ["copy"]

# The programs that copy their input, by platform, and by the variable of the desktop session.
_BY_PLATFORM = {"darwin": ["pbcopy"], "win32": ["clip"]}
_BY_VARIABLE = {
    "WAYLAND_DISPLAY": ["wl-copy"],
    "DISPLAY": ["xclip", "-selection", "clipboard"],
}


def copy(text: str) -> str:
    """Copy a text. Return the name of the program that copied it, or a note on the terminal."""
    programs = [program for name, program in _BY_VARIABLE.items() if os.environ.get(name)]
    if sys.platform in _BY_PLATFORM:
        programs.insert(0, _BY_PLATFORM[sys.platform])
    for program in programs:
        if shutil.which(program[0]) and _run(program, text):
            return program[0]
    # OSC 52 works over SSH, but terminals do not report whether they have copied the text.
    data = base64.b64encode(text.encode()).decode()
    sys.stdout.write(f"\x1b]52;c;{data}\x07")
    sys.stdout.flush()
    return "the terminal, if its settings allow it (OSC 52)"


def _run(program: list[str], text: str) -> bool:
    encoding = "utf-16" if sys.platform == "win32" else "utf-8"
    try:
        done = subprocess.run(  # noqa: S603 - one of the programs above
            program,
            input=text.encode(encoding),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
