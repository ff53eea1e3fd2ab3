"""A conversation becomes the one prompt that the protocol carries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, cast

from .compat import accept_in_pydantic
from .errors import InvalidMessageError

__all__ = [
    "PROMPT_END",
    "Conversation",
    "Message",
    "MessageLike",
    "Messages",
    "TextPart",
    "find_lone_surrogate",
    "format_prompt",
]

# What asks for the next turn, behind several.
PROMPT_END = "\nAssistant:"

_ROLE = re.compile(r"[\w-]+\Z")


@accept_in_pydantic
class TextPart(TypedDict):
    """One text part of a message, as the OpenAI chat API writes it."""

    type: str
    text: str


@accept_in_pydantic
class Message(TypedDict):
    """One turn of a conversation: who said it, and what."""

    role: str
    content: str | Sequence[TextPart]


# `Any` stands for an object with `.role` and `.content`; a Protocol would shut out frozen
# dataclasses, named tuples and pydantic models whose fields are narrower than `object`.
MessageLike = Message | Mapping[str, Any] | Any
Messages = str | Iterable[MessageLike]


class Conversation:  # noqa: PLW1641 - it grows, so it has no lasting hash
    """A list of messages that grows turn by turn; pure data, for either client.

    ```python
    conversation = Conversation(system="Answer in one sentence.")
    conversation.user("Why is the sky blue?")
    conversation.assistant(client.chat(conversation).text)
    ```

    `system`, where given, becomes the first message. `messages` are the turns so far, in the
    form that `format_prompt` takes; each is checked at once.
    Raises `InvalidMessageError`, with the index of the message that is wrong.
    """

    __slots__ = ("_messages",)

    def __init__(self, system: str | None = None, messages: Iterable[MessageLike] = ()) -> None:
        self._messages: list[Message] = []
        if system is not None:
            self._append("system", system)
        if isinstance(messages, str):
            raise InvalidMessageError("messages must be an iterable of messages, not str")
        for message in _check_iterable(messages):
            self._append(*_split(message, len(self._messages)))

    @property
    def messages(self) -> list[Message]:
        """A copy of the turns, in order."""
        return [Message(role=m["role"], content=m["content"]) for m in self._messages]

    def user(self, text: str) -> Conversation:
        """Append what the user said; returns the conversation, so that calls chain."""
        return self._append("user", text)

    def assistant(self, text: str) -> Conversation:
        """Append what the model answered; returns the conversation, so that calls chain."""
        return self._append("assistant", text)

    def to_json(self) -> str:
        """The turns as a JSON array of objects with `role` and `content`."""
        return json.dumps(self._messages, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """The conversation that `to_json` wrote.

        Raises `InvalidMessageError` where `text` is not such an array.
        """
        try:
            turns: object = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            raise InvalidMessageError("this is not JSON; expected what to_json() wrote") from None
        if not isinstance(turns, list):
            raise InvalidMessageError("expected a JSON array of messages, as to_json() writes it")
        return cls(messages=cast("list[MessageLike]", turns))

    def _append(self, role: object, content: object) -> Conversation:
        index = len(self._messages)
        self._messages.append(
            Message(role=_check_role(role, index), content=_join_content(content, index))
        )
        return self

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Conversation):
            return NotImplemented
        return self._messages == other._messages

    def __repr__(self) -> str:
        return f"<Conversation of {len(self._messages)} messages>"


def format_prompt(messages: Messages) -> str:
    """The prompt for a text, or for any iterable of messages (read once).

    A text is its own prompt, one message gives its content, several give a line
    `Role: content` each and then `Assistant:`. Source: `format_prompt` of gpt4free, byte for
    byte, which the Cromicle provider sent.

    A message is a mapping with `role` and `content`, or an object with those attributes; a
    content is a text or a list of OpenAI text parts, joined with nothing between. A role is a
    word of letters, digits, `_` and `-`.

    Raises `InvalidMessageError`: no message, a wrong role or content, a text that UTF-8 cannot
    carry. It names the message's index and never quotes its text.
    """
    if isinstance(messages, str):
        return _check_text(messages, None)
    turns: list[tuple[str, str]] = []
    for index, message in enumerate(_check_iterable(messages)):
        role, content = _split(message, index)
        turns.append((_check_role(role, index), _join_content(content, index)))
    if not turns:
        raise InvalidMessageError("there is no message; pass a text or at least one message")
    if len(turns) == 1:
        return turns[0][1]
    lines = [f"{role.capitalize()}: {content}" for role, content in turns]
    return "\n".join(lines) + PROMPT_END


def _check_iterable(messages: object) -> Iterable[object]:
    # One message alone would be taken for an iterable of its keys.
    if isinstance(messages, (bytes, bytearray, Mapping)) or not isinstance(messages, Iterable):
        kind = _kind(cast("Any", messages))
        raise InvalidMessageError(f"messages must be a text or an iterable of messages, not {kind}")
    return cast("Iterable[object]", messages)


def _split(message: object, index: int) -> tuple[object, object]:
    """The role and the content of a message of either form, unchecked."""
    found: list[object] = []
    for name in ("role", "content"):
        if isinstance(message, Mapping):
            fields = cast("Mapping[str, object]", message)
            if name not in fields:
                raise InvalidMessageError(f"it has no {name!r}", index=index)
            found.append(fields[name])
        elif hasattr(message, name):
            found.append(getattr(message, name))
        else:
            raise InvalidMessageError(
                f"expected a mapping or an object with role and content, not {_kind(message)}",
                index=index,
            )
    return found[0], found[1]


def _check_role(role: object, index: int) -> str:
    if not isinstance(role, str):
        raise InvalidMessageError(f"its role must be a str, not {_kind(role)}", index=index)
    if not _ROLE.match(role):
        raise InvalidMessageError(
            "its role must be one word of letters, digits, '_' and '-'", index=index
        )
    # A str subclass, an enum for one, may format as something else than its text.
    return str.__str__(role)


def _join_content(content: object, index: int) -> str:
    if isinstance(content, str):
        return _check_text(content, index)
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray, memoryview)):
        raise InvalidMessageError(
            f"its content must be a str or a list of text parts, not {_kind(cast('Any', content))}",
            index=index,
        )
    texts: list[str] = []
    for place, part in enumerate(cast("Sequence[object]", content)):
        fields = cast("Mapping[str, object]", part if isinstance(part, Mapping) else {})
        text = fields.get("text")
        if not isinstance(text, str) or fields.get("type") != "text":
            raise InvalidMessageError(
                f"part {place} of its content must be {{'type': 'text', 'text': str}}", index=index
            )
        texts.append(_check_text(text, index))
    return "".join(texts)


def find_lone_surrogate(text: str) -> int | None:
    """The position of the first character that UTF-8 cannot encode, or None."""
    # `isascii` takes constant time: a long ASCII prompt is not encoded twice.
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _check_text(text: str, index: int | None) -> str:
    text = str.__str__(text)
    position = find_lone_surrogate(text)
    if position is not None:
        raise InvalidMessageError(
            f"its text has a lone surrogate at character {position}, which UTF-8 cannot encode",
            index=index,
            hint="decode its source with errors='replace'",
        )
    return text


def _kind(value: object) -> str:
    return type(value).__name__
