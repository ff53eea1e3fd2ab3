"""What README and CHANGELOG say is true: every Python block runs, every fact agrees."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import cromicle_sdk
from cromicle_sdk.cli.commands import serve
from cromicle_sdk.cli.serve import check_combination
from cromicle_sdk.server import LocalServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "cromicle_sdk" / "docs").glob("*.md"))
}

BLOCKS = [
    block
    for text in (README, *PAGES.values())
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
SCRIPTS = [block for block in BLOCKS if "def test_" not in block]
SUITES = [block for block in BLOCKS if "def test_" in block]


@pytest.mark.parametrize("token", ["", "a token of mine"])
@pytest.mark.parametrize("block", SCRIPTS, ids=range(len(SCRIPTS)))
def test_a_python_block_runs(
    block: str,
    token: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CROMICLE_TOKEN", token)
    with LocalServer() as echo:
        monkeypatch.setenv("CROMICLE_BASE_URL", echo.base_url)
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    if "print(" in block:
        assert capsys.readouterr().out


@pytest.mark.parametrize("block", SUITES, ids=range(len(SUITES)))
def test_a_test_block_passes(block: str, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(block)
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=block.count("def test_"))


def test_what_it_links_to_is_there() -> None:
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", README) if "://" not in target]
    headings = {
        re.sub(r"[^\w -]", "", line.strip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    assert targets
    for target in targets:
        assert target[1:] in headings if target[0] == "#" else (ROOT / target).exists(), target


def test_what_a_page_links_to_is_there() -> None:
    for path, text in PAGES.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            assert "://" in target or (path.parent / target).exists(), target


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", CHANGELOG, re.MULTILINE)
    assert versions[0] == cromicle_sdk.__version__
    assert len(versions) == len(set(versions))


def test_the_tree_of_errors_names_every_error() -> None:
    errors = {name for name in cromicle_sdk.__all__ if name.endswith("Error")}
    assert errors <= set(re.findall(r"\w+Error", README))


def test_the_table_of_options_names_every_option() -> None:
    options = set(cromicle_sdk.Client.__init__.__kwdefaults__ or ())
    assert options <= set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))


def test_the_table_of_the_gateway_names_every_flag() -> None:
    flags = {
        option
        for parameter in serve.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    # Of a pair, the one that changes something; the delay is the echo's.
    named = flags - {"--metrics", "--access-log", "--delay"}
    assert named <= set(re.findall(r"`(--[\w-]+)`", README))


def test_the_command_lines_of_the_gateway_are_right() -> None:
    lines = re.findall(r"^(?:ExecStart=\S*|\S*/)cromicle serve (.*)$", README, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        check_combination(serve.make_context("serve", shlex.split(line)))
