"""The messages of a chat: what its commands do to them, without any I/O."""

from __future__ import annotations

from cromicle_sdk import Conversation, Message

__all__ = ["CUT_MARK", "Transcript"]

# Behind a reply that was cut off, for whoever reads it later, the model included.
CUT_MARK = " [cut]"


class Transcript:
    """A conversation whose end may be taken back.

    The last message may be a question without a reply, since it was stopped or has failed; the next
    question takes its place, for many models reject two in a row.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._messages = conversation.messages

    @property
    def conversation(self) -> Conversation:
        return Conversation(messages=self._messages)

    @property
    def system(self) -> str | None:
        """The system message at the beginning, None where there is none."""
        return self._get_content(0, "system")

    @property
    def question(self) -> str | None:
        """The last question, None where there is none."""
        return self._get_content(-1, "user") or self._get_content(-2, "user")

    @property
    def reply(self) -> str | None:
        """The reply to the last question, None where there is none."""
        return self._get_content(-1, "assistant")

    def set_system(self, text: str) -> None:
        """Replace the system message, by none if the text is empty."""
        if self.system is not None:
            del self._messages[0]
        if text:
            self._messages.insert(0, Message(role="system", content=text))

    def ask(self, text: str) -> None:
        if self._get_content(-1, "user") is not None:
            del self._messages[-1]
        self._messages.append(Message(role="user", content=text))

    def answer(self, text: str, *, is_cut: bool = False) -> None:
        """Add the reply to the last question, if there is any text in it."""
        if text:
            content = text + CUT_MARK if is_cut else text
            self._messages.append(Message(role="assistant", content=content))

    def take_reply(self) -> str | None:
        """Remove the reply to the last question and return it, None where there is none."""
        reply = self.reply
        if reply is not None:
            del self._messages[-1]
        return reply

    def undo(self) -> str | None:
        """Remove the last question with its reply and return it, None where there is none."""
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
