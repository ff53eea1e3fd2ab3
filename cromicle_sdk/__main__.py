"""The entry point of the command `cromicle` and of `python -m cromicle_sdk`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import FrameType

__all__ = ["main"]

# What the extra installs that the command needs from the start.
_NEEDED = ("click", "markdown_it", "platformdirs", "prompt_toolkit", "rich")

# Shells report 128 and the number of the signal.
_INTERRUPTED = 130


def main() -> None:
    """Run the command with the arguments of this process, and exit with its exit code.

    Ctrl-C ends it without a message, also while modules are imported and while Python exits.
    """
    # A shell script ignores SIGINT in a command that it starts with `&`.
    handles_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handles_ctrl_c:
        signal.signal(signal.SIGINT, _exit_at_once)
    run = _import_command()
    try:
        if handles_ctrl_c:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run(sys.argv[1:])
        if handles_ctrl_c:
            signal.signal(signal.SIGINT, _exit_at_once)
    except KeyboardInterrupt:
        # In the moment before or after `run`, which has a return code for it.
        code = _INTERRUPTED
    sys.exit(code)


def _import_command() -> Callable[[Sequence[str]], int]:
    if any(find_spec(name) is None for name in _NEEDED):
        sys.exit('The command needs an extra: pip install "cromicle-sdk[cli]"')
    from cromicle_sdk.cli import run

    return run


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    # Not by an exception, which a module that is being imported may turn into another.
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
