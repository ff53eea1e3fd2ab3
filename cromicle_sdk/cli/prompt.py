"""Reading the lines of a chat at a prompt of prompt_toolkit."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from .history import Archive
from .slash import FILE_COMMANDS, complete_name

__all__ = ["Commands", "PromptReader"]


class PromptReader:
    """Reads questions at a prompt. Alt-Enter inserts a line break; a pasted block is one question.

    Ctrl-C clears the line, and Tab completes commands and the names of files.
    """

    def __init__(self, archive: Archive | None) -> None:
        self._draft = ""
        self._session: PromptSession[str] = PromptSession(
            [("bold", "> ")],
            multiline=True,
            prompt_continuation="  ",
            history=_Lines(archive),
            completer=Commands(),
            complete_while_typing=False,
            enable_open_in_editor=True,
            enable_suspend=True,
            key_bindings=self._build_keys(),
        )

    def read(self, draft: str = "") -> str:
        """Return the next line. `draft` is its initial text, to be edited.

        Raises `EOFError` at Ctrl-D, and `KeyboardInterrupt` at Ctrl-C if the line is empty or began
        as a draft.
        """
        self._draft = draft
        return self._session.prompt(default=draft)

    def _build_keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def accept(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def break_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        def clear(event: KeyPressEvent) -> None:
            if self._draft or not event.current_buffer.text:
                event.app.exit(exception=KeyboardInterrupt())
            else:
                event.current_buffer.reset()

        return keys


class _Lines(History):
    """The lines of an archive, or without one, only those of this chat."""

    def __init__(self, archive: Archive | None) -> None:
        super().__init__()
        self._archive = archive

    def load_history_strings(self) -> Iterable[str]:
        # The newest first.
        return [] if self._archive is None else reversed(self._archive.read_lines())

    def store_string(self, string: str) -> None:
        if self._archive is not None:
            self._archive.add_line(string)


class Commands(Completer):
    """Completes the commands of a chat, and the names of files after some of them."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        for command in FILE_COMMANDS:
            prefix = f"/{command} "
            if text.startswith(prefix):
                path = Document(text.removeprefix(prefix))
                yield from self._paths.get_completions(path, complete_event)
        if text.startswith("/"):
            for name in complete_name(text):
                yield Completion(name, start_position=-len(text))
