"""The server of all benchmarks: raw bytes on asyncio, in its own process.

The path of a request defines the reply, as `/{tokens}/{size}/{gap}/{protocol}`:

- `tokens` is the number of tokens, each of which is one HTTP chunk. 0 means that the reply never
  ends, and is sent as fast as the client reads.
- `size` is the number of characters of a token.
- `gap` is the time between two tokens, in milliseconds. 0 means that all of them are sent in one
  write.
- `protocol` is `chat` for Cromicle's, `v1/chat/completions` for OpenAI's, or `api/chat` for
  Ollama's. `dashes/chat` is Cromicle's with tokens that begin with a dash.
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

from .measure import allow_many_files

__all__ = ["TOKEN", "ReplySpec", "run_server"]

# A typical token without hexadecimal digits, by which the raw socket distinguishes text from chunk
# sizes.
TOKEN = " story"  # noqa: S105 - a word, not a secret

_LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)
_MODEL = "benchmark"


@dataclass(frozen=True)
class ReplySpec:
    """One reply: the number of tokens, their size in characters, and the gap in milliseconds.

    With `dashes`, each token begins with a dash, so that a `str` takes two bytes per character.
    """

    tokens: int
    size: int = len(TOKEN)
    gap: int = 0
    dashes: bool = False

    @property
    def path(self) -> str:
        return f"/{self.tokens}/{self.size}/{self.gap}{'/dashes' if self.dashes else ''}"

    @property
    def characters(self) -> int:
        return self.tokens * self.size


@contextmanager
def run_server() -> Iterator[str]:
    """Run the server in its own process, and yield its base URL."""
    command = [sys.executable, "-m", __name__]
    root = Path(__file__).parents[1]
    with subprocess.Popen(  # noqa: S603 - this file, in this interpreter
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None, "it is a pipe"
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._endless = b""
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has all methods of an asyncio.Transport, but not its base class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._endless = b""
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._write_endlessly()

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
            response = _build_response(path)
            if response.endless:
                self._endless = response.endless
                self._transport.write(response.writes[0])
                self._write_endlessly()
            else:
                self._write_next(response, 0, asyncio.get_running_loop().time())

    def _write_next(self, response: _Response, index: int, due: float) -> None:
        self._transport.write(response.writes[index])
        if index + 1 < len(response.writes):
            due += response.gap
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(due, self._write_next, response, index + 1, due)

    def _write_endlessly(self) -> None:
        # A closed transport never pauses.
        while self._endless and not (self._is_paused or self._transport.is_closing()):
            self._transport.write(self._endless)


@dataclass(frozen=True)
class _Response:
    """The bytes of each write, `gap` seconds apart, and the bytes that repeat after them."""

    writes: list[bytes]
    gap: float = 0.0
    endless: bytes = b""


@lru_cache(maxsize=32)
def _build_response(path: bytes) -> _Response:
    _, tokens, size, gap, protocol = path.decode().split("/", 4)
    if protocol == "v1/models":
        models = json.dumps({"data": [{"id": _MODEL}]}).encode()
        return _Response(
            [b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(models), models)]
        )
    content_type, frame, end = _PROTOCOLS[protocol]
    text = (TOKEN * (int(size) // len(TOKEN) + 1))[: int(size)]
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % content_type
    )
    chunk = _chunk(frame(text))
    if tokens == "0":
        return _Response([head], endless=chunk)
    writes = [chunk] * int(tokens)
    writes[0] = head + chunk
    writes[-1] += (_chunk(end) if end else b"") + b"0\r\n\r\n"
    return _Response(writes, int(gap) / 1000) if int(gap) else _Response([b"".join(writes)])


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _frame_dashes(text: str) -> bytes:
    return f"\N{EM DASH}{text[1:]}".encode()


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
    "dashes/chat": (b"text/plain; charset=utf-8", _frame_dashes, b""),
    "v1/chat/completions": (b"text/event-stream", _frame_openai, b"data: [DONE]\n\n"),
    "api/chat": (b"application/x-ndjson", _frame_ollama, _frame_ollama("", is_last=True)),
}


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # Standard input ends when the parent process ends.
    await loop.run_in_executor(None, sys.stdin.read)


def _main() -> None:
    allow_many_files()
    if find_spec("uvloop") is not None:
        # A faster server increases the share of the client in the wall time.
        import uvloop

        uvloop.install()
    asyncio.run(_serve())


if __name__ == "__main__":
    _main()
