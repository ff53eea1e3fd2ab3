"""`cromicle batch`: its files, its options, and what survives its end."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from cromicle_sdk.cli import batch_output, batch_progress, run
from cromicle_sdk.server import LocalServer
from cromicle_sdk.testing import FaultyServer

PATIENCE = 60.0
COMMAND = [sys.executable, "-m", "cromicle_sdk", "batch"]

# The command, which prints its progress often.
WITH_MANY_LINES = """
from cromicle_sdk.__main__ import main
from cromicle_sdk.cli import batch_progress
batch_progress.LINE_SECONDS = 0.05
main()
"""
# Their escape codes on a terminal.
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *lines: object) -> None:
    """Lines of text, and objects as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path(name).write_text("".join(f"{text}\n" for text in texts), "utf-8")


def read(name: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]


def batch(server: LocalServer | FaultyServer, *arguments: str) -> int:
    is_default = not arguments or arguments[0].startswith("--")
    names = ("in.txt", "out.jsonl") if is_default else arguments[:2]
    rest = arguments if is_default else arguments[2:]
    return run(["batch", *names, "--base-url", server.base_url, *rest])


# Input and output


def test_a_text_file_has_a_prompt_on_each_line(echo: LocalServer, capsys: Capture) -> None:
    Path("in.txt").write_bytes("\ufeffOne\r\n\n  \nGrüße 🎉\nThree".encode())
    assert batch(echo) == 0
    assert sorted((result["id"], result["text"]) for result in read()) == [
        (1, "One"),
        (4, "Grüße 🎉"),
        (5, "Three"),
    ]
    assert set(read()[0]) == {"id", "text", "finish_reason", "attempts", "elapsed", "digest"}
    assert capsys.readouterr().err == "3 succeeded.\n"


def test_jsonl_has_ids_messages_and_fields(faults: FaultyServer) -> None:
    faults.reply("Yes.", finish_reason="stop")
    messages = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    write(
        "in",
        {"id": "a", "prompt": "One", "extra_body": {"seed": 1}},
        {"id": 2, "messages": messages},
        {"id": "\ud800", "messages": messages[:1]},
    )
    assert batch(faults, "in", "out.jsonl", "--ordered", "--concurrency", "1") == 0
    assert [(each["id"], each["finish_reason"]) for each in read()] == [
        ("a", "stop"),
        (2, "stop"),
        ("\ud800", "stop"),
    ]
    sent = [(each.message, each.messages, each.options) for each in faults.requests]
    assert sent == [
        ("One", None, {"seed": 1}),
        ("User: A\nAssistant: B\nAssistant:", messages, {}),
        ("A", None, {}),
    ]


def test_a_system_message_goes_before_each_prompt(faults: FaultyServer) -> None:
    faults.reply("Yes.")
    write("in.txt", "One")
    assert batch(faults, "--system", "Be brief.") == 0
    assert batch(faults, "in.txt", "plain.jsonl", "--system", "Be brief.", "--plain") == 0
    assert [each.message for each in faults.requests] == [
        "System: Be brief.\nUser: One\nAssistant:"
    ] * 2
    assert [each.messages is None for each in faults.requests] == [False, True]


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_standard_input(echo: LocalServer, kind: str) -> None:
    write("in.txt", "One", "Two")
    command = [*COMMAND, "-", "out.jsonl", "--base-url", echo.base_url]
    with Path("in.txt").open("rb") as file:
        data = file.read() if kind == "pipe" else None
        stdin: dict[str, Any] = {"input": data} if data else {"stdin": file}
        done = subprocess.run(command, **stdin, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, b"2 succeeded.\n")
    assert {each["text"] for each in read()} == {"One", "Two"}


