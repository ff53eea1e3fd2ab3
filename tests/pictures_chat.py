"""Draw the picture of `cromicle chat` in the documentation: `python tests/pictures_chat.py`.

It runs `cromicle chat` on a pseudo terminal with a scripted reply, and draws the screen of a
terminal emulator. With `--check`, it only compares the picture.
"""

from __future__ import annotations

import html
import io
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text
from screens import Process, isolate

import cromicle_sdk
from cromicle_sdk.testing import FaultyServer

__all__ = ["PICTURE", "draw_chat", "read_text"]

PICTURE = Path(cromicle_sdk.__file__).parent / "docs" / "images" / "chat.svg"

WIDTH, HEIGHT = 76, 28

ANSWER = """\
**Euclid** divides until nothing is left:

```python
def gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a
```

1. Divide `a` by `b`, and take the *remainder*.
2. Go on with `b` and the remainder until that is 0.

| a | b | remainder |
|--:|--:|--:|
| 18 | 12 | 6 |
| 12 | 6 | 0 |
"""

# Texts that differ between runs, and the text in the picture.
FIGURES = "first text 0.4 s · 1.9 s · 163 characters/s · 2 attempts"
_FIGURES = re.compile(r"first text .* attempts")
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
# The emulator does not support this style.
_DIM = re.compile(r"(Chat with|retrying|first text|  /) ?.*")


def draw_chat() -> str:
    """Draw the picture as SVG."""
    chunks = [ANSWER[start : start + 4] for start in range(0, len(ANSWER), 4)]
    with FaultyServer() as server, tempfile.TemporaryDirectory() as folder:
        server.fail(503, retry_after=0).reply(chunks=chunks)
        with Process(
            *("chat", "--base-url", server.base_url),
            columns=WIDTH,
            lines=HEIGHT,
            environment=isolate(Path(folder)),
        ) as chat:
            chat.wait_for_prompt()
            chat.type("How do I find the greatest common divisor?\r")
            chat.wait_for(" attempts")
            chat.wait_for_prompt()
            lines = chat.screen.styled
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(_settle(line), no_wrap=True, overflow="crop")
    return console.export_svg(title="cromicle chat", unique_id="chat")


def read_text(svg: str) -> str:
    """Return the text in a picture, because versions of rich draw it differently."""
    return "\n".join(re.findall(r"<text[^>]*>(.*?)</text>", html.unescape(svg)))


def _settle(line: Text) -> Text:
    plain = _FIGURES.sub(FIGURES, _ADDRESS.sub("http://127.0.0.1:8000", line.plain))
    if _DIM.fullmatch(plain.rstrip()):
        return Text(plain.rstrip(), Style(dim=True))
    return line


if __name__ == "__main__":
    drawn = draw_chat()
    if "--check" not in sys.argv:
        PICTURE.write_text(drawn, encoding="utf-8")
    elif read_text(drawn) != read_text(PICTURE.read_text(encoding="utf-8")):
        sys.exit(f"{PICTURE} is outdated: run python tests/pictures_chat.py")
