"""The recipes of docs/relaying.md as files, and environments in which they run."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from environments import ROOT, install

import cromicle_sdk

__all__ = [
    "ROOT",
    "build_environment",
    "install_chat_apps",
    "install_frameworks",
    "run_script",
    "write_recipes",
]

_PAGE = Path(cromicle_sdk.__file__).parent / "docs" / "relaying.md"
_RECIPE = re.compile(r"^```py\n# (\w+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# The dependencies of this package.
_OWN = ("httpx>=0.28.1,<1", "anyio>=4.10,<5")


def install_frameworks() -> Path:
    """Install the server frameworks, and return the folder of the commands."""
    frameworks = ("fastapi", "uvicorn", "django", "flask", "quart-trio", "hypercorn[trio]")
    return install("frameworks", *_OWN, *frameworks, "gunicorn", "celery", "nbclient", "ipykernel")


def install_chat_apps() -> Path:
    """Install the frameworks for chats in a browser, and return the folder of the commands."""
    return install("chat-apps", *_OWN, "streamlit", "gradio")


def write_recipes(folder: Path) -> dict[str, str]:
    """Write each recipe to a file, and return the recipes by name."""
    recipes = dict(_RECIPE.findall(_PAGE.read_text(encoding="utf-8")))
    for name, text in recipes.items():
        (folder / name).write_text(text, encoding="utf-8")
    return recipes


def build_environment(folder: Path, base_url: str) -> dict[str, str]:
    """Return the environment variables of a process that runs a recipe."""
    return {
        "CROMICLE_BASE_URL": base_url,
        "CROMICLE_TOKEN": "abc",
        "HOME": str(folder),
        "NO_PROXY": "*",
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
    }


def run_script(commands: Path, script: str, folder: Path, base_url: str) -> list[str]:
    """Run a script in the folder of the recipes, and return the lines that it prints."""
    done = subprocess.run(
        [str(commands / "python"), "-c", script],
        capture_output=True,
        encoding="utf-8",
        env=build_environment(folder, base_url),
        cwd=folder,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
