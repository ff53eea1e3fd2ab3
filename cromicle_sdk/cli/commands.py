"""The command line: the commands with their options and help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from cromicle_sdk._core.secrets import Secret
from cromicle_sdk._version import __version__

from .ask import build_messages, describe_early_end, format_stats, print_json, print_stream
from .batch import batch
from .configure import config
from .docs import complete_page, print_list, print_page
from .errors import errors_for_the_shell
from .input import (
    check_stdin_once,
    parse_delay,
    parse_fields,
    parse_headers,
    parse_limit,
    read_text,
)
from .output import open_output, report
from .serve import ALL_OPTIONS, Network, Service, check_combination, serve_in_foreground
from .serve import FLAGS as SERVE_FLAGS
from .target import VISIBLE, Target, target_options
from .verbose import calls_on_stderr, retries_noted

__all__ = ["COMPLETE_VARIABLE", "cromicle"]

# The variable in which click's completion scripts pass their request.
COMPLETE_VARIABLE = "_CROMICLE_COMPLETE"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  cromicle ask --local "Hello, how are you?"
  cat notes.txt | cromicle ask "Summarise this."
  cromicle chat --base-url http://127.0.0.1:8000
  cromicle serve --upstream http://localhost:11434/v1 --model llama3.2
""",
)
@click.version_option(__version__, prog_name="cromicle", message="%(prog)s %(version)s")
def cromicle() -> None:
    """A client and a server for chat endpoints that speak the Cromicle protocol."""


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
    "--file",
    "files",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="A file to send before the text, in a fenced block with its name; - is standard input."
    " Repeatable.",
)
@target_options
@click.option(
    "--plain",
    is_flag=True,
    help="Send several messages only as one text, for a server that rejects unknown fields. By"
    " default they are also sent with their roles.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the complete reply as one JSON object."
)
@click.option("--stats", is_flag=True, help="Print a line of statistics on stderr at the end.")
@click.option(
    "--raw",
    is_flag=True,
    help="Do not render the Markdown of the reply on a terminal.",
)
@click.option(
    "--verbose",
    is_flag=True,
    help="Print each attempt, its status and request ID, and each wait on stderr. Implies --raw.",
)
@click.pass_context
def ask(
    context: click.Context,
    /,
    *,
    target: Target,
    words: tuple[str, ...],
    files: tuple[str, ...],
    plain: bool,
    as_json: bool,
    stats: bool,
    raw: bool,
    verbose: bool,
) -> None:
    """Send TEXT and print the reply while it arrives.

    The text may also be piped in. If both are given, standard input comes first, then a blank line
    and TEXT; a - among the words inserts standard input there instead. Standard input is read
    whenever it is not a terminal. To prevent that, for example in a shell loop, add </dev/null.

    A setting that no option sets is taken from the environment, else from a profile. `cromicle
    config` shows the settings.

    To a file or a pipe, the reply is written exactly as received, in UTF-8, without an additional
    line break. On a terminal, its Markdown is rendered, and control characters are replaced. If a
    length limit or a content filter has cut the reply short, a line on stderr reports it.

    Exit codes: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C, 141 output closed.
    """
    system = target.settings.system
    check_stdin_once(*words, *files, context.params["system_file"])
    text = read_text(words, files)
    output = open_output(raw=raw or as_json or verbose)
    calls_shown = calls_on_stderr(output) if verbose else retries_noted(output)
    with errors_for_the_shell(target.labels), calls_shown:
        messages = build_messages(text, system)
        # A single message needs no role.
        with target.open(send_messages=bool(system) and not plain) as client:
            if as_json:
                reply = print_json(client, messages, output)
            else:
                reply = print_stream(client.stream(messages), output)
    early_end = describe_early_end(reply)
    if early_end is not None:
        report(f"The reply was {early_end}.")
    if stats:
        report(format_stats(reply))


@cromicle.command(
    short_help="Chat in the terminal.",
    epilog="""\b
Examples:
  cromicle chat --local
  cromicle chat --base-url http://127.0.0.1:8000 --system "Answer in one sentence."
  cromicle chat --continue
  printf 'One question\\nAnother one\\n' | cromicle chat
""",
)
@target_options
@click.option("--continue", "continues", is_flag=True, help="Continue the last conversation.")
@click.option(
    "--load",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Continue the conversation in FILE, written by /save.",
)
@click.option(
    "--history/--no-history",
    default=True,
    show_default=True,
    help="Keep the typed lines and the conversations in the data folder of the platform.",
)
@click.option(
    "--plain",
    is_flag=True,
    help="Send the conversation only as one text, for a server that rejects unknown fields. By"
    " default the messages are also sent with their roles.",
)
@click.option(
    "--raw",
    is_flag=True,
    help="Do not render the Markdown of replies on a terminal.",
)
def chat(
    target: Target, continues: bool, file: Path | None, history: bool, plain: bool, raw: bool
) -> None:
    """Chat in the terminal: type a question, read the reply, and so on until Ctrl-D.

    Alt-Enter inserts a line break, and a pasted block is one question. Ctrl-C stops a reply and
    keeps the conversation. /help lists the commands, such as /retry, /edit, /undo and /save; Tab
    completes them.

    If standard input or output is not a terminal, each line of the input is a question or a
    command, and only the replies are printed, each followed by a line break. An error then ends
    the command.

    Exit codes: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C, 141 output closed.
    """
    # Imported here because no other command needs it.
    from .chat import start_chat

    if continues and file is not None:
        raise click.UsageError("--continue and --load cannot be used together.")
    with errors_for_the_shell(target.labels):
        start_chat(
            target,
            continues=continues,
            file=file,
            keeps_history=history,
            send_messages=not plain,
            raw=raw,
        )


