"""Which room may import what: the architecture, held against the files.

A room is a module of the package. `ROOMS` is the whole table, so that a new room or a new
import between rooms is a decision that shows in this file.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cromicle_sdk

PACKAGE = Path(cromicle_sdk.__file__).parent

# What each room imports from the package. An arrow that leads up this list is a cycle.
ROOMS: dict[str, set[str]] = {
    # The pure core: values and bytes in, values out. No I/O, no clock, no HTTP client.
    "_version": set(),
    "_errors": set(),
    "_messages": {"_errors"},
    "_secret": set(),
    "_endpoint": {"_errors", "_secret"},
    "_options": {"_endpoint", "_errors", "_secret"},
    "_request": {"_endpoint", "_messages", "_options", "_secret", "_version"},
    "_reply": {"_errors", "_options"},
    "_retry": {"_errors", "_options"},
    # What surrounds it: the clock of one call, connections, httpx.
    "_limits": {"_errors", "_options"},
    "_transport": {"_endpoint", "_limits"},
    "_httpx": {"_endpoint", "_errors", "_limits", "_options", "_request", "_transport"},
    # The async colour: a file's import of `_async_io as io` is the one place where it waits.
    "_async_io": {"_limits", "_transport"},
    "_async_network": {"_async_io", "_limits", "_transport"},
    "_async_transport": {"_async_io", "_async_network", "_limits", "_request", "_transport"},
    "_async_foreign": {"_async_io", "_httpx", "_limits", "_request", "_transport"},
    "_async": {
        "_async_foreign",
        "_async_io",
        "_async_transport",
        "_errors",
        "_httpx",
        "_limits",
        "_messages",
        "_options",
        "_reply",
        "_request",
        "_retry",
        "_secret",
        "_transport",
    },
    # The blocking colour, its mirror.
    "_sync_io": {"_limits", "_transport"},
    "_sync_network": {"_limits", "_sync_io", "_transport"},
    "_sync_transport": {"_limits", "_request", "_sync_io", "_sync_network", "_transport"},
    "_sync_foreign": {"_httpx", "_limits", "_request", "_sync_io", "_transport"},
    "_sync": {
        "_errors",
        "_httpx",
        "_limits",
        "_messages",
        "_options",
        "_reply",
        "_request",
        "_retry",
        "_secret",
        "_sync_foreign",
        "_sync_io",
        "_sync_transport",
        "_transport",
    },
    # What users see.
    "__init__": {"_async", "_errors", "_messages", "_options", "_reply", "_sync", "_version"},
}

CORE = (
    *("_version", "_errors", "_messages", "_secret", "_endpoint", "_options"),
    *("_request", "_reply", "_retry"),
)

# What the core may import from elsewhere, all of it without I/O and without a clock.
# `os` is for `os.environ` alone, `platform` for the version in the user agent.
CORE_STDLIB: dict[str, set[str]] = {
    "_version": set(),
    "_errors": {"collections.abc", "typing"},
    "_messages": {"collections.abc", "json", "re", "typing"},
    "_secret": {"html", "re", "typing", "urllib.parse"},
    "_endpoint": {"base64", "dataclasses", "ipaddress", "re", "urllib.parse"},
    "_options": {"collections.abc", "dataclasses", "functools", "math", "os", "re", "typing"},
    "_request": {"dataclasses", "hashlib", "json.encoder", "platform"},
    "_reply": {
        "codecs",
        "collections.abc",
        "dataclasses",
        "datetime",
        "email.utils",
        "http",
        "io",
        "json",
        "re",
        "typing",
    },
    "_retry": {"collections.abc", "random"},
}

# Nothing of this may be reached from the core: I/O, clocks, threads, HTTP clients.
NOT_IN_CORE = {
    *("socket", "ssl", "select", "selectors", "subprocess", "asyncio", "threading", "time"),
    *("http.client", "urllib.request", "multiprocessing", "concurrent", "queue", "signal"),
    *("httpx", "httpx2", "httpcore", "h11", "anyio", "trio", "sniffio", "requests", "certifi"),
}

# Who may know a package from elsewhere. httpcore has two colours, so each has its rooms.
FOREIGN: dict[str, set[str]] = {
    "httpx": {"_httpx", "_transport"},
    "httpx2": {"_httpx"},
    "httpcore": {
        "_httpx",
        "_transport",
        "_async_network",
        "_async_transport",
        "_sync_network",
        "_sync_transport",
    },
    "h11": {"_transport", "_async_transport", "_sync_transport"},
    "anyio": {"_async_io"},
    "typing_extensions": {"_async", "_sync"},
}

# Folders and files with extras and jobs of their own; the two clients know nothing of them.
OTHER_ROOMS = {"__main__", "_pytest_plugin", "bulk", "cli", "integrations", "server", "testing"}

# Event loops have names only where uvicorn or the command need one of their own.
LOOPS_ALLOWED = {"cli", "server", "testing"}


def read(room: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{room}.py").read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> set[str]:
    """The modules that a file imports, anywhere in it; those of the package begin with a dot."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add("." * node.level + node.module)
        elif isinstance(node, ast.ImportFrom):
            found |= {"." * node.level + alias.name for alias in node.names}
    return found - {"__future__"}


def own(room: str) -> set[str]:
    return {name.lstrip(".") for name in imports(read(room)) if name.startswith(".")}