@pytest.mark.parametrize(
    ("content", "name", "arguments", "ids"),
    [
        (b'\n{"id": "a", "prompt": "x"}\n', "in", (), ["a"]),
        (b'\xef\xbb\xbf{"id": "a", "prompt": "x"}\n', "in", (), ["a"]),
        (b"{not JSON}\n", "in", (), [1]),
        (b"[1]\n", "in", (), [1]),
        (b'{"id": "a", "prompt": "x"}\n', "in", ("--format", "text"), [1]),
        (b'{"id": "a", "prompt": "x"}\n', "in.txt", ("--format", "jsonl"), ["a"]),
    ],
)
def test_the_format(
    echo: LocalServer, content: bytes, name: str, arguments: tuple[str, ...], ids: list[object]
) -> None:
    Path(name).write_bytes(content)
    assert batch(echo, name, "out.jsonl", *arguments) == 0
    assert [each["id"] for each in read()] == ids


def test_local_is_a_first_try() -> None:
    write("in.txt", "One")
    assert run(["batch", "--local", "in.txt", "out.jsonl"]) == 0
    assert read()[0]["text"] == "One"


# Bad input


BAD = {
    "no JSON": "it is not JSON",
    '["a"]': "it is not a JSON object",
    '{"prompt": "x"}': "it must have an id that is a string or a whole number",
    '{"id": true, "prompt": "x"}': "it must have an id that is a string or a whole number",
    '{"id": 1.5, "prompt": "x"}': "it must have an id that is a string or a whole number",
    '{"id": 1}': "it must have either a prompt or messages",
    '{"id": 1, "prompt": "x", "messages": []}': "it must have either a prompt or messages",
    '{"id": 1, "prompt": ["x"]}': "prompt must be a string",
    '{"id": 1, "messages": "x"}': "messages must be an array",
    '{"id": 1, "messages": []}': "there are no messages; pass a text or at least one message",
    '{"id": 1, "messages": [{"role": "user"}]}': "message 0: it has no 'content'",
    '{"id": 1, "prompt": "x", "temperature": 1}': (
        'it has an unknown field "temperature"; put fields of the request in extra_body'
    ),
    '{"id": 1, "prompt": "x", "extra_body": 5}': "extra_body must be an object",
    '{"id": 1, "prompt": "x", "extra_body": {"token": "x"}}': "extra_body: ",
    '{"id": 1, "prompt": " "}': "there is no text to send",
    '{"id": "good", "prompt": "x"}': 'it has the same id as line 1, "good"',
    '{"id": 1, "prompt": "x", "%s": 1}' % ("long" * 50): '"longlong',
}


def test_bad_lines_are_reported_with_their_numbers_before_anything_is_sent(
    faults: FaultyServer, capsys: Capture
) -> None:
    for line, problem in BAD.items():
        write("in.jsonl", '{"id": "good", "prompt": "x"}', "", line)
        assert batch(faults, "in.jsonl", "out.jsonl") == 2
        error = capsys.readouterr().err
        assert error.startswith("Error: in.jsonl has 1 invalid line: line 3: "), error
        assert problem in error
        assert "Nothing was sent." in error
    assert not faults.requests
    assert not Path("out.jsonl").exists()


def test_of_many_bad_lines_the_first_are_named(faults: FaultyServer, capsys: Capture) -> None:
    Path("in.txt").write_bytes(b"\xff\n" * 25)
    assert batch(faults) == 2
    error = capsys.readouterr().err
    assert "has 25 invalid lines: line 1: it is not UTF-8 (byte 0); line 2" in error
    assert "line 20: it is not UTF-8 (byte 0); and 5 more." in error


def test_skip_bad_sends_the_others(echo: LocalServer, capsys: Capture) -> None:
    write("in.jsonl", "nonsense", {"id": 1, "prompt": "One"})
    assert batch(echo, "in.jsonl", "out.jsonl", "--skip-bad") == 0
    assert [each["id"] for each in read()] == [1]
    assert "line 1: it is not JSON" in capsys.readouterr().err


