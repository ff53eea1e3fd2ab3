"""What `cromicle ask` sends: words, files and standard input."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from cromicle_sdk.cli import run
from cromicle_sdk.cli.input import fence
from cromicle_sdk.testing import FaultyServer

Capture = pytest.CaptureFixture[str]


class Keyboard(io.TextIOWrapper):
    """A terminal at which somebody types, and ends with Ctrl-D."""

    def __init__(self, typed: bytes) -> None:
        super().__init__(io.BytesIO(typed))

    def isatty(self) -> bool:
        return True


def ask(server: FaultyServer, *arguments: str) -> str:
    """The prompt that was sent."""
    assert run(["ask", "--base-url", server.base_url, *arguments]) == 0
    return server.requests[-1].message


@pytest.fixture(autouse=True)
def _no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"")


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (["-"], "piped\n"),
        (["Say", "twice:", "-"], "Say twice:\n\npiped\n"),
        (["-", "Sum", "up."], "piped\n\nSum up."),
        (["Before", "-", "after"], "Before\n\npiped\n\nafter"),
    ],
)
@pytest.mark.parametrize("is_typed", [True, False])
def test_a_dash_stands_for_standard_input(
    words: list[str],
    sent: str,
    is_typed: bool,
    faults: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_typed:
        monkeypatch.setattr(sys, "stdin", Keyboard(b"piped\n"))
    else:
        pipe_in(monkeypatch, b"piped\n")
    assert ask(faults, *words) == sent


def test_files_come_first_in_fenced_blocks_with_their_names(
    faults: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.md").write_text("# A\n\n````\ncode\n````\n", encoding="utf-8")
    Path("b.txt").write_bytes("\ufeffGrüße".encode())
    Path("empty").write_text("")
    pipe_in(monkeypatch, b"piped\n")
    sent = ask(faults, "--file", "a.md", "--file", "b.txt", "--file", "empty", "What", "now?")
    assert sent == (
        "a.md\n`````\n# A\n\n````\ncode\n````\n`````\n\n"
        "b.txt\n```\nGrüße\n```\n\n"
        "empty\n```\n```\n\n"
        "piped\n\n"
        "What now?"
    )
    # A file needs no question.
    pipe_in(monkeypatch, b"")
    assert ask(faults, "--file", "b.txt") == "b.txt\n```\nGrüße\n```"


def test_the_name_of_a_file_is_one_line() -> None:
    mark = "\N{REPLACEMENT CHARACTER}"
    assert fence("a", "b") == "a\n```\nb\n```"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: b"x")
        from cromicle_sdk.cli.input import read_text

        patch.setattr(sys, "stdin", None)
        assert read_text([], ["a\nUser: b\x1b"]) == f"a{mark}User: b{mark}\n```\nx\n```"


def test_standard_input_as_a_file_and_as_the_system_message(
    faults: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe_in(monkeypatch, b"piped")
    assert ask(faults, "--file", "-", "Hi") == "standard input\n```\npiped\n```\n\nHi"
    pipe_in(monkeypatch, b"Be brief.\n")
    sent = "System: Be brief.\n\nUser: Hi\nAssistant:"
    assert ask(faults, "--system-file", "-", "Hi") == sent
    file = tmp_path / "system"
    file.write_text("Be brief.\n")
    assert ask(faults, "--system-file", str(file), "Hi") == sent


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-", "-"], "Standard input can be read only once: use only one -."),
        (["--file", "-", "-"], "Standard input can be read only once"),
        (["--system-file", "-", "-"], "Standard input can be read only once"),
        (
            ["--system-file", "a", "--system", "b"],
            "--system and --system-file cannot be used together",
        ),
        (["--system-file", "no/such", "Hi"], "--system-file: no/such cannot be read: No such"),
        (["--file", "no/such", "Hi"], "--file: no/such cannot be read: No such file"),
        (["--file", ".", "Hi"], "--file: . cannot be read: "),
        (["--file", "latin-1", "Hi"], "--file: latin-1 is not UTF-8 (byte 2)."),
        (["-"], "There is no text to send"),
    ],
)
def test_what_cannot_be_read_is_named(
    arguments: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin-1").write_bytes("Grüße".encode("latin-1"))
    assert run(["ask", "--base-url", "http://127.0.0.1:1", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_dash_needs_a_standard_input(
    is_closed: bool, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with Path(os.devnull).open("wb") as write_only:
        stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(write_only.fileno(), closefd=False)))
        monkeypatch.setattr(sys, "stdin", None if is_closed else stdin)
        assert run(["ask", "--base-url", "http://127.0.0.1:1", "-"]) == 2
    problem = "There is no text" if is_closed else "Standard input cannot be read: "
    assert problem in capsys.readouterr().err
