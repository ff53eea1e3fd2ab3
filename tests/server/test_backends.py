"""The echo: exactly the last user message, word by word."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.messages import format_prompt
from cromicle_sdk.server import echo_backend

# A prompt is UTF-8, which has no surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
WORDY = st.lists(st.sampled_from(["word", "é", " ", "\n", "\t", "\u2003", "User:", "\x1c"])).map(
    "".join
)


def collect(backend: Callable[[str], Any], prompt: str) -> tuple[list[str], float]:
    """The chunks, and the seconds they took on a clock that skips every sleep."""

    async def main() -> tuple[list[str], float]:
        started = trio.current_time()
        iterator: Any = backend(prompt)
        chunks = [chunk async for chunk in iterator]
        return chunks, trio.current_time() - started

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("Hello, how are you?", ["Hello, ", "how ", "are ", "you?"]),
        ("  two\n\nlines \n", ["  two\n\n", "lines \n"]),
        ("one", ["one"]),
        (" \n ", [" \n "]),
        ("", []),
        ("User: hi", ["User: ", "hi"]),
        ("\nAssistant:", ["\nAssistant:"]),
        ("System: no user\nAssistant:", ["System: ", "no ", "user\n", "Assistant:"]),
        ("User: hi\nAssistant:", ["hi"]),
        ("User: \nAssistant:", []),
        ("System: x\nUser: two\nlines\nAssistant:", ["two\n", "lines"]),
        ("User: a\nAssistant: b\nUser: c d\nAssistant:", ["c ", "d"]),
        ("User: a\nAssistant: b\nAssistant:", ["a\n", "Assistant: ", "b"]),
        ("System: a User: b\nUser:c\nUser: d\nAssistant:", ["d"]),
    ],
)
def test_the_last_user_message_is_echoed_word_by_word(prompt: str, chunks: list[str]) -> None:
    assert collect(echo_backend(), prompt)[0] == chunks


@given(TEXT | WORDY)
def test_a_single_message_is_echoed_exactly(text: str) -> None:
    assert "".join(collect(echo_backend(), format_prompt([message("user", text)]))[0]) == text


@given(
    earlier=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXT), min_size=1),
    text=TEXT | WORDY,
)
def test_the_last_user_message_of_a_conversation_is_echoed(
    earlier: list[tuple[str, str]], text: str
) -> None:
    text = text.replace("User: ", "user: ")
    prompt = format_prompt([message(*turn) for turn in earlier] + [message("user", text)])
    assert "".join(collect(echo_backend(), prompt)[0]) == text


@given(WORDY)
def test_each_chunk_is_at_most_one_word(text: str) -> None:
    assert all(len(chunk.split()) <= 1 for chunk in collect(echo_backend(), text)[0])


def test_the_delay_is_between_words() -> None:
    chunks, elapsed = collect(echo_backend(delay=10), "one two three")
    assert len(chunks) == 3
    assert elapsed == pytest.approx(20)


@pytest.mark.parametrize("delay", [-1, -0.001, math.nan, math.inf, "1", None, True])
def test_an_invalid_delay_is_rejected_by_name(delay: Any) -> None:
    with pytest.raises(ConfigurationError, match="delay"):
        echo_backend(delay=delay)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
