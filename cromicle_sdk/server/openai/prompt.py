"""A prompt that `format_prompt` made becomes its messages again."""

from __future__ import annotations

import re

from cromicle_sdk._core.messages import PROMPT_END, Message

__all__ = ["parse_prompt"]


# The roles that a text alone makes a message of; a tool's needs the call that it answers.
_ROLE_LINE = re.compile(r"^(System|Developer|User|Assistant): ", re.MULTILINE)


def parse_prompt(prompt: str) -> list[Message] | None:
    """The messages that `format_prompt` turns into exactly this prompt; None where there are none.

    The prompt must begin with a line `Role: …` and end with the line `Assistant:`, and hold at
    least two messages: one alone is sent without its role. The roles are System, Developer, User
    and Assistant.

    A prompt doesn't say where a message ends, so a content with such a line of its own is taken
    for two messages. Joined again they are the same prompt all the same, to the byte.
    """
    if not prompt.endswith(PROMPT_END):
        return None
    text = prompt.removesuffix(PROMPT_END)
    lines = list(_ROLE_LINE.finditer(text))
    if len(lines) < 2 or lines[0].start() != 0:
        return None
    ends = [line.start() - 1 for line in lines[1:]] + [len(text)]
    return [
        Message(role=line[1].lower(), content=text[line.end() : end])
        for line, end in zip(lines, ends, strict=True)
    ]
