"""`cromicle chat`, `ask` and `batch` on a real terminal, through the eyes of an emulator."""

from __future__ import annotations

import re
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cromicle_sdk import Conversation
from cromicle_sdk.testing import FaultyServer

if sys.platform == "win32":
    pytest.skip("it has no pseudo terminals", allow_module_level=True)

from pictures_chat import PICTURE, draw_chat, read_text
from screens import Process, isolate

ESCAPE = "\x1b"
PASTE = "\x1b[200~{}\x1b[201~"


@pytest.fixture
def chat(faults: FaultyServer, tmp_path: Path) -> Iterator[Process]:
    with start(faults, tmp_path) as process:
        process.wait_for_prompt()
        yield process


def start(
    faults: FaultyServer, tmp_path: Path, *arguments: str, columns: int = 80, **environment: str
) -> Process:
    return Process(
        *("chat", "--base-url", faults.base_url, *arguments),
        columns=columns,
        environment={**isolate(tmp_path), **environment},
    )


def enter(process: Process, text: str) -> None:
    process.type(text)
    process.press_enter()


def test_a_conversation(chat: Process, faults: FaultyServer) -> None:
    faults.reply("Some **bold** text.").reply("And more.")
    enter(chat, "One?")
    chat.wait_for("1 attempt")
    chat.wait_for_prompt()
    assert "Some bold text." in chat.screen.lines
    assert chat.screen.find_styles("bold") == {"bold"}
    enter(chat, "Two?")
    chat.wait_for("And more.")
    chat.wait_for_prompt()
    assert faults.requests[1].message.startswith("User: One?\nAssistant: Some **bold** text.")
    chat.type("\x04")
    assert chat.wait() == 0


def test_a_clock_and_retries_are_shown_until_the_first_text(
    faults: FaultyServer, tmp_path: Path
) -> None:
    gate = threading.Event()
    faults.fail(503, retry_after=1).reply(chunks=["One.", " Two."], gate=gate)
    with start(faults, tmp_path) as chat:
        chat.wait_for_prompt()
        enter(chat, "One?")
        chat.wait_for("retrying 2 of 3 in 1.0 s: 503")
        chat.wait_until(lambda screen: bool(re.search(r"\d\.\d s$", screen.lines[-1])))
        chat.wait_until(lambda screen: screen.lines[-1] == "One.")
        gate.set()
        chat.wait_for("2 attempts")
        assert "One. Two." in chat.screen.lines


def test_ctrl_c_stops_the_reply_and_keeps_the_conversation(
    faults: FaultyServer, tmp_path: Path
) -> None:
    faults.reply(chunks=["The first half", "."], gate=threading.Event()).reply("All of it.")
    with start(faults, tmp_path) as chat:
        chat.wait_for_prompt()
        enter(chat, "One?")
        chat.wait_for("The first half")
        chat.interrupt()
        chat.wait_for("stopped by Ctrl-C")
        chat.wait_for_prompt()
        assert "^C" not in chat.screen.text
        enter(chat, "Two?")
        chat.wait_for("All of it.")
        assert "Assistant: The first half [cut]\nUser: Two?" in faults.requests[1].message


def test_ctrl_c_stops_a_call_that_waits(chat: Process, faults: FaultyServer) -> None:
    faults.fail(503, retry_after=30)
    enter(chat, "One?")
    chat.wait_for("retrying 2 of 3 in 30.0 s")
    chat.interrupt()
    chat.wait_for("stopped by Ctrl-C")
    chat.wait_for_prompt()
    faults.reply("Now.")
    enter(chat, "/retry")
    chat.wait_for("Now.")


def test_after_an_error_it_can_be_tried_again(chat: Process, faults: FaultyServer) -> None:
    faults.fail(401).reply("Now.")
    enter(chat, "One?")
    chat.wait_for("Error: ")
    chat.wait_for("The conversation is unchanged; /retry sends the question again.")
    chat.wait_for_prompt()
    enter(chat, "/retry")
    chat.wait_for("Now.")
    assert [request.message for request in faults.requests] == ["One?", "One?"]


def test_alt_enter_and_a_pasted_block_make_one_question(
    chat: Process, faults: FaultyServer
) -> None:
    faults.reply("Good.")
    chat.type("One" + ESCAPE + "\r" + "two")
    chat.type(PASTE.format("\nthree\r\nfour\n"))
    chat.wait_for("four")
    assert faults.requests == []
    chat.press_enter()
    chat.wait_for("Good.")
    (request,) = faults.requests
    assert request.message == "One\ntwo\nthree\nfour\n"


