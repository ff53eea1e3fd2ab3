"""The blocks of the pages that need one of the packages run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Endpoint
from documents import find_blocks, needs_packages

SCRIPTS = [
    pytest.param(block, id=name) for name, block in find_blocks("python") if needs_packages(block)
]
COMMANDS = [block for _, block in find_blocks("sh") if re.search("^llm ", block, re.MULTILINE)]


@pytest.mark.parametrize("block", SCRIPTS)
def test_a_python_block_runs(
    block: str, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block, "works-with.md", "exec"), namespace)
    assert capsys.readouterr().out
    assert endpoint.prompts


def test_the_command_lines_of_llm_run(endpoint: Endpoint) -> None:
    (block,) = COMMANDS
    commands = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euc", block],
        env={**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    first, second, third, *_ = (line.strip() for line in done.stdout.splitlines() if line.strip())
    assert (first, second, third) == ("Hello, how are you?", "And yourself?", "Tell me a story")


def test_there_is_a_block_for_each_package() -> None:
    text = "".join(block for _, block in find_blocks("python") if needs_packages(block))
    for module in ("gpt4free", "langchain", "llama_index", "pydantic_ai"):
        assert f"from cromicle_sdk.integrations.{module} import" in text
    assert "llm.get_model" in text
