"""`cromicle chat`: a conversation in the terminal, or with the lines of standard input."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

import click

from cromicle_sdk import Client, Conversation, CromicleError, InvalidMessageError, Reply, Stream

from . import clipboard
from .ask import describe_early_end, print_stream
from .errors import Misuse, describe_error
from .history import Archive, load_conversation, save_conversation
from .keyboard import without_echo
from .output import open_output, report_error, report_quietly
from .profiles import check
from .slash import COMMANDS, parse_line
from .target import Target
from .transcript import Transcript
from .verbose import retries_noted

__all__ = ["Chat", "LineReader", "Reader", "format_end", "run_chat", "start_chat"]


class Reader(Protocol):
    """The source of the lines of a chat."""

    def read(self, draft: str = "") -> str:
        """Return the next line. `draft` is its initial text, to be edited.

        Raises `EOFError` at the end, and `KeyboardInterrupt` at Ctrl-C.
        """
        ...


class LineReader:
    """Reads the lines of a file or a pipe."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, draft: str = "") -> str:
        """Return the next line. Raises `EOFError`, and `Misuse` if it is not UTF-8."""
        line = self._stream.readline()
        if not line:
            raise EOFError
        try:
            return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Misuse("A line of standard input is not UTF-8.") from None


class Leave(Exception):  # noqa: N818 - the normal end, not an error
    """Raised to end the chat."""