@cromicle.command(
    short_help="Run an echo server, or a gateway to a model server.",
    epilog="""\b
Examples:
  cromicle serve
  cromicle serve --upstream http://localhost:11434/v1 --model llama3.2
  cromicle serve --upstream https://api.openai.com/v1 --model gpt-4o-mini
  cromicle serve --cromicle https://chat.example
  cromicle serve --host 0.0.0.0 --tokens-file tokens.txt --max-concurrent 20
""",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="The address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    metavar="PORT",
    help="The port to listen on; 0 for any free port.",
)
@click.option(
    "--token",
    envvar="CROMICLE_TOKEN",
    metavar="TOKEN",
    help=f"The token that clients must send. {VISIBLE}  [default: $CROMICLE_TOKEN, else abc]",
)
@click.option(
    "--tokens-file",
    metavar="FILE",
    help="A file with the accepted tokens, one per line; a comment after # represents the token in"
    " the log. SIGHUP reloads it.",
)
@click.option(
    "--cromicle",
    metavar="URL",
    help="Serve OpenAI's API with the replies of this Cromicle endpoint. Its token is"
    " --upstream-key or $CROMICLE_UPSTREAM_KEY, else abc.",
)
@click.option(
    "--upstream",
    metavar="URL",
    help="The OpenAI-compatible model server; its URL usually ends in /v1."
    "  [default: none, echo the prompts]",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="The model of the model server. Repeatable, the default first, to let callers choose."
    "  [default: the only model of the model server]",
)
@click.option(
    "--upstream-key",
    envvar="CROMICLE_UPSTREAM_KEY",
    metavar="KEY",
    help="The key of the model server. Other users of this machine can see it in the list of"
    " processes; prefer $CROMICLE_UPSTREAM_KEY.  [default: $CROMICLE_UPSTREAM_KEY, else none]",
)
@click.option(
    "--upstream-header",
    "upstream_headers",
    multiple=True,
    callback=parse_headers,
    metavar="NAME:VALUE",
    help="An additional header for the model server. Repeatable. Other users of this machine can"
    " see it in the list of processes.",
)
@click.option(
    "--upstream-timeout",
    type=parse_limit,
    metavar="SECONDS",
    help="The time limit for a connection to the model server, for its first bytes, and between"
    " two reads.  [default: 5, 300 and 120; 600 for a whole response]",
)
@click.option(
    "--system",
    metavar="TEXT",
    help="A system message before each prompt, and before a caller's messages.",
)
@click.option(
    "--parse-roles",
    is_flag=True,
    help="Parse a prompt that was formatted from several messages, and send these instead of one"
    " user message. Text of a caller can then forge a role; messages sent with roles cannot.",
)
@click.option(
    "--temperature", type=float, metavar="NUMBER", help="The temperature of each request."
)
@click.option(
    "--max-tokens", type=int, metavar="N", help="The maximum number of tokens in a reply."
)
@click.option("--top-p", type=float, metavar="NUMBER", help="The top_p of each request.")
@click.option("--seed", type=int, metavar="N", help="The seed of each request.")
@click.option(
    "--stop",
    multiple=True,
    metavar="TEXT",
    help="A text at which the model ends its reply. Repeatable.",
)
@click.option(
    "--body",
    "extra_body",
    multiple=True,
    callback=parse_fields,
    metavar="NAME=JSON",
    help="Any other field of each request, such as top_k=40. Repeatable.",
)
@click.option(
    "--allow-options",
    is_flag=False,
    flag_value=ALL_OPTIONS,
    metavar="[NAME,...]",
    help="Let callers set temperature, top_p, max_tokens, stop, seed, presence_penalty,"
    " frequency_penalty and reasoning_effort, or only the named ones.",
)
@click.option(
    "--delay",
    type=parse_delay,
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="The delay of the echo before each word but the first.",
)
@click.option(
    "--max-concurrent",
    type=click.IntRange(min=1),
    metavar="N",
    help="The maximum number of concurrent replies; further requests are queued."
    "  [default: unlimited]",
)
@click.option(
    "--max-concurrent-per-token",
    type=click.IntRange(min=1),
    metavar="N",
    help="The maximum number of concurrent replies for each token.  [default: unlimited]",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=0),
    metavar="N",
    help="The maximum number of queued requests; further ones are rejected with a 503 and"
    " Retry-After. With --max-concurrent-per-token alone, it applies to each token."
    "  [default: four times the limit of concurrent replies]",
)
@click.option(
    "--max-request-bytes",
    type=click.IntRange(min=1),
    default=1024 * 1024,
    show_default=True,
    metavar="N",
    help="The maximum size of a request.",
)
@click.option(
    "--max-buffered-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="The maximum size of all requests that are being received; beyond it, the largest is"
    " rejected with a 503.  [default: 64 MiB]",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    metavar="N",
    help="The maximum number of connections; beyond it, a new connection replaces an idle one, or"
    " is closed.  [default: half of the file descriptors, at most 10000]",
)
@click.option(
    "--max-connections-per-address",
    type=click.IntRange(min=1),
    metavar="N",
    help="The maximum number of connections from one address, except for this machine and"
    " --forwarded-allow-ips.  [default: a quarter of --max-connections]",
)
@click.option(
    "--forwarded-allow-ips",
    envvar="FORWARDED_ALLOW_IPS",
    default="127.0.0.1,::1",
    metavar="ADDRESSES",
    help="The proxies whose X-Forwarded-For is trusted: addresses or networks, separated by commas,"
    " or * for any.  [default: $FORWARDED_ALLOW_IPS, else 127.0.0.1,::1]",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="An accepted host name (Host header), or *.domain. Repeatable.  [default: any; if"
    " listening on a loopback address, loopback names and addresses only]",
)
@click.option(
    "--allow-origin",
    "allow_origins",
    multiple=True,
    metavar="ORIGIN",
    help="The origin of web pages that may send requests and read the responses (CORS), such as"
    " https://app.example, or *. Repeatable.",
)
@click.option(
    "--grace",
    type=parse_delay,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="The time for replies in progress to complete after Ctrl-C or SIGTERM.",
)
@click.option(
    "--metrics/--no-metrics",
    default=True,
    show_default=True,
    help="Serve metrics for Prometheus at GET /metrics, without a token.",
)
@click.option(
    "--page/--no-page",
    default=True,
    show_default=True,
    help="Serve a web page at GET / to chat in a browser.",
)
@click.option(
    "--access-log/--no-access-log",
    default=True,
    show_default=True,
    help="Log each request on stderr.",
)
@click.pass_context
def serve(
    context: click.Context,
    /,
    host: str,
    port: int,
    grace: float,
    max_connections: int | None,
    max_connections_per_address: int | None,
    forwarded_allow_ips: str,
    access_log: bool,
    token: str | None,
    upstream_key: str | None,
    upstream_headers: Mapping[str, str],
    **options: Any,
) -> None:
    """Run a server until Ctrl-C: an echo server, or a gateway to a model server.

    With --upstream, the server is a gateway to an OpenAI-compatible model server. With --cromicle,
    it serves OpenAI's API with the replies of a Cromicle endpoint.

    At start, a gateway requests the model server's list of models, and warns if a --model is not
    in it. Without --model, the list must have exactly one, unless the model server is not ready.
    When the server listens, its address, an example and the model are printed on stderr, followed
    by the log.

    Ctrl-C (exit code 130) and SIGTERM wait for replies in progress, for at most --grace seconds. A
    second Ctrl-C ends the server at once.
    """
    check_combination(context)
    service = Service(
        token=None if token is None else Secret(token),
        upstream_key=None if upstream_key is None else Secret(upstream_key),
        upstream_headers={name: Secret(value) for name, value in upstream_headers.items()},
        **options,
    )
    network = Network(
        host=host,
        port=port,
        grace=grace,
        max_connections=max_connections,
        max_connections_per_address=max_connections_per_address,
        forwarded_allow_ips=forwarded_allow_ips,
    )
    with errors_for_the_shell(SERVE_FLAGS):
        serve_in_foreground(service, network, access_log=access_log)
    # Reached only after Ctrl-C; `run` returns the exit code for it.
    raise KeyboardInterrupt


@cromicle.command(
    short_help="Print the completion script of a shell.",
    epilog="""\b
Examples:
  eval "$(cromicle completion bash)"                               in ~/.bashrc
  eval "$(cromicle completion zsh)"                                in ~/.zshrc
  cromicle completion fish > ~/.config/fish/completions/cromicle.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets the shell complete commands, options and profiles."""
    kind = get_completion_class(shell)
    assert kind is not None, "click supports these three shells"
    script = kind(cromicle, {}, "cromicle", COMPLETE_VARIABLE).source()
    open_output().write(script + "\n")


@cromicle.command(
    epilog="""\b
Examples:
  cromicle docs
  cromicle docs gateway
"""
)
@click.argument("topic", required=False, shell_complete=complete_page)
def docs(topic: str | None) -> None:
    """Show a page of the documentation, or the list of pages."""
    if topic is None:
        print_list()
    else:
        print_page(topic)


cromicle.add_command(batch)
cromicle.add_command(config)
