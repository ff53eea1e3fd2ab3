"""Take the pictures of the page in the documentation: `python tests/pictures_page.py`.

It serves the page with a scripted reply, opens it in a browser, and takes screenshots.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
from browsers import launch

import cromicle_sdk
from cromicle_sdk.server import LocalServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ViewportSize

__all__ = ["IMAGES", "take_pictures"]

IMAGES = Path(cromicle_sdk.__file__).parent / "docs" / "images"

# At this size, a picture has less than 80 kB.
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
    for word in ANSWER.split(" "):
        await anyio.sleep(0.02)
        yield word + " "


def take_pictures(browser: Browser, folder: Path, port: int = 0) -> list[Path]:
    """Write `page-light.png` and `page-dark.png`, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    paths = [folder / f"page-{scheme}.png" for scheme in schemes]
    with LocalServer(answer, page=True, port=port) as server:
        for scheme, path in zip(schemes, paths, strict=True):
            size: ViewportSize = {"width": WIDTH, "height": HEIGHT}
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.goto(server.base_url)
            page.get_by_label("Message").fill(QUESTION)
            page.get_by_label("Message").press("Enter")
            page.locator(".state").get_by_text("characters").wait_for()
            page.screenshot(path=path)
            page.close()
    return paths


if __name__ == "__main__":
    with launch() as browser:
        # The default port of `cromicle serve`, because the page shows it in its curl command.
        for written in take_pictures(browser, IMAGES, port=8000):
            print(written, written.stat().st_size)
