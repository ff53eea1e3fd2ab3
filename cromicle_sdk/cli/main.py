"""One run of the command: how it ends, as an exit code and at most one error on stderr."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cromicle_sdk._core.errors import ConfigurationError, CromicleError, InvalidMessageError

from .commands import cromicle
from .output import abandon_stdout
from .report import report_error
from .words import describe_error

__all__ = ["run"]

FAILED = 1
MISUSED = 2
# 128 and the number of the signal is what shells make of a program that a signal ended: SIGINT
# here, and SIGPIPE, as for cat and grep, so that `set -o pipefail` takes it for what it is.
INTERRUPTED = 130
PIPE_CLOSED = 141


def run(arguments: Sequence[str]) -> int:
    """Run `cromicle` with these arguments and return its exit code; it raises nothing.

    0 is success, 1 a failure and 2 a wrong use, each with its reason on stderr; 130 is Ctrl-C and
    141 an output that nobody reads any more, both in silence.
    """
    try:
        with cromicle.make_context("cromicle", list(arguments)) as context:
            cromicle.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        abandon_stdout()
        return PIPE_CLOSED
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        report_error(error.format_message())
        return error.exit_code
    except CromicleError as error:
        report_error(describe_error(error))
        return MISUSED if isinstance(error, (ConfigurationError, InvalidMessageError)) else FAILED
    except OSError as error:
        abandon_stdout()
        report_error(f"The system says: {error.strerror or error}. Check where the output goes to.")
        return FAILED
    return 0
