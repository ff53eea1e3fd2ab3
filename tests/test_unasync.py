"""The blocking half is the async half, by the table of substitutions and by its names."""

from __future__ import annotations

import ast

import pytest
from unasync import PACKAGE, PAIRS, derive

IO_ROOMS = ("_async/concurrency.py", "_sync/concurrency.py")


@pytest.mark.parametrize("master", PAIRS)
def test_a_mirror_is_its_master_by_the_table(master: str) -> None:
    derived = derive((PACKAGE / master).read_text(encoding="utf-8"))
    assert derived == (PACKAGE / PAIRS[master]).read_text(encoding="utf-8")


def test_every_room_with_two_colours_is_a_pair() -> None:
    two_coloured = {
        path.relative_to(PACKAGE).as_posix()
        for folder in ("_async", "_sync")
        for path in (PACKAGE / folder).glob("*.py")
        if path.name != "__init__.py"
    }
    assert two_coloured == {*PAIRS, *PAIRS.values(), *IO_ROOMS}


def test_a_mirror_that_drifted_would_be_seen() -> None:
    source = (PACKAGE / "_async/client.py").read_text(encoding="utf-8")
    assert derive(source + "\n\nX = 1\n") != derive(source)
    assert "async" not in derive("async def f():\n    await g()\n")


def read_exports(tree: ast.Module) -> list[str]:
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                names: list[str] = ast.literal_eval(value)
                return names
    pytest.fail("there is no __all__")


def read_functions(body: list[ast.stmt], prefix: str = "") -> dict[str, list[str]]:
    """The parameters of public functions and methods, in order, with kind and default."""
    found: dict[str, list[str]] = {}
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            found |= read_functions(statement.body, f"{statement.name}.")
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            # Annotations differ by colour (`AsyncIterator`), the rest does not.
            for argument in ast.walk(statement.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
            if not statement.name.startswith("_") or statement.name.startswith("__"):
                found[f"{prefix}{statement.name}"] = ast.unparse(statement.args).split(", ")
    return found


def test_the_two_io_rooms_have_the_same_names_and_parameters() -> None:
    trees = [ast.parse((PACKAGE / room).read_text(encoding="utf-8")) for room in IO_ROOMS]
    master, mirror = trees
    assert read_exports(master) == read_exports(mirror)
    assert read_functions(master.body) == read_functions(mirror.body)
    top = {name.partition(".")[0] for name in read_functions(master.body)}
    assert top == set(read_exports(master))
