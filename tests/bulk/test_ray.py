"""The example for Ray of the documentation, on one node, where only what the page names is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import list_blocks
from environments import install_only

from cromicle_sdk.server import LocalServer


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform == "win32", reason="install_only() knows the layout of others")
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Ray has no wheel for it")
def test_the_example_of_the_documentation(echo: LocalServer, tmp_path: Path) -> None:
    (block,) = (block for block in list_blocks("python") if "import ray" in block.text)
    script = tmp_path / "script.py"
    script.write_text(block.text, "utf-8")
    python = install_only(block.requirements) / "python"
    done = subprocess.run(
        [python, str(script)],
        env={
            **os.environ,
            "CROMICLE_BASE_URL": echo.base_url,
            "RAY_DEDUP_LOGS": "0",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^0 One$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^1 Two$", done.stdout, re.MULTILINE)
    assert "[{'prompt': 'One', 'reply': 'One', 'error': None}," in done.stdout
