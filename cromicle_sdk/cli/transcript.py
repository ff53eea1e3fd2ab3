"""The messages of a chat, and the operations of its commands on them, without I/O."""

from __future__ import annotations

from cromicle_sdk import Conversation, Message

__all__ = ["CUT_MARK", "Transcript"]

# Appended to a reply that was cut off, for later readers, including the model.
CUT_MARK = " [cut]"


class Transcript:
    """A conversation whose end can be removed.

    The last message may be a question without a reply, if the reply was stopped or failed. The next
    question replaces it, because many models reject two questions in a row.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._messages = conversation.messages

    @property
    def conversation(self) -> Conversation:
        return Conversation(messages=self._messages)

    @property
    def system(self) -> str | None:
        """The system message at the beginning, or None."""
        return self._get_content(0, "system")

    @property
    def question(self) -> str | None:
        """The last question, or None."""
        return self._get_content(-1, "user") or self._get_content(-2, "user")

    @property
    def reply(self) -> str | None:
        """The reply to the last question, or None."""
        return self._get_content(-1, "assistant")

    def set_system(self, text: str) -> None:
        """Replace the system message, or remove it if the text is empty."""
        if self.system is not None:
            del self._messages[0]
        if text:
            self._messages.insert(0, Message(role="system", content=text))

    def ask(self, text: str) -> None:
        if self._get_content(-1, "user") is not None:
            del self._messages[-1]
        self._messages.append(Message(role="user", content=text))

    def answer(self, text: str, *, is_cut: bool = False) -> None:
        """Add the reply to the last question, unless it is empty."""
        if text:
            content = text + CUT_MARK if is_cut else text
            self._messages.append(Message(role="assistant", content=content))

    def take_reply(self) -> str | None:
        """Remove the reply to the last question, and return it, or None."""
        reply = self.reply
        if reply is not None:
            del self._messages[-1]
        return reply

    def undo(self) -> str | None:
        """Remove the last question and its reply, and return the question, or None."""
        question = self.question
        if question is not None:
            self.take_reply()
            del self._messages[-1]
        return question

    def clear(self) -> None:
        """Remove all but the system message."""
        del self._messages[0 if self.system is None else 1 :]

    def _get_content(self, index: int, role: str) -> str | None:
        try:
            message = self._messages[index]
        except IndexError:
            return None
        return str(message["content"]) if message["role"] == role else None
