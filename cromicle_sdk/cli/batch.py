"""`cromicle batch`: sends the prompts of one file and writes the results to another."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cromicle_sdk import APIStatusError, Client, CromicleError, Reply, format_prompt

from .ask import build_messages
from .batch_input import Id, Input, open_input, parse_format
from .batch_output import OutputFile, read_earlier
from .batch_progress import Progress, show_progress
from .errors import Misuse, describe_error, errors_for_the_shell
from .input import STDIN
from .output import report
from .target import Target, target_options

if TYPE_CHECKING:
    from cromicle_sdk.bulk import Outcome, Prompt

__all__ = ["batch"]

# The exit code if some results are errors.
SOME_FAILED = 3

# How many invalid lines are listed.
_MAX_LISTED = 20

_DASK = "dask://"

# How long to wait for a connection to a scheduler, in seconds.
_SCHEDULER_SECONDS = 10


@click.command(
    short_help="Send the prompts of a file, and save the replies.",
    epilog="""\b
Examples:
  cromicle batch --local prompts.txt results.jsonl
  cromicle batch prompts.jsonl results.jsonl --concurrency 100 --rate 50
  cromicle batch prompts.jsonl results.jsonl --resume
""",
)
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("target_path", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["auto", "jsonl", "text"]),
    default="auto",
    show_default=True,
    help="The format of IN; auto detects it by the suffix .jsonl or .ndjson, or by the first line.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="The maximum number of concurrent calls; with --executor, in each process.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="The maximum number of calls that start per second, on average.  [default: unlimited]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Send only the prompts that OUT lacks or that failed in it.",
)
@click.option("--ordered", is_flag=True, help="Write the results in the order of IN.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first error.")
@click.option("--skip-bad", is_flag=True, help="Skip the invalid lines of IN.")
@click.option(
    "--plain",
    is_flag=True,
    help="Send several messages only as one text, for a server that rejects unknown fields. By"
    " default they are also sent with their roles.",
)
@click.option(
    "--executor",
    metavar="dask://HOST:PORT",
    help="Make the calls on the workers of this Dask scheduler. They need this package.",
)
@target_options
def batch(
    *,
    target: Target,
    source: str,
    target_path: Path,
    kind: str,
    concurrency: int,
    rate: float | None,
    resume: bool,
    ordered: bool,
    fail_fast: bool,
    skip_bad: bool,
    plain: bool,
    executor: str | None,
) -> None:
    """Send each prompt of IN, and write the results to OUT as they arrive.

    IN is JSONL: {"id", "prompt"} or {"id", "messages"}, and optionally "extra_body"; or plain text
    with one prompt on each line, whose number is its id. - is standard input. OUT is JSONL:
    {"id", "text", "finish_reason", "attempts", "elapsed"}, or {"id", "error"} with "type",
    "message", "status_code" and "partial_text"; "digest" identifies the prompt.

    A run that ended early, for any reason, continues with --resume. While the server is busy (429
    or 503), all calls slow down.

    Exit codes: 0 success, 1 failure, 2 wrong usage, 3 some prompts failed, 130 Ctrl-C.
    """
    if rate is not None and executor is not None:
        raise click.UsageError("--rate and --executor cannot be used together.")
    if target.local and executor is not None:
        raise click.UsageError("--local and --executor cannot be used together.")
    if rate is not None and not math.isfinite(rate):
        raise click.UsageError(f"--rate: expected a finite number, not {rate}.")
    if source != STDIN and _is_same_file(source, target_path):
        raise click.UsageError("IN and OUT are the same file.")
    maker = _PromptMaker(system=target.settings.system, plain=plain)
    with contextlib.ExitStack() as stack:
        stack.enter_context(errors_for_the_shell(target.labels))
        file, name = stack.enter_context(open_input(source))
        client = stack.enter_context(target.open(has_many_calls=True))
        prompts = Input(
            file,
            name,
            is_jsonl=parse_format(file, source, kind),
            build=maker.build,
            check=partial(_check_prompt, client),
        )
        _check_input(prompts, name, skip_bad=skip_bad)
        earlier = read_earlier(target_path, prompts.entries, name, resume=resume)
        run = _Run(
            client=client,
            prompts=prompts,
            labels=target.labels,
            concurrency=concurrency,
            rate=rate,
            ordered=ordered,
            fail_fast=fail_fast,
            executor=stack.enter_context(_open_executor(executor)),
        )
        output = OutputFile(target_path, earlier)
        done = earlier.lines.keys() - earlier.failed
        progress = run.write(output, [key for key in prompts.entries if key not in done])
    if progress.failed:
        raise click.exceptions.Exit(SOME_FAILED)


@dataclass(frozen=True, kw_only=True)
class _PromptMaker:
    system: str | None
    plain: bool

    def build(self, messages: str | list[Any]) -> Prompt:
        """Build the prompt that is sent for the text or the messages of a line."""
        from cromicle_sdk.bulk import Prompt

        if isinstance(messages, str):
            prompt = Prompt(build_messages(messages, self.system))
            is_one = not self.system
        else:
            prompt = Prompt(messages)
            is_one = len(messages) == 1
        # A single message needs no role.
        return prompt if is_one or self.plain else Prompt(prompt.messages, {"send_messages": True})


@dataclass(frozen=True, kw_only=True)
class _Run:
    client: Client
    prompts: Input
    labels: Mapping[str, str]
    concurrency: int
    rate: float | None
    ordered: bool
    fail_fast: bool
    executor: Executor | None

    def write(self, output: OutputFile, ids: list[Id]) -> Progress:
        """Send the prompts with these ids, write their results, and print a summary."""
        # Imported here because only this command needs it, and it imports the async client.
        from cromicle_sdk.bulk import bulk

        progress = Progress(len(ids))
        has_ended = False
        outcomes = bulk(
            self.prompts.read(ids),
            client=self.client,
            limit=self.concurrency,
            rate=self.rate,
            ordered=self.ordered,
            executor=self.executor,
        )
        try:
            with show_progress(progress), contextlib.closing(outcomes):
                for index, outcome in outcomes:
                    output.append(self._build_result(ids[index], outcome))
                    is_error = isinstance(outcome, CromicleError)
                    progress.add(type(outcome).__name__ if is_error else None)
                    # After the result is counted, because Ctrl-C may interrupt it.
                    output.sync_if_due()
                    if is_error and self.fail_fast:
                        break
            has_ended = True
        finally:
            output.close(self.prompts.entries if self.ordered else None)
            _report(progress, has_ended=has_ended)
        return progress

    def _build_result(self, key: Id, outcome: Outcome) -> dict[str, Any]:
        digest = self.prompts.entries[key].digest
        if isinstance(outcome, Reply):
            return {
                "id": key,
                "text": outcome.text,
                "finish_reason": outcome.finish_reason,
                "attempts": outcome.attempts,
                "elapsed": round(outcome.elapsed, 6),
                "digest": digest,
            }
        status_code = outcome.status_code if isinstance(outcome, APIStatusError) else None
        error = {
            "type": type(outcome).__name__,
            "message": describe_error(outcome, self.labels),
            "status_code": status_code,
            "partial_text": outcome.partial_text,
        }
        return {"id": key, "error": error, "digest": digest}


def _is_same_file(source: str, target: Path) -> bool:
    try:
        return target.samefile(source)
    except OSError:
        # One of them does not exist, which is reported when it is opened.
        return False


def _check_prompt(client: Client, prompt: Prompt) -> None:
    """Raise `CromicleError` for a prompt that cannot be sent."""
    if isinstance(prompt.messages, str) and prompt.messages.strip() and not prompt.options:
        # Sufficient for a text, at a tenth of the cost.
        format_prompt(prompt.messages)
    else:
        # Builds the request without sending it.
        client.stream(prompt.messages, **prompt.options).close()


def _check_input(prompts: Input, name: str, *, skip_bad: bool) -> None:
    """Report the invalid lines. Raises `Misuse` unless they are skipped."""
    if prompts.bad:
        lines = [f"line {number}: {problem}" for number, problem in prompts.bad[:_MAX_LISTED]]
        more = len(prompts.bad) - len(lines)
        lines += [f"and {more:,} more"] if more else []
        noun = "line" if len(prompts.bad) == 1 else "lines"
        text = f"{name} has {len(prompts.bad):,} invalid {noun}: {'; '.join(lines)}."
        if not skip_bad:
            raise Misuse(text, advice="Nothing was sent. Fix them, or skip them with --skip-bad.")
        report(text)
    if not prompts.entries:
        raise Misuse(f"{name} has no prompt to send.")


def _report(progress: Progress, *, has_ended: bool) -> None:
    if not progress.total:
        report("Nothing was sent: the output already has a reply for each prompt.")
        return
    rest = progress.total - progress.done
    parts = [f"{progress.done - progress.failed:,} succeeded"]
    if progress.failed:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in progress.kinds.most_common())
        parts.append(f"{progress.failed:,} failed ({kinds})")
    if rest:
        parts.append(f"{rest:,} not finished")
    advice = " Continue with --resume." if rest or progress.failed or not has_ended else ""
    report(f"{', '.join(parts)}.{advice}")


@contextlib.contextmanager
def _open_executor(url: str | None) -> Generator[Executor | None]:
    if url is None:
        yield None
        return
    address = url.removeprefix(_DASK)
    _, _, port = address.rpartition(":")
    # Dask itself reports an invalid port only after 20 seconds, and with a traceback.
    if address == url or not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise Misuse("--executor: expected dask://HOST:PORT.")
    try:
        # The package has no type annotations.
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise Misuse(
            '--executor dask:// requires dask; install it with: pip install "cromicle-sdk[dask]"'
        ) from error
    try:
        scheduler = distributed.Client(
            f"tcp://{address}", timeout=_SCHEDULER_SECONDS, set_as_default=False
        )
    except (OSError, ValueError) as error:
        raise click.ClickException(
            f"--executor: no Dask scheduler responds at tcp://{address}"
            f" ({type(error).__name__}: {error})."
        ) from error
    with scheduler:
        yield scheduler.get_executor()
