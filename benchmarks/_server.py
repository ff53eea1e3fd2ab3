"""The server of all rivals: raw bytes on asyncio, in a process of its own.

The path of a request says what it answers: `/{tokens}/{size}/{gap}/…`, so many tokens of so many
characters, so many milliseconds apart (0: all in one write). Its end says in which protocol:
`chat` is Cromicle's, `v1/chat/completions` OpenAI's, `api/chat` Ollama's. A token is one HTTP
chunk in each.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from ._measure import allow_many_files

__all__ = ["TOKEN", "Plan", "serve_apart"]

# A token as models have them, and without hexadecimal digits: the raw socket tells it by that
# from the sizes of the chunks.
TOKEN = " story"  # noqa: S105 - a word of a text, no secret

_LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)
_MODEL = "benchmark"


@dataclass(frozen=True)
class Plan:
    """One reply: how many tokens, of how many characters, how many milliseconds apart."""

    tokens: int
    size: int = len(TOKEN)
    gap: int = 0

    @property
    def path(self) -> str:
        return f"/{self.tokens}/{self.size}/{self.gap}"

    @property
    def characters(self) -> int:
        return self.tokens * self.size


@contextmanager
def serve_apart() -> Iterator[str]:
    """A server process for the length of the block; its base URL."""
    command = [sys.executable, "-m", __name__]
    root = Path(__file__).parents[1]
    with subprocess.Popen(  # noqa: S603 - this file, in this interpreter
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None, "it was asked for above"
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one in all but its bases.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(self._buffer, 0, head_end)
        end = head_end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) >= end:
            path = bytes(self._buffer[:head_end].split(b" ", 2)[1])
            del self._buffer[:end]
            gap, pieces = _build_answer(path)
            if gap:
                self._write_next(pieces, 0, gap, asyncio.get_running_loop().time())
            else:
                self._transport.write(pieces[0])

    def _write_next(self, pieces: list[bytes], place: int, gap: float, due: float) -> None:
        self._transport.write(pieces[place])
        if place + 1 < len(pieces):
            self._timer = asyncio.get_running_loop().call_at(
                due + gap, self._write_next, pieces, place + 1, gap, due + gap
            )


@lru_cache(maxsize=32)
def _build_answer(path: bytes) -> tuple[float, list[bytes]]:
    """The seconds between two writes, and what is written: one piece where there are none."""
    _, tokens, size, gap, protocol = path.decode().split("/", 4)
    content_type, frame, end = _PROTOCOLS[protocol]
    text = (TOKEN * (int(size) // len(TOKEN) + 1))[: int(size)]
    chunk = _chunk(frame(text))
    pieces = [chunk] * int(tokens)
    pieces[0] = (
        b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % content_type
        + chunk
    )
    pieces[-1] += (_chunk(end) if end else b"") + b"0\r\n\r\n"
    return (int(gap) / 1000, pieces) if int(gap) else (0.0, [b"".join(pieces)])


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _frame_openai(text: str) -> bytes:
    event = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": _MODEL,
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }
    return f"data: {json.dumps(event)}\n\n".encode()


def _frame_ollama(text: str, *, is_last: bool = False) -> bytes:
    part = {
        "model": _MODEL,
        "created_at": "2026-01-01T00:00:00Z",
        "message": {"role": "assistant", "content": text},
        "done": is_last,
    }
    return json.dumps(part).encode() + b"\n"


_PROTOCOLS: dict[str, tuple[bytes, Callable[[str], bytes], bytes]] = {
    "chat": (b"text/plain; charset=utf-8", str.encode, b""),
    "v1/chat/completions": (b"text/event-stream", _frame_openai, b"data: [DONE]\n\n"),
    "api/chat": (b"application/x-ndjson", _frame_ollama, _frame_ollama("", is_last=True)),
}


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # Its standard input ends when the process that started it does.
    await loop.run_in_executor(None, sys.stdin.read)


def _main() -> None:
    allow_many_files()
    if find_spec("uvloop") is not None:
        # The lighter the server, the more of what is measured is the client.
        import uvloop

        uvloop.install()
    asyncio.run(_serve())


if __name__ == "__main__":
    _main()