@dataclass(kw_only=True)
class Chat:
    """A conversation with a client, and the commands that change it.

    If `is_interactive` is true, errors are printed and the conversation continues; otherwise they
    are raised.
    """

    client: Client
    transcript: Transcript
    labels: Mapping[str, str]
    fields: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    archive: Archive | None = None
    is_interactive: bool = True
    raw: bool = False
    # Also send the messages with their roles.
    send_messages: bool = True
    # The question that is being edited and that the next line replaces, or "".
    draft: str = ""

    def handle(self, line: str) -> None:
        """Send a question and print the reply, or run a command.

        Raises `Leave` to end the chat, `ClickException`, and `OSError` if stdout fails.
        """
        command, text = parse_line(line)
        is_edited, self.draft = bool(self.draft), ""
        if command is not None:
            self._run(command, text)
        elif text.strip():
            if is_edited:
                self.transcript.undo()
            self.transcript.ask(text)
            self._answer()

    def say(self, text: str) -> None:
        """Print a text on stderr if the chat is interactive."""
        if self.is_interactive:
            report_quietly(text)

    def show_last(self) -> None:
        """Print the last question and its reply."""
        self.say(f"> {self.transcript.question or ''}\n")
        if self.is_interactive and self.transcript.reply is not None:
            output = open_output(raw=self.raw)
            try:
                output.begin()
                output.write(self.transcript.reply)
            finally:
                output.end_line()
            self.say("")

    def _answer(self, previous: str | None = None) -> None:
        """Request and print the reply to the last question. If it fails, restore `previous`."""
        self.say("")
        began = time.monotonic()
        stream: Stream | None = None
        output = open_output(raw=self.raw)
        try:
            messages = self.transcript.conversation.messages
            stream = self.client.stream(
                messages,
                extra_body=self.fields,
                # A single message needs no role.
                send_messages=self.send_messages and len(messages) > 1,
            )
            with retries_noted(output):
                reply = print_stream(stream, output)
        except KeyboardInterrupt:
            if not self.is_interactive:
                raise
            self._keep("" if stream is None else stream.text, previous, is_cut=True)
            seconds = time.monotonic() - began
            self.say(
                f"\nstopped by Ctrl-C after {seconds:.1f} s; /retry sends the question again\n"
            )
        except CromicleError as error:
            if isinstance(error, InvalidMessageError):
                # A retry would fail again.
                self.transcript.undo()
            self._keep(error.partial_text, previous, is_cut=True)
            self._fail(describe_error(error, self.labels), error)
        else:
            self._keep(reply.text, previous)
            if not sys.stdout.isatty() and not reply.text.endswith("\n"):
                output.write("\n")
            self.say(f"\n{format_end(reply)}\n")

    def _keep(self, text: str, previous: str | None, *, is_cut: bool = False) -> None:
        """Add the reply, or the previous one if it is empty, and save the conversation."""
        if text:
            self.transcript.answer(text, is_cut=is_cut)
        elif previous is not None:
            self.transcript.answer(previous)
        if self.archive is not None:
            self.archive.save(self.transcript.conversation)
            if self.archive.problem:
                self.say(self.archive.problem)
                self.archive = None

    def _fail(self, message: str, error: CromicleError) -> None:
        if not self.is_interactive:
            raise click.ClickException(message) from error
        report_error(message)
        if error.partial_text:
            self.say("The text so far is kept; /retry sends the question again.\n")
        elif self.transcript.question is not None:
            self.say("The conversation is unchanged; /retry sends the question again.\n")

    def _run(self, command: str, text: str) -> None:
        run = self._commands.get(command)
        try:
            if run is None:
                raise Misuse(f"There is no command /{command}; /help lists the commands.")
            run(text)
        except Misuse as error:
            if not self.is_interactive:
                raise
            report_error(error.format_message())

    @property
    def _commands(self) -> Mapping[str, Callable[[str], None]]:
        return {
            "system": self._set_system,
            "retry": self._retry,
            "edit": self._edit,
            "undo": self._undo,
            "copy": self._copy,
            "clear": self._clear,
            "model": self._set_model,
            "set": self._set_field,
            "save": self._save,
            "load": self._load,
            "help": self._help,
            "quit": self._quit,
        }

    def _set_system(self, text: str) -> None:
        before = self.transcript.system
        self.transcript.set_system(text)
        if text:
            self.say("The system message is set.")
        else:
            self.say(
                f"Removed the system message: {before}" if before else "There is no system message."
            )

    def _retry(self, _: str) -> None:
        if self.transcript.question is None:
            raise Misuse("There is no question to send again.")
        self._answer(self.transcript.take_reply())

    def _edit(self, _: str) -> None:
        if not self.is_interactive:
            raise Misuse("/edit requires a terminal.")
        if self.transcript.question is None:
            raise Misuse("There is no question to edit.")
        self.draft = self.transcript.question

    def _undo(self, _: str) -> None:
        question = self.transcript.undo()
        if question is None:
            raise Misuse("There is no question to remove.")
        self.say(f"Removed: {question}")

    def _copy(self, _: str) -> None:
        if self.transcript.reply is None:
            raise Misuse("There is no reply to copy.")
        if not self.is_interactive:
            raise Misuse("/copy requires a terminal.")
        by = clipboard.copy(self.transcript.reply)
        self.say(f"Copied {len(self.transcript.reply)} characters with {by}.")

    def _clear(self, _: str) -> None:
        self.transcript.clear()
        if self.archive is not None:
            self.archive.start_anew()
        self.say("Started a new conversation.")

    def _set_model(self, text: str) -> None:
        if text:
            self.fields["model"] = check("/model", "model", text)
        self.say(f"The model is {self.fields.get('model', 'the default of the server')}.")

    def _set_field(self, text: str) -> None:
        name, equals, value = (part.strip() for part in text.partition("="))
        if text and not (name and equals):
            raise Misuse("/set: expected NAME=JSON, such as temperature=0.5.")
        if value:
            self.fields = check("/set", "extra_body", {**self.fields, name: _parse(value)})
        else:
            self.fields.pop(name, None)
        shown = [f"{key}={json.dumps(item)}" for key, item in self.fields.items()]
        self.say("Fields of each request: " + (", ".join(shown) or "none"))

    def _save(self, text: str) -> None:
        path = _parse_path(text)
        save_conversation(self.transcript.conversation, path)
        self.say(f"Saved to {path}.")

    def _load(self, text: str) -> None:
        self.transcript = Transcript(load_conversation(_parse_path(text)))
        if self.archive is not None:
            self.archive.start_anew()
        self.show_last()

    def _help(self, _: str) -> None:
        if self.is_interactive:
            report_quietly(
                "Alt-Enter inserts a line break, Ctrl-C stops a reply, and //TEXT sends /TEXT.",
                rows=[(f"/{one.name} {one.argument}", one.help) for one in COMMANDS],
            )

    def _quit(self, _: str) -> None:
        raise Leave


