"""A real browser for the tests of the page: Debian's Chromium, driven by Playwright.

`.ci/run` installs it. Where it is missing, its tests are skipped; in CI that is an error.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Generator
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["INSECURE_HOST", "launch"]

# A name of this machine that a browser takes for that of another one: it has no `crypto.subtle`.
INSECURE_HOST = "chat.example"

_COMMANDS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_OPTIONS = (
    # Its sandbox needs privileges that containers and root do not have. The pages are our own.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    f"--host-resolver-rules=MAP {INSECURE_HOST} 127.0.0.1",
)


@contextlib.contextmanager
def launch() -> Generator[Browser]:
    """A headless browser; skips the test where there is none, unless `$CI` is set."""
    command = next(filter(None, map(shutil.which, _COMMANDS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _give_up('Playwright is not installed: pip install ".[dev]"')
    if command is None:
        _give_up(f"none of {', '.join(_COMMANDS)} is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=command, args=_OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
