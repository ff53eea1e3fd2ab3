"""Running the command: its exit code, and at most one error on stderr."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from .commands import COMPLETE_VARIABLE, cromicle
from .errors import Misuse
from .output import abandon_stdout, report, report_error

__all__ = ["run"]

FAILED = 1
# 128 plus the number of the signal, as in shells: SIGINT, and SIGPIPE, so that `set -o pipefail`
# detects a closed pipe as it does for cat and grep.
INTERRUPTED = 130
PIPE_CLOSED = 141


def run(arguments: Sequence[str]) -> int:
    """Run `cromicle` with these arguments and return its exit code. Raises nothing.

    0 is success. 1 is a failure and 2 wrong usage, with the reason on stderr. 130 is Ctrl-C and 141
    a closed pipe at stdout, both without a message.
    """
    try:
        request = os.environ.get(COMPLETE_VARIABLE)
        if request:
            return shell_complete(cromicle, {}, "cromicle", COMPLETE_VARIABLE, request)
        with cromicle.make_context("cromicle", list(arguments)) as context:
            cromicle.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        report_error(error.format_message())
        if isinstance(error, Misuse) and error.advice:
            report(error.advice)
        return error.exit_code
    except OSError as error:
        abandon_stdout()
        # Windows reports a closed pipe as EINVAL (Python issue 35754).
        if isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL):
            return PIPE_CLOSED
        report_error(f"The output cannot be written: {error.strerror or error}.")
        return FAILED
    return 0