def test_ctrl_c_clears_the_line(chat: Process, faults: FaultyServer) -> None:
    faults.reply("Good.")
    chat.type("A mistake")
    chat.wait_for("A mistake")
    chat.interrupt()
    chat.wait_for_prompt()
    assert "A mistake" not in chat.screen.text
    chat.interrupt()
    chat.wait_for("Ctrl-D exits, and")
    chat.wait_for_prompt()
    enter(chat, "One?")
    chat.wait_for("Good.")
    assert faults.requests[0].message == "One?"


def test_the_last_question_is_edited_on_the_line(chat: Process, faults: FaultyServer) -> None:
    faults.reply("One.").reply("Two.")
    enter(chat, "One")
    chat.wait_for("1 attempt")
    chat.wait_for_prompt()
    enter(chat, "/edit")
    chat.wait_until(lambda screen: screen.visible[-1] == "> One")
    enter(chat, " and two?")
    chat.wait_for("Two.")
    assert [request.message for request in faults.requests] == ["One", "One and two?"]
    # Ctrl-C gives an edit up.
    chat.wait_for_prompt()
    enter(chat, "/edit")
    chat.wait_until(lambda screen: screen.visible[-1] == "> One and two?")
    chat.interrupt()
    chat.wait_for("Ctrl-D exits, and")


def test_tab_completes_commands_and_files(chat: Process, tmp_path: Path) -> None:
    talk = tmp_path / "conversation-of-today.json"
    talk.write_text(Conversation().user("Hi").assistant("Ho").to_json(), encoding="utf-8")
    chat.type("/lo\t")
    chat.wait_until(lambda screen: screen.visible[-1] == "> /load")
    chat.type(f" {tmp_path}/conv\t")
    chat.wait_until(lambda screen: "-of-today.json" in "".join(screen.lines).replace(" ", ""))
    chat.press_enter()
    chat.wait_for("Ho")


@pytest.mark.parametrize("arguments", [(), ("--raw",)], ids=["rendered", "raw"])
def test_what_is_typed_during_a_reply_waits_for_the_prompt(
    arguments: tuple[str, ...], faults: FaultyServer, tmp_path: Path
) -> None:
    gate = threading.Event()
    faults.reply(chunks=["First", " reply."], gate=gate).reply("Second reply.")
    with start(faults, tmp_path, *arguments) as chat:
        chat.wait_for_prompt()
        enter(chat, "One?")
        chat.wait_for("First")
        enter(chat, "Two?")
        gate.set()
        chat.wait_for("Second reply.")
        assert "First reply." in chat.screen.lines
        assert chat.screen.text.count("Two?") == 1


def test_the_terminal_echoes_again_after_the_chat(chat: Process, faults: FaultyServer) -> None:
    faults.reply("Good.")
    enter(chat, "One?")
    chat.wait_for("1 attempt")
    chat.wait_for_prompt()
    chat.type("\x04")
    assert chat.wait() == 0
    assert chat.echoes


def test_lines_and_conversations_are_kept_across_runs(faults: FaultyServer, tmp_path: Path) -> None:
    faults.reply("One.").reply("Two.")
    with start(faults, tmp_path) as chat:
        chat.wait_for_prompt()
        enter(chat, "One?")
        chat.wait_for("1 attempt")
        chat.wait_for_prompt()
        chat.type("\x04")
        assert chat.wait() == 0
    kept = tmp_path / "data" / "cromicle" / "lines.jsonl"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with start(faults, tmp_path, "--continue") as chat:
        chat.wait_for_prompt()
        assert "> One?" in chat.screen.lines
        assert "One." in chat.screen.lines
        # The line before.
        chat.type(ESCAPE + "[A")
        chat.wait_until(lambda screen: screen.visible[-1] == "> One?")
        chat.press_enter()
        chat.wait_for("Two.")
    assert faults.requests[1].message == "User: One?\nAssistant: One.\nUser: One?\nAssistant:"


def test_nothing_is_kept_without_history(faults: FaultyServer, tmp_path: Path) -> None:
    faults.reply("One.")
    with start(faults, tmp_path, "--no-history") as chat:
        chat.wait_for_prompt()
        enter(chat, "One?")
        chat.wait_for("1 attempt")
        chat.wait_for_prompt()
        # It remembers the lines of this run.
        chat.type(ESCAPE + "[A")
        chat.wait_until(lambda screen: screen.visible[-1] == "> One?")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_it_is_readable_without_colours(
    environment: dict[str, str], faults: FaultyServer, tmp_path: Path
) -> None:
    faults.reply("# Title\n\n```python\nx = 1\n```\n")
    with start(faults, tmp_path, columns=40, **environment) as chat:
        chat.wait_for_prompt()
        enter(chat, "One?")
        chat.wait_for("1 attempt")
        assert not re.search(rb"\x1b\[[\d;]*(3[1-7]|4[0-7]|38|48)[;m]", chat.output)
        if "TERM" in environment:
            # Text as it is: such a terminal has no styles.
            assert "# Title" in chat.screen.lines
            assert b"\x1b[A" not in chat.output
        assert any("x = 1" in line for line in chat.screen.lines)


