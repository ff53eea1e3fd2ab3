"""The pages of the documentation, as the command shows them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

import cromicle_sdk
from cromicle_sdk.cli import run
from cromicle_sdk.cli.commands import cromicle

FOLDER = Path(cromicle_sdk.__file__).parent / "docs"
NAMES = sorted(page.stem for page in FOLDER.glob("*.md"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show_page(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a page as a terminal of 80 columns shows it, without colours and links."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    assert run(["docs", name]) == 0
    shown = re.sub(r"\x1b(?:\[[0-9;]*m|\][^\x1b]*\x1b\\)", "", terminal.getvalue())
    # Spaces after the text fill the lines.
    return "\n".join(line.rstrip() for line in shown.split("\n"))


def test_the_list_has_every_page_with_its_title(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["docs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert lines[NAMES.index("gateway")].split(maxsplit=1)[1] == "The gateway"


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_printed_as_it_is_elsewhere_than_on_a_terminal(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["docs", name]) == 0
    assert capsys.readouterr().out == (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def test_a_page_is_laid_out_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    assert run(["docs", "timeouts"]) == 0
    shown = terminal.getvalue()
    assert "Timeouts" in shown
    assert "# Timeouts" not in shown
    assert "```" not in shown


@pytest.mark.parametrize("name", NAMES)
def test_code_can_be_copied_from_a_terminal_of_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = show_page(name, monkeypatch)
    page = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        code = "\n".join(line.rstrip() for line in block.expandtabs(4).split("\n"))
        assert code.rstrip() in shown


@pytest.mark.parametrize("name", NAMES)
def test_no_word_of_a_table_is_cut_off_at_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = show_page(name, monkeypatch)
    page = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    # rich ends a word that does not fit its column with an ellipsis.
    assert [word for word in re.findall(r"\S*…", shown) if word not in page] == []


def test_an_unknown_page_is_wrong_usage_that_names_the_pages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["docs", "nothing"]) == 2
    error = capsys.readouterr().err
    assert "nothing" in error
    assert "gateway" in error


def test_the_names_are_completed() -> None:
    complete = ShellComplete(cromicle, {}, "cromicle", "_CROMICLE_COMPLETE")
    found: list[Any] = complete.get_completions(["docs"], "gat")
    assert [item.value for item in found] == ["gateway"]
