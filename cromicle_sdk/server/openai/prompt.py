"""Parsing a prompt that `format_prompt` built back into its messages."""

from __future__ import annotations

import re

from cromicle_sdk._core.messages import PROMPT_END, Message

__all__ = ["parse_prompt"]


# The roles of text messages. A message of a tool would also need the ID of its call.
_ROLE_LINE = re.compile(r"^(System|Developer|User|Assistant): ", re.MULTILINE)

# If the operator has a system message, a prompt must not forge another.
_ROLE_LINE_OF_CALLER = re.compile(r"^(User|Assistant): ", re.MULTILINE)


def parse_prompt(prompt: str, *, system: bool = True) -> list[Message] | None:
    """Return the messages that `format_prompt` formats to exactly this prompt, or None.

    The prompt must start with a line `Role: …`, end with the line `Assistant:`, and contain at
    least two messages, because a single message is formatted without its role. The roles are
    System, Developer, User and Assistant. If `system` is false, lines of the first two are text.

    A prompt does not mark where a message ends, so a content with such a line is parsed as two
    messages. Formatted again, they result in the same prompt, byte for byte.
    """
    if not prompt.endswith(PROMPT_END):
        return None
    text = prompt.removesuffix(PROMPT_END)
    lines = list((_ROLE_LINE if system else _ROLE_LINE_OF_CALLER).finditer(text))
    if len(lines) < 2 or lines[0].start() != 0:
        return None
    ends = [line.start() - 1 for line in lines[1:]] + [len(text)]
    return [
        Message(role=line[1].lower(), content=text[line.end() : end])
        for line, end in zip(lines, ends, strict=True)
    ]
