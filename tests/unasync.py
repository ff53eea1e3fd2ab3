"""The blocking half of the package is derived from the async half by a table of substitutions.

`python tests/unasync.py` writes it anew; `test_unasync.py` holds the files against the table.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "cromicle_sdk"

PAIRS = {
    f"_async/{name}.py": f"_sync/{name}.py"
    for name in ("client", "connection", "network", "pool", "session", "stream", "transport")
}

# Whole sentences first: what is said of one colour only.
SENTENCES = {
    "httpx.AsyncClient(transport=AsyncTransport(": "httpx.Client(transport=Transport(",
    "httpx.AsyncHTTPTransport": "httpx.HTTPTransport",
    "httpx.AsyncClient": "httpx.Client",
    ", for each event loop; further": "; further",
    "One transport may be used on several event loops, and after a fork.": "One transport may be "
    "shared by threads, and used after a fork.",
    "one of its own for each event loop, and for each forked process": "one of its own for each "
    "forked process",
    "The pool of the running event loop.": "The pool of this process.",
    "Close what a fork or an event loop that has ended has left behind": "Close what a fork has "
    "left behind",
    "The connections of one event loop:": "The connections of one process:",
    "AsyncLoopPool": "ProcessPool",
    "_loop_pools": "_process_pools",
    "find_loop_pool": "find_process_pool",
    "While another task or thread reads": "While another thread reads",
    "while one task waits for": "while one thread waits for",
    '"""The client for asyncio and trio: it': '"""The blocking client: it',
    '"""A client for one chat endpoint, for asyncio (uvloop included) and trio.': (
        '"""A client for one chat endpoint, for blocking code.'
    ),
    "shared by tasks. After a fork, or on another event loop, it": "shared by threads. After a "
    "fork it",
    "an asynchronous iterator of": "an iterator of",
    "# Held while one task waits for": "# Held while one thread waits for",
}

# Then words, in this order.
WORDS = {
    r"\basync (def|with|for)\b": r"\1",
    r"\bawait ": "",
    r"\ba(close|iter|next)\b": r"\1",
    r"\b__a(enter|exit|iter|next)__\b": r"__\1__",
    r"\bAsync(Iterator|Iterable)\b": r"\1",
    r"\bAwaitable\[(\w+)\]": r"\1",
    r"\bStopAsyncIteration\b": "StopIteration",
    r"\bhandle_async_request\b": "handle_request",
    r"(?<![A-Za-z])(_?)Async(?=[A-Z])": r"\1",
    r"\b_async(?=\b|_)": "_sync",
}


def derive(source: str) -> str:
    """The blocking twin of an async source."""
    for sentence, other in SENTENCES.items():
        source = source.replace(sentence, other)
    for word, other in WORDS.items():
        source = re.sub(word, other, source)
    return _tidy(source)


def _tidy(source: str) -> str:
    """Shorter names sort elsewhere, and fit in fewer lines."""
    config = str(PACKAGE.parent / "pyproject.toml")
    for command in (["check", "--select", "F401,I,RUF022", "--fix"], ["format"]):
        source = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--quiet", "--config", config, "-"],
            input=source,
            capture_output=True,
            check=True,
            encoding="utf-8",
        ).stdout
    return source


def main() -> None:
    for master, mirror in PAIRS.items():
        derived = derive((PACKAGE / master).read_text(encoding="utf-8"))
        (PACKAGE / mirror).write_text(derived, encoding="utf-8")


if __name__ == "__main__":
    main()
