"""The command as people run it: real processes, pipes, signals, and no package it lacks."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cromicle_sdk import Client, __version__
from cromicle_sdk.testing import FaultyServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it ends by signals")

# Far more than any test here needs on a busy machine.
PATIENCE = 20.0
COMMAND = [sys.executable, "-m", "cromicle_sdk"]
# Hides a module that is installed.
WITHOUT = """
import runpy, sys
for name in {names!r}:
    sys.modules[name] = None
sys.argv = ["cromicle", *{arguments!r}]
runpy.run_module("cromicle_sdk", run_name="__main__")
"""


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        yield running


def build_environment(**changes: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("CROMICLE_")}
    # It would hide that something is not flushed.
    kept.pop("PYTHONUNBUFFERED", None)
    return {**kept, **changes}


@contextlib.contextmanager
def start(*arguments: str, **options: Any) -> Generator[subprocess.Popen[bytes]]:
    """A process of the command, which does not outlive a test that fails."""
    defaults: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": build_environment(),
        "bufsize": 0,
    }
    with subprocess.Popen([*COMMAND, *arguments], **{**defaults, **options}) as process:
        try:
            yield process
        finally:
            process.kill()


def run(*arguments: str, **options: Any) -> tuple[int, bytes, str]:
    """Exit code, stdout and stderr; `input` is piped in."""
    data = options.pop("input", None)
    if data is not None:
        options["stdin"] = subprocess.PIPE
    with start(*arguments, **options) as process:
        out, err = process.communicate(data, timeout=PATIENCE)
        return process.returncode, out, err.decode()


def run_python(code: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stdout, done.stderr


def read_pipe(file: Any, size: int) -> bytes:
    """Exactly so many bytes, as soon as they are there; fewer where they don't come."""
    data = b""
    while len(data) < size and select.select([file], [], [], PATIENCE)[0]:
        more = file.read(size - len(data))
        if not more:
            break
        data += more
    return data


def test_the_first_example_of_the_readme() -> None:
    code, out, err = run("ask", "--local", "Hello,", "how are you?")
    assert (code, out, err) == (0, b"Hello, how are you?", "")


def test_a_word_is_printed_before_the_last_is_sent(server: FaultyServer) -> None:
    gate = threading.Event()
    server.reply(chunks=["Hello, ", "world!"], gate=gate)
    with start("ask", "--base-url", server.base_url, "Hi") as process:
        assert read_pipe(process.stdout, 7) == b"Hello, "
        gate.set()
        assert process.communicate(timeout=PATIENCE) == (b"world!", b"")


def test_a_pipe_gets_the_exact_bytes_whatever_the_locale(server: FaultyServer) -> None:
    text = "Grüße\r\n\x1b[31m日本 🎉\tEnd"
    server.reply(text)
    environment = build_environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    code, out, err = run("ask", "--base-url", server.base_url, "Hi", env=environment)
    assert (code, out, err) == (0, text.encode(), "")


@pytest.mark.parametrize(
    ("words", "piped", "sent"),
    [
        ([], "from the pipe, with Grüße\n".encode(), "from the pipe, with Grüße\n"),
        (["Sum", "up."], b"a\nb\n", "a\nb\n\nSum up."),
        (["Sum up."], b"", "Sum up."),
    ],
)
def test_standard_input(server: FaultyServer, words: list[str], piped: bytes, sent: str) -> None:
    code, _, err = run("ask", "--base-url", server.base_url, *words, input=piped)
    assert (code, err) == (0, "")
    assert [request.message for request in server.requests] == [sent]


def test_a_stdin_that_cannot_be_read_is_ignored(server: FaultyServer) -> None:
    with Path(os.devnull).open("wb") as write_only:
        code, _, err = run("ask", "--base-url", server.base_url, "Hi", stdin=write_only)
    assert (code, err) == (0, "")
    assert [request.message for request in server.requests] == ["Hi"]


def test_url_and_token_of_the_environment(server: FaultyServer) -> None:
    environment = build_environment(CROMICLE_BASE_URL=server.base_url, CROMICLE_TOKEN="s3cret")
    code, _, err = run("ask", "Hi", env=environment)
    assert (code, err) == (0, "")
    assert [request.token for request in server.requests] == ["s3cret"]


def test_ctrl_c_prints_no_message(server: FaultyServer) -> None:
    server.reply(chunks=["Hello, ", "world!"], gate=threading.Event())
    with start("ask", "--base-url", server.base_url, "Hi") as process:
        assert read_pipe(process.stdout, 7) == b"Hello, "
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 130
    server.wait_until_closed()


