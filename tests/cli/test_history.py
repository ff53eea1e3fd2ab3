"""What a chat keeps, and that only its owner can read it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cromicle_sdk import Conversation
from cromicle_sdk.cli import history as _history
from cromicle_sdk.cli.errors import Misuse
from cromicle_sdk.cli.history import Archive, load_conversation, save_conversation

TALK = Conversation("Be brief.").user("One?").assistant("Grüße 🎉")


def test_lines_are_kept_across_runs(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "data"
    assert Archive(folder).read_lines() == []
    Archive(folder).add_line("One?")
    Archive(folder).add_line("Two\nlines, grüße")
    assert Archive(folder).read_lines() == ["One?", "Two\nlines, grüße"]


def test_half_a_line_of_a_killed_process_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(b'"One?"\n17\n\xff\n"Tw')
    assert Archive(tmp_path).read_lines() == ["One?"]


def test_old_lines_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_history, "MAX_LINES", 3)
    archive = Archive(tmp_path)
    for number in range(7):
        archive.add_line(str(number))
    assert archive.read_lines() == ["4", "5", "6"]
    assert (tmp_path / "lines.jsonl").read_text(encoding="utf-8") == '"4"\n"5"\n"6"\n'


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such modes")
def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        archive = Archive(tmp_path / "data")
        archive.add_line("One?")
        archive.save(TALK)
    finally:
        os.umask(before)
    modes = {
        path.is_dir(): stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "data", *(tmp_path / "data").rglob("*"))
    }
    assert modes == {True: 0o700, False: 0o600}


def test_the_last_conversation_is_continued_in_its_file(tmp_path: Path) -> None:
    first = Archive(tmp_path)
    first.save(Conversation().user("Old"))
    first.start_anew()
    first.save(TALK)
    second = Archive(tmp_path)
    conversation = second.continue_last()
    assert conversation == TALK
    second.save(conversation.user("Two?"))
    assert len(list((tmp_path / "conversations").iterdir())) == 2
    assert Archive(tmp_path).continue_last() == conversation


def test_without_a_conversation_there_is_none_to_continue(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no conversation to continue"):
        Archive(tmp_path).continue_last()


def test_old_conversations_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_history, "MAX_CONVERSATIONS", 2)
    archive = Archive(tmp_path)
    for number in range(4):
        archive.save(Conversation().user(str(number)))
        archive.start_anew()
    kept = sorted(path.read_text() for path in (tmp_path / "conversations").iterdir())
    assert [text.count('"2"') + text.count('"3"') for text in kept] == [1, 1]


def test_a_folder_that_cannot_be_used_is_a_problem_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    uses: list[Callable[[Archive], object]] = [
        lambda archive: archive.add_line("One?"),
        lambda archive: archive.save(TALK),
        Archive.read_lines,
    ]
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        for use in uses:
            archive = Archive(folder)
            assert not use(archive)
            assert str(folder) in archive.problem


def test_a_saved_conversation_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save_conversation(TALK, path)
    save_conversation(TALK, path)
    assert load_conversation(path) == TALK


@pytest.mark.parametrize(
    ("content", "problem"), [(b"# Notes", "expected JSON"), (b"\xff", "not UTF-8")]
)
def test_a_file_that_is_no_conversation_is_neither_loaded_nor_replaced(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "notes.md"
    path.write_bytes(content)
    with pytest.raises(Misuse, match=problem):
        load_conversation(path)
    with pytest.raises(Misuse, match="not replaced"):
        save_conversation(TALK, path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"none\.json cannot be read"):
        load_conversation(tmp_path / "none.json")
    with pytest.raises(Misuse, match=r"none\.json cannot be written"):
        save_conversation(TALK, tmp_path / "none" / "none.json")
