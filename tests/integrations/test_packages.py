"""Each integration with the package that it is for, in environments that have it.

`packages` has the tests, which run in two environments: one with the newest version of each package
that its extra allows, and one with the lowest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import MODEL, NEEDS_WHEEL, run_engine
from environments import ROOT, install_with_project
from lowest_versions import find_lowest_versions
from model_servers import NEEDS_SIGNALS, Gateway, find_port, serve_gateway
from tiny_model import build_model, cut, say

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), NEEDS_SIGNALS]

FOLDER = Path(__file__).with_name("packages")
EXTRAS = "gpt4free,langchain,llama-index,llm,pydantic-ai"
MODULES = [f"cromicle_sdk/integrations/{extra.replace('-', '_')}.py" for extra in EXTRAS.split(",")]

TOOLS = ("coverage[toml]", "langchain-tests", "pytest", "pytest-timeout", "trio")

# The packages that the extras are for, by the name that the index has them under.
PACKAGES = ("g4f", "langchain-core", "llama-index-core", "llm", "pydantic-ai-slim")


@pytest.fixture(scope="session")
def newest() -> Path:
    """The commands of the environment with the newest versions, and mypy and pyright."""
    return install_with_project("packages", f"cli,server,{EXTRAS}", *TOOLS)


@pytest.fixture(scope="session")
def lowest() -> Path:
    """The commands of the environment with the lowest versions of the packages themselves.

    What these need in turn is new: their own lower bounds do not hold together.
    """
    versions = find_lowest_versions((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = [f"{package}=={versions[package]}" for package in PACKAGES]
    # The oldest langchain-tests needs a vcrpy that no newer aiohttp works with.
    return install_with_project(
        "packages-lowest", f"server,{EXTRAS}", *TOOLS, "aiohttp<3.14", *pins
    )


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """`cromicle serve` in front of llama.cpp, with a model for the prompts of LangChain's tests."""
    # The last characters of "Hello", "Hey", "hi" and "how are you". A piece is in one reply only.
    replies = {"o": "Good day to all.", "y": "Who is it?", "i": "Ahem!", "u": "Fine, thank you."}
    scripts = [say(end, *cut(text, 8)) for end, text in replies.items()]
    model = tmp_path_factory.mktemp("model") / "tiny.gguf"
    model.write_bytes(build_model(*scripts))
    folder = tmp_path_factory.mktemp("gateway")
    options = (*MODEL, "--allow-options")
    with run_engine(model, tmp_path_factory.mktemp("engine"), port=find_port()) as engine:
        with serve_gateway(engine.base_url, folder, *options) as gateway:
            yield gateway


def run(*command: str | Path, **environment: str) -> str:
    """The output of a command, in the folder of the project. Fails with it."""
    # The measurement of this run is not that of the command.
    inherited = {name: value for name, value in os.environ.items() if "COV" not in name}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1000,
    )
    if done.returncode != 0:
        pytest.fail(done.stdout, pytrace=False)
    return done.stdout


def test_the_newest_versions_cover_every_branch(newest: Path, tmp_path: Path) -> None:
    data = f"--data-file={tmp_path / 'coverage'}"
    coverage = newest / "coverage"
    # The settings of the project leave these modules out.
    run(coverage, "run", data, "--omit=tests/*", "-m", "pytest", "--quiet", FOLDER)
    run(coverage, "report", data, f"--include={','.join(MODULES)}", "--fail-under=100")


def test_the_lowest_versions(lowest: Path) -> None:
    run(lowest / "python", "-m", "pytest", "--quiet", FOLDER)


@NEEDS_WHEEL
@pytest.mark.parametrize("versions", ["newest", "lowest"])
def test_the_suite_of_langchain_passes_with_an_engine(
    versions: str, gateway: Gateway, request: pytest.FixtureRequest
) -> None:
    python = request.getfixturevalue(versions) / "python"
    command = (python, "-m", "pytest", "--quiet", FOLDER / "test_langchain.py", "-k", "Gateway")
    output = run(*command, CROMICLE_TEST_GATEWAY=gateway.base_url)
    assert "passed" in output
    assert gateway.count_calls(200) >= 10


def test_the_types_are_right_where_the_packages_are(newest: Path) -> None:
    python = newest / "python"
    run(sys.executable, "-m", "mypy", f"--python-executable={python}", *MODULES)
    run(sys.executable, "-m", "pyright", "-p", FOLDER, "--pythonpath", python)
