"""Programs that speak OpenAI's API, in an environment of their own, with the server in front."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from environments import install
from openai_apps import KEY, TOKEN, serve_openai

from cromicle_sdk.server import LocalServer
from cromicle_sdk.testing import FaultyServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEXTS = ["Grüße, ", "日本 🎉 \u2028\n", "and an end."]
TEXT = "".join(TEXTS)

LITELLM = """
import litellm

litellm.suppress_debug_info = True
options = {
    "model": "openai/any",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ],
    "temperature": 0.5,
    "num_retries": 0,
    "max_retries": 0,
}

def whole():
    completion = litellm.completion(**options)
    return completion.choices[0].message.content, completion.choices[0].finish_reason

def streamed():
    for chunk in litellm.completion(stream=True, **options):
        yield chunk.choices[0].delta.content or ""

async def streamed_async():
    async for chunk in await litellm.acompletion(stream=True, **options):
        yield chunk.choices[0].delta.content or ""
"""

LANGCHAIN = """
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="any", temperature=0.5, max_retries=0)
messages = [SystemMessage("Be brief."), HumanMessage("Hello")]

def whole():
    reply = model.invoke(messages)
    return reply.text, reply.response_metadata["finish_reason"]

def streamed():
    for chunk in model.stream(messages):
        yield chunk.text

async def streamed_async():
    async for chunk in model.astream(messages):
        yield chunk.text
"""

CALLS = """
import asyncio, json

async def join():
    return "".join([text async for text in streamed_async()])

answers = {}
try:
    answers["whole"], answers["finish_reason"] = whole()
    answers["streamed"] = "".join(streamed())
    answers["async"] = asyncio.run(join())
except Exception as error:
    answers["error"] = type(error).__name__
print(json.dumps(answers))
"""

LIBRARIES = {"litellm": LITELLM, "langchain": LANGCHAIN}


@pytest.fixture(scope="module")
def commands() -> Path:
    return install("openai-clients", "litellm>=1.80", "langchain-openai>=1", "llm>=0.27")


def run(command: list[str], server: LocalServer, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with the variables that `cromicle serve` names."""
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        timeout=120,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONUTF8": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LLM_USER_PATH": str(folder),
            "OPENAI_BASE_URL": f"{server.base_url}/v1",
            "OPENAI_API_KEY": TOKEN,
        },
    )


def run_library(commands: Path, name: str, server: LocalServer, folder: Path) -> dict[str, Any]:
    command = [str(commands / "python"), "-c", LIBRARIES[name] + CALLS]
    answers: dict[str, Any] = json.loads(run(command, server, folder).stdout.splitlines()[-1])
    return answers


def assert_requests(faults: FaultyServer) -> None:
    """Each request has both messages and the option."""
    assert len(faults.requests) == 3
    for request in faults.requests:
        assert request.token == KEY
        assert request.message == "System: Be brief.\nUser: Hello\nAssistant:"
        assert request.options == {"temperature": 0.5}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_receives_the_reply(
    commands: Path, name: str, faults: FaultyServer, tmp_path: Path
) -> None:
    faults.reply(chunks=TEXTS, finish_reason="length")
    with serve_openai(faults.base_url) as server:
        answers = run_library(commands, name, server, tmp_path)
    assert answers == {"whole": TEXT, "finish_reason": "length", "streamed": TEXT, "async": TEXT}
    assert_requests(faults)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_notices_a_stream_that_breaks_off(
    commands: Path, name: str, faults: FaultyServer, tmp_path: Path
) -> None:
    faults.reply("A whole one.").cut(after="Hello, wor")
    with serve_openai(faults.base_url) as server:
        answers = run_library(commands, name, server, tmp_path)
    assert answers["whole"] == "A whole one."
    assert "streamed" not in answers
    assert answers["error"].endswith("Error")


def run_llm(
    commands: Path, server: LocalServer, folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """The command `llm`, with a model of OpenAI's API in the file that it reads them from."""
    model = {
        "model_id": "cromicle",
        "model_name": "any",
        "api_base": f"{server.base_url}/v1",
        "api_key_name": "openai",
    }
    # JSON is YAML.
    (folder / "extra-openai-models.yaml").write_text(json.dumps([model]))
    command = [str(commands / "llm"), "-m", "cromicle", "-s", "Be brief.", "Hello"]
    return run([*command, "-o", "temperature", "0.5", *options], server, folder)


def test_llm_receives_the_reply(commands: Path, faults: FaultyServer, tmp_path: Path) -> None:
    faults.reply(chunks=TEXTS)
    with serve_openai(faults.base_url) as server:
        for options in ((), ("--no-stream",), ("--async",)):
            done = run_llm(commands, server, tmp_path, *options)
            assert (done.stderr, done.stdout) == ("", f"{TEXT}\n"), options
    assert_requests(faults)


def test_llm_notices_a_stream_that_breaks_off(
    commands: Path, faults: FaultyServer, tmp_path: Path
) -> None:
    faults.cut(after="Hello, wor")
    with serve_openai(faults.base_url) as server:
        done = run_llm(commands, server, tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("Hello, wor")
    assert "incomplete" in done.stderr