def foreign(room: str) -> set[str]:
    return {name for name in imports(read(room)) if not name.startswith(".")}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_the_rooms_of_the_table(room: str) -> None:
    assert own(room) == ROOMS[room]


def test_the_table_has_every_room() -> None:
    names = {
        path.stem for path in PACKAGE.iterdir() if not path.name.endswith((".typed", "cache__"))
    }
    assert set(ROOMS) <= names
    assert names - set(ROOMS) <= OTHER_ROOMS


def test_there_is_no_cycle() -> None:
    done: set[str] = set()
    for room, needs in ROOMS.items():
        assert needs <= done, room
        done.add(room)


@pytest.mark.parametrize("room", CORE)
def test_the_core_does_no_io_and_knows_no_clock(room: str) -> None:
    assert foreign(room) == CORE_STDLIB[room]
    for name in foreign(room):
        assert not {name, name.partition(".")[0]} & NOT_IN_CORE
        assert name.partition(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("room", CORE)
def test_the_core_calls_nothing_that_waits_or_tells_the_time(room: str) -> None:
    methods = {node.attr for node in ast.walk(read(room)) if isinstance(node, ast.Attribute)}
    names = {node.id for node in ast.walk(read(room)) if isinstance(node, ast.Name)}
    assert not methods & {"open", "now", "utcnow", "today", "sleep", "monotonic"}
    assert not names & {"open", "print", "input"}
    if "os" in foreign(room):
        used = {
            node.attr
            for node in ast.walk(read(room))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        }
        assert used == {"environ"}


@pytest.mark.parametrize("name", FOREIGN)
def test_who_knows_a_package_from_elsewhere(name: str) -> None:
    knows = {room for room in ROOMS if name in {n.partition(".")[0] for n in foreign(room)}}
    assert knows == FOREIGN[name]


def test_no_other_package_is_known() -> None:
    for room in ROOMS:
        for name in {n.partition(".")[0] for n in foreign(room)}:
            assert name in sys.stdlib_module_names or name in FOREIGN, (room, name)


def test_no_event_loop_is_named() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in LOOPS_ALLOWED:
            tops = {n.partition(".")[0] for n in imports(ast.parse(path.read_text("utf-8")))}
            assert not tops & {"asyncio", "trio", "uvloop"}, path


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_but_definitions_happens_at_import(room: str) -> None:
    allowed = (
        *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
        *(ast.Assign, ast.AnnAssign),
    )
    for statement in read(room).body:
        if isinstance(statement, ast.If):
            assert ast.unparse(statement.test) == "TYPE_CHECKING"
        elif isinstance(statement, ast.Expr):
            assert isinstance(statement.value, ast.Constant)  # a docstring
        else:
            assert isinstance(statement, allowed), ast.unparse(statement)


# The import itself, in a fresh interpreter. httpx's own optional imports (rich, click where they
# are installed; httpcore's of trio) are not this package's, so they come first and don't count.
PROBE = """
import json, ssl, sys
import httpx, httpcore, anyio, anyio.lowlevel

before = set(sys.modules)
events = []

def watch(event, arguments):
    if event == "open":
        path, mode = arguments[:2]
        if (isinstance(mode, str) and mode != "r" and mode != "rb") or not str(path).endswith(
            (".py", ".pyc")
        ):
            events.append([event, str(path)])
    elif event.startswith(("socket.", "subprocess.", "os.", "shutil.", "tempfile.", "urllib.")):
        if event not in ("os.listdir", "os.scandir"):
            events.append([event, str(arguments)])

class NoContext(ssl.SSLContext):
    def __new__(cls, *arguments, **options):
        events.append(["ssl.SSLContext", ""])
        return super().__new__(cls, *arguments, **options)

ssl.SSLContext = NoContext
ssl.create_default_context = lambda *a, **k: events.append(["create_default_context", ""])
sys.dont_write_bytecode = True
sys.addaudithook(watch)
import threading
threads = threading.active_count()
import cromicle_sdk
print(json.dumps([sorted(set(sys.modules) - before), events, threading.active_count() - threads]))
"""


@pytest.fixture(scope="module")
def probed() -> tuple[set[str], list[list[str]], int]:
    environment = {name: value for name, value in os.environ.items() if "COV" not in name}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
        env={**environment, "CROMICLE_TOKEN": "\udcff", "CROMICLE_BASE_URL": "no URL"},
        cwd=PACKAGE.parent,
    )
    modules, events, threads = json.loads(done.stdout)
    assert done.stderr == ""
    return set(modules), events, threads


def test_the_import_brings_this_package_and_next_to_nothing_else(
    probed: tuple[set[str], list[list[str]], int],
) -> None:
    modules, _, _ = probed
    others = {name for name in modules if name.partition(".")[0] != "cromicle_sdk"}
    assert others <= {"importlib._abc", "importlib.util", "queue", "_queue"}
    assert {name.partition(".")[2] for name in modules} - {""} - set(ROOMS) == {
        name.partition(".")[2] for name in others
    }


def test_no_optional_package_is_imported(probed: tuple[set[str], list[list[str]], int]) -> None:
    modules, _, _ = probed
    tops = {name.partition(".")[0] for name in modules}
    assert not tops & {"starlette", "uvicorn", "click", "rich", "httpx2", "socksio", "trio"}


def test_the_import_does_no_io(probed: tuple[set[str], list[list[str]], int]) -> None:
    _, events, threads = probed
    assert events == []
    assert threads == 0
