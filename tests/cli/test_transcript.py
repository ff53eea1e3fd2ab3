"""The messages of a chat: each change as a table of messages."""

from __future__ import annotations

import pytest

from cromicle_sdk import Conversation
from cromicle_sdk.cli.slash import COMMANDS, complete_name, parse_line
from cromicle_sdk.cli.transcript import CUT_MARK, Transcript


def build(*contents: str, system: str | None = None) -> Transcript:
    """A transcript of questions and replies in turn."""
    conversation = Conversation(system)
    for index, content in enumerate(contents):
        (conversation.assistant if index % 2 else conversation.user)(content)
    return Transcript(conversation)


def read(transcript: Transcript) -> list[tuple[str, object]]:
    return [(message["role"], message["content"]) for message in transcript.conversation]


def test_questions_and_replies_are_added_in_turn() -> None:
    transcript = build(system="Be brief.")
    transcript.ask("One?")
    transcript.answer("One.")
    transcript.ask("Two?")
    assert read(transcript) == [
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "One."),
        ("user", "Two?"),
    ]


def test_a_question_replaces_one_without_a_reply() -> None:
    transcript = build("One?", "One.", "Two?")
    transcript.ask("Three?")
    assert read(transcript)[2:] == [("user", "Three?")]


def test_a_reply_that_was_cut_is_marked_and_one_without_text_is_none() -> None:
    transcript = build("One?")
    transcript.answer("", is_cut=True)
    assert (transcript.question, transcript.reply) == ("One?", None)
    transcript.answer("On", is_cut=True)
    assert transcript.reply == "On" + CUT_MARK


def test_undo_takes_back_one_question_with_its_reply() -> None:
    transcript = build("One?", "One.", "Two?", "Two.", system="Be brief.")
    assert transcript.undo() == "Two?"
    assert transcript.undo() == "One?"
    assert transcript.undo() is None
    assert read(transcript) == [("system", "Be brief.")]


def test_undo_takes_back_a_question_without_a_reply() -> None:
    transcript = build("One?", "One.", "Two?")
    assert transcript.undo() == "Two?"
    assert transcript.reply == "One."


def test_the_reply_can_be_taken_alone() -> None:
    transcript = build("One?", "One.")
    assert transcript.take_reply() == "One."
    assert transcript.take_reply() is None
    assert transcript.question == "One?"


def test_the_system_message_is_set_replaced_and_removed() -> None:
    transcript = build("One?")
    transcript.set_system("Be brief.")
    transcript.set_system("Be kind.")
    assert read(transcript) == [("system", "Be kind."), ("user", "One?")]
    transcript.set_system("")
    assert transcript.system is None
    assert read(transcript) == [("user", "One?")]


def test_clearing_keeps_the_system_message() -> None:
    transcript = build("One?", "One.", system="Be brief.")
    transcript.clear()
    assert read(transcript) == [("system", "Be brief.")]
    transcript = build("One?", "One.")
    transcript.clear()
    assert len(transcript.conversation) == 0


@pytest.mark.parametrize(
    ("line", "command", "text"),
    [
        ("Hello /help", None, "Hello /help"),
        ("/help", "help", ""),
        ("/system  Be brief.\nAnd kind. ", "system", "Be brief.\nAnd kind."),
        ("/", "", ""),
        ("//help", None, "/help"),
        ("/etc/passwd: what is it?", None, "/etc/passwd: what is it?"),
    ],
)
def test_a_line_is_a_command_or_a_question(line: str, command: str | None, text: str) -> None:
    assert parse_line(line) == (command, text)


def test_the_names_of_commands_are_completed() -> None:
    assert complete_name("/s") == ["/system", "/set", "/save"]
    assert len(complete_name("/")) == len(COMMANDS)
    assert complete_name("/x") == []
