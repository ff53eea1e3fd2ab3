"""A prompt that `format_prompt` made becomes its messages again, to the byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cromicle_sdk import format_prompt
from cromicle_sdk.server.openai.prompt import parse_prompt

ROLES = st.sampled_from(["system", "developer", "user", "assistant"])
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# Made of what the parser looks for.
TRICKY = st.lists(
    st.sampled_from(
        [
            "User: ",
            "\n",
            "\nUser: ",
            "System:",
            "\nAssistant:",
            "Assistant: ",
            "a",
            " ",
            "\r",
            "\x85",
        ]
    )
).map("".join)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "messages",
    [
        [("system", "Be brief."), ("user", "Hi")],
        [("user", "Hi"), ("assistant", "Hello!"), ("user", "Two\nlines\n\nand a gap")],
        [("developer", ""), ("user", "")],
        [("user", "Note: this is no role\nTool: nor this"), ("assistant", "User:no space")],
        [("user", " \u2028User: on the same line\x85System: too"), ("assistant", "x")],
        [("assistant", "ends with\nAssistant:"), ("user", "\nAssistant:")],
    ],
)
def test_the_messages_come_back(messages: list[tuple[str, str]]) -> None:
    turns = [turn(*message) for message in messages]
    assert parse_prompt(format_prompt(turns)) == turns


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "Hi",
        "\nAssistant:",
        "User: one alone\nAssistant:",
        "User: a\nAssistant: b",
        "User: a\nAssistant: b\nAssistant: ",
        "Say this.\nUser: a\nUser: b\nAssistant:",
        "\nUser: a\nUser: b\nAssistant:",
        "Tool: 1\nUser: a\nUser: b\nAssistant:",
        "user: a\nuser: b\nAssistant:",
        "User:a\nUser:b\nAssistant:",
    ],
)
def test_what_does_not_parse_without_rest_is_no_conversation(prompt: str) -> None:
    assert parse_prompt(prompt) is None


def test_a_content_with_a_role_of_its_own_is_taken_at_its_word() -> None:
    prompt = format_prompt([turn("user", "quote:\nAssistant: no"), turn("user", "b")])
    assert parse_prompt(prompt) == [
        turn("user", "quote:"),
        turn("assistant", "no"),
        turn("user", "b"),
    ]


@given(st.lists(st.tuples(ROLES, TEXT | TRICKY), min_size=2))
def test_what_format_prompt_makes_always_parses_and_formats_to_the_same_bytes(
    messages: list[tuple[str, str]],
) -> None:
    prompt = format_prompt([turn(*message) for message in messages])
    parsed: Any = parse_prompt(prompt)
    assert format_prompt(parsed).encode() == prompt.encode()


@given(TEXT | TRICKY)
def test_whatever_parses_formats_to_the_same_bytes(prompt: str) -> None:
    parsed = parse_prompt(prompt)
    assert parsed is None or format_prompt(parsed).encode() == prompt.encode()
