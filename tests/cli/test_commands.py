"""The command in this process: options, errors with their exit codes, output."""

from __future__ import annotations

import errno
import importlib
import io
import json
import logging
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import click
import httpx
import openai
import pytest
from click.testing import CliRunner
from upstreams import answer_models, answer_texts

from cromicle_sdk import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BadRequestError,
    Client,
    ConfigurationError,
    Conversation,
    CromicleError,
    Headers,
    IncompleteReplyError,
    InvalidMessageError,
    Reply,
    ReplyTooLargeError,
    Retry,
    Timeout,
    __main__,
    __version__,
)
from cromicle_sdk._core.secrets import Secret
from cromicle_sdk.cli import commands as _commands
from cromicle_sdk.cli import main as _main
from cromicle_sdk.cli import run
from cromicle_sdk.cli import serve as _serve
from cromicle_sdk.cli.ask import format_json, format_stats
from cromicle_sdk.cli.config import Settings
from cromicle_sdk.cli.errors import describe_error
from cromicle_sdk.cli.output import RawOutput, TerminalOutput, report
from cromicle_sdk.cli.serve import Network, Service
from cromicle_sdk.cli.target import Target
from cromicle_sdk.testing import FaultyServer

Capture = pytest.CaptureFixture[bytes]


class FakeTerminal(io.TextIOWrapper):
    def __init__(self, encoding: str = "utf-8") -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding)

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> str:
        return self.bytes.getvalue().decode(self.encoding)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROMICLE_BASE_URL", raising=False)
    monkeypatch.delenv("CROMICLE_TOKEN", raising=False)
    monkeypatch.delenv("CROMICLE_UPSTREAM_KEY", raising=False)
    pipe_in(monkeypatch, b"")


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def ask(server: FaultyServer, *arguments: str) -> int:
    return run(["ask", "--base-url", server.base_url, "--retries", "0", *arguments, "Hi"])


def read_error(captured: Capture) -> str:
    """The one line on stderr; nothing stands on stdout."""
    out, err = captured.readouterr()
    assert out == b""
    line = err.decode()
    assert re.fullmatch(r"Error: .+\n", line)
    return line


# Options


def test_every_option_reaches_the_request(server: FaultyServer, capsysbinary: Capture) -> None:
    server.fail(503).fail(503).reply("Done.")
    code = run(
        [
            *("ask", "--base-url", server.base_url, "--token", "mine", "--timeout", "5"),
            *("--total", "30", "--retries", "2", "--header", "X-One: 1", "--header", "x-two:a:b"),
            *("--body", "seed=1", "--body", 'stop=["a=b", null]'),
            *("--system", "Be brief.", "--", "--why", "this?"),
        ]
    )
    assert code == 0
    assert capsysbinary.readouterr() == (b"Done.", b"")
    assert len(server.requests) == 3
    request = server.requests[-1]
    assert request.message == "System: Be brief.\nUser: --why this?\nAssistant:"
    assert request.token == "mine"
    assert (request.headers["x-one"], request.headers["x-two"]) == ("1", "a:b")
    assert request.options == {"seed": 1, "stop": ["a=b", None]}
    assert request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "--why this?"},
    ]


def test_plain_sends_the_prompt_alone(server: FaultyServer) -> None:
    assert ask(server, "--plain", "--system", "Be brief.") == 0
    (request,) = server.requests
    assert list(request.json) == ["message", "token", "hash"]
    assert request.message == "System: Be brief.\nUser: Hi\nAssistant:"


@pytest.mark.parametrize("arguments", [[], ["--system", ""], ["--plain"]])
def test_one_message_is_sent_as_by_a_plain_client(
    arguments: list[str], server: FaultyServer
) -> None:
    with Client(base_url=server.base_url) as client:
        client.chat("Hi")
    assert ask(server, *arguments) == 0
    plain, sent = server.requests
    assert sent.body == plain.body


def test_local_takes_messages_and_names_a_field_that_it_does_not_take(
    capsysbinary: Capture,
) -> None:
    assert run(["ask", "--local", "--system", "Be brief.", "Hello"]) == 0
    assert capsysbinary.readouterr().out == b"Hello"
    assert run(["ask", "--local", "--body", "seed=1", "Hello"]) == 1
    assert "'seed'" in read_error(capsysbinary)


@pytest.mark.parametrize(
    ("finish_reason", "line"),
    [
        ("length", "The reply was cut short by the model's length limit.\n"),
        ("content_filter", "The reply was cut short by a content filter.\n"),
        ("stop", ""),
        ("something_else", ""),
        (None, ""),
    ],
)
def test_an_early_end_is_one_line_on_stderr(
    finish_reason: str | None, line: str, server: FaultyServer, capsysbinary: Capture
) -> None:
    server.reply("Hello", finish_reason=finish_reason)
    assert ask(server) == 0
    assert capsysbinary.readouterr() == (b"Hello", line.encode())
    assert ask(server, "--json") == 0
    out, err = capsysbinary.readouterr()
    assert json.loads(out)["finish_reason"] == finish_reason
    assert err.decode() == line


def test_an_empty_system_text_is_ignored(server: FaultyServer) -> None:
    assert ask(server, "--system", "") == 0
    assert server.requests[0].message == "Hi"


def test_retries_0_makes_one_attempt(server: FaultyServer, capsysbinary: Capture) -> None:
    server.fail(503)
    assert run(["ask", "--base-url", server.base_url, "--retries", "0", "Hi"]) == 1
    assert len(server.requests) == 1


def test_the_retries_of_one_call_have_no_budget() -> None:
    target = Target(settings=Settings(base_url="http://127.0.0.1:1"), retries=200)
    with target.open() as client:
        assert client._options.retry == Retry(attempts=201, budget=None)


def test_json(server: FaultyServer, capsysbinary: Capture) -> None:
    server.reply(chunks=["Grüße, ", "\x1b🎉"], headers={"x-request-id": "r1"})
    assert ask(server, "--json") == 0
    out, err = capsysbinary.readouterr()
    assert err == b""
    assert out.isascii()
    assert out.count(b"\n") == 1
    found = json.loads(out)
    assert 0 < found.pop("first_text_after") <= found.pop("elapsed")
    assert 1 <= found.pop("chunks") <= 2
    assert found == {
        "text": "Grüße, \x1b🎉",
        "status_code": 200,
        "request_id": "r1",
        "finish_reason": None,
        "attempts": 1,
    }


