"""Generate the modules of `cromicle_sdk/_sync` from those of `cromicle_sdk/_async`.

`python tests/unasync.py` writes them. With `--check`, it writes nothing, prints the files that
differ, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["HANDWRITTEN", "PACKAGE", "RULES", "find_differences", "generate", "main"]

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cromicle_sdk"

# Not generated: these modules are written by hand for each side.
HANDWRITTEN = {"__init__.py", "concurrency.py", "iterators.py", "socket_reader.py"}

# Regular expressions and their replacements, applied in this order. First the phrases that describe
# only one side, which are matched literally.
RULES = [
    (re.escape(phrase), replacement)
    for phrase, replacement in (
        (
            '"""The client for asyncio and trio:',
            '"""The blocking client:',
        ),
        (
            '"""A client for one chat endpoint, for asyncio (uvloop included) and trio.',
            '"""A client for one chat endpoint, for blocking code.',
        ),
        (
            "Tasks can share a client. After a fork, or on another event loop, it",
            "Threads can share a client. After a fork, it",
        ),
        ("an asynchronous iterator of", "an iterator of"),
        ("If another task or thread is reading", "If another thread is reading"),
        ("while one task waits for", "while one thread waits for"),
        ("another task reads it", "another thread reads it"),
        ("let other tasks run", "let other threads run"),
        ("by another task ends both", "by another thread ends both"),
        ("The event loop closes an iterator", "Python closes an iterator"),
        ("requests in flight, for each event loop; further", "requests in flight; further"),
        (
            "A transport can be used on several event loops, and after a fork.",
            "A transport can be shared by threads, and used after a fork.",
        ),
        ("for each event loop and forked process", "for each process"),
        ("the pool of the running event loop.", "the pool of this process."),
        ("that a fork or an ended event loop has left", "that a fork has left"),
        ("The connections of one event loop:", "The connections of one process:"),
    )
]
# Then the names and keywords.
RULES += [
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\ba(close|iter|next)\b", r"\1"),
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    (r"_loop_pool(s?)\b", r"_process_pool\1"),
    (r"\bAwaitable\[([\w |]+)\]", r"\1"),
    (r"\b(httpx2?)\.Async(Client|HTTPTransport)\b", r"\1.\2"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\bhandle_async_request\b", "handle_request"),
    (r"(?<![A-Za-z])(_?)Async(?=[A-Z])", r"\1"),
    (r"\bLoopPool\b", "ProcessPool"),
]


def generate(
    package: Path = PACKAGE, rules: Sequence[tuple[str, str]] = tuple(RULES)
) -> dict[Path, str]:
    """Return the path and text of each generated module.

    Raises `ValueError` for a rule that matches nothing in any of the sources, because it is
    outdated or wrong.
    """
    counts = dict.fromkeys((pattern for pattern, _ in rules), 0)
    generated: dict[Path, str] = {}
    for source in _find_modules(package / "_async"):
        text = source.read_text(encoding="utf-8")
        for pattern, replacement in rules:
            text, count = re.subn(pattern, replacement, text)
            counts[pattern] += count
        header = f"# Generated from _async/{source.name} by tests/unasync.py; do not edit.\n"
        generated[package / "_sync" / source.name] = _format(header + text)
    if unused := [pattern for pattern, count in counts.items() if not count]:
        raise ValueError(f"these rules match nothing: {', '.join(unused)}")
    return generated


def find_differences(generated: dict[Path, str], package: Path = PACKAGE) -> list[Path]:
    """Return the files of `_sync` that differ, are missing, or no longer have a source."""
    present = {path: path.read_text(encoding="utf-8") for path in _find_modules(package / "_sync")}
    return sorted(
        path for path in {*generated, *present} if generated.get(path) != present.get(path)
    )


def main(arguments: Sequence[str] | None = None, package: Path = PACKAGE) -> int:
    """Write or check the generated modules. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only print the files that differ")
    options = parser.parse_args(arguments)
    generated = generate(package)
    differences = find_differences(generated, package)
    for path in differences:
        if options.check:
            print(f"{path.relative_to(package.parent)} differs: run python tests/unasync.py")
        elif path in generated:
            path.write_text(generated[path], encoding="utf-8")
        else:
            path.unlink()
    return 1 if options.check and differences else 0


def _find_modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if path.name not in HANDWRITTEN)


def _format(source: str) -> str:
    """Format a module, and remove unused imports: names have become shorter, or unused."""
    config = str(ROOT / "pyproject.toml")
    for command in (["check", "--select", "F401,I,RUF022", "--fix"], ["format"]):
        source = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--quiet", "--config", config, "-"],
            input=source,
            capture_output=True,
            check=True,
            encoding="utf-8",
        ).stdout
    return source


if __name__ == "__main__":
    sys.exit(main())
