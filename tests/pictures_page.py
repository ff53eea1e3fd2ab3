"""The pictures of the page in README: `python tests/pictures_page.py` writes them anew.

It serves the page with a scripted reply, asks for it in a real browser, and takes a screenshot.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

from browsers import launch

from cromicle_sdk.server import LocalServer

__all__ = ["IMAGES", "take_pictures"]

IMAGES = Path(__file__).parents[1] / "cromicle_sdk" / "docs" / "images"

# Such pictures stay below 80 kB.
WIDTH, HEIGHT = 800, 640

QUESTION = "How do I stream a reply in Python?"
ANSWER = """\
With `cromicle_sdk`, **each chunk** is yielded as it arrives:

```python
from cromicle_sdk import Client

with Client() as client:
    for text in client.stream("Tell me a story"):
        print(text, end="", flush=True)
```

1. A reply that is cut off is an `IncompleteReplyError`, never a short reply.
2. Leaving the loop early closes the connection.
"""


async def answer(prompt: str) -> AsyncIterator[str]:
    for line in ANSWER.splitlines(keepends=True):
        yield line


def take_pictures(folder: Path) -> list[Path]:
    """Write `page-light.png` and `page-dark.png`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with LocalServer(answer, page=True, port=8000 if folder == IMAGES else 0) as server:
        with launch() as browser:
            for scheme in ("light", "dark"):
                page = browser.new_page(
                    viewport={"width": WIDTH, "height": HEIGHT},
                    color_scheme="dark" if scheme == "dark" else "light",
                )
                page.goto(server.base_url)
                page.get_by_label("Message").fill(QUESTION)
                page.get_by_label("Message").press("Enter")
                page.locator(".state").get_by_text("characters").wait_for()
                path = folder / f"page-{scheme}.png"
                page.screenshot(path=path)
                paths.append(path)
    return paths


if __name__ == "__main__":
    for written in take_pictures(Path(sys.argv[1]) if sys.argv[1:] else IMAGES):
        print(written, written.stat().st_size)
