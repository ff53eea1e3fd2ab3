"""The recipes of docs/relaying.md as files, and environments with only what the page names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from documents import Block, list_blocks
from environments import install_only

__all__ = ["build_environment", "install_for", "run_script", "write_recipes"]


def _list_recipes() -> dict[str, Block]:
    """Return the recipes by the names of their files, which are in their first lines."""
    return {block.text.split()[1]: block for block in list_blocks("py")}


def install_for(recipe: str) -> Path:
    """Install what the page names for a recipe, and return the folder of the commands."""
    return install_only(_list_recipes()[recipe].requirements)


def write_recipes(folder: Path) -> set[str]:
    """Write each recipe to a file, and return their names."""
    recipes = _list_recipes()
    for name, block in recipes.items():
        (folder / name).write_text(block.text, encoding="utf-8")
    return set(recipes)


def build_environment(folder: Path, base_url: str) -> dict[str, str]:
    """Return the environment variables of a process that runs a recipe."""
    return {
        "CROMICLE_BASE_URL": base_url,
        "CROMICLE_TOKEN": "abc",
        "HOME": str(folder),
        "NO_PROXY": "*",
        "PATH": os.environ["PATH"],
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
