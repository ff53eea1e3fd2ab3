"""The commands of a chat: lines such as `/system TEXT`."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["COMMANDS", "FILE_COMMANDS", "SlashCommand", "complete_name", "parse_line"]


@dataclass(frozen=True)
class SlashCommand:
    """A command: its name, its argument as shown in the help, and its description."""

    name: str
    argument: str
    help: str


COMMANDS = (
    SlashCommand("system", "[TEXT]", "set the system message, or remove it"),
    SlashCommand("retry", "", "send the last question again"),
    SlashCommand("edit", "", "edit the last question and send it again"),
    SlashCommand("undo", "", "remove the last question and its reply"),
    SlashCommand("copy", "", "copy the last reply to the clipboard"),
    SlashCommand("clear", "", "start a new conversation"),
    SlashCommand("model", "[NAME]", "choose a model, or show the current one"),
    SlashCommand("set", "[NAME=JSON]", "send a field with each request; NAME= removes it"),
    SlashCommand("save", "FILE", "write the conversation as JSON"),
    SlashCommand("load", "FILE", "continue the conversation in a file"),
    SlashCommand("help", "", "show this list"),
    SlashCommand("quit", "", "exit, like Ctrl-D"),
)

# The commands whose argument is completed as a path.
FILE_COMMANDS = ("save", "load")

# Does not match a path at the beginning of a question.
_COMMAND = re.compile(r"/(\w*)(?:\s+(.*))?\s*\Z", re.DOTALL)


def parse_line(line: str) -> tuple[str | None, str]:
    """Return the command in a line and its argument, or None and the text of a question.

    A question that starts with a slash is written with two.
    """
    if line.startswith("//"):
        return None, line[1:]
    match = _COMMAND.match(line)
    if match is None:
        return None, line
    return match[1], (match[2] or "").strip()


def complete_name(text: str) -> list[str]:
    """Return the commands, each with its slash, that begin with a text."""
    return [f"/{command.name}" for command in COMMANDS if f"/{command.name}".startswith(text)]