def test_ctrl_c_while_modules_are_imported_prints_no_message(tmp_path: Path) -> None:
    # In the place of a package that takes long to import, and makes another error of it.
    slow = "import os, time\ntry:\n    os.write(1, b'slow')\n    time.sleep(60)\n"
    (tmp_path / "click.py").write_text(f"{slow}except BaseException:\n    raise ImportError\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    with start("ask", "Hi", env=build_environment(PYTHONPATH=path)) as process:
        assert read_pipe(process.stdout, 4) == b"slow"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 130


def test_ctrl_c_while_python_exits_prints_no_message() -> None:
    code = (
        "import atexit, os, sys, time\n"
        "from cromicle_sdk.__main__ import main\n"
        "atexit.register(lambda: (os.write(1, b'slow'), time.sleep(60)))\n"
        "sys.argv = ['cromicle', 'config', 'path']\n"
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b"config.toml\n")
        assert process.stdout.read(4) == b"slow"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 130


def test_a_full_pipe_that_does_not_block_loses_nothing(server: FaultyServer) -> None:
    text = "".join(f"{number:9}\n" for number in range(30_000))
    server.reply(text)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(reader, "rb") as pipe:
        with start("ask", "--base-url", server.base_url, "Hi", stdout=writer) as process:
            while select.select([], [writer], [], 0)[1]:
                assert process.poll() is None
                time.sleep(0.01)
            os.close(writer)
            assert pipe.read() == text.encode()
            assert process.stderr is not None
            assert process.stderr.read() == b""
            assert process.wait(PATIENCE) == 0


def test_a_closed_pipe_prints_no_message(server: FaultyServer) -> None:
    server.flood("Hello, world!")
    with start("ask", "--base-url", server.base_url, "Hi") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert read_pipe(process.stdout, 5) == b"Hello"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full disk at hand")
def test_a_full_disk_is_an_error_of_one_line(server: FaultyServer) -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, err = run("ask", "--base-url", server.base_url, "Hi", stdout=full)
    assert code == 1
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


def test_a_closed_stdout_is_an_error_of_one_line(server: FaultyServer) -> None:
    closing = f'exec "$0" -m cromicle_sdk ask --base-url {server.base_url} Hi >&-'
    done = subprocess.run(
        ["/bin/sh", "-c", closing, sys.executable],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=build_environment(),
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == b"Error: There is no standard output to write to.\n"


def test_an_error_comes_after_the_text_so_far(server: FaultyServer) -> None:
    server.cut(after="Hello, wor")
    code, out, err = run("ask", "--base-url", server.base_url, "Hi")
    assert (code, out) == (1, b"Hello, wor")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


def test_a_failed_call_never_shows_the_token(server: FaultyServer) -> None:
    server.fail(401)
    code, out, err = run("ask", "--base-url", server.base_url, "--token", "s3cret", "Hi")
    assert (code, out) == (1, b"")
    assert "--token" in err
    assert "s3cret" not in err


def test_the_server_runs_until_ctrl_c() -> None:
    with start("serve", "--port", "0", "--no-access-log") as process:
        assert process.stderr is not None
        base_url = process.stderr.readline().split()[-1].decode()
        pasted = process.stderr.readline().decode()
        assert f"cromicle ask --base-url {base_url} " in pasted
        with Client(base_url=base_url, token="abc") as client:
            assert client.chat("Hello, world!").text == "Hello, world!"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 130


def test_the_server_uses_the_token_of_the_environment_until_sigterm() -> None:
    environment = build_environment(CROMICLE_TOKEN="s3cret")
    with start("serve", "--port=0", "--no-access-log", env=environment) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline().decode() for _ in range(3)]
        assert "$CROMICLE_TOKEN" in lines[2]
        assert "s3cret" not in "".join(lines)
        with Client(base_url=lines[0].split()[-1], token="s3cret") as client:
            assert client.chat("Hi").text == "Hi"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=PATIENCE) == (b"", b"")
    # Shells call it 143.
    assert process.returncode == -signal.SIGTERM


def test_a_port_in_use_is_an_error_of_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, err = run("serve", "--port", str(taken.getsockname()[1]))
    assert (code, out) == (1, b"")
    assert err.startswith("Error: ")
    assert "--port" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("missing", ["click", "platformdirs", "rich"])
def test_without_its_extra_the_error_names_it(missing: str) -> None:
    code, out, err = run_python(WITHOUT.format(names=[missing], arguments=["--help"]))
    assert (code, out) == (1, "")
    assert 'pip install "cromicle-sdk[cli]"' in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["ask", "--local", "Hi"], ["serve"]])
def test_without_the_server_the_error_names_the_extra(arguments: list[str]) -> None:
    code, out, err = run_python(WITHOUT.format(names=["starlette"], arguments=arguments))
    assert (code, out) == (1, "")
    assert 'pip install "cromicle-sdk[server]"' in err
    assert err.count("\n") == 1


def test_ask_does_not_import_the_server(server: FaultyServer) -> None:
    code, out, err = run_python(
        "import json, sys\n"
        "from cromicle_sdk.cli import run\n"
        f"code = run(['ask', '--base-url', {server.base_url!r}, '--json', '--stats', 'Hi'])\n"
        "slow = {'cromicle_sdk.server', 'starlette', 'tomlkit', 'uvicorn'} & set(sys.modules)\n"
        "print(json.dumps(sorted(slow)))\n"
        "sys.exit(code)\n"
    )
    assert code == 0, err
    assert json.loads(out.splitlines()[-1]) == []


def test_the_help_takes_a_third_of_a_second_of_cpu() -> None:
    """It takes 0.35 s, and up to half as much again on a machine that others use, too."""
    import resource

    seconds: list[float] = []
    while len(seconds) < 5 and not (seconds and min(seconds) < 0.35):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code, out, err = run("ask", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (code, err) == (0, "")
        assert out.startswith(b"Usage: cromicle ask ")
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.35 * 1.5


def test_the_version() -> None:
    assert run("--version") == (0, f"cromicle {__version__}\n".encode(), "")
