"""A browser for the tests of the page: Debian's Chromium, driven by Playwright.

`.ci/run` installs it. If it is missing, its tests are skipped; in CI, they fail.
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

# A name of this machine that a browser regards as remote, so that `crypto.subtle` is not available.
INSECURE_HOST = "chat.example"

_COMMANDS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_OPTIONS = (
    # The sandbox needs privileges that containers and root lack. The pages are trusted.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    f"--host-resolver-rules=MAP {INSECURE_HOST} 127.0.0.1",
)


@contextlib.contextmanager
def launch() -> Generator[Browser]:
    """Yield a headless browser. Without one, skip the test, or fail it if `$CI` is set."""
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
