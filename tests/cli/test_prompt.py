"""The line of a chat in this process: keys in, lines out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from cromicle_sdk.cli.history import Archive
from cromicle_sdk.cli.prompt import Commands, PromptReader


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def test_enter_ends_a_line_and_alt_enter_breaks_it(keys: PipeInput) -> None:
    keys.send_text("One\x1b\rtwo\r\x1b[200~three\nfour\x1b[201~\r")
    reader = PromptReader(None)
    assert reader.read() == "One\ntwo"
    assert reader.read() == "three\nfour"


def test_ctrl_c_clears_a_line_and_interrupts_an_empty_one(keys: PipeInput) -> None:
    keys.send_text("mistake\x03One\r\x03")
    reader = PromptReader(None)
    assert reader.read() == "One"
    with pytest.raises(KeyboardInterrupt):
        reader.read()


def test_a_draft_is_edited_or_given_up(keys: PipeInput) -> None:
    keys.send_text(" more\r\x03")
    reader = PromptReader(None)
    assert reader.read("One") == "One more"
    with pytest.raises(KeyboardInterrupt):
        reader.read("One")


def test_ctrl_d_is_the_end(keys: PipeInput) -> None:
    keys.send_text("\x04")
    with pytest.raises(EOFError):
        PromptReader(None).read()


def test_commands_and_files_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conversation.json").touch()

    def complete(text: str) -> list[str]:
        found = Commands().get_completions(Document(text), CompleteEvent())
        return [completion.text for completion in found]

    assert complete("/sy") == ["/system"]
    assert complete("/load conv") == ["ersation.json"]
    assert complete("sy") == []


def test_the_line_before_comes_from_the_archive(keys: PipeInput, tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.add_line("One?")
    reader = PromptReader(archive)
    keys.send_text("Two?\r")
    assert reader.read() == "Two?"
    assert archive.read_lines() == ["One?", "Two?"]
    # The history is read in the background, which the first line need not wait for.
    keys.send_text("\x1b[A\x1b[A\r")
    assert reader.read() in ("One?", "Two?", "")
