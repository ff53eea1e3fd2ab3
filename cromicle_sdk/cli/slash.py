"""The commands of a chat: lines such as `/system TEXT`."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["COMMANDS", "FILE_COMMANDS", "SlashCommand", "complete_name", "parse_line"]


@dataclass(frozen=True)
class SlashCommand:
    """A command: its name, its argument as in its help, and what it does."""

    name: str
    argument: str
    help: str


COMMANDS = (
    SlashCommand("system", "[TEXT]", "set the system message, or remove it"),
    SlashCommand("retry", "", "ask the last question again"),
    SlashCommand("edit", "", "change the last question, and ask it again"),
    SlashCommand("undo", "", "remove the last question and its reply"),
    SlashCommand("copy", "", "copy the last reply to the clipboard"),
    SlashCommand("clear", "", "begin a new conversation"),
    SlashCommand("model", "[NAME]", "choose a model, or show the current one"),
    SlashCommand("set", "[NAME=JSON]", "send a field with each request; NAME= removes it"),
    SlashCommand("save", "FILE", "write the conversation as JSON"),
    SlashCommand("load", "FILE", "continue the conversation in a file"),
    SlashCommand("help", "", "show this list"),
    SlashCommand("quit", "", "leave the chat, as Ctrl-D does"),
)

# Their argument is completed as a path.
FILE_COMMANDS = ("save", "load")

# A path at the beginning of a question is not a command.
_COMMAND = re.compile(r"/(\w*)(?:\s+(.*))?\s*\Z", re.DOTALL)


def parse_line(line: str) -> tuple[str | None, str]:
    """The command in a line and its argument; None and the text if it is a question.

    The second of two slashes at the beginning is that of a question.
    """
    if line.startswith("//"):
        return None, line[1:]
    match = _COMMAND.match(line)
    if match is None:
        return None, line
    return match[1], (match[2] or "").strip()


def complete_name(text: str) -> list[str]:
    """The commands, each with its slash, that begin with a text."""
    return [f"/{command.name}" for command in COMMANDS if f"/{command.name}".startswith(text)]
