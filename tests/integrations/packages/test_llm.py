"""The plugin of llm, by its command and its API."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import llm
import pytest
import sqlite_utils
from click.testing import CliRunner, Result
from conftest import Endpoint
from llm.cli import cli
from llm.migrations import migrate
from llm.parts import Message, ReasoningPart, TextPart, ToolCallPart

from cromicle_sdk import (
    APITimeoutError,
    AuthenticationError,
    IncompleteReplyError,
    InvalidMessageError,
)
from cromicle_sdk.integrations.llm import AsyncCromicle, Cromicle
from cromicle_sdk.testing import FaultyServer


@pytest.fixture(scope="module", autouse=True)
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new log of llm, which takes it a second or more to make."""
    path = tmp_path_factory.mktemp("llm") / "logs.db"
    database = sqlite_utils.Database(path)
    migrate(database)
    database.close()
    return path


@pytest.fixture(autouse=True)
def _own_log(database: Path, tmp_path: Path) -> None:
    shutil.copy(database, tmp_path)


def run(*arguments: str, typed: str = "", **environment: str) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(cli, arguments, input=typed, env=environment)


def ask(*arguments: str, **options: str) -> str:
    done = run(*arguments, **options)
    assert done.exit_code == 0, done.output
    return str(done.stdout.rstrip("\n "))


def call(kind: str, prompt: Any = "Hello", **options: Any) -> str:
    """The text of the reply, by one of the four ways."""
    stream = "stream" in kind
    if "async" not in kind:
        return Cromicle().prompt(prompt, stream=stream, **options).text()

    async def main() -> str:
        return await AsyncCromicle().prompt(prompt, stream=stream, **options).text()

    return asyncio.run(main())


every_kind = pytest.mark.parametrize("kind", ["stream", "whole", "async stream", "async whole"])


@pytest.mark.parametrize("form", [(), ("--async",), ("--no-stream",), ("--async", "--no-stream")])
def test_the_command_prints_the_reply(form: tuple[str, ...], endpoint: Endpoint) -> None:
    assert ask("-m", "cromicle", *form, "Hello, how are you?") == "Hello, how are you?"


def test_the_plugin_is_found_by_its_entry_point(endpoint: Endpoint) -> None:
    command = [str(Path(sys.executable).with_name("llm")), "-m", "cromicle", "Hello"]
    done = subprocess.run(
        command, input="", capture_output=True, text=True, timeout=60, check=True, env=os.environ
    )
    assert done.stdout.strip() == "Hello"


def test_a_conversation_is_sent_with_its_roles(endpoint: Endpoint) -> None:
    ask("-m", "cromicle", "-s", "Answer briefly.", "One")
    ask("-c", "Two")
    assert endpoint.messages[1] == [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "One"},
        {"role": "user", "content": "Two"},
    ]


def test_a_chat(endpoint: Endpoint) -> None:
    shown = ask("chat", "-m", "cromicle", typed="One\nTwo\nquit\n")
    assert "One" in shown
    assert [message["content"] for message in endpoint.messages[1] or ()] == ["One", "One", "Two"]


def test_options_of_the_command(endpoint: Endpoint) -> None:
    options = {"temperature": "0.5", "max_tokens": "9", "top_p": "1", "seed": "3", "stop": "x"}
    more = {"base_url": endpoint.base_url, "total": "60", "attempts": "1", "model": "llama"}
    given = [word for pair in {**options, **more}.items() for word in ("-o", *pair)]
    ask("-m", "cromicle", *given, "Hello", CROMICLE_BASE_URL="http://127.0.0.1:9")
    assert endpoint.options == [
        {
            "model": "llama",
            "temperature": 0.5,
            "max_tokens": 9,
            "top_p": 1.0,
            "seed": 3,
            "stop": "x",
        }
    ]


def test_the_key_is_the_token(faults: FaultyServer) -> None:
    ask("-m", "cromicle", "Hello")
    ask("-m", "cromicle", "Hello", CROMICLE_TOKEN="of the environment")
    ask("keys", "set", "cromicle", "--value", "stored")
    ask("-m", "cromicle", "Hello", CROMICLE_TOKEN="of the environment")
    ask("-m", "cromicle", "--key", "given", "Hello")
    tokens = [request.token for request in faults.requests]
    assert tokens == ["abc", "of the environment", "stored", "given"]


def test_a_model_with_a_key_of_its_own(faults: FaultyServer) -> None:
    model = Cromicle()
    model.key = "of the model"
    model.prompt("Hello").text()
    assert faults.requests[0].token == "of the model"
    assert "of the model" not in f"{model} {model!r}"


def test_the_log_of_llm_has_why_the_reply_ended(faults: FaultyServer) -> None:
    faults.reply("Cut shor", finish_reason="length", headers={"x-request-id": "r-1"})
    ask("-m", "cromicle", "Hello")
    (entry,) = json.loads(ask("logs", "--json"))
    assert entry["response"] == "Cut shor"
    assert entry["response_json"] == {"finish_reason": "length", "request_id": "r-1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "temprature", "1"], "temprature"),
        (["-o", "base_url", "nowhere"], "base_url: it must begin with http"),
        (["-o", "total", "-1"], "timeout.total"),
        (["-o", "attempts", "0"], "retry.attempts"),
        (["--key", " s3cret"], "token"),
        (["--schema", "name, age"], "does not support schemas"),
        (["-T", "llm_time"], "does not support tools"),
    ],
)
def test_an_invalid_option_of_the_command_is_named(
    arguments: list[str], message: str, faults: FaultyServer
) -> None:
    done = run("-m", "cromicle", *arguments, "Hello")
    assert done.exit_code == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    assert faults.requests == []


def test_an_error_of_the_endpoint_is_one_line(faults: FaultyServer) -> None:
    faults.fail(401)
    done = run("-m", "cromicle", "--key", "s3cret", "Hello")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert "401" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


@every_kind
def test_errors_are_those_of_the_client(kind: str, faults: FaultyServer) -> None:
    faults.cut(after="Hello, th").fail(401).stall(after="Hel")
    with pytest.raises(IncompleteReplyError) as caught:
        call(kind, attempts=1)
    assert caught.value.partial_text == "Hello, th"
    with pytest.raises(AuthenticationError):
        call(kind, attempts=1)
    with pytest.raises(APITimeoutError):
        call(kind, attempts=1, total=0.2)


@every_kind
def test_a_history_of_other_models(kind: str, endpoint: Endpoint) -> None:
    thought = Message(role="assistant", parts=[ReasoningPart(text="Hm."), TextPart(text="Yes?")])
    assert call(kind, messages=[thought]) == "Hello"
    assert endpoint.messages[0] == [
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Hello"},
    ]
    with pytest.raises(InvalidMessageError) as caught:
        call(kind, messages=[thought, Message(role="assistant", parts=[ToolCallPart(name="add")])])
    assert caught.value.index == 1


def test_the_model_is_listed_with_its_options(endpoint: Endpoint) -> None:
    shown = ask("models", "-q", "cromicle", "--options")
    assert "Cromicle: cromicle" in shown
    assert "async" in shown
    assert isinstance(llm.get_model("cromicle"), Cromicle)
    assert isinstance(llm.get_async_model("cromicle"), AsyncCromicle)