def test_hostile_rtl_and_wide_text_at_40_columns(faults: FaultyServer, tmp_path: Path) -> None:
    faults.reply(
        "שלום עולם 日本語 👍 " * 8 + "\x1b]0;title\x07\x1b[2J a\u202eb c\u200bd\n\nThe end."
    )
    with start(faults, tmp_path, columns=40) as chat:
        chat.wait_for_prompt()
        enter(chat, "One?")
        chat.wait_for("1 attempt")
        assert "The end." in chat.screen.lines
        shown = chat.screen.text
        assert "a\N{REPLACEMENT CHARACTER}b cd" in shown.replace("\n", " ")
        assert shown.count("שלום") == 8
        written = chat.output.decode()
        assert not {"\x07", "\u202e", "\u200b"} & set(written.split("One?")[-1])
        assert "]0;title" not in re.findall(r"\x1b(.{8})", written)


def test_ask_renders_on_a_terminal(faults: FaultyServer, tmp_path: Path) -> None:
    text = "# Title\n\n" + "".join(f"1. item {number}\n" for number in range(1, 60)) + "\nThe end."
    faults.reply(chunks=[text[start : start + 7] for start in range(0, len(text), 7)], delay=0.002)
    with Process("ask", "--base-url", faults.base_url, "Hi", environment=isolate(tmp_path)) as ask:
        assert ask.wait() == 0
        lines = [f" {number}. item {number}" for number in range(1, 60)]
        assert ask.screen.lines == ["Title", "", *lines, "", "The end."]
        # The text, and then the line of the shell.
        assert ask.screen.cursor[1] == 0


def test_a_window_that_changes_its_size_keeps_the_text(
    faults: FaultyServer, tmp_path: Path
) -> None:
    gate = threading.Event()
    faults.reply(chunks=["First paragraph.\n\nSecond", " one, and more."], gate=gate)
    with Process("ask", "--base-url", faults.base_url, "Hi", environment=isolate(tmp_path)) as ask:
        ask.wait_for("Second")
        ask.resize(60, 20)
        gate.set()
        assert ask.wait() == 0
        assert ask.screen.lines == ["First paragraph.", "", "Second one, and more."]


def test_a_burst_is_painted_a_few_times(faults: FaultyServer, tmp_path: Path) -> None:
    words = [f"word{number} " for number in range(2000)]
    faults.reply(chunks=words)
    with Process("ask", "--base-url", faults.base_url, "Hi", environment=isolate(tmp_path)) as ask:
        assert ask.wait() == 0
        assert ask.screen.text.split() == "".join(words).split()
        # Painted again for each chunk, it would be a hundred times as much.
        assert len(ask.output) < 20 * len("".join(words))


def measure_cpu(*arguments: str, folder: Path) -> float:
    """The CPU time of a process of the command on a terminal, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Process(*arguments, environment=isolate(folder)) as process:
        assert process.wait() == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_rendering_a_burst_costs_little_more_than_printing_it(
    faults: FaultyServer, tmp_path: Path
) -> None:
    text = ("Some **bold** words and `code`.\n\n- one\n- two\n\n```python\nx = 1\n```\n\n") * 100
    size = len(text) // 2000 + 1
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    faults.reply(chunks=chunks).reply(chunks=chunks)
    call = ("ask", "--base-url", faults.base_url, "Hi")
    raw = measure_cpu(*call, "--raw", folder=tmp_path)
    # 1.4 times on an idle machine.
    assert measure_cpu(*call, folder=tmp_path) < 3 * raw


def test_the_help_loads_nothing_that_a_chat_needs(tmp_path: Path) -> None:
    code = (
        "import sys; from cromicle_sdk.cli import run; run(['chat', '--help']);"
        "print({'prompt_toolkit', 'markdown_it', 'rich.markdown'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_picture_in_the_readme_is_what_chat_shows() -> None:
    assert read_text(draw_chat()) == read_text(PICTURE.read_text(encoding="utf-8"))


def test_a_terminated_batch_leaves_a_visible_cursor(faults: FaultyServer, tmp_path: Path) -> None:
    faults.reply("Good.", gate=threading.Event())
    source = tmp_path / "in.txt"
    source.write_text("One\n", encoding="utf-8")
    arguments = ("--base-url", faults.base_url, str(source), str(tmp_path / "out.jsonl"))
    with Process("batch", *arguments, environment=isolate(tmp_path)) as batch:
        batch.wait_for("0 of 1 done")
        assert batch.screen.hides_cursor
        batch.terminate()
        assert batch.wait() == -signal.SIGTERM
        assert not batch.screen.hides_cursor
