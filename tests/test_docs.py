"""README and the pages are correct: Python blocks run, and tables match the code."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import (
    DOCUMENTS,
    FOLDER,
    ROOT,
    fill_in,
    find_blocks,
    list_blocks,
    needs_packages,
    parse_page,
    write_samples,
)

import cromicle_sdk
from cromicle_sdk.cli import run
from cromicle_sdk.cli.commands import cromicle, serve
from cromicle_sdk.cli.serve import check_combination
from cromicle_sdk.server import LocalServer

README = DOCUMENTS["README.md"]
PAGES = {Path(name).stem: text for name, text in DOCUMENTS.items()}


def is_suite(block: str) -> bool:
    return "def test_" in block


# tests/integrations/packages/test_page.py and tests/bulk/test_ray.py test the other blocks.
PYTHON = [
    (name, block)
    for name, block in find_blocks("python")
    if not needs_packages(block) and "import ray" not in block
]
SCRIPTS = [pytest.param(block, id=name) for name, block in PYTHON if not is_suite(block)]
SUITES = [pytest.param(block, id=name) for name, block in PYTHON if is_suite(block)]

# Each command line of `cromicle` in a shell block or a systemd unit.
COMMAND_LINES = [
    pytest.param(line, id=f"{name}: {line[:40]}")
    for name, block in find_blocks("sh") + find_blocks("ini")
    for line in re.findall(r"(?:^|&& |=|\| )(?:\S*/)?cromicle ([^|&>#\n]*)", block, re.MULTILINE)
]


@pytest.mark.parametrize("token", ["", "a token of mine"])
@pytest.mark.parametrize("block", SCRIPTS)
def test_a_python_block_runs(
    block: str,
    token: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CROMICLE_TOKEN", token)
    with LocalServer(page=True) as echo:
        monkeypatch.setenv("CROMICLE_BASE_URL", echo.base_url)
        here = fill_in(block, echo.base_url)
        exec(compile(here, "README.md", "exec"), {"__name__": "__main__"})
    if "print(" in block:
        assert capsys.readouterr().out


@pytest.mark.parametrize("block", SUITES)
def test_a_test_block_passes(block: str, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(block)
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=block.count("def test_"))


@pytest.mark.slow
def test_type_checkers_find_nothing_in_the_programs_of_the_readme(tmp_path: Path) -> None:
    for name, block in PYTHON:
        if name.startswith("README"):
            (tmp_path / f"{name.replace(' ', '_')}.py").write_text(block)
    files = sorted(map(str, tmp_path.iterdir()))
    assert files
    for arguments in (["mypy", "--strict"], ["pyright", "--pythonpath", sys.executable]):
        command = [sys.executable, "-m", *arguments, *files]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_line_is_right(line: str) -> None:
    name, *arguments = shlex.split(line)
    command = cromicle.commands[name]
    # click caches properties of the first context, such as the name of the help option.
    parent = cromicle.make_context("cromicle", [name])
    context = command.make_context(name, arguments, parent=parent)
    if command is serve:
        check_combination(context)


BATCHES = [
    line
    for _, block in find_blocks("sh")
    for line in re.findall(r"^cromicle (batch .*)$", block, re.MULTILINE)
    if "--executor" not in line
]


@pytest.mark.parametrize("line", BATCHES)
def test_a_batch_of_the_documents_is_sent(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path)
    _, _, target, *_ = shlex.split(line)
    with LocalServer() as echo:
        monkeypatch.setenv("CROMICLE_BASE_URL", echo.base_url)
        assert run(shlex.split(line)) == 0
    assert json.loads(Path(target).read_text())["text"] == "One"


@pytest.mark.skipif(not shutil.which("curl"), reason="requires curl")
def test_the_lines_for_curl_get_a_reply() -> None:
    (block,) = (block for _, block in find_blocks("sh") if "curl " in block)
    with LocalServer() as echo:
        here = fill_in(block, echo.base_url)
        done = subprocess.run(
            ["bash", "-euc", here], capture_output=True, text=True, timeout=60, check=True
        )
    assert done.stdout == "Hello, how are you?"


def find_headings(path: Path) -> set[str]:
    """Return the anchors of a page."""
    return {
        re.sub(r"[^\w -]", "", line.strip("# ").lower()).replace(" ", "-")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_have_a_target(name: str) -> None:
    page = ROOT / name
    targets = re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[name])
    for target in (target for target in targets if "://" not in target):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in find_headings(linked), target


def test_the_readme_is_short_and_links_to_every_page() -> None:
    assert len(README.splitlines()) <= 150
    for page in FOLDER.glob("*.md"):
        assert f"](cromicle_sdk/docs/{page.name})" in README


def test_the_tree_of_errors_names_every_error() -> None:
    errors = {name for name in cromicle_sdk.__all__ if name.endswith("Error")}
    assert errors <= set(re.findall(r"\w+Error", PAGES["errors"]))


def test_the_table_of_options_names_every_option() -> None:
    options = set(cromicle_sdk.Client.__init__.__kwdefaults__ or ())
    assert options <= set(re.findall(r"^\| `(\w+)` \|", PAGES["clients"], re.MULTILINE))


def test_the_table_of_limits_has_the_defaults() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGES["timeouts"], re.MULTILINE))
    assert cromicle_sdk.Timeout(**{name: int(value) for name, value in table.items()}) == (
        cromicle_sdk.Timeout()
    )
    assert len(table) == 5


def test_the_table_of_the_gateway_names_every_flag() -> None:
    flags = {
        option
        for parameter in serve.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    # Flags that are on by default, and --delay, which does not apply to a gateway.
    named = flags - {"--metrics", "--access-log", "--page", "--delay"}
    assert named <= set(re.findall(r"`(--[\w-]+)`", PAGES["gateway"]))


PAGE = """# A page

It needs the extras `cli` and
`server`.

```sh
cromicle serve
```

| option | meaning |
|---|---|
| `proxy` | a URL (extra `socks`) |

## trio

With trio (`pip install
trio "a[b]"`):

```python
import trio
```

### A part

With `pip install --quiet ".[dask]"` in a clone:

```python
import distributed
```

## OpenAI

```sh
pip install openai  # the official client
```

```python
import openai
```
"""


def test_a_block_requires_what_its_sections_have_named_so_far() -> None:
    server = frozenset({"[cli]", "[server]"})
    assert [
        (block.name, block.language, block.requirements) for block in parse_page("a", PAGE)
    ] == [
        ("a 1", "sh", server),
        ("a 1", "python", server | {"trio", "a[b]"}),
        ("a 2", "python", server | {"trio", "a[b]", "[dask]"}),
        ("a 2", "sh", server | {"openai"}),
        ("a 3", "python", server | {"openai"}),
    ]


def test_a_page_names_the_extras_that_exist() -> None:
    """tests/test_fresh_environments.py checks that they are the required ones."""
    extras = importlib.metadata.metadata("cromicle-sdk").get_all("Provides-Extra") or []
    for block in list_blocks("python", "py", "sh"):
        named = {name[1:-1] for name in block.requirements if name.startswith("[")}
        assert named <= set(extras), block.name


def test_the_readme_has_one_way_to_call_the_command() -> None:
    quick_start, *others = (block for name, block in find_blocks("sh") if "README" in name)
    assert ".venv/bin/cromicle" in quick_start
    # The environment is activated in the blocks that follow.
    assert ". .venv/bin/activate" in README
    assert not any(".venv/bin/cromicle" in block for block in others)
