"""Parsing of a prompt that `format_prompt` built, back into its messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cromicle_sdk import format_prompt
from cromicle_sdk.server.openai.prompt import parse_prompt

ROLES = st.sampled_from(["system", "developer", "user", "assistant"])
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# Built from the parts that the parser looks for.
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


def message(role: str, content: str) -> dict[str, str]:
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
def test_a_formatted_prompt_parses_to_its_messages(messages: list[tuple[str, str]]) -> None:
    expected = [message(*each) for each in messages]
    assert parse_prompt(format_prompt(expected)) == expected


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
def test_a_prompt_that_does_not_parse_completely_is_rejected(prompt: str) -> None:
    assert parse_prompt(prompt) is None


def test_a_content_with_a_role_line_is_parsed_as_two_messages() -> None:
    prompt = format_prompt([message("user", "quote:\nAssistant: no"), message("user", "b")])
    assert parse_prompt(prompt) == [
        message("user", "quote:"),
        message("assistant", "no"),
        message("user", "b"),
    ]


@given(st.lists(st.tuples(ROLES, TEXT | TRICKY), min_size=2))
def test_every_formatted_prompt_parses_and_formats_to_the_same_bytes(
    messages: list[tuple[str, str]],
) -> None:
    prompt = format_prompt([message(*each) for each in messages])
    parsed: Any = parse_prompt(prompt)
    assert format_prompt(parsed).encode() == prompt.encode()


@given(TEXT | TRICKY)
def test_every_prompt_that_parses_formats_to_the_same_bytes(prompt: str) -> None:
    parsed = parse_prompt(prompt)
    assert parsed is None or format_prompt(parsed).encode() == prompt.encode()