def test_json_fails_with_nothing_on_stdout(server: FaultyServer, capsysbinary: Capture) -> None:
    server.cut(after="Hello")
    assert ask(server, "--json") == 1
    read_error(capsysbinary)


def test_stats_are_one_line_on_stderr(server: FaultyServer, capsysbinary: Capture) -> None:
    server.reply("Hello")
    assert ask(server, "--stats") == 0
    out, err = capsysbinary.readouterr()
    assert out == b"Hello"
    assert re.fullmatch(
        rb"chunks: 1, characters: 5, first text after: \d+\.\d+ s, elapsed: \d+\.\d+ s, "
        rb"attempts: 1, characters per second: \d+\n",
        err,
    )


@pytest.mark.parametrize("token", [[], ["--token", "mine"]])
def test_local_needs_no_environment(
    token: list[str], monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    monkeypatch.setenv("CROMICLE_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("CROMICLE_TOKEN", "another")
    assert run(["ask", "--local", *token, "Hello", "there"]) == 0
    assert capsysbinary.readouterr() == (b"Hello there", b"")


def test_version_and_help(capsysbinary: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsysbinary.readouterr().out == f"cromicle {__version__}\n".encode()
    for arguments in (["--help"], ["ask", "-h"], ["serve", "--help"]):
        assert run(arguments) == 0
        assert b"Usage: cromicle" in capsysbinary.readouterr().out


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["tell"], "tell"),
        (["ask", "--nonsense", "Hi"], "--nonsense"),
        (["ask"], "no text to send"),
        (["ask", " "], "no text to send"),
        (["ask", "--local", "--base-url", "http://127.0.0.1:1", "Hi"], "--local and --base-url"),
        (["ask", "--base-url", "127.0.0.1:1", "Hi"], "--base-url: it must begin with http"),
        (["ask", "--token", "", "Hi"], "--token: it is empty"),
        (["ask", "--local", "--token", "", "Hi"], "--token: it is empty"),
        (
            ["ask", "--timeout", "0", "Hi"],
            "'--timeout': '0' is not a number of seconds greater than 0",
        ),
        (["ask", "--timeout", "nan", "Hi"], "'--timeout'"),
        (["ask", "--total", "soon", "Hi"], "'--total'"),
        (["ask", "--total", "inf", "Hi"], "'--total'"),
        (["ask", "--retries", "-1", "Hi"], "'--retries'"),
        (["ask", "--header", "s3cret", "Hi"], "'--header': value 1 is not"),
        (["ask", "--header", ": s3cret", "Hi"], "'--header': value 1 is not"),
        (["ask", "--header", "A:1", "--header", "a:s3cret", "Hi"], "'--header': a is given twice"),
        (["ask", "--header", "Host: s3cret", "Hi"], "--header: Host is set by the protocol"),
        (["ask", "--header", "A: s3crét", "Hi"], "--header: the value of A"),
        (["ask", "--body", "s3cret", "Hi"], "'--body': value 1 is not"),
        (["ask", "--body", "=s3cret", "Hi"], "'--body': value 1 is not"),
        (["ask", "--body", "a=1", "--body", "a=1", "Hi"], "'--body': a is given twice"),
        (["ask", "--body", "a=s3cret", "Hi"], "'--body': the value of a is not JSON"),
        (["ask", "--body", "a=" + "[" * 100_000, "Hi"], "'--body': the value of a is not JSON"),
        (["ask", "--body", "a=", "Hi"], "'--body': the value of a is not JSON"),
        (["ask", "--body", "a=NaN", "Hi"], "--body: the field 'a' is not JSON"),
        (["ask", "--body", 'a="s3cret\udcff"', "Hi"], "--body: the field 'a' is not JSON"),
        (["ask", "--body", 'token="s3cret"', "Hi"], "--body: the protocol sets the field 'token'"),
        (["ask", "--body", "messages=[]", "Hi"], "'messages', which cannot be replaced\n"),
        (["ask", "Hi\udcff"], "TEXT contains bytes that are not UTF-8"),
        (["ask", "--system", "Hi\udcff", "Hi"], "--system: it has a lone surrogate"),
        (["serve", "--port", "65536"], "'--port'"),
        (["serve", "--delay", "-1"], "'--delay': '-1' is not a number of seconds, 0 or more"),
        (["serve", "--host", "0.0.0.0"], "your own --token"),
        (["serve", "--host", ""], ": expected a host name or an IP address"),
        (["serve", "--token", ""], "--token: it is empty"),
        (["serve", "--upstream", "http://h", "--model", ""], "--model: expected a str with at le"),
        (["serve", "--upstream", "h:1", "--model", "m"], "--upstream: it must begin with http"),
        (["serve", "--upstream", "http://s3cret@", "--model", "m"], "--upstream: it has no host"),
        (
            ["serve", "--upstream", "http://h", "--model", "m", "--upstream-key", "s3cr\n"],
            "--upstream-key: expected",
        ),
        (
            ["serve", "--upstream", "http://h", "--model", "m", "--upstream-timeout", "0"],
            "'--upstream-timeout'",
        ),
        (["serve", "--upstream", "http://h", "--model", "m", "--delay", "1"], "--delay applies"),
        (["serve", "--model", "m"], "--model requires a model server: also pass its"),
        (["serve", "--upstream-key", "s3cret"], "--upstream-key requires a model server"),
        (["serve", "--upstream-timeout", "5"], "--upstream-timeout requires a model server"),
        (["serve", "--system", "S"], "--system requires a model server"),
        (["serve", "--parse-roles"], "--parse-roles requires a model server"),
        (["serve", "--temperature", "1"], "--temperature requires a model server"),
        (["serve", "--body", "a=1"], "--body requires a model server"),
        (["serve", "--stop", "x"], "--stop requires a model server"),
        (["serve", "--allow-options"], "--allow-options requires a model server"),
        (["serve", "--upstream-header", "a:s3cret"], "--upstream-header requires a model server"),
        *(
            (["serve", "--upstream", "http://h", "--model", "m", *arguments], problem)
            for arguments, problem in [
                (["--model", "m"], "--model: 'm' is given twice"),
                (["--temperature", "hot"], "'--temperature'"),
                (["--temperature", "nan"], "--temperature: expected a number, 0 or more"),
                (["--max-tokens", "0"], "--max-tokens: expected a whole number, 1 or more"),
                (["--top-p", "1.5"], "--top-p: expected a number from 0 to 1"),
                (["--seed", "1" * 30], "--seed: expected a whole number of 64 bits"),
                (["--stop", ""], "--stop: expected a non-empty string, or a list of"),
                (["--body", "a"], "'--body': value 1 is not of the form NAME=JSON"),
                (["--body", "a=s3cret"], "'--body': the value of a is not JSON"),
                (["--body", "model=1"], "--body: the gateway sets the field 'model' itself"),
                (["--body", "stream=false"], "--body: the gateway sets the field 'stream'"),
                (["--body", "n=2"], "--body: the gateway sets the field 'n'"),
                (["--body", "a=NaN"], "--body: the field 'a' is not JSON"),
                (["--body", 'top_p="s3cret"'], "--body: the field 'top_p' must be a number"),
                (["--seed", "1", "--body", "seed=2"], "--body: the field 'seed' is given twice"),
                (["--allow-options", "seed,tools"], "--allow-options: 'tools' is not an option"),
                (
                    ["--allow-options", ""],
                    "--allow-options: '' is not an option that callers can set",
                ),
                (["--upstream-header", "s3cret"], "'--upstream-header': value 1 is not of the"),
                (["--upstream-header", "host:s3cret"], "--upstream-header: host is set by the"),
                (["--upstream-header", "a b:s3cret"], "--upstream-header: 'a b' is not a header"),
                (["--upstream-header", "a:s3cret\n\n\xe9"], "--upstream-header: the value of a"),
                (["--upstream-header", "a:1", "--upstream-header", "A:2"], "A is given twice"),
                (
                    ["--upstream-key", "s3cret", "--upstream-header", "Authorization:s3cret"],
                    "--upstream-header: pass authorization here or as",
                ),
            ]
        ),
        (["serve", "--cromicle", "h:1"], "--cromicle: it must begin with http"),
        (["serve", "--cromicle", "http://h", "--upstream", "http://h"], "cannot be used together"),
        (["serve", "--cromicle", "http://h", "--delay", "1"], "--cromicle and --delay cannot"),
        (["serve", "--cromicle", "http://h", "--page"], "--cromicle and --page cannot"),
        (["serve", "--cromicle", "http://h", "--system", "S"], "--system requires a model server"),
        (["serve", "--cromicle", "http://h", "--upstream-key", " s3cret"], "--upstream-key: "),
        (["serve", "--cromicle", "http://h", "--upstream-header", "host:s3cret"], "-header: "),
        (["serve", "--cromicle", "http://h", "--body", "hash=1"], "--body: the protocol sets"),
        (["serve", "--cromicle", "http://h", "--model", ""], "--model: expected a str"),
        (["serve", "--cromicle", "http://h", "--model", "m", "--model", "m"], "--model: 'm' is"),
        (["serve", "--cromicle", "http://h", "--allow-options", "n"], "--allow-options: 'n' is"),
        (["serve", "--token", "s3cret", "--tokens-file", "f"], "--token and --tokens-file"),
        (
            ["serve", "--tokens-file", "/no/such/file"],
            "--tokens-file: /no/such/file cannot be read",
        ),
        (["serve", "--max-concurrent", "0"], "'--max-concurrent'"),
        (["serve", "--max-request-bytes", "0"], "'--max-request-bytes'"),
        (["serve", "--max-waiting", "-1"], "'--max-waiting'"),
        (["serve", "--max-waiting", "1"], "--max-waiting: it has no effect without a limit"),
        (["serve", "--max-concurrent-per-token", "0"], "'--max-concurrent-per-token'"),
        (
            ["serve", "--max-concurrent", "2", "--max-concurrent-per-token", "3"],
            "--max-concurrent-per-token: 3 is more than the limit for all tokens, 2",
        ),
        (["serve", "--max-buffered-bytes", "0"], "'--max-buffered-bytes'"),
        (
            ["serve", "--max-buffered-bytes", "9"],
            "--max-buffered-bytes: 9 is less than the maximum size of one request, 1048576",
        ),
        (["serve", "--max-connections", "0"], "'--max-connections'"),
        (["serve", "--max-connections", "9" * 15], "--max-connections: 999999999999999 is more"),
        (["serve", "--max-connections-per-address", "0"], "'--max-connections-per-address'"),
        (["serve", "--forwarded-allow-ips", "proxy"], "--forwarded-allow-ips: 'proxy' is neither"),
        (["serve", "--allowed-host", "http://a"], "--allowed-host: expected a host without scheme"),
        (["serve", "--allow-origin", "a.example"], "--allow-origin: expected scheme://host or"),
        (["serve", "--grace", "-1"], "'--grace'"),
    ],
)
def test_wrong_usage_is_named_and_exits_2(
    arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    # Nothing listens there.
    monkeypatch.setenv("CROMICLE_BASE_URL", "http://127.0.0.1:1")
    assert run(arguments) == 2
    out, err = capsysbinary.readouterr()
    assert out == b""
    assert problem in err.decode()
    assert b"s3cr" not in err


def test_an_invalid_environment_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    monkeypatch.setenv("CROMICLE_BASE_URL", "ftp://example.org")
    assert run(["ask", "Hi"]) == 2
    assert "$CROMICLE_BASE_URL" in read_error(capsysbinary)


def test_a_stdin_that_is_not_utf_8(monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture) -> None:
    pipe_in(monkeypatch, "Grüße".encode("latin-1"))
    assert run(["ask", "--local"]) == 2
    out, err = capsysbinary.readouterr()
    assert out == b""
    assert b"Error: Standard input is not UTF-8 (byte 2)." in err


# The text


@pytest.mark.parametrize(
    ("words", "piped", "sent"),
    [
        ([], "Grüße\r\n", "Grüße\r\n"),
        ([], "\ufeffHi", "Hi"),
        (["Sum", " up."], "a\n\nb\r\n\r\n", "a\n\nb\n\nSum  up."),
        (["Hi"], " \n", "Hi"),
        ([" "], "Hi", "Hi"),
    ],
)
def test_text_and_standard_input(
    words: list[str],
    piped: str,
    sent: str,
    server: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe_in(monkeypatch, piped.encode())
    assert run(["ask", "--base-url", server.base_url, *words]) == 0
    assert [request.message for request in server.requests] == [sent]


@pytest.mark.parametrize("stdin", [None, FakeTerminal()])
def test_a_terminal_is_not_read(
    stdin: FakeTerminal | None, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert ask(server) == 0
    assert server.requests[0].message == "Hi"


def test_a_stdin_that_cannot_be_read_is_ignored(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open("wb") as write_only:
        stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(write_only.fileno(), closefd=False)))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert ask(server) == 0
    assert server.requests[0].message == "Hi"


# Errors


FAULTS: dict[str, tuple[Callable[[FaultyServer], object], str, bytes]] = {
    "refused": (
        FaultyServer.stop,
        "Check that the server is running and that --base-url is right",
        b"",
    ),
    "dropped": (lambda server: server.cut(), "--base-url", b""),
    "400": (lambda server: server.fail(400), "--base-url", b""),
    "401": (lambda server: server.fail(401), "--token or $CROMICLE_TOKEN", b""),
    "403": (lambda server: server.fail(403), "token does not permit", b""),
    "404": (lambda server: server.fail(404), "Check --base-url", b""),
    "418": (lambda server: server.fail(418, body="a\x1b[31mb\nc"), "418", b""),
    "422": (lambda server: server.fail(422), "same token", b""),
    "429": (lambda server: server.fail(429, retry_after=90), "a wait of 90 s", b""),
    "500": (lambda server: server.fail(500), "try again later", b""),
    "302": (lambda server: server.redirect(), "set --base-url to the right address", b""),
    "html": (
        lambda server: server.reply("<html>", content_type="text/html"),
        "Check that --base-url is a Cromicle endpoint",
        b"",
    ),
    "empty": (lambda server: server.reply(""), "it is empty", b""),
    "encoded": (lambda server: server.encoded(), "not a reply", b""),
    "cut": (
        lambda server: server.cut(after="Hello"),
        "Retry to get the complete reply.",
        b"Hello",
    ),
    "not UTF-8": (
        lambda server: server.reply(b"Hello \xff"),
        "Check that --base-url is a Cromicle endpoint.",
        b"Hello ",
    ),
    "first byte": (lambda server: server.stall(), "within 0.2 s. Raise --timeout", b""),
    "stall": (
        lambda server: server.stall(after="Hello"),
        "within 0.2 s. Raise --timeout",
        b"Hello",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_error_is_one_line_with_a_hint(
    name: str, server: FaultyServer, capsysbinary: Capture
) -> None:
    break_it, advice, shown = FAULTS[name]
    break_it(server)
    assert ask(server, "--timeout", "0.2") == 1
    out, err = capsysbinary.readouterr()
    line = err.decode()
    assert out == shown
    assert re.fullmatch(r"Error: [^\n\x1b]+\n", line)
    assert advice in line
    # Names of Python are of no use here.
    assert not re.search(r"partial_text|strict|verify|max_|base_url|\btimeout\.\w", line)


@pytest.mark.parametrize(
    ("break_it", "advice"),
    [
        (
            lambda server: server.reply("", finish_reason="length"),
            "The model sent no text: change the prompt.",
        ),
        (lambda server: server.fail(403, body=WRONG_HOST), "Check --base-url: the server there"),
        (lambda server: server.fail(429, retry_after=9, body=GUESSED), "$CROMICLE_TOKEN."),
        (lambda server: server.fail(501), "Check --base-url: the server does not accept"),
    ],
)
def test_advice_fits_the_problem(
    break_it: Callable[[FaultyServer], object],
    advice: str,
    server: FaultyServer,
    capsysbinary: Capture,
) -> None:
    break_it(server)
    assert ask(server) == 1
    error = read_error(capsysbinary)
    assert advice in error
    assert not re.search("try again|[Rr]etry (?!-)|does not permit|strict", error)


WRONG_HOST = '{"error": {"code": "wrong_host", "message": "the server is for other hosts"}}'
GUESSED = '{"error": {"code": "too_many_wrong_tokens", "message": "it does not accept the token"}}'


def test_total(server: FaultyServer, capsysbinary: Capture) -> None:
    server.stall(after="Hello")
    assert ask(server, "--total", "1") == 1
    out, err = capsysbinary.readouterr()
    assert out == b"Hello"
    assert b"within 1 s. Raise --total" in err


STATUS: dict[str, Any] = {"status_code": 404, "headers": Headers(), "body": ""}


@pytest.mark.parametrize(
    ("error", "described"),
    [
        (
            ConfigurationError("bad", option="token", hint="leave it out"),
            "--token: bad; leave it out",
        ),
        (
            ConfigurationError("it is wrong", option="$X"),
            "$X: it is wrong",
        ),
        (ConfigurationError("token: it is wrong"), "token: it is wrong"),
        (InvalidMessageError("bad", index=1, hint="use errors='replace'"), "message 1: bad"),
        (ReplyTooLargeError("Too long.", hint="Raise it."), "Too long. Ask for a shorter reply."),
        (
            APIConnectionError(
                "No trust.", option="verify", hint="For a private certificate authority, pass …"
            ),
            "No trust. For a private certificate authority, set $SSL_CERT_FILE to its certificate.",
        ),
        (
            APIConnectionError("No TLS.", option="verify", hint="If the server requires a …"),
            "No TLS. The command has no option for that: use Client(verify=ssl_context) in Python.",
        ),
        (
            APIConnectionError("No proxy.", option="proxy", hint="Check the option proxy."),
            "No proxy. Check the proxy variables of the environment.",
        ),
        (
            APIConnectionError("base_url.", hint="Check base_url."),
            "base_url. Check --base-url.",
        ),
        (
            APITimeoutError("Late.", phase="connect", hint="Check base_url."),
            "Late. Check --base-url.",
        ),
        (
            APIConnectionError("No socket.", option="max_connections", hint="Lower that."),
            "No socket. Raise the limit of open files (ulimit -n).",
        ),
        (IncompleteReplyError("Cut."), "Cut. Retry to get the complete reply."),
        (CromicleError("base_url"), "base_url"),
        (
            APIStatusError("It said: check base_url, token: timeout.total.", **STATUS),
            "It said: check base_url, token: timeout.total.",
        ),
    ],
)
def test_errors_name_flags_and_keep_the_words_of_the_server(
    error: CromicleError, described: str
) -> None:
    assert describe_error(error, Target(settings=Settings()).labels) == described


def test_advice_about_an_option_that_cannot_be_given_is_left_out() -> None:
    labels = Target(settings=Settings(), local=True).labels
    assert describe_error(APIConnectionError("No.", hint="Check base_url."), labels) == "No."


def test_ctrl_c_exits_130(
    server: FaultyServer, capsysbinary: Capture, interrupt: Callable[[], None]
) -> None:
    server.script(lambda connection, request: interrupt())
    assert ask(server) == 130
    assert capsysbinary.readouterr() == (b"", b"")


# Output


class Reluctant(io.RawIOBase):
    """An unbuffered file that takes three bytes at a time, and is full every other time."""

    def __init__(self) -> None:
        self.taken = b""
        self.is_full = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int | None:
        self.is_full = not self.is_full
        if self.is_full:
            return None
        self.taken += bytes(data[:3])
        return len(data[:3])


def test_a_file_that_writes_a_part_gets_everything() -> None:
    file = Reluctant()
    RawOutput(cast("BinaryIO", file)).write("Grüße, world!")
    assert file.taken.decode() == "Grüße, world!"


def test_a_terminal_that_does_not_block_gets_everything() -> None:
    file = Reluctant()
    TerminalOutput(io.TextIOWrapper(io.BufferedWriter(file), "utf-8")).write("Grüße,\nworld!")
    assert file.taken.decode() == "Grüße,\nworld!".replace("\n", os.linesep)


def test_a_closed_pipe_exits_141(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert ask(server) == 141


@pytest.mark.parametrize(("system", "code"), [("nt", 141), ("posix", 1)])
def test_a_closed_pipe_of_windows_exits_141(
    system: str, code: int, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(output: RawOutput, text: str) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(RawOutput, "write", fail)
    with Path(os.devnull).open("w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(_main, "os", SimpleNamespace(name=system, environ=os.environ))
        assert ask(server) == code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full disk at hand")
def test_a_full_disk_is_an_error_of_one_line(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    with Path("/dev/full").open("w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert ask(server) == 1
    assert "No space left on device" in read_error(capsysbinary)


def test_a_closed_stdout_is_an_error_of_one_line(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert ask(server) == 1
    assert "no standard output" in read_error(capsysbinary)
    assert server.requests == []


@pytest.mark.parametrize(
    ("reply", "encoding", "shown"),
    [
        ("Hello", "utf-8", "Hello\n"),
        ("Hello\r\n", "utf-8", "Hello\n"),
        ("\x00\x1b[2J\x7f\x85\x9b\a\b\t\n日本 👩‍💻", "utf-8", "��[2J�����\t\n日本 👩💻\n"),
        ("a\u202eb\u2066c\U000e0041\u2028", "utf-8", "a�b�c��\n"),
        ("\ufeffZero\u200b-\u00adwidth\u200f", "utf-8", "Zero-width\n"),
        ("Grüße 日本", "latin-1", "Grüße ??\n"),
        ("\r", "utf-8", ""),
    ],
)
def test_a_terminal_gets_no_control_characters(
    reply: str,
    encoding: str,
    shown: str,
    server: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.reply(reply)
    terminal = FakeTerminal(encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert ask(server, "--raw") == 0
    assert terminal.shown == shown


def test_an_error_on_a_terminal_begins_a_line_in_colour(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut(after="Hello")
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    assert ask(server) == 1
    terminal.flush()
    assert terminal.shown.startswith("Hello\n\x1b[1;31mError: \x1b[0m")
    assert terminal.shown.count("\n") == 2


@pytest.mark.parametrize("closed", [True, False])
def test_an_error_has_an_exit_code_without_a_stderr(
    closed: bool, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fail(404)
    reader, writer = os.pipe()
    os.close(reader)
    stderr = io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True)
    with stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None if closed else stderr)
        assert ask(server) == 1


# The server


def serve_beside(
    user: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, list[str]]:
    """Serve here while `user` works with the base URL in a thread; exit code and lines."""
    lines: list[str] = []
    threads: list[threading.Thread] = []

    def work(base_url: str) -> None:
        try:
            user(base_url)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def print_line(line: str, *, label: str = "", style: str = "") -> None:
        lines.append(label + line)
        if label == "Serving at ":
            threads.append(threading.Thread(target=work, args=(line,)))
            threads[0].start()

    monkeypatch.setattr(_serve, "report", print_line)
    code = run(["serve", "--port", "0", *arguments])
    for thread in threads:
        thread.join()
    return code, lines


def test_serve_runs_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    replies: list[str] = []

    def user(base_url: str) -> None:
        with Client(base_url=base_url, token="abc") as client:
            replies.append(client.chat("Hello there").text)

    code, lines = serve_beside(user, monkeypatch)
    assert code == 130
    assert replies == ["Hello there"]
    serving, asking = lines
    base_url = serving.split()[-1]
    assert (
        asking
        == f'Try it in a browser, or with cromicle ask --base-url {base_url} "Hello, how are you?"'
    )


def test_serve_has_a_delay_and_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    elapsed: list[float] = []

    def user(base_url: str) -> None:
        with Client(base_url=base_url, token="mine") as client:
            elapsed.append(client.chat("a b c").elapsed)

    code, lines = serve_beside(user, monkeypatch, "--token", "mine", "--delay", "0.05")
    assert code == 130
    assert elapsed[0] >= 0.1
    assert "$CROMICLE_TOKEN" in lines[2]
    assert "mine" not in "".join(lines)


@pytest.mark.parametrize(
    ("arguments", "token", "shown"),
    [((), "abc", "abc"), (("--token", "mine"), "mine", "a token of this server")],
)
def test_serve_has_the_api_of_openai_in_front_of_an_endpoint(
    arguments: tuple[str, ...],
    token: str,
    shown: str,
    server: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def user(base_url: str) -> None:
        with openai.OpenAI(base_url=base_url, api_key=token) as client:
            models = [model.id for model in client.models.list()]
            completion = client.chat.completions.create(
                model=models[1], messages=[{"role": "user", "content": "Hello"}], seed=7
            )
            answers.append(completion.choices[0].message.content)

    answers: list[str | None] = []
    server.reply("Hello yourself")
    monkeypatch.setenv("CROMICLE_UPSTREAM_KEY", "k")
    own = ("--model=a", "--model=b", "--body=top_k=4", "--upstream-header=x-a: 1")
    code, lines = serve_beside(user, monkeypatch, "--cromicle", server.base_url, *own, *arguments)
    assert code == 130
    assert answers == ["Hello yourself"]
    base_url = lines[0].split()[-1]
    assert lines[1:] == [
        f"OpenAI's clients need OPENAI_BASE_URL={base_url}, and {shown} as OPENAI_API_KEY."
    ]
    (request,) = server.requests
    assert (request.token, request.headers["x-a"]) == ("k", "1")
    assert request.options == {"model": "b", "seed": 7, "top_k": 4}


def test_the_endpoint_never_gets_the_token_of_the_callers(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def user(base_url: str) -> None:
        with openai.OpenAI(base_url=base_url, api_key="mine") as client:
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "Hello"}]
            )

    server.reply("Hello yourself")
    monkeypatch.setenv("CROMICLE_TOKEN", "mine")
    serve_beside(user, monkeypatch, "--cromicle", server.base_url)
    assert server.requests[0].token == "abc"


DEFAULTS: dict[str, Any] = {
    "token": None,
    "tokens_file": None,
    "upstream": None,
    "cromicle": None,
    "models": (),
    "upstream_key": None,
    "upstream_headers": {},
    "upstream_timeout": None,
    "system": None,
    "parse_roles": False,
    "temperature": None,
    "max_tokens": None,
    "top_p": None,
    "seed": None,
    "stop": (),
    "extra_body": {},
    "allow_options": None,
    "delay": 0.0,
    "max_concurrent": None,
    "max_concurrent_per_token": None,
    "max_waiting": None,
    "max_request_bytes": 1024 * 1024,
    "max_buffered_bytes": None,
    "metrics": True,
    "page": True,
    "allowed_hosts": (),
    "allow_origins": (),
}
NETWORK: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 8000,
    "grace": 5.0,
    "max_connections": None,
    "max_connections_per_address": None,
    "forwarded_allow_ips": "127.0.0.1,::1",
}


@pytest.mark.parametrize(
    ("arguments", "service", "network"),
    [
        ([], {}, {}),
        (
            ["--host", "::1", "--port", "9", "--token", "mine", "--delay", "0.5", "--grace", "60"],
            {"token": Secret("mine"), "delay": 0.5},
            {"host": "::1", "port": 9, "grace": 60.0},
        ),
        (
            ["--upstream", "http://h/v1", "--model", "m", "--upstream-key", "k", "--parse-roles"],
            {
                "upstream": "http://h/v1",
                "models": ("m",),
                "upstream_key": Secret("k"),
                "parse_roles": True,
            },
            {},
        ),
        (
            ["--upstream=http://h", "--model=m", "--upstream-timeout=9", "--system", "Rhyme."],
            {
                "upstream": "http://h",
                "models": ("m",),
                "upstream_timeout": 9.0,
                "system": "Rhyme.",
            },
            {},
        ),
        (
            [
                *(
                    "--upstream=http://h",
                    "--model=a",
                    "--model=b",
                    "--upstream-header",
                    "x-a: mine",
                ),
                *("--temperature=0", "--max-tokens=9", "--top-p=0.5", "--seed=-1", "--stop=x"),
                *("--stop=y", '--body=format={"a": [1]}', "--body=top_k=4", "--allow-options"),
            ],
            {
                "upstream": "http://h",
                "models": ("a", "b"),
                "upstream_headers": {"x-a": Secret("mine")},
                "temperature": 0.0,
                "max_tokens": 9,
                "top_p": 0.5,
                "seed": -1,
                "stop": ("x", "y"),
                "extra_body": {"format": {"a": [1]}, "top_k": 4},
                "allow_options": "all",
            },
            {},
        ),
        (
            ["--upstream=http://h", "--model=m", "--allow-options", "seed,stop"],
            {"upstream": "http://h", "models": ("m",), "allow_options": "seed,stop"},
            {},
        ),
        (
            ["--tokens-file", "f", "--max-concurrent", "3", "--max-request-bytes", "9"],
            {"tokens_file": "f", "max_concurrent": 3, "max_request_bytes": 9},
            {},
        ),
        (
            [
                *("--max-concurrent-per-token", "2", "--max-waiting", "0"),
                *("--max-buffered-bytes", "5000000", "--allowed-host", "a", "--allowed-host=b"),
                *("--allow-origin", "https://a", "--allow-origin=https://b"),
                *("--max-connections", "20", "--max-connections-per-address", "5"),
                *("--forwarded-allow-ips", "10.0.0.0/8"),
            ],
            {
                "max_concurrent_per_token": 2,
                "max_waiting": 0,
                "max_buffered_bytes": 5_000_000,
                "allowed_hosts": ("a", "b"),
                "allow_origins": ("https://a", "https://b"),
            },
            {
                "max_connections": 20,
                "max_connections_per_address": 5,
                "forwarded_allow_ips": "10.0.0.0/8",
            },
        ),
        (
            ["--cromicle=http://h", "--model=m", "--allow-options=seed", "--body=a=1"],
            {
                "cromicle": "http://h",
                "models": ("m",),
                "allow_options": "seed",
                "extra_body": {"a": 1},
            },
            {},
        ),
        (["--no-metrics", "--no-access-log"], {"metrics": False}, {}),
        (["--no-page"], {"page": False}, {}),
    ],
)
def test_the_options_of_serve(
    arguments: list[str],
    service: dict[str, Any],
    network: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served: list[tuple[Service, Network, bool]] = []
    monkeypatch.setattr(
        _commands,
        "serve_in_foreground",
        lambda service, network, access_log: served.append((service, network, access_log)),
    )
    assert run(["serve", *arguments]) == 130
    has_log = "--no-access-log" not in arguments
    assert served == [
        (Service(**{**DEFAULTS, **service}), Network(**{**NETWORK, **network}), has_log)
    ]
    assert "mine" not in repr(served)


def test_the_defaults_are_those_of_the_package() -> None:
    from cromicle_sdk import server

    for function, expected in ((server.create_app, DEFAULTS), (server.serve, NETWORK)):
        defaults = function.__kwdefaults__ or {}
        # `create_app` has a page only where it is asked for.
        shared = defaults.keys() & expected.keys() - {"allow_options", "page"}
        assert len(shared) >= 6
        assert {name: defaults[name] for name in shared} == {
            name: expected[name] for name in shared
        }
    assert (server.serve.__kwdefaults__ or {})["page"] is DEFAULTS["page"]


def test_the_proxies_come_from_the_variable_of_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.1")
    served: list[Network] = []
    monkeypatch.setattr(
        _commands, "serve_in_foreground", lambda _, network, **__: served.append(network)
    )
    assert run(["serve"]) == 130
    assert served[0].forwarded_allow_ips == "10.0.0.1"


def test_keys_and_tokens_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROMICLE_TOKEN", "t")
    monkeypatch.setenv("CROMICLE_UPSTREAM_KEY", "k")
    served: list[Service] = []
    monkeypatch.setattr(
        _commands, "serve_in_foreground", lambda made, *_, **__: served.append(made)
    )
    # Unlike flags, variables that are set for other purposes are not in conflict.
    assert run(["serve", "--tokens-file", "f"]) == 130
    assert served[0].upstream_key == Secret("k")
    assert served[0].tokens_file == "f"


@pytest.mark.parametrize(
    ("seconds", "timeout"),
    [
        (None, Timeout()),
        (9, Timeout(connect=9, first_byte=9, stall=9, total=600)),
        (900, Timeout(connect=900, first_byte=900, stall=900, total=900)),
    ],
)
def test_the_timeout_of_the_upstream(
    seconds: float | None, timeout: Timeout, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cromicle_sdk import server

    made: list[Any] = []

    def build(*args: Any, **options: Any) -> Any:
        made.append(options["timeout"])
        return server.echo_backend()

    monkeypatch.setattr(server, "openai_backend", build)
    options = {"upstream": "http://h", "models": ("m",), "upstream_timeout": seconds}
    Service(**{**DEFAULTS, **options}).build_backend(server)
    assert made == [timeout]


class TestGateway:
    """What `serve` says of the model server, which it asks for its models once."""

    @staticmethod
    def start(
        server: FaultyServer, monkeypatch: pytest.MonkeyPatch, *arguments: str
    ) -> tuple[int, list[str]]:
        """The exit code, and the lines on stderr after the address and an example."""
        url = server.base_url.replace("://", "://user:s3cret@")
        arguments = ("--upstream", f"{url}/v1", *arguments)

        def user(base_url: str) -> None:
            # It is answered once all lines are printed.
            assert httpx.get(f"{base_url}/health").is_success

        code, lines = serve_beside(user, monkeypatch, *arguments)
        assert not lines or lines[0].startswith("Serving at ")
        return code, lines[2:]

    def test_a_known_model(self, server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        answer_models(server, "a", "m")
        code, lines = self.start(server, monkeypatch, "--model", "m", "--upstream-header", "x:yy")
        assert code == 130
        address = f"Upstream {server.base_url}/v1"
        assert lines == [address, "Model m", "The model server has m"]
        (request,) = server.requests
        assert (request.method, request.path, request.body) == ("GET", "/v1/models", b"")
        assert request.headers["authorization"].startswith("Basic ")
        assert request.headers["x"] == "yy"
        assert not {"content-length", "content-type", "transfer-encoding"} & set(request.headers)

    def test_several_models_of_which_one_is_unknown(
        self, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer_models(server, "a:latest", "models/b", *(f"m{i}" for i in range(30)))
        arguments = [f"--model={name}" for name in ("a", "b", "c")]
        _, lines = self.start(server, monkeypatch, *arguments)
        assert lines[1:3] == ["Models a, b, c", "The model server has a, b"]
        shown = ", ".join(f"m{i}" for i in range(18))
        assert lines[3] == (
            "Warning: the model server does not list c; it has "
            f"a:latest, models/b, {shown} and 12 more"
        )

    @pytest.mark.parametrize(("names", "known"), [((), "none"), (("a", "b"), "a, b")])
    def test_an_unknown_model(
        self,
        names: tuple[str, ...],
        known: str,
        server: FaultyServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        answer_models(server, *names)
        _, lines = self.start(server, monkeypatch, "--model", "m")
        assert lines[1:] == [
            "Model m",
            f"Warning: the model server does not list m; it has {known}",
        ]

    def test_the_only_model_is_used(
        self, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer_models(server, "the-only-one")
        _, lines = self.start(server, monkeypatch)
        assert lines[1] == "Model the-only-one"

    @pytest.mark.parametrize(
        ("names", "problem"),
        [
            (("a", "b"), "does not have exactly one; it has a, b; pass the name of one"),
            ((), "does not have exactly one; it has none"),
            (None, "--model: it is not set, and the model server does not list its models: http"),
        ],
    )
    def test_a_model_that_cannot_be_chosen(
        self,
        names: tuple[str, ...] | None,
        problem: str,
        server: FaultyServer,
        monkeypatch: pytest.MonkeyPatch,
        capsysbinary: Capture,
    ) -> None:
        if names is None:
            server.fail(404)
        else:
            answer_models(server, *names)
        assert self.start(server, monkeypatch)[0] == 2
        said = capsysbinary.readouterr().err.decode()
        assert problem in said
        assert "s3cret" not in said

    @pytest.mark.parametrize(
        ("behave", "problem"),
        [
            (lambda server: server.fail(503, body="Loading model"), "responded with 503"),
            (lambda server: server.fail(500), "responded with 500"),
            (lambda server: server.stop(), "Connection refused"),
        ],
    )
    def test_a_model_server_that_is_not_ready_is_asked_for_its_model_later(
        self,
        behave: Callable[[FaultyServer], object],
        problem: str,
        server: FaultyServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        behave(server)
        code, lines = self.start(server, monkeypatch)
        assert code == 130
        assert lines[1] == "Model chosen at the first request"
        assert lines[2].startswith("Warning: the list of models is not available: ")
        assert problem in lines[2]

    @pytest.mark.parametrize(
        ("behave", "problem"),
        [
            (lambda server: server.fail(404, body="s3cret"), "responded with 404"),
            (lambda server: server.fail(401), "rejects the key of this gateway"),
            (lambda server: server.redirect(302, location="http://s3cret"), "not followed"),
            (lambda server: server.reply("<html>s3cret</html>"), "did not respond with a list"),
            (lambda server: server.cut(), "disconnected"),
            (lambda server: server.stop(), "Connection refused"),
        ],
    )
    def test_a_list_that_cannot_be_read_is_a_warning(
        self,
        behave: Callable[[FaultyServer], object],
        problem: str,
        server: FaultyServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        behave(server)
        code, lines = self.start(server, monkeypatch, "--model", "m")
        assert code == 130
        assert lines[2].startswith("Warning: the list of models is not available: ")
        assert problem in lines[2]
        assert "s3cret" not in "".join(lines)

    @pytest.mark.parametrize("flag", [["--allow-options"], ["--allow-options", "seed, max_tokens"]])
    def test_options_of_the_operator_and_of_callers_reach_the_model(
        self, flag: list[str], server: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer_models(server, "a", "b")
        answer_texts(server, "ok")
        replies: list[str] = []
        health: list[Any] = []

        def user(base_url: str) -> None:
            health.append(httpx.get(f"{base_url}/health").json()["upstream"]["last_result"])
            with Client(base_url=base_url, token="abc", send_messages=True) as client:
                messages = Conversation(system="Sing.").user("Hi")
                extra_body = {"model": "b", "seed": 2, "max_tokens": 9}
                replies.append(client.chat(messages, extra_body=extra_body).text)
                with pytest.raises(BadRequestError, match="'tools'"):
                    client.chat("Hi", extra_body={"tools": []})

        arguments = [
            *("--upstream", server.base_url, "--model", "a", "--model", "b", "--system", "Rhyme."),
            *("--seed", "1", "--temperature", "0", "--stop", "x", "--body", "top_k=4", *flag),
        ]
        code, _ = serve_beside(user, monkeypatch, *arguments)
        assert (code, replies, health) == (130, ["ok"], ["ok"])
        assert server.requests[1].json == {
            "model": "b",
            "messages": [
                {"role": "system", "content": "Rhyme."},
                {"role": "system", "content": "Sing."},
                {"role": "user", "content": "Hi"},
            ],
            "stream": True,
            "seed": 2,
            "temperature": 0,
            "stop": ["x"],
            "top_k": 4,
            "max_tokens": 9,
        }
        assert len(server.requests) == 2

    def test_parse_roles_warns(self, server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        answer_models(server, "m")
        _, lines = self.start(server, monkeypatch, "--parse-roles")
        assert lines[3].startswith("Warning: ")
        assert "can forge messages of any role" in lines[3]


def test_serve_reports_that_it_cannot_listen(capsysbinary: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["serve", "--port", str(taken.getsockname()[1])]) == 1
    assert "Choose another --port" in read_error(capsysbinary)


@pytest.mark.parametrize("access_log", [True, False])
def test_serve_prints_its_log(
    access_log: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: Capture,
) -> None:
    file = tmp_path / "tokens"
    file.write_text("s3cret")

    def user(base_url: str) -> None:
        with Client(base_url=base_url, token="s3cret") as client:
            client.chat("Hi")

    levels = [logging.getLogger(f"cromicle_sdk.server{name}").level for name in ("", ".access")]
    arguments = ["--tokens-file", str(file), *([] if access_log else ["--no-access-log"])]
    code, lines = serve_beside(user, monkeypatch, *arguments)
    assert code == 130
    needed = f"one of the tokens in {file}, as $CROMICLE_TOKEN or --token."
    assert lines[2] == f"Clients need {needed}"
    said = capsysbinary.readouterr().err.decode()
    assert ("method=POST path=/chat status=200" in said) == access_log
    assert "s3cret" not in said
    # Logging is as before.
    assert not logging.getLogger("cromicle_sdk.server").handlers
    assert levels == [
        logging.getLogger(f"cromicle_sdk.server{name}").level for name in ("", ".access")
    ]


@pytest.mark.parametrize("arguments", [["ask", "--local", "Hi"], ["serve"]])
def test_without_the_server_the_error_names_the_extra(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    import cromicle_sdk

    monkeypatch.delattr(cromicle_sdk, "server", raising=False)
    for name in list(sys.modules):
        if name.startswith("cromicle_sdk.server"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert run(arguments) == 1
    assert 'pip install "cromicle-sdk[server]"' in read_error(capsysbinary)


# Statistics and messages


def test_statistics_of_an_empty_reply_that_took_no_time() -> None:
    reply = Reply(
        text="",
        status_code=200,
        headers=Headers(),
        attempts=1,
        chunks=0,
        first_text_after=None,
        elapsed=0.0,
    )
    assert "first text after: none" in format_stats(reply)
    assert "characters per second: 0" in format_stats(reply)
    assert json.loads(format_json(reply))["first_text_after"] is None


def test_a_report_is_one_line_without_control_characters(capsysbinary: Capture) -> None:
    report("a\nb\r\n\x1b[31mc", label="Label: ")
    assert capsysbinary.readouterr().err.decode() == "Label: a b �[31mc\n"


def test_importing_the_command_without_its_extra_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "click" or name.startswith("cromicle_sdk.cli"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(ImportError, match=r'pip install "cromicle-sdk\[cli\]"'):
        importlib.import_module("cromicle_sdk.cli")


@pytest.mark.parametrize("start", [__main__.main, None])
def test_main_is_the_command(
    start: Callable[[], None] | None, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    monkeypatch.setattr(sys, "argv", ["cromicle", "--version"])
    with pytest.raises(SystemExit) as ended:
        if start is None:
            runpy.run_path(str(__main__.__file__), run_name="__main__")
        else:
            start()
    assert ended.value.code == 0
    assert capsysbinary.readouterr().out.startswith(b"cromicle ")


@pytest.mark.parametrize("missing", ["click", "platformdirs", "rich"])
def test_main_without_its_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit, match=r'pip install "cromicle-sdk\[cli\]"'):
        __main__.main()


@pytest.mark.parametrize("ignored", [True, False])
def test_main_leaves_ctrl_c_to_who_ignores_it(
    ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    seen: list[Any] = []

    def see(arguments: list[str]) -> int:
        seen.append(signal.getsignal(signal.SIGINT))
        return 0

    monkeypatch.setattr("cromicle_sdk.cli.run", see)
    with pytest.raises(SystemExit):
        __main__.main()
    assert seen == [signal.SIG_IGN if ignored else signal.default_int_handler]
    left: Any = signal.getsignal(signal.SIGINT)
    if ignored:
        assert left is signal.SIG_IGN
        return
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    left(signal.SIGINT, None)
    assert ended == [130]


def test_main_is_quiet_where_ctrl_c_comes_before_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("cromicle_sdk.cli.run", interrupt)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 130


def test_the_console_script_is_the_same_command() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert 'cromicle = "cromicle_sdk.__main__:main"' in project.read_text()
    assert subprocess.run([sys.executable, "-c", "import cromicle_sdk.__main__"], check=True)


def test_a_server_whose_start_was_interrupted_raises_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_commands, "serve_in_foreground", lambda *args, **options: None)
    with pytest.raises(click.Abort):
        CliRunner().invoke(_commands.serve, [], standalone_mode=False, catch_exceptions=False)
