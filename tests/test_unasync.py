"""The generated modules match their sources, and the handwritten ones their async counterparts."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
from unasync import HANDWRITTEN, PACKAGE, RULES, find_differences, generate, main

# Names that only other handwritten modules of `_async` use.
ASYNC_ONLY = {"current_loop", "CancelHandle.set_interrupt", "CancelHandle.suspend"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of both folders that a test may change."""
    for folder in ("_async", "_sync"):
        shutil.copytree(PACKAGE / folder, tmp_path / "cromicle_sdk" / folder)
    return tmp_path / "cromicle_sdk"


def test_the_generated_modules_match_their_sources() -> None:
    assert find_differences(generate()) == []


def test_a_generated_module_names_its_source_in_its_first_line() -> None:
    for path, text in generate().items():
        header = f"# Generated from _async/{path.name} by tests/unasync.py; do not edit.\n"
        assert text.startswith(header)
        assert ast.get_docstring(ast.parse(text))


def test_a_generated_module_has_no_async_code() -> None:
    for text in generate().values():
        nodes = ast.walk(ast.parse(text))
        assert not any(isinstance(node, (ast.AsyncFunctionDef, ast.Await)) for node in nodes)


def test_check_names_the_files_that_differ_and_writes_nothing(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited, missing = package / "_sync/client.py", package / "_sync/pool.py"
    text = edited.read_text(encoding="utf-8") + "\nX = 1\n"
    edited.write_text(text, encoding="utf-8")
    missing.unlink()
    (package / "_sync/left_over.py").touch()
    assert main(["--check"], package) == 1
    assert re.findall(r"_sync/\w+", capsys.readouterr().out) == [
        *("_sync/client", "_sync/left_over", "_sync/pool")
    ]
    assert edited.read_text(encoding="utf-8") == text
    assert not missing.exists()


def test_a_run_rewrites_the_files_that_differ(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (package / "_sync/client.py").write_text("", encoding="utf-8")
    (package / "_sync/pool.py").unlink()
    (package / "_sync/left_over.py").touch()
    assert main([], package) == 0
    assert main(["--check"], package) == 0
    assert not (package / "_sync/left_over.py").exists()
    assert capsys.readouterr().out == ""


def test_a_rule_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"match nothing: no such phrase$"):
        generate(rules=[*RULES, ("no such phrase", "")])


def read_exports(tree: ast.Module) -> list[str]:
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                names: list[str] = ast.literal_eval(value)
                return names
    pytest.fail("there is no __all__")


def read_functions(body: list[ast.stmt], prefix: str = "") -> dict[str, list[str]]:
    """Return the parameters of public functions and methods, with their kind and default."""
    found: dict[str, list[str]] = {}
    for statement in body:
        if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_"):
            found |= read_functions(statement.body, f"{statement.name}.")
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            # Annotations may differ, as in `AsyncIterator`.
            for argument in ast.walk(statement.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
            if not statement.name.startswith("_") or statement.name.startswith("__"):
                found[f"{prefix}{statement.name}"] = ast.unparse(statement.args).split(", ")
    return found


@pytest.mark.parametrize("name", sorted(HANDWRITTEN - {"__init__.py"}))
def test_both_handwritten_modules_have_the_same_names_and_parameters(name: str) -> None:
    on_async, on_sync = (
        ast.parse((PACKAGE / folder / name).read_text(encoding="utf-8"))
        for folder in ("_async", "_sync")
    )
    exports, functions = set(read_exports(on_async)), read_functions(on_async.body)
    assert exports - ASYNC_ONLY == set(read_exports(on_sync))
    assert {key: value for key, value in functions.items() if key not in ASYNC_ONLY} == (
        read_functions(on_sync.body)
    )
    # `Runtime` is a type alias.
    assert {key.partition(".")[0] for key in functions} == exports - {"Runtime"}
