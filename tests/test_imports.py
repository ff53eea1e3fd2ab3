"""The architecture: the modules that each module may import.

`MODULES` lists all modules, so a new module or a new import requires a change of this file.
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

# The imports of each module from the package. A module may only import modules above it.
MODULES: dict[str, set[str]] = {
    # The core, without I/O, clock and HTTP client.
    "_version": set(),
    "_core.compat": set(),
    "_core.errors": set(),
    "_core.messages": {"_core.compat", "_core.errors"},
    "_core.secrets": set(),
    "_core.redaction": {"_core.secrets"},
    "_core.endpoint": {"_core.errors", "_core.secrets"},
    "_core.fields": {"_core.errors", "_core.messages"},
    "_core.options": {
        *("_core.endpoint", "_core.errors", "_core.fields", "_core.messages", "_core.secrets"),
    },
    "_core.request": {
        *("_core.endpoint", "_core.errors", "_core.fields", "_core.messages", "_core.options"),
        *("_core.redaction", "_core.secrets", "_version"),
    },
    "_core.response": {"_core.errors", "_core.options"},
    "_core.retry": {"_core.errors", "_core.options"},
    "_core.deadline": {"_core.errors", "_core.options"},
    "_core.observers": {"_core.options", "_core.request", "_core.response"},
    # Network code shared by the async and the blocking side.
    "_http.sockets": set(),
    "_http.queues": {"_http.sockets"},
    "_http.slots": {"_core.compat", "_http.sockets"},
    "_http.resolver": {"_http.sockets"},
    "_http.framing": set(),
    "_http.libraries": set(),
    "_http.callers": set(),
    "_http.logs": set(),
    "_http.no_proxy": set(),
    "_http.proxies": {"_core.endpoint", "_core.errors", "_http.no_proxy"},
    "_http.clients": {
        *("_core.deadline", "_core.errors", "_core.options", "_core.request", "_core.response"),
        "_http.logs",
    },
    "_http.tracebacks": set(),
    "_http.translate": {"_core.deadline", "_core.errors", "_http.clients", "_http.sockets"},
    # The async side. Only the first three modules wait. A call passes through it from the bottom.
    "_async.concurrency": {"_http.resolver", "_http.slots", "_http.sockets"},
    "_async.iterators": {"_async.concurrency", "_http.sockets"},
    "_async.socket_reader": {"_async.concurrency", "_http.sockets"},
    "_async.network": {
        *("_async.concurrency", "_async.socket_reader"),
        *("_core.deadline", "_http.framing", "_http.proxies", "_http.sockets"),
    },
    "_async.connection": {
        *("_async.concurrency", "_async.network", "_core.compat", "_core.deadline"),
        *("_http.framing", "_http.proxies", "_http.sockets"),
    },
    "_async.upgrade": {"_async.connection", "_http.libraries", "_http.sockets"},
    "_async.pool": {
        *("_async.concurrency", "_async.connection", "_async.iterators", "_async.upgrade"),
        *("_core.compat", "_core.deadline", "_http.clients", "_http.framing", "_http.libraries"),
        *("_http.proxies", "_http.slots", "_http.sockets", "_http.translate"),
    },
    "_async.transport": {"_async.pool", "_core.options", "_http.clients", "_http.proxies"},
    "_async.session": {
        *("_async.concurrency", "_async.iterators", "_async.pool", "_async.transport"),
        *("_core.deadline", "_core.options", "_core.request", "_core.response"),
        *("_http.clients", "_http.framing", "_http.logs", "_http.proxies", "_http.sockets"),
    },
    "_async.stream": {
        *("_async.session", "_core.compat", "_core.errors", "_core.observers"),
        *("_core.options", "_core.request"),
        *("_core.response", "_core.retry"),
        *("_http.callers", "_http.sockets", "_http.tracebacks", "_http.translate"),
    },
    "_async.client": {
        *("_async.session", "_async.stream", "_core.compat"),
        *("_core.errors", "_core.messages", "_core.options", "_core.request", "_core.response"),
        *("_core.retry", "_core.secrets", "_http.clients", "_http.proxies"),
    },
}

# The blocking side, generated.
MODULES |= {
    name.replace("_async", "_sync"): {need.replace("_async", "_sync") for need in needs}
    for name, needs in MODULES.items()
    if name.startswith("_async.")
}

# A handwritten module with fewer imports.
MODULES["_sync.iterators"] = {"_sync.concurrency"}
MODULES["_sync.concurrency"] = MODULES["_async.concurrency"] | {"_http.queues"}

# The public names.
MODULES["__init__"] = {
    *("_async.client", "_async.stream", "_async.transport"),
    *("_core.errors", "_core.messages", "_core.options", "_core.response"),
    *("_sync.client", "_sync.stream", "_sync.transport", "_version"),
}

CORE = [name for name in MODULES if name.startswith("_core.") and name != "_core.compat"]

# The modules of the standard library that the core may import, which do no I/O and have no clock.
# `os` is only for `os.environ`, `sys` for the version in the user agent.
CORE_STDLIB = {
    *("base64", "bisect", "codecs", "collections.abc", "contextlib", "dataclasses", "datetime"),
    *("email.utils", "enum"),
    *("functools", "hashlib", "http", "io", "ipaddress", "itertools", "json", "json.encoder"),
    *("math", "operator", "os"),
    *("random", "re", "sys", "typing", "urllib.parse"),
}

# Modules that the core must not import: I/O, clocks, threads, HTTP clients.
NOT_IN_CORE = {
    *("socket", "ssl", "select", "selectors", "subprocess", "asyncio", "threading", "time"),
    *("http.client", "urllib.request", "multiprocessing", "concurrent", "queue", "signal"),
    *("httpx", "httpx2", "httpcore", "h11", "anyio", "trio", "sniffio", "requests", "certifi"),
}

# The modules that may import each third-party package.
THIRD_PARTY: dict[str, set[str]] = {
    "httpx": {
        *("_http.clients", "_http.proxies"),
        *("_async.client", "_async.session", "_async.transport"),
        *("_sync.client", "_sync.session", "_sync.transport"),
    },
    "httpx2": {"_http.clients", "_async.transport", "_sync.transport"},
    "httpcore": {
        *("_http.framing", "_http.libraries", "_http.proxies"),
        *("_async.connection", "_async.network", "_async.pool", "_async.upgrade"),
        *("_sync.connection", "_sync.network", "_sync.pool", "_sync.upgrade"),
    },
    "h11": {
        *("_http.framing", "_async.connection", "_async.pool"),
        *("_sync.connection", "_sync.pool"),
    },
    "anyio": {"_async.concurrency", "_async.iterators"},
    "typing_extensions": {"_core.compat"},
}

# Packages that the clients do not import, and the folders that they may import, besides the public
# names. Most of them require extras.
OTHERS: dict[str, set[str]] = {
    "__main__": {"cli"},
    "bulk": {"_core", "_http"},
    "cli": {"_core", "bulk", "server"},
    "integrations": {"_core"},
    "server": {"_async", "_core", "_http"},
    "testing": {"_core", "server"},
}

# Only these may import a specific event loop.
LOOPS_ALLOWED = {"bulk", "cli", "server", "testing"}


def read(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def imports(tree: ast.AST, folder: str = "") -> set[str]:
    """Return all modules that a file imports. `folder` is the package of relative imports."""
    found: set[str] = set()
    prefix = f"cromicle_sdk.{folder}".rstrip(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "an import from another folder is absolute"
            module = f"{prefix}.{node.module or ''}".rstrip(".") if node.level else node.module
            names = {f"{module}.{alias.name}" for alias in node.names}
            is_folder = (
                module == prefix or (PACKAGE.parent / str(module).replace(".", "/")).is_dir()
            )
            found |= names if is_folder else {str(module)}
    return found - {"__future__"}


def own(module: str) -> set[str]:
    folder = module.rpartition(".")[0]
    return {
        name.removeprefix("cromicle_sdk.")
        for name in imports(read(module), folder)
        if name.startswith("cromicle_sdk.")
    }


def third_party(module: str) -> set[str]:
    return {name for name in imports(read(module)) if not name.startswith("cromicle_sdk")}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_the_modules_of_the_table(module: str) -> None:
    assert own(module) == MODULES[module]


def test_the_table_has_every_module() -> None:
    found = {
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        for path in PACKAGE.rglob("*.py")
    }
    ours = {name for name in found if name.partition(".")[0] not in OTHERS}
    assert {name.partition(".")[0] for name in found - ours} == set(OTHERS)
    assert {name for name in ours if not name.endswith(".__init__")} == set(MODULES)


@pytest.mark.parametrize("package", OTHERS)
def test_another_package_imports_the_folders_of_the_table(package: str) -> None:
    folder = PACKAGE / package
    importing = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    found: set[str] = set()
    for path in importing:
        inside = ".".join(path.relative_to(PACKAGE).parts[:-1])
        for name in imports(ast.parse(path.read_text("utf-8")), inside):
            top, _, rest = name.partition(".")
            # The public names are those of the package itself.
            if top == "cromicle_sdk" and (PACKAGE / rest.partition(".")[0]).is_dir():
                found.add(rest.partition(".")[0])
    assert found - {"", package} == OTHERS[package]


def test_there_is_no_cycle() -> None:
    done: set[str] = set()
    for module, needs in MODULES.items():
        assert needs <= done, module
        done.add(module)


@pytest.mark.parametrize("module", CORE)
def test_the_core_does_no_io_and_knows_no_clock(module: str) -> None:
    assert third_party(module) <= CORE_STDLIB
    for name in third_party(module):
        assert not {name, name.partition(".")[0]} & NOT_IN_CORE
        assert name.partition(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("module", CORE)
def test_the_core_calls_nothing_that_waits_or_tells_the_time(module: str) -> None:
    methods = {node.attr for node in ast.walk(read(module)) if isinstance(node, ast.Attribute)}
    names = {node.id for node in ast.walk(read(module)) if isinstance(node, ast.Name)}
    assert not methods & {"open", "now", "utcnow", "today", "sleep", "monotonic"}
    assert not names & {"open", "print", "input"}
    if "os" in third_party(module):
        used = {
            node.attr
            for node in ast.walk(read(module))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        }
        assert used == {"environ"}


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_only_these_modules_import_a_third_party_package(name: str) -> None:
    importing = {
        module
        for module in MODULES
        if name in {other.partition(".")[0] for other in third_party(module)}
    }
    assert importing == THIRD_PARTY[name]


def test_no_other_package_is_imported() -> None:
    for module in MODULES:
        for name in {other.partition(".")[0] for other in third_party(module)}:
            assert name in sys.stdlib_module_names or name in THIRD_PARTY, (module, name)


def test_no_specific_event_loop_is_imported() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in LOOPS_ALLOWED:
            tree = ast.parse(path.read_text("utf-8"))
            folder = ".".join(path.relative_to(PACKAGE).parts[:-1])
            tops = {name.partition(".")[0] for name in imports(tree, folder)}
            assert not tops & {"asyncio", "trio", "uvloop"}, path


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_only_definitions(module: str) -> None:
    allowed = (
        *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
        *(ast.Assign, ast.AnnAssign),
    )
    for statement in read(module).body:
        if isinstance(statement, ast.If):
            test = ast.unparse(statement.test)
            assert test == "TYPE_CHECKING" or test.startswith("sys.version_info")
        elif isinstance(statement, ast.Expr):
            assert isinstance(statement.value, ast.Constant)  # a docstring
        else:
            assert isinstance(statement, allowed), ast.unparse(statement)


# The import in a new interpreter. The dependencies are imported first, so that their own imports,
# including optional ones such as rich and trio, do not count.
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
    assert {name.partition(".")[2] for name in modules} - {""} - set(MODULES) == {
        name.partition(".")[2] for name in others
    }


def test_no_optional_package_is_imported(probed: tuple[set[str], list[list[str]], int]) -> None:
    modules, _, _ = probed
    tops = {name.partition(".")[0] for name in modules}
    assert not tops & {"starlette", "uvicorn", "click", "rich", "httpx2", "opentelemetry"}
    assert not tops & {"socksio", "trio"}


def test_the_import_does_no_io(probed: tuple[set[str], list[list[str]], int]) -> None:
    _, events, threads = probed
    assert events == []
    assert threads == 0
