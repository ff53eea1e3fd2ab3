"""Messages: their types, their checks, and the formatting of prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, cast

from .compat import accept_in_pydantic
from .errors import InvalidMessageError

__all__ = [
    "LONE_SURROGATE",
    "PROMPT_END",
    "Conversation",
    "Message",
    "MessageLike",
    "Messages",
    "TextPart",
    "check_messages",
    "find_lone_surrogate",
    "format_prompt",
    "join_messages",
]

# The end of a prompt of several messages, after which the model writes the reply.
PROMPT_END = "\nAssistant:"

# The problem that `find_lone_surrogate` finds, for errors.
LONE_SURROGATE = "it has a lone surrogate, which UTF-8 cannot encode"

_MISSING = object()

_ROLE = r"[\w-]+\Z"


@accept_in_pydantic
class TextPart(TypedDict):
    """A text part of the content of a message, as in the OpenAI API."""

    type: str
    text: str


@accept_in_pydantic
class Message(TypedDict):
    """A message of a conversation: its role, such as "user", and its content."""

    role: str
    content: str | Sequence[TextPart]


# `Any` is an object with `.role` and `.content`. A Protocol would reject frozen dataclasses, named
# tuples and pydantic models whose fields have narrower types than `object`.
MessageLike = Message | Mapping[str, Any] | Any
Messages = str | Iterable[MessageLike]


class Conversation:  # noqa: PLW1641 - it is mutable, so it has no hash
    """A list of messages to append to. It is pure data, for the blocking and the async client.

    ```python
    conversation = Conversation(system="Answer in one sentence.")
    conversation.user("Why is the sky blue?")
    conversation.assistant(client.chat(conversation).text)
    ```

    `system`, if not None, becomes the first message. `messages` are the messages so far, in the
    form that `format_prompt` accepts.

    The constructor and the methods raise `InvalidMessageError` with the index of an invalid
    message.
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
        """A copy of the messages, in order."""
        return [Message(role=m["role"], content=m["content"]) for m in self._messages]

    def user(self, text: str) -> Conversation:
        """Append a message of the user. Returns the conversation, for chained calls."""
        return self._append("user", text)

    def assistant(self, text: str) -> Conversation:
        """Append a message of the model. Returns the conversation, for chained calls."""
        return self._append("assistant", text)

    def to_json(self) -> str:
        """Return the messages as a JSON array of objects with `role` and `content`."""
        return json.dumps(self._messages, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """Create a conversation from the JSON of `to_json`.

        Raises `InvalidMessageError` if `text` is not such an array.
        """
        try:
            messages: object = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            raise InvalidMessageError("expected JSON, as to_json() writes it") from None
        if not isinstance(messages, list):
            raise InvalidMessageError("expected a JSON array of messages, as to_json() writes it")
        return cls(messages=cast("list[MessageLike]", messages))

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
    """Return the prompt for a text, or for an iterable of messages, which is read once.

    The prompt of a text is the text, that of one message is its content, and that of several
    messages is a line `Role: content` for each, followed by `Assistant:`. It is the same, byte for
    byte, as that of `format_prompt` of gpt4free, which the Cromicle provider sent.

    A message is a mapping with `role` and `content`, or an object with these attributes. A
    content is a text or a sequence of OpenAI text parts, which are joined without a separator; a
    part is a mapping with `type` and `text`, or an object with these attributes. A role is a word
    of letters, digits, `_` and `-`.

    Raises `InvalidMessageError` if there is no message, if a role or a content is invalid, or if
    UTF-8 cannot encode a text. The error has the index of the message and never quotes its text.
    """
    return join_messages(check_messages(messages))


def check_messages(messages: Messages) -> list[Message]:
    """Return messages whose role and content are `str`. A text becomes one user message.

    Raises `InvalidMessageError`, as `format_prompt` does.
    """
    if isinstance(messages, str):
        return [Message(role="user", content=_check_text(messages, None))]
    checked: list[Message] = []
    for index, message in enumerate(_check_iterable(messages)):
        role, content = _split(message, index)
        checked.append(
            Message(role=_check_role(role, index), content=_join_content(content, index))
        )
    if not checked:
        raise InvalidMessageError(
            "there are no messages", hint="pass a text or at least one message"
        )
    return checked


def join_messages(messages: list[Message]) -> str:
    """Return the prompt of checked messages, as `format_prompt` defines it."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n".join(lines) + PROMPT_END


def _check_iterable(messages: object) -> Iterable[object]:
    # A single mapping is an iterable of its keys.
    if isinstance(messages, (bytes, bytearray, Mapping)) or not isinstance(messages, Iterable):
        kind = _kind(cast("Any", messages))
        raise InvalidMessageError(f"messages must be a text or an iterable of messages, not {kind}")
    return cast("Iterable[object]", messages)


def _split(message: object, index: int) -> tuple[object, object]:
    """Return the unchecked role and content of a message, which is a mapping or an object."""
    role, content = _get(message, "role"), _get(message, "content")
    if role is not _MISSING and content is not _MISSING:
        return role, content
    if isinstance(message, Mapping):
        name = "role" if role is _MISSING else "content"
        raise InvalidMessageError(f"it has no {name!r}", index=index)
    raise InvalidMessageError(
        f"expected a mapping or an object with role and content, not {_kind(message)}", index=index
    )


def _get(value: object, name: str) -> object:
    """Return the item of a mapping or the attribute of an object, or `_MISSING`."""
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        return fields[name] if name in fields else _MISSING  # noqa: SIM401 - may have no `get`
    return getattr(value, name, _MISSING)


def _check_role(role: object, index: int) -> str:
    if not isinstance(role, str):
        raise InvalidMessageError(f"its role must be a str, not {_kind(role)}", index=index)
    if not re.match(_ROLE, role):
        raise InvalidMessageError(
            "its role must be one word of letters, digits, '_' and '-'", index=index
        )
    # A subclass of str, such as an enum, may override `__str__` or `__format__`.
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
    for position, part in enumerate(cast("Sequence[object]", content)):
        kind, text = _get(part, "type"), _get(part, "text")
        if not isinstance(text, str) or kind != "text":
            raise InvalidMessageError(
                f"part {position} of its content must have the type 'text' and a text",
                index=index,
            )
        texts.append(_check_text(text, index))
    return "".join(texts)


def find_lone_surrogate(text: str) -> int | None:
    """Return the position of the first character that UTF-8 cannot encode, or None."""
    # `isascii` takes constant time, so a long ASCII prompt is not encoded twice.
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
