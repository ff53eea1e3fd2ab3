"""The example for Ray of the documentation, on one node, in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import find_blocks
from environments import ROOT, install

from cromicle_sdk.server import LocalServer


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform == "win32", reason="install() knows the layout of others")
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Ray has no wheel for it")
def test_the_example_of_the_documentation(echo: LocalServer, tmp_path: Path) -> None:
    (block,) = (block for _, block in find_blocks("python") if "import ray" in block)
    script = tmp_path / "script.py"
    script.write_text(block, "utf-8")
    python = install("ray", "ray[data]>=2.50,<3", "httpx>=0.28.1", "anyio>=4.10") / "python"
    done = subprocess.run(
        [python, str(script)],
        env={
            **os.environ,
            "CROMICLE_BASE_URL": echo.base_url,
            # Of the driver and, since Ray passes it on, of the workers.
            "PYTHONPATH": str(ROOT),
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
