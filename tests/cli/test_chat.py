"""`cromicle chat` in this process: its commands, its errors, and the lines of a pipe."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from cromicle_sdk import Client, Conversation, Retry
from cromicle_sdk.cli import chat as _chat
from cromicle_sdk.cli import clipboard, run
from cromicle_sdk.cli.chat import Chat, LineReader, format_end, run_chat
from cromicle_sdk.cli.errors import Misuse
from cromicle_sdk.cli.history import Archive
from cromicle_sdk.cli.slash import COMMANDS
from cromicle_sdk.cli.transcript import CUT_MARK, Transcript
from cromicle_sdk.testing import FaultyServer

Capture = pytest.CaptureFixture[str]
Interrupt = Callable[[], None]


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def client(faults: FaultyServer) -> Iterator[Client]:
    with Client(base_url=faults.base_url, retry=Retry(attempts=1)) as client:
        yield client


def build(client: Client, *contents: str, **options: Any) -> Chat:
    """A chat at a terminal, with questions and replies in turn."""
    conversation = Conversation()
    for index, content in enumerate(contents):
        (conversation.assistant if index % 2 else conversation.user)(content)
    return Chat(client=client, transcript=Transcript(conversation), labels={}, **options)


def read(chat: Chat) -> list[object]:
    return [message["content"] for message in chat.transcript.conversation]


class Keys:
    """A reader that types, and keeps the drafts that it gets."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines = iter(lines)
        self.drafts: list[str] = []

    def read(self, draft: str = "") -> str:
        self.drafts.append(draft)
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


# Questions


def test_a_question_has_the_conversation_before_it(client: Client, faults: FaultyServer) -> None:
    faults.reply("One.").reply("Two.")
    chat = build(client)
    chat.handle("One?")
    chat.handle("")
    chat.handle("//two")
    assert read(chat) == ["One?", "One.", "/two", "Two."]
    assert faults.requests[0].message == "One?"
    assert "messages" not in faults.requests[0].json
    assert faults.requests[1].message == "User: One?\nAssistant: One.\nUser: /two\nAssistant:"
    assert faults.requests[1].messages is not None


def test_one_line_says_how_the_reply_was(
    client: Client, faults: FaultyServer, capsys: Capture
) -> None:
    faults.fail(503, retry_after=0).reply("One.", finish_reason="length")
    chat = build(client.with_options(retry=Retry(attempts=2)))
    chat.handle("One?")
    out, err = capsys.readouterr()
    assert out == "One.\n"
    assert " s · " in err
    end = "characters/s · 2 attempts · cut short by the model's length limit"
    assert end in " ".join(err.split())


def test_a_reply_without_text_has_no_first_text() -> None:
    reply: Any = SimpleNamespace(
        text="", elapsed=0.0, first_text_after=None, attempts=1, finish_reason=None
    )
    assert format_end(reply) == "0.0 s · 0 characters/s · 1 attempt"


def test_an_error_leaves_the_conversation_as_it_is(
    client: Client, faults: FaultyServer, capsys: Capture
) -> None:
    faults.fail(500).reply("Two.")
    chat = build(client, "One?", "One.")
    chat.handle("Two?")
    assert "500" in capsys.readouterr().err
    chat.handle("/retry")
    assert read(chat) == ["One?", "One.", "Two?", "Two."]


def test_a_reply_that_breaks_off_is_kept_as_cut(
    client: Client, faults: FaultyServer, capsys: Capture
) -> None:
    faults.cut(after="On")
    chat = build(client)
    chat.handle("One?")
    assert read(chat) == ["One?", "On" + CUT_MARK]
    assert "The text so far is kept; /retry sends the question again." in capsys.readouterr().err


def test_ctrl_c_keeps_the_text_so_far(
    client: Client, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    faults.reply(chunks=["On", "e."], gate=threading.Event())
    chat = build(client)

    def print_and_interrupt(stream: Any, output: Any) -> None:
        next(stream)
        stream.close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_chat, "print_stream", print_and_interrupt)
        chat.handle("One?")
    assert read(chat) == ["One?", "On" + CUT_MARK]
    assert "stopped by Ctrl-C" in capsys.readouterr().err


def test_ctrl_c_before_the_call_keeps_the_question(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "stream", interrupt)
    chat = build(client)
    chat.handle("One?")
    assert read(chat) == ["One?"]
    chat.is_interactive = False
    with pytest.raises(KeyboardInterrupt):
        chat.handle("One?")


