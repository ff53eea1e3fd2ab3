"""The history of `cromicle chat`: typed lines, and conversations."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import platformdirs

from cromicle_sdk import Conversation, InvalidMessageError

from .errors import Misuse
from .files import replace_file

__all__ = ["MAX_CONVERSATIONS", "MAX_LINES", "Archive", "load_conversation", "save_conversation"]

# Older ones are removed.
MAX_LINES = 1000
MAX_CONVERSATIONS = 1000


class Archive:
    """The typed lines and the conversations in the platform's data folder.

    Only the owner can read them. Each conversation is a file with the JSON of `Conversation`. If
    the history cannot be written, no error is raised, but `problem` describes the reason, so that
    the chat can continue.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or platformdirs.user_data_path("cromicle", appauthor=False)
        self._lines = self._folder / "lines.jsonl"
        self._conversations = self._folder / "conversations"
        self._current = self._conversations / _build_name()
        self.problem: str = ""

    def read_lines(self) -> list[str]:
        """Return the typed lines, the oldest first."""
        try:
            written = self._lines.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            self._fail(error)
            return []
        lines = [line for text in written if (line := _parse_line(text)) is not None]
        if len(lines) > 2 * MAX_LINES:
            lines = lines[-MAX_LINES:]
            self._try_replace(self._lines, "".join(f"{json.dumps(line)}\n" for line in lines))
        return lines

    def add_line(self, line: str) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            with os.fdopen(os.open(self._lines, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            self._fail(error)

    def save(self, conversation: Conversation) -> None:
        """Save a conversation to the current file."""
        is_new = not self._current.exists()
        self._try_replace(self._current, conversation.to_json())
        if is_new:
            for path in self._list()[:-MAX_CONVERSATIONS]:
                path.unlink(missing_ok=True)

    def start_anew(self) -> None:
        """Save to a new file from now on."""
        self._current = self._conversations / _build_name()

    def continue_last(self) -> Conversation:
        """Load the most recent conversation, and save to its file from now on.

        Raises `Misuse` if there is none, or if it cannot be read.
        """
        paths = self._list()
        if not paths:
            raise Misuse(f"There is no conversation to continue in {self._conversations}.")
        self._current = max(paths, key=lambda path: path.stat().st_mtime_ns)
        return load_conversation(self._current)

    def _list(self) -> list[Path]:
        return sorted(self._conversations.glob("*.json"))

    def _try_replace(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, text.encode())
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.problem = f"The history in {self._folder} is not saved: {error.strerror or error}."


def load_conversation(path: Path) -> Conversation:
    """Load the conversation in a file. Raises `Misuse`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Misuse(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise Misuse(f"{path} is not a conversation: it is not UTF-8.") from None
    try:
        return Conversation.from_json(text)
    except InvalidMessageError as error:
        raise Misuse(f"{path} is not a conversation: {error.problem}.") from None


def save_conversation(conversation: Conversation, path: Path) -> None:
    """Write a conversation to a file, which may contain another one. Raises `Misuse`."""
    if path.exists():
        # A mistyped name must not overwrite any other file.
        try:
            load_conversation(path)
        except Misuse:
            raise Misuse(f"{path} is not a conversation, so it is not replaced.") from None
    try:
        replace_file(path, conversation.to_json().encode())
    except OSError as error:
        raise Misuse(f"{path} cannot be written: {error.strerror or error}.") from None


def _build_name() -> str:
    """Return the file name of a new conversation. Names sort by time."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    moment = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(seconds))
    return f"{moment}.{rest:09}-{os.getpid()}.json"


def _parse_line(text: str) -> str | None:
    try:
        line: object = json.loads(text)
    except ValueError:
        # An incomplete line of a process that was killed.
        return None
    return line if isinstance(line, str) else None