def test_files_that_cannot_be_used(echo: LocalServer, capsys: Capture) -> None:
    write("in.txt", "One")
    write("empty.txt", "", " ")
    Path("folder").mkdir()
    cases = [
        (("missing.txt", "out.jsonl"), "missing.txt cannot be read: No such file"),
        (("folder", "out.jsonl"), "folder cannot be read: Is a directory"),
        (("empty.txt", "out.jsonl"), "empty.txt has no prompt to send"),
        (("in.txt", "folder"), "folder is not a regular file"),
        (("in.txt", "./in.txt"), "IN and OUT are the same file"),
        (("in.txt", "in.txt/out.jsonl"), "in.txt/out.jsonl cannot be read: Not a directory"),
        (("in.txt", "missing/out.jsonl"), "missing/out.jsonl cannot be written: No such file"),
    ]
    for names, problem in cases:
        assert batch(echo, *names) in (1, 2)
        assert problem in capsys.readouterr().err


def test_standard_input_in_this_process(echo: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"One")))
    assert batch(echo, "-", "out.jsonl") == 0
    assert [each["text"] for each in read()] == ["One"]


def test_there_is_no_standard_input(
    echo: LocalServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert batch(echo, "-", "out.jsonl") == 2
    assert "There is no standard input" in capsys.readouterr().err


def test_options_that_exclude_each_other(echo: LocalServer, capsys: Capture) -> None:
    write("in.txt", "One")
    dask = ("--executor", "dask://127.0.0.1:9")
    assert batch(echo, "--rate", "5", *dask) == 2
    assert run(["batch", "in.txt", "out.jsonl", "--local", *dask]) == 2
    for url in ("ray://127.0.0.1:9", "dask://", "dask://127.0.0.1", "dask://127.0.0.1:99999"):
        assert batch(echo, "--executor", url) == 2
        assert "expected dask://HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["nan", "inf"])
def test_a_rate_that_is_no_number(echo: LocalServer, capsys: Capture, rate: str) -> None:
    write("in.txt", "One")
    assert batch(echo, "--rate", rate) == 2
    assert f"--rate: expected a finite number, not {rate}." in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_an_input_that_is_also_the_output_is_left_alone(
    faults: FaultyServer, capsys: Capture
) -> None:
    Path("in.jsonl").write_text('{"id": 1, "prompt": "x"}')
    assert batch(faults, "in.jsonl", "in.jsonl", "--resume") == 2
    assert "IN and OUT are the same file" in capsys.readouterr().err
    assert Path("in.jsonl").read_text() == '{"id": 1, "prompt": "x"}'


def test_an_input_that_changes_meanwhile(faults: FaultyServer, capsys: Capture) -> None:
    # Larger than what Python reads ahead, which is 128 KiB since Python 3.14.
    text = "x" * 2000
    write("in.jsonl", *({"id": i, "prompt": text} for i in range(300)))
    changed = threading.Event()

    async def change(prompt: str) -> AsyncIterator[str]:
        if not changed.is_set():
            changed.set()
            write("in.jsonl", *(text for _ in range(300)))
        yield prompt

    with LocalServer(change) as server:
        assert batch(server, "in.jsonl", "out.jsonl", "--concurrency", "1") == 1
    error = capsys.readouterr().err
    assert "in.jsonl has changed while it was being read, at line " in error
    assert all(each["text"] == text for each in read())


# Failures and resuming


def test_an_error_is_a_result_and_the_exit_code_is_3(faults: FaultyServer, capsys: Capture) -> None:
    faults.cut(after="Hel").fail(404).reply("Yes.")
    write("in.txt", "One", "Two", "Three")
    assert batch(faults, "--concurrency", "1", "--retries", "0") == 3
    first, second, third = read()
    assert first["error"]["type"] == "IncompleteReplyError"
    assert first["error"]["partial_text"] == "Hel"
    assert first["error"]["status_code"] is None
    assert second["error"]["status_code"] == 404
    assert third["text"] == "Yes."
    assert capsys.readouterr().err == (
        "1 succeeded, 2 failed (1 IncompleteReplyError, 1 NotFoundError). Continue with --resume.\n"
    )


def test_retries_keep_to_the_budget_of_all_calls(echo: LocalServer) -> None:
    write("in.txt", *map(str, range(150)))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        arguments = ["--base-url", url, "--retries", "1", "--concurrency", "150"]
        assert run(["batch", "in.txt", "out.jsonl", *arguments]) == 3
    assert [each["error"]["type"] for each in read()] == ["APIConnectionError"] * 150
    # A retry costs 5 of 500.
    assert sum("budget" in each["error"]["message"] for each in read()) == 50


def test_resume_sends_what_failed_and_what_is_missing(
    faults: FaultyServer, echo: LocalServer, capsys: Capture
) -> None:
    faults.reply("Yes.").fail(404)
    write("in.txt", "One", "Two", "Three")
    assert batch(faults, "--concurrency", "1", "--fail-fast") == 3
    assert [each["id"] for each in read()] == [1, 2]
    assert "1 not finished. Continue with --resume." in capsys.readouterr().err
    Path("out.jsonl").chmod(0o640)
    assert batch(echo, "--resume") == 0
    assert sorted((each["id"], each["text"]) for each in read()) == [
        (1, "Yes."),
        (2, "Two"),
        (3, "Three"),
    ]
    assert Path("out.jsonl").stat().st_mode & 0o777 == 0o640
    before = Path("out.jsonl").read_bytes()
    capsys.readouterr()
    assert batch(echo, "--resume") == 0
    assert Path("out.jsonl").read_bytes() == before
    message = "Nothing was sent: the output already has a reply for each prompt.\n"
    assert capsys.readouterr().err == message


def test_a_prompt_that_failed_may_be_corrected(faults: FaultyServer, echo: LocalServer) -> None:
    faults.reply("Yes.").fail(422)
    write("in.txt", "One", "Twoo")
    assert batch(faults, "--concurrency", "1") == 3
    write("in.txt", "One", "Two")
    assert batch(echo, "--resume") == 0
    assert [(each["id"], each["text"]) for each in read()] == [(1, "Yes."), (2, "Two")]


@pytest.mark.parametrize(
    "rest", ["{", '{"id": 2, "text": "se', "\0" * 100, '{"id": 2, "te' + "\0" * 100]
)
def test_a_line_that_was_cut_off_by_a_loss_of_power_is_repaired(
    echo: LocalServer, rest: str
) -> None:
    write("in.txt", "One", "Two")
    Path("out.jsonl").write_text('{"id": 1, "text": "first"}\n' + rest)
    assert batch(echo, "--resume") == 0
    assert [(each["id"], each["text"]) for each in read()] == [(1, "first"), (2, "Two")]


@pytest.mark.parametrize("text", ["my notes", '{"id": 1, "prompt": "x"}', "[", '{"name": "x'])
def test_a_text_without_a_line_break_is_not_a_half_written_line(
    faults: FaultyServer, capsys: Capture, text: str
) -> None:
    write("in.txt", "One")
    Path("out.jsonl").write_text(text)
    assert batch(faults, "--resume") == 2
    assert "line 1: not a result" in capsys.readouterr().err
    assert Path("out.jsonl").read_text() == text


@pytest.mark.parametrize("cut", [1, 2, 10])
@pytest.mark.parametrize("failed", [False, True])
def test_a_half_written_last_line_is_repaired(echo: LocalServer, cut: int, failed: bool) -> None:
    write("in.txt", "One", "Two", "Three")
    results: list[dict[str, Any]] = [{"id": 1, "text": "first"}, {"id": 2, "text": "second"}]
    if failed:
        results[0] = {"id": 1, "error": {}}
    write("out.jsonl", *results)
    os.truncate("out.jsonl", Path("out.jsonl").stat().st_size - cut)
    assert batch(echo, "--resume") == 0
    # Without its line break alone, the line is whole.
    assert {each["id"]: each["text"] for each in read()} == {
        1: "One" if failed else "first",
        2: "second" if cut == 1 else "Two",
        3: "Three",
    }
    assert Path("out.jsonl").read_bytes().endswith(b"}\n")


def test_ordered_also_after_a_run_that_was_not(echo: LocalServer) -> None:
    write("in.txt", *map(str, range(20)))
    write("out.jsonl", {"id": 7, "text": "7"}, {"id": 3, "text": "3"}, {"id": 5, "error": {}})
    assert batch(echo, "--resume", "--ordered") == 0
    assert [each["id"] for each in read()] == list(range(1, 21))


def test_of_an_id_that_is_there_twice_one_stays(echo: LocalServer) -> None:
    write("in.txt", "One", "Two")
    write(
        "out.jsonl",
        {"id": 1, "error": {}},
        {"id": 2, "text": "2"},
        {"id": 1, "text": "1"},
        {"id": 2, "error": {}},
    )
    assert batch(echo, "--resume") == 0
    assert sorted((each["id"], each["text"]) for each in read()) == [(1, "1"), (2, "2")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": 9, "text": "x"}', "line 2: its id is not in in.txt"),
        (
            '{"id": 1, "text": "x", "digest": "0"}',
            "another prompt than the one in line 1 of in.txt",
        ),
        ('{"id": 1}', "line 2: not a result"),
        ('{"id": true, "text": "x"}', "line 2: not a result"),
        ("[]", "line 2: not a result"),
        ("nonsense", "line 2: not a result"),
    ],
)
def test_an_output_of_another_input_is_left_alone(
    faults: FaultyServer, capsys: Capture, line: str, problem: str
) -> None:
    write("in.txt", "One", "Two")
    write("out.jsonl", {"id": 2, "text": "x"}, line)
    before = Path("out.jsonl").read_bytes()
    assert batch(faults, "--resume") == 2
    assert problem in capsys.readouterr().err
    assert Path("out.jsonl").read_bytes() == before
    assert not faults.requests