def test_a_question_that_cannot_be_sent_is_not_kept(client: Client, capsys: Capture) -> None:
    chat = build(client, "One?", "One.")
    chat.handle("\ud800")
    assert "surrogate" in capsys.readouterr().err
    assert read(chat) == ["One?", "One."]
    chat = build(client)
    chat.handle("\ud800")
    assert "/retry" not in capsys.readouterr().err


# Commands


def test_every_command_is_in_the_help(client: Client, capsys: Capture) -> None:
    chat = build(client)
    chat.handle("/help")
    shown = capsys.readouterr().err
    assert {command.name for command in COMMANDS} == set(chat._commands)
    assert all(f"/{command.name} " in shown for command in COMMANDS)
    chat.is_interactive = False
    chat.handle("/help")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/nothing", "no command /nothing"),
        ("/retry", "no question to send again"),
        ("/edit", "no question to edit"),
        ("/undo", "no question to remove"),
        ("/copy", "no reply to copy"),
        ("/save", "Missing the name of the file"),
        ("/load none.json", "cannot be read"),
        ("/set temperature", "NAME=JSON"),
        ("/set temperature=hot", "not JSON"),
        ("/set message=1", "message"),
        ("/set =1", "/set"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(
    line: str, problem: str, client: Client, capsys: Capture
) -> None:
    chat = build(client)
    chat.handle(line)
    assert problem in capsys.readouterr().err
    assert chat.fields == {}


def test_a_retry_replaces_the_reply(client: Client, faults: FaultyServer) -> None:
    faults.reply("Other.").fail(500)
    chat = build(client, "One?", "One.")
    chat.handle("/retry")
    assert read(chat) == ["One?", "Other."]
    # One without any text leaves the reply that was there.
    chat.handle("/retry")
    assert read(chat) == ["One?", "Other."]


def test_an_edited_question_replaces_the_last_one(client: Client, faults: FaultyServer) -> None:
    faults.reply("Two.")
    chat = build(client, "One?", "One.")
    keys = Keys("/edit", "Two?")
    run_chat(chat, keys)
    assert keys.drafts == ["", "One?", ""]
    assert read(chat) == ["Two?", "Two."]


@pytest.mark.parametrize("line", [KeyboardInterrupt, "/help", " "])
def test_an_edit_can_be_given_up(line: Any, client: Client, faults: FaultyServer) -> None:
    faults.reply("Two.")
    chat = build(client, "One?", "One.")
    keys = Keys("/edit", line, "Two?")
    run_chat(chat, keys)
    assert keys.drafts == ["", "One?", "", ""]
    assert read(chat) == ["One?", "One.", "Two?", "Two."]


def test_undo_takes_the_last_question_back(client: Client, capsys: Capture) -> None:
    chat = build(client, "One?", "One.", "Two?")
    chat.handle("/undo")
    assert "Two?" in capsys.readouterr().err
    assert read(chat) == ["One?", "One."]


def test_the_system_message_can_be_changed(client: Client, capsys: Capture) -> None:
    chat = build(client)
    chat.handle("/system Be brief.")
    assert read(chat) == ["Be brief."]
    chat.handle("/system")
    assert read(chat) == []
    assert "Removed the system message: Be brief." in capsys.readouterr().err
    chat.handle("/system")
    assert "There is no system message." in capsys.readouterr().err


def test_fields_and_the_model_are_sent(
    client: Client, faults: FaultyServer, capsys: Capture
) -> None:
    faults.reply("One.").reply("Two.")
    chat = build(client)
    for line in ("/set seed=1", '/set stop=["a=b"]', "/model llama", "One?"):
        chat.handle(line)
    assert faults.requests[0].options == {"seed": 1, "stop": ["a=b"], "model": "llama"}
    capsys.readouterr()
    for line in ("/set seed=", "/set model=", "/set", "/model", "Two?"):
        chat.handle(line)
    assert faults.requests[1].options == {"stop": ["a=b"]}
    shown = capsys.readouterr().err
    assert 'Fields of each request: stop=["a=b"]' in shown
    assert "The model is the default of the server." in shown
    chat.handle("/set stop=")
    assert "Fields of each request: none" in capsys.readouterr().err


def test_a_conversation_is_saved_and_loaded(
    client: Client, tmp_path: Path, capsys: Capture
) -> None:
    chat = build(client, "One?", "One.", archive=Archive())
    chat.handle("/save talk.json")
    assert Conversation.from_json((tmp_path / "talk.json").read_text()) == Conversation(
        messages=chat.transcript.conversation
    )
    chat.handle("/clear")
    assert read(chat) == []
    capsys.readouterr()
    chat.handle("/load talk.json")
    assert read(chat) == ["One?", "One."]
    out, err = capsys.readouterr()
    assert (out, "> One?" in err) == ("One.", True)
    chat.archive = None
    chat.handle("/clear")
    chat.handle("/load talk.json")
    assert read(chat) == ["One?", "One."]


def test_each_conversation_is_kept_in_a_file_of_its_own(
    client: Client, faults: FaultyServer, tmp_path: Path
) -> None:
    faults.reply("One.").reply("Two.")
    chat = build(client, archive=Archive())
    for line in ("One?", "/clear", "Two?"):
        chat.handle(line)
    files = sorted((tmp_path / "data" / "cromicle" / "conversations").iterdir())
    kept = [[message["content"] for message in json.loads(file.read_text())] for file in files]
    assert kept == [["One?", "One."], ["Two?", "Two."]]


def test_a_history_that_cannot_be_saved_is_reported_once(
    client: Client, faults: FaultyServer, tmp_path: Path, capsys: Capture
) -> None:
    faults.reply("One.").reply("Two.")
    (tmp_path / "file").write_text("")
    chat = build(client, archive=Archive(tmp_path / "file"))
    chat.handle("One?")
    chat.handle("Two?")
    assert "".join(capsys.readouterr().err.split()).count("isnotsaved") == 1


def test_quit_and_the_end_of_the_input_leave(client: Client) -> None:
    keys = Keys("/quit", "One?")
    run_chat(build(client), keys)
    assert keys.drafts == [""]
    run_chat(build(client), Keys())


def test_ctrl_c_at_the_prompt_says_how_to_leave(client: Client, capsys: Capture) -> None:
    run_chat(build(client), Keys(KeyboardInterrupt))
    assert "Ctrl-D exits" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        run_chat(build(client, is_interactive=False), Keys(KeyboardInterrupt))


# The clipboard


def test_the_terminal_is_asked_to_copy(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(clipboard, "_BY_PLATFORM", {})
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    build(client, "One?", "Grüße").handle("/copy")
    out, err = capsys.readouterr()
    assert out == "\x1b]52;c;R3LDvMOfZQ==\x07"
    assert "Copied 5 characters with " in err


@pytest.mark.skipif(os.name == "nt", reason="the program is a shell script")
@pytest.mark.parametrize("ending", ["exit 0", "exit 1"])
@pytest.mark.parametrize("where", ["desktop", "system"])
def test_a_program_of_the_desktop_copies(
    where: str, ending: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    program = tmp_path / "wl-copy"
    program.write_text(f"#!/bin/sh\ncat >'{tmp_path}/copied'\n{ending}\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    systems = {sys.platform: ["wl-copy"]} if where == "system" else {}
    monkeypatch.setattr(clipboard, "_BY_PLATFORM", systems)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0" if where == "desktop" else "")
    by = clipboard.copy("Grüße")
    assert (tmp_path / "copied").read_text(encoding="utf-8") == "Grüße"
    assert (by == "wl-copy") == (ending == "exit 0")


def test_a_program_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("wl-copy", 5)

    monkeypatch.setattr(subprocess, "run", run)
    assert not clipboard._run(["wl-copy"], "text")


# Pipes


def pipe_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8"))


def chat_with(faults: FaultyServer, *arguments: str) -> int:
    return run(["chat", "--base-url", faults.base_url, "--retries", "0", *arguments])


def test_each_line_of_a_pipe_is_a_question(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    faults.reply("One **bold**.").reply("Two.\n")
    pipe_in(monkeypatch, "One?\r\n\n/system Be brief.\nTwo?")
    assert chat_with(faults, "--body", "seed=1") == 0
    assert capsys.readouterr() == ("One **bold**.\nTwo.\n", "")
    assert [request.options for request in faults.requests] == [{"seed": 1}] * 2
    assert faults.requests[1].message.startswith("System: Be brief.\nUser: One?\nAssistant: One")


@pytest.mark.parametrize(
    ("line", "code"), [("One?", 1), ("/nothing", 2), ("/edit", 2), ("/copy", 2)]
)
def test_an_error_ends_a_chat_with_a_pipe(
    line: str, code: int, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    faults.fail(500)
    Path("talk.json").write_text(Conversation().user("Hi").assistant("Ho").to_json())
    pipe_in(monkeypatch, f"{line}\nTwo?\n")
    assert chat_with(faults, "--load", "talk.json") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert len(faults.requests) <= 1


def test_plain_sends_the_conversation_as_one_text(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.reply("One.").reply("Two.")
    pipe_in(monkeypatch, "One?\nTwo?\n")
    assert chat_with(faults, "--plain") == 0
    assert all(list(request.json) == ["message", "token", "hash"] for request in faults.requests)


def test_the_embedded_server_answers(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    pipe_in(monkeypatch, "Hello there\n")
    assert run(["chat", "--local"]) == 0
    assert capsys.readouterr().out == "Hello there\n"


def test_the_last_conversation_goes_on(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    faults.reply("One.").reply("Two.").reply("Three.")
    pipe_in(monkeypatch, "One?\n")
    assert chat_with(faults, "--system", "Be brief.") == 0
    pipe_in(monkeypatch, "Two?\n")
    assert chat_with(faults, "--continue") == 0
    pipe_in(monkeypatch, "Three?\n")
    assert chat_with(faults, "--continue", "--system", "Be kind.", "--no-history") == 0
    messages = [request.messages for request in faults.requests]
    assert [str(message["content"]) for message in messages[1] or ()] == [
        *("Be brief.", "One?", "One.", "Two?")
    ]
    assert [str(message["content"]) for message in messages[2] or ()] == [
        *("Be kind.", "One?", "One.", "Two?", "Two.", "Three?")
    ]


def test_nothing_is_kept_where_that_is_not_wanted(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    faults.reply("One.")
    pipe_in(monkeypatch, "One?\n")
    assert chat_with(faults, "--no-history") == 0
    assert not (tmp_path / "data").exists()
    assert chat_with(faults, "--continue") == 2
    assert "no conversation to continue" in capsys.readouterr().err


def test_continue_and_load_exclude_each_other(faults: FaultyServer, capsys: Capture) -> None:
    assert chat_with(faults, "--continue", "--load", "talk.json") == 2
    assert "cannot be used together" in capsys.readouterr().err


def test_a_line_reader_ends_with_its_stream() -> None:
    reader = LineReader(io.BytesIO(b"\xef\xbb\xbfOne\r\n\xff\nTwo"))
    assert reader.read() == "One"
    with pytest.raises(Misuse, match="not UTF-8"):
        reader.read()
    assert reader.read() == "Two"
    with pytest.raises(EOFError):
        reader.read()


def test_a_closed_stdin_is_the_end(faults: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert chat_with(faults) == 0


# A terminal


class Typewriter(io.TextIOWrapper):
    """A stdin or stdout that says that it is a terminal."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8")

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_gets_a_prompt_and_replies_as_markdown(
    term: str, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    faults.reply("One **bold**.")
    monkeypatch.setenv("TERM", term)
    screen = Typewriter()
    monkeypatch.setattr(sys, "stdin", Typewriter())
    monkeypatch.setattr(sys, "stdout", screen)
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text("One?\r/quit\r")
        assert chat_with(faults) == 0
    assert isinstance(screen.buffer, io.BytesIO)
    shown = screen.buffer.getvalue().decode()
    assert ("**bold**" in shown) == (term == "dumb")
    assert f"Chat with {faults.base_url}" in capsys.readouterr().err


# Retries


def test_a_retry_is_noted_on_a_terminal_that_gets_the_text_as_it_is(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.reset().fail(503, retry_after=0).stall().reply("One.")
    screen = Typewriter()
    monkeypatch.setattr(sys, "stdout", screen)
    pipe_in(monkeypatch, "One?\n")
    arguments = ["chat", "--base-url", faults.base_url, "--raw", "--timeout", "0.3"]
    assert run([*arguments, "--retries", "3"]) == 0
    assert isinstance(screen.buffer, io.BytesIO)
    lines = screen.buffer.getvalue().decode().splitlines()
    assert [re.sub(r"in \d\.\d s", "in 0.0 s", line) for line in lines[1:]] == [
        "retrying 3 of 4 in 0.0 s: 503",
        "retrying 4 of 4 in 0.0 s: timeout (first_byte)",
        "One.",
    ]
    assert re.match(r"retrying 2 of 4 in \d\.\d s: \w+", lines[0])


def test_without_a_stderr_nothing_is_printed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    build(client).handle("/help")
