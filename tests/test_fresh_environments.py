"""Each block of README and the pages runs where only what its page names is installed.

`documents.Block` defines what a page names for a block. The package itself is installed from its
wheel. tests/test_docs.py runs the Python blocks in the environment of the tests, with all runtimes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from documents import ROOT, Block, fill_in, list_blocks, write_samples
from environments import install_only
from model_servers import NEEDS_SIGNALS, find_port

from cromicle_sdk import AsyncClient
from cromicle_sdk.server import BackendRequest, LocalServer, create_openai_app

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), NEEDS_SIGNALS]

# The blocks that run elsewhere, by a text in them.
LEFT_OUT = {
    "python3 -m venv": "creates its own environment: .ci/run runs it",
    ".venv-test/bin/": "a check of this project, in its environment for tests: .ci/run runs it",
    "import ray": "takes a minute: tests/bulk/test_ray.py runs it where only `ray[data]` is",
}


def is_left_out(block: Block) -> bool:
    return any(text in block.text for text in LEFT_OUT)


# tests/integrations/frameworks runs the blocks in `py`, and the command lines of that page.
BLOCKS = sorted(
    (
        block
        for block in list_blocks("python", "sh")
        if not is_left_out(block) and not block.name.startswith("relaying")
    ),
    key=lambda block: sorted(block.requirements),
)

# The server, which runs to the end of the block; what the reader types, unless it is piped in; and
# what the reader has installed already.
PRELUDE = """
cromicle() {
  case $1 in
    serve)
      command cromicle "$@" --port "$PORT" &
      server=$!
      trap stop_server EXIT
      until (: < "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; do
        kill -0 "$server"
        sleep 0.05
      done
      ;;
    *)
      if [ -p /dev/stdin ]; then command cromicle "$@"; else command cromicle "$@" < typed; fi
      ;;
  esac
}

stop_server() {
  status=$?
  kill "$server"
  wait "$server" || [ "$?" = 143 ] || status=1
  exit "$status"
}

ollama() { :; }
pip() { :; }
"""


@dataclass(frozen=True)
class Servers:
    """What the blocks connect to."""

    endpoint: str
    # With OpenAI's API.
    model_server: str


async def echo_any(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
    """Echo the prompt of a request, whatever its options are."""
    yield prompt


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with LocalServer(echo_any, page=True, allow_options=True) as echo:
        app = create_openai_app(AsyncClient(base_url=echo.base_url), models=["llama3.2", "qwen3"])
        with LocalServer(app=app) as model_server:
            yield Servers(echo.base_url, f"{model_server.base_url}/v1")


def prepare_script(block: Block, servers: Servers, folder: Path, port: int) -> str:
    """Replace the addresses and the files that do not exist here, and what takes too long."""
    own_server = "cromicle serve" in block.text
    replacements = {
        "http://localhost:11434/v1": servers.model_server,
        "https://chat.example.com": servers.endpoint,
        "https://chat.example": servers.endpoint,
        "/etc/cromicle/tokens": str(folder / "tokens"),
        # .ci/run runs all benchmarks.
        "python -m benchmarks ": "python -m benchmarks --quick call ",
        # A script for another shell.
        'eval "$(cromicle completion zsh)"': "cromicle completion zsh",
    }
    script = fill_in(block.text, f"http://127.0.0.1:{port}" if own_server else servers.endpoint)
    for text, replacement in replacements.items():
        script = script.replace(text, replacement)
    return script


def run_block(block: Block, servers: Servers, folder: Path) -> str:
    """Run a block in an environment with its requirements, and return what it prints."""
    commands = install_only(block.requirements)
    port = find_port()
    script = prepare_script(block, servers, folder, port)
    write_samples(folder)
    (folder / "typed").write_text("Hello\n")
    (folder / "tokens").write_text("a-token-that-is-long-enough-for-this\n")
    (folder / "tokens").chmod(0o600)
    (folder / ".config" / "fish" / "completions").mkdir(parents=True)
    if block.language == "sh":
        command = ["bash", "-euo", "pipefail", "-c", PRELUDE + script]
    else:
        file = folder / ("test_block.py" if "def test_" in script else "block.py")
        file.write_text(script, encoding="utf-8")
        pytest_options = ["-m", "pytest", "-q"] if "def test_" in script else []
        command = [str(commands / "python"), *pytest_options, str(file)]
    done = subprocess.run(
        command,
        # Neither the commands nor the modules of the environment of the tests.
        env={
            "CROMICLE_BASE_URL": servers.endpoint,
            "CROMICLE_UPSTREAM_KEY": "abc",
            "HOME": str(folder),
            "NO_PROXY": "*",
            "PATH": f"{commands}:/usr/local/bin:/usr/bin:/bin",
            "PORT": str(port),
            "PYTHONUTF8": "1",
        },
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        named = ", ".join(sorted(block.requirements)) or "only the package without extras"
        pytest.fail(
            f"{done.stdout}\nThe {block.language} block {block.name} fails where what its page"
            f" names for it is installed: {named}. If a package is missing, name it above the"
            " block, in the introduction of the page or of a section around the block: the extra"
            " `NAME`, or `pip install NAME`.",
            pytrace=False,
        )
    return done.stdout


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=f"{block.name} {block.language}") for block in BLOCKS]
)
def test_a_block_requires_only_what_its_page_names(
    block: Block, servers: Servers, tmp_path: Path
) -> None:
    if "curl " in block.text and not shutil.which("curl"):
        pytest.skip("requires curl")
    if "-m benchmarks" in block.text:
        # The block runs in a clone.
        shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    printed = run_block(block, servers, tmp_path)
    if "print(" in block.text:
        assert printed


def test_the_hint_for_a_missing_extra_works_after_an_installation_from_a_clone(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    environment.pop("PYTHONPATH", None)

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euc", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    assert run(f"pip install --quiet {shlex.quote(str(ROOT))}").returncode == 0
    refused = run("cromicle --version")
    assert refused.returncode == 1
    hint = refused.stderr.strip().partition(": ")[2]
    assert hint == 'pip install "cromicle-sdk[cli]"'
    installed = run(hint)
    assert installed.returncode == 0, installed.stderr
    assert run("cromicle --version").returncode == 0


def test_every_reason_to_leave_a_block_out_applies() -> None:
    blocks = list_blocks("python", "sh")
    for text in LEFT_OUT:
        assert any(text in block.text for block in blocks), text


def test_the_environments_have_the_wheel_and_not_the_source(tmp_path: Path) -> None:
    python = install_only([]) / "python"
    code = "import cromicle_sdk; print(cromicle_sdk.__file__)"
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(python.parents[1])