def test_an_output_that_is_not_empty_needs_resume(echo: LocalServer, capsys: Capture) -> None:
    write("in.txt", "One")
    write("out.jsonl", "something")
    assert batch(echo) == 2
    assert "Continue with --resume, or choose another name." in capsys.readouterr().err
    assert Path("out.jsonl").read_text() == "something\n"


# Two processes


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such lock")
@pytest.mark.parametrize("has_failed", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_one_process_at_a_time_writes_to_an_output(
    faults: FaultyServer, capsys: Capture, has_failed: bool, ordered: bool
) -> None:
    write("in.txt", "One", "Two")
    if has_failed:
        # Which makes a new file of it.
        write("out.jsonl", {"id": 1, "error": {}})
    gate = threading.Event()
    faults.reply("Yes.", gate=gate)
    command = [*COMMAND, "in.txt", "out.jsonl", "--base-url", faults.base_url, "--resume"]
    with subprocess.Popen([*command, *["--ordered"] * ordered]) as process:
        deadline = time.monotonic() + PATIENCE
        while not faults.requests:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert batch(faults, "--resume") == 2
        assert "Another process is writing to out.jsonl." in capsys.readouterr().err
        gate.set()
        assert process.wait(PATIENCE) == 0
    assert sorted(each["id"] for each in read()) == [1, 2]
    assert batch(faults, "--resume") == 0


@pytest.mark.parametrize("exists", [False, True])
def test_an_output_that_changes_before_it_is_locked_is_left_alone(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture, exists: bool
) -> None:
    def read_and_change(*arguments: Any, **options: Any) -> batch_output.Earlier:
        earlier = batch_output.read_earlier(*arguments, **options)
        write("out.jsonl", {"id": 1, "text": "of the other process"})
        return earlier

    monkeypatch.setattr("cromicle_sdk.cli.batch.read_earlier", read_and_change)
    write("in.txt", "One", "Two")
    if exists:
        write("out.jsonl", {"id": 2, "text": "first"})
    assert batch(faults, "--resume") == 2
    assert "out.jsonl was changed by another process in the meantime." in capsys.readouterr().err
    assert [each["text"] for each in read()] == ["of the other process"]
    assert not faults.requests


@pytest.mark.parametrize("exists", [False, True])
def test_a_system_without_locks(
    echo: LocalServer, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    write("in.txt", "One")
    if exists:
        write("out.jsonl", {"id": 1, "error": {}})
    assert batch(echo, "--resume", "--ordered") == 0
    assert [each["text"] for each in read()] == ["One"]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such lock")
@pytest.mark.parametrize(("number", "code"), [(errno.ENOLCK, 0), (errno.EIO, 1)])
def test_a_file_system_without_locks(
    echo: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    number: int,
    code: int,
) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    write("in.txt", "One")
    assert batch(echo) == code
    assert (os.strerror(errno.EIO) in capsys.readouterr().err) == (number == errno.EIO)


# A full disk, and other ends


def test_a_disk_that_is_full_leaves_whole_lines(
    echo: LocalServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    write("in.txt", *map(str, range(50)))
    room = 1000

    def write_a_part(descriptor: int, data: bytes) -> int:
        nonlocal room
        written = min(room, len(data))
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= written
        return os_write(descriptor, data[:written])

    os_write = os.write
    monkeypatch.setattr(os, "write", write_a_part)
    assert batch(echo) == 1
    error = capsys.readouterr().err
    assert (
        "out.jsonl cannot be written: No space left on device. The results in it are intact"
        in error
    )
    results = read()
    assert 5 < len(results) < 15
    monkeypatch.undo()
    os.chdir(Path("in.txt").resolve().parent)


def test_a_new_version_that_cannot_be_written_changes_nothing(
    echo: LocalServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    write("in.txt", "One")
    write("out.jsonl", {"id": 1, "error": {}})
    before = Path("out.jsonl").read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    assert batch(echo, "--resume") == 1
    assert Path("out.jsonl").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["in.txt", "out.jsonl"]
    Path("out.jsonl").unlink()
    assert batch(echo) == 1
    assert capsys.readouterr().err.count("No space left on device") == 2


def test_lines_are_on_the_disk_after_a_second(
    echo: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("in.txt", *map(str, range(10)))
    syncs: list[int] = []
    monkeypatch.setattr(batch_output, "_SYNC_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", syncs.append)
    assert batch(echo) == 0
    assert len(syncs) == 12


def test_ctrl_c_while_a_result_is_written_to_the_disk_counts_it(
    echo: LocalServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    write("in.txt", "One", "Two", "Three")
    # At the start, after the first result, and at the end.
    effects = iter([None, KeyboardInterrupt, None])

    def sync(descriptor: int) -> None:
        if effect := next(effects):
            raise effect

    monkeypatch.setattr(batch_output, "_SYNC_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", sync)
    assert batch(echo, "--concurrency", "1") == 130
    assert [each["id"] for each in read()] == [1]
    assert capsys.readouterr().err == "1 succeeded, 2 not finished. Continue with --resume.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="it ends by signals")
def test_ctrl_c_keeps_what_is_finished() -> None:
    hold = threading.Event()

    async def hold_most(prompt: str) -> AsyncIterator[str]:
        if int(prompt) >= 5:
            import anyio

            await anyio.to_thread.run_sync(hold.wait, PATIENCE, abandon_on_cancel=True)
        yield prompt

    write("in.txt", *map(str, range(20)))
    with LocalServer(hold_most) as server:
        arguments = ["batch", "in.txt", "out.jsonl", "--base-url", server.base_url]
        command = [sys.executable, "-c", WITH_MANY_LINES, *arguments, "--concurrency", "2"]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            # The fifth result is written and counted.
            counts = iter(process.stderr.readline, b"")
            assert any(line.startswith(b"5 of 20 done, ") for line in counts)
            process.send_signal(signal.SIGINT)
            *_, error = process.stderr.read().splitlines()
            assert process.wait(PATIENCE) == 130
        hold.set()
    assert error == b"5 succeeded, 15 not finished. Continue with --resume."
    assert sorted(each["id"] for each in read()) == [1, 2, 3, 4, 5]


KILLS = 20 if os.environ.get("CROMICLE_STRESS") == "full" else 3


@pytest.mark.skipif(sys.platform == "win32", reason="it ends by signals")
@pytest.mark.timeout(600)
def test_kill_9_at_any_moment_loses_and_doubles_nothing() -> None:
    answered: list[str] = []
    count = 200 * KILLS

    async def answer(prompt: str) -> AsyncIterator[str]:
        import anyio

        await anyio.sleep(0.01)
        answered.append(prompt)
        yield prompt

    write("in.jsonl", *({"id": f"id {i}", "prompt": f"{i} " + "x" * 200} for i in range(count)))
    draw = random.Random(4711)
    with LocalServer(answer) as server:
        command = [*COMMAND, "in.jsonl", "out.jsonl", "--base-url", server.base_url, "--resume"]
        finished: set[str] = set()
        for _ in range(KILLS):
            process = subprocess.Popen([*command, "--concurrency", "8"], stderr=subprocess.PIPE)
            enough = len(answered) + draw.randrange(150)
            deadline = time.monotonic() + PATIENCE
            while len(answered) < enough and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            process.kill()
            process.communicate()
            lines = Path("out.jsonl").read_bytes() if Path("out.jsonl").exists() else b""
            whole = {json.loads(line)["id"] for line in lines.split(b"\n")[:-1]}
            # What was finished before is still there.
            assert finished <= whole
            finished = whole
        assert run(command[3:]) == 0
    results = read()
    assert len(results) == count
    assert {each["id"]: each["text"][-201:] for each in results} == {
        f"id {i}": " " + "x" * 200 for i in range(count)
    }
    # Only what was in flight at a kill was sent again.
    assert len(answered) <= count + KILLS * 64


# Progress


def test_elsewhere_than_on_a_terminal_there_is_a_line_now_and_then(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    seen = threading.Event()

    def report(line: str) -> None:
        lines.append(line)
        seen.set()

    lines: list[str] = []
    monkeypatch.setattr(batch_progress, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(batch_progress, "report", report)
    faults.reply("Yes.", gate=seen)
    write("in.txt", "One")
    assert batch(faults) == 0
    assert lines[0] == "0 of 1 done, 0 failed, 0.0 a second"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar(echo: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    write("in.txt", "One", "Two")
    assert batch(echo) == 0
    assert "━━━━━━━━" in terminal.getvalue()
    assert "2 of 2 done, 0 failed, " in terminal.getvalue()
    assert terminal.getvalue().endswith("2 succeeded.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="it ends by signals")
@pytest.mark.parametrize(
    ("owner", "name", "is_before"),
    [(Console, "show_cursor", False), (Live, "start", False), (Live, "stop", True)],
)
def test_a_bar_that_is_terminated_shows_the_cursor_again(
    owner: type, name: str, is_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM arrives while the bar starts, once it has started, or before it stops."""
    terminal = Terminal()
    seen: list[str] = []
    method = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(owner, name, method)
        if not is_before:
            method(*arguments, **options)
        signal.raise_signal(signal.SIGTERM)

    def end(*_: object) -> None:
        seen.append(terminal.getvalue())
        raise SystemExit

    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(owner, name, call)
    previous = signal.signal(signal.SIGTERM, end)
    try:
        with (
            pytest.raises(SystemExit),
            batch_progress.show_progress(batch_progress.Progress(1)),
        ):
            pass
    finally:
        signal.signal(signal.SIGTERM, previous)
    (written,) = seen
    assert 0 <= written.rfind(HIDE_CURSOR) < written.rfind(SHOW_CURSOR)


def test_the_line_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(batch_progress, "time", SimpleNamespace(monotonic=lambda: now))
    progress = batch_progress.Progress(10_000)
    now = 100.0
    progress.add(None)
    progress.add("APITimeoutError")
    assert progress.describe() == "2 of 10,000 done, 1 failed, 0.0 a second, 138:51:40 left"
    for _ in range(998):
        progress.add(None)
    assert progress.describe() == "1,000 of 10,000 done, 1 failed, 10.0 a second, 15:00 left"