def start_chat(
    target: Target,
    *,
    continues: bool,
    file: Path | None,
    keeps_history: bool,
    send_messages: bool,
    raw: bool,
) -> None:
    """Run a conversation in the terminal, or with the lines of standard input, until it ends.

    Raises `CromicleError`, `ClickException` and `OSError`.
    """
    settings = target.settings
    archive = Archive() if keeps_history or continues else None
    transcript = Transcript(_load_first(archive if continues else None, file))
    # The system message of a profile applies to new conversations only.
    if settings.system is not None and (
        transcript.system is None or settings.sources["system"].startswith("--")
    ):
        transcript.set_system(settings.system)
    # The fields are passed with each call, because /set may remove one.
    own = replace(target, settings=replace(settings, extra_body={}))
    with own.open() as client:
        chat = Chat(
            client=client,
            transcript=transcript,
            labels=target.labels,
            fields=dict(settings.extra_body),
            archive=archive if keeps_history else None,
            is_interactive=_is_terminal(sys.stdin) and _is_terminal(sys.stdout),
            raw=raw,
            send_messages=send_messages,
        )
        where = "the embedded echo server" if target.local else str(settings.base_url)
        chat.say(f"Chat with {where}. /help lists the commands, Ctrl-D exits.")
        if transcript.question is not None:
            chat.show_last()
        # What is typed between two prompts is shown by the next one.
        with without_echo() if chat.is_interactive else contextlib.nullcontext():
            run_chat(chat, _open_reader(chat))


def _load_first(archive: Archive | None, file: Path | None) -> Conversation:
    if archive is not None:
        return archive.continue_last()
    return Conversation() if file is None else load_conversation(file)


def _is_terminal(stream: TextIO | None) -> bool:
    # None if the shell has closed the stream.
    return stream is not None and stream.isatty()


def _open_reader(chat: Chat) -> Reader:
    if not chat.is_interactive:
        return LineReader(io.BytesIO() if sys.stdin is None else sys.stdin.buffer)
    # Imported here because only a terminal needs it.
    from .prompt import PromptReader

    return PromptReader(chat.archive)


def run_chat(chat: Chat, reader: Reader) -> None:
    """Handle lines until the chat ends. Raises as `Chat.handle` does, except `Leave`."""
    while True:
        try:
            chat.handle(reader.read(chat.draft))
        except (EOFError, Leave):
            return
        except KeyboardInterrupt:
            if not chat.is_interactive:
                raise
            chat.draft = ""
            chat.say("Ctrl-D exits, and /help lists the commands.")


def format_end(reply: Reply) -> str:
    """Format the duration of a reply, and the reason if it was cut."""
    speed = len(reply.text) / reply.elapsed if reply.elapsed else 0.0
    parts = [f"{reply.elapsed:.1f} s", f"{speed:.0f} characters/s"]
    if reply.first_text_after is not None:
        parts.insert(0, f"first text {reply.first_text_after:.1f} s")
    parts.append("1 attempt" if reply.attempts == 1 else f"{reply.attempts} attempts")
    early_end = describe_early_end(reply)
    if early_end is not None:
        parts.append(early_end)
    return " · ".join(parts)


def _parse_path(text: str) -> Path:
    if not text:
        raise Misuse("Missing the name of the file.")
    return Path(text).expanduser()


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Misuse('The value is not JSON; put a string in quotes: "...".') from None
