"""The command line: commands, their options and their help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from cromicle_sdk._core.secrets import Secret
from cromicle_sdk._version import __version__

from .ask import Target, build_messages, print_json, print_stream
from .input import read_text
from .local import serve_in_foreground
from .parameters import parse_delay, parse_headers, parse_limit
from .report import report
from .serve import Service, check_combination
from .stats import format_stats

__all__ = ["cromicle"]

_VISIBLE = (
    "Other users of this machine can see it in the list of processes; prefer $CROMICLE_TOKEN."
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  cromicle ask --local "Hello, how are you?"
  cat notes.txt | cromicle ask "Summarise this."
  cromicle serve --upstream http://localhost:11434/v1 --model llama3.2
""",
)
@click.version_option(__version__, prog_name="cromicle", message="%(prog)s %(version)s")
def cromicle() -> None:
    """Chat endpoints that speak the Cromicle protocol: ask one, or serve one."""


@cromicle.command(
    epilog="""\b
Examples:
  cromicle ask --local "Hello, how are you?"
  cromicle ask --base-url http://127.0.0.1:8000 Tell me a story
  cat notes.txt | cromicle ask "Summarise this." > summary.txt
  cromicle ask --json --system "Answer in one word." "Up or down?" | jq .text
"""
)
@click.argument("words", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--base-url",
    metavar="URL",
    help="Where to ask.  [default: $CROMICLE_BASE_URL, else https://cromicle.top]",
)
@click.option(
    "--token",
    metavar="TOKEN",
    help=f"The token to send. {_VISIBLE}  [default: $CROMICLE_TOKEN, else abc]",
)
@click.option(
    "--timeout",
    type=parse_limit,
    metavar="SECONDS",
    help="How long to wait for a connection, for the first text, and from each text to the next."
    "  [default: 5, 60 and 60]",
)
@click.option(
    "--total",
    type=parse_limit,
    metavar="SECONDS",
    help="How long the whole call may take, retries included.  [default: 600]",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    metavar="N",
    help="How often to try again after the first attempt.  [default: 2]",
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    callback=parse_headers,
    metavar="NAME:VALUE",
    help="Send this header too; may be given several times.",
)
@click.option("--system", metavar="TEXT", help="Send this as the system's message before TEXT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead.")
@click.option("--stats", is_flag=True, help="Print one line of figures on stderr at the end.")
@click.option("--local", is_flag=True, help="Ask an embedded server that echoes, for a first try.")
def ask(
    words: tuple[str, ...],
    base_url: str | None,
    token: str | None,
    timeout: float | None,
    total: float | None,
    retries: int | None,
    headers: Mapping[str, str],
    system: str | None,
    as_json: bool,
    stats: bool,
    local: bool,
) -> None:
    """Send TEXT and print the reply while it arrives.

    The text may also be piped in; with TEXT as well, what was piped comes first, then a blank line
    and TEXT. Standard input is read whenever it is no terminal: where it must not be, in a shell
    loop for one, add </dev/null.

    Into a file or a pipe goes the reply exactly as it arrived, in UTF-8, and nothing else, no line
    break at its end either. On a terminal it ends in one, and control characters are replaced.

    Exit codes: 0 success, 1 failure, 2 wrong use, 130 Ctrl-C, 141 output closed.
    """
    if local and base_url is not None:
        raise click.UsageError("--local and --base-url exclude each other.")
    messages = build_messages(read_text(words), system)
    target = Target(
        base_url=base_url,
        token=token,
        timeout=timeout,
        total=total,
        retries=retries,
        headers=headers,
        local=local,
    )
    with target.open() as client:
        reply = print_json(client, messages) if as_json else print_stream(client, messages)
    if stats:
        report(format_stats(reply))


@cromicle.command(
    epilog="""\b
Examples:
  cromicle serve
  cromicle serve --upstream http://localhost:11434/v1 --model llama3.2
  cromicle serve --upstream https://api.openai.com/v1 --model gpt-4o-mini
  cromicle serve --host 0.0.0.0 --tokens-file tokens.txt --max-concurrent 20
"""
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    metavar="PORT",
    help="The port to listen on; 0 is any free one.",
)
@click.option(
    "--token",
    envvar="CROMICLE_TOKEN",
    metavar="TOKEN",
    help=f"What callers must send. {_VISIBLE}  [default: $CROMICLE_TOKEN, else abc]",
)
@click.option(
    "--tokens-file",
    metavar="FILE",
    help="Take each of the tokens in this file instead, one on a line; a line that begins with # is"
    " a comment. SIGHUP has it read again.",
)
@click.option(
    "--upstream",
    metavar="URL",
    help="The OpenAI-compatible model server that answers; its URL usually ends in /v1."
    "  [default: none, an echo]",
)
@click.option("--model", metavar="NAME", help="The model to ask it for.")
@click.option(
    "--upstream-key",
    envvar="CROMICLE_UPSTREAM_KEY",
    metavar="KEY",
    help="The key that it wants. Other users of this machine can see it in the list of processes;"
    " prefer $CROMICLE_UPSTREAM_KEY.  [default: $CROMICLE_UPSTREAM_KEY, else none]",
)
@click.option(
    "--upstream-timeout",
    type=parse_limit,
    metavar="SECONDS",
    help="How long to wait for a connection to it, for its first bytes, and from each to the next."
    "  [default: 5, 60 and 60; 600 for a whole answer]",
)
@click.option("--system", metavar="TEXT", help="Put this before each prompt, as the system's.")
@click.option(
    "--parse-roles",
    is_flag=True,
    help="Send a prompt made of several messages as those messages, not as one of the user's.",
)
@click.option(
    "--delay",
    type=parse_delay,
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the echo waits before each word but the first.",
)
@click.option(
    "--max-concurrent",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many replies may be under way at once; one more is told to come back."
    "  [default: any number]",
)
@click.option(
    "--max-request-bytes",
    type=click.IntRange(min=1),
    default=1024 * 1024,
    show_default=True,
    metavar="N",
    help="The longest request that is read.",
)
@click.option(
    "--grace",
    type=parse_delay,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long replies that have begun may go on after Ctrl-C or SIGTERM.",
)
@click.option(
    "--metrics/--no-metrics",
    default=True,
    show_default=True,
    help="Whether GET /metrics tells Prometheus, and whoever asks, how much is going on.",
)
@click.option(
    "--access-log/--no-access-log",
    default=True,
    show_default=True,
    help="Whether each request is a line on stderr.",
)
@click.pass_context
def serve(
    context: click.Context,
    /,
    host: str,
    port: int,
    grace: float,
    access_log: bool,
    token: str | None,
    upstream_key: str | None,
    **options: Any,
) -> None:
    """Run a server until Ctrl-C: an echo, or a gateway in front of a model server.

    Its address, and a line to ask it with, are printed on stderr once it listens; then its log.
    Ctrl-C (exit code 130) and SIGTERM let replies that have begun end first, for --grace seconds
    at most; a second Ctrl-C does not.
    """
    check_combination(context)
    service = Service(
        token=None if token is None else Secret(token),
        upstream_key=None if upstream_key is None else Secret(upstream_key),
        **options,
    )
    serve_in_foreground(service, host=host, port=port, grace=grace, access_log=access_log)
    # It has returned, so it was interrupted; `run` says what that comes to.
    raise KeyboardInterrupt
