"""Which choice of a completion is the answer: tables of events, and the text of each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cromicle_sdk.server import BackendError
from cromicle_sdk.server.openai.choices import Choices, Part

STOP = "stop"


def role(index: int | None) -> Part:
    return Part(index, has_role=True)


def end(index: int | None, reason: str = STOP) -> Part:
    return Part(index, finish_reason=reason)


def text(index: int | None, text: str, **more: Any) -> Part:
    return Part(index, text, **more)


def receive(events: list[list[Part]]) -> tuple[list[str], str | None]:
    """The texts as they are released, and the finish reason."""
    choices = Choices()
    texts = ["".join(choices.receive(event)) for event in events]
    return [*texts, "".join(choices.receive_eof())], choices.finish_reason


@pytest.mark.parametrize(
    ("events", "texts"),
    [
        ([[role(0)], [text(0, "a")], [text(0, "b")], [end(0)]], ["", "a", "b", "", ""]),
        ([[text(1, "a")], [text(1, "b")], [end(1)]], ["a", "b", "", ""]),
        ([[role(0)], [text(1, "a")], [text(1, "b")], [end(0)]], ["", "a", "b", "", ""]),
        ([[text(None, "a")], [text(0, "b")], [end(None)]], ["a", "b", "", ""]),
        ([[text(7, "a")], [text(None, "b")], [end(7)]], ["a", "b", "", ""]),
        ([[text(0, "a"), text(0, "b")], [end(0)]], ["ab", "", ""]),
        ([[text(0, "a", finish_reason=STOP)], [text(0, "b")]], ["a", "b", ""]),
    ],
)
def test_one_index_is_one_answer(events: list[list[Part]], texts: list[str]) -> None:
    assert receive(events) == (texts, STOP)


@pytest.mark.parametrize(
    ("events", "texts"),
    [
        (
            [[text(0, "a")], [text(1, "b")], [text(2, "c")], [text(3, "d")], [text(4, "e")]],
            ["a", "", "", "bcd", "e", ""],
        ),
        ([[role(0)], [text(1, "a")], [text(2, "b")], [end(3)]], ["", "a", "", "", "b"]),
        ([[text(0, "a")], [text(1, "b")], [end(0)]], ["a", "", "", "b"]),
        ([[text(0, "a")], [text(1, "b")], [end(1)]], ["a", "", "", "b"]),
        ([[text(0, "a")], [text(1, "b")], [text(1, "c")], [end(1)]], ["a", "", "", "", "bc"]),
        (
            [[text(i, str(i))] for i in range(6)] + [[end(0)]],
            ["0", "", "", "123", "4", "5", "", ""],
        ),
        (
            [[text(i, str(i))] for i in (0, 1, 2, 3, 3, 4)] + [[end(5)]],
            ["0", "", "", "123", "3", "4", "", ""],
        ),
    ],
)
def test_an_index_for_each_token_is_one_answer(events: list[list[Part]], texts: list[str]) -> None:
    assert receive(events)[0] == texts


@pytest.mark.parametrize(
    "events",
    [
        [[role(0)], [role(1)], [text(0, "a")], [text(1, "x")], [text(0, "b")], [text(1, "y")]],
        [[role(0), role(1)], [text(1, "x"), text(0, "a")], [text(0, "b")], [text(1, "y")]],
        [[text(0, "a")], [text(1, "x")], [text(0, "b")], [text(1, "y")]],
        [[text(0, "a")], [text(1, "x")], [text(2, "y")], [text(0, "b")], [text(1, "x")]],
        [[text(0, "a"), text(1, "x"), text(2, "y")], [text(0, "b"), text(1, "z")]],
        [[text(0, "ab"), text(1, "x")]],
        [[text(0, "ab")], [text(1, "x")]],
        [[role(0)], [role(1)], [text(1, "x")], [text(0, "ab")]],
    ],
)
def test_only_the_first_of_parallel_answers_counts(events: list[list[Part]]) -> None:
    texts, reason = receive([*events, [end(0)], [end(1, "length")]])
    assert ("".join(texts), reason) == ("ab", STOP)


def test_an_answer_after_the_first_has_ended_does_not_count() -> None:
    texts, reason = receive([[text(0, "a")], [end(0)], [text(1, "x")], [end(1, "length")]])
    assert ("".join(texts), reason) == ("a", STOP)


def test_text_after_the_end_that_is_no_answer_of_its_own_counts() -> None:
    texts, reason = receive([[text(0, "a")], [end(0)], [text(1, "b")]])
    assert ("".join(texts), reason) == ("ab", STOP)


def test_several_answers_that_look_like_tokens_at_first_are_an_error() -> None:
    choices = Choices()
    for index in range(4):
        choices.receive([text(index, "x")])
    with pytest.raises(BackendError, match="invalid response"):
        choices.receive([text(0, "y")])


def test_an_answer_whose_only_text_is_in_another_choice_is_an_error() -> None:
    with pytest.raises(BackendError, match="invalid response"):
        receive([[role(0), role(1)], [text(1, "x")], [end(0)], [end(1)]])


@pytest.mark.parametrize(
    ("events", "is_finished"),
    [
        ([], False),
        ([[text(0, "a")]], False),
        ([[text(0, "a")], [end(0)]], True),
        ([[end(0)]], True),
        ([[text(1, "a")], [end(0)]], True),
        ([[text(1, "a")], [end(0)], [text(1, "b")]], False),
        ([[role(0)], [role(1)], [text(0, "a")], [end(1)]], False),
        ([[role(0)], [role(1)], [text(0, "a")], [end(1)], [end(0)]], True),
        ([[text(0, "a")], [text(1, "b")], [end(0)]], True),
        ([[text(i, "a")] for i in range(4)] + [[end(9)]], True),
    ],
)
def test_the_answer_is_finished_by_its_own_reason(
    events: list[list[Part]], is_finished: bool
) -> None:
    choices = Choices()
    for event in events:
        choices.receive(event)
    assert (choices.finish_reason is not None) is is_finished


@pytest.mark.parametrize(
    ("events", "has_gone_on"),
    [
        ([[text(0, "a", finish_reason=STOP)]], False),
        ([[text(0, "a", finish_reason=STOP)], [end(0)]], False),
        ([[text(0, "a", finish_reason=STOP)], [text(0, "b", finish_reason=STOP)]], True),
        ([[text(1, "a")], [end(0)], [text(1, "b")]], True),
        ([[text(i, "a", finish_reason=STOP)] for i in range(4)], False),
        ([[text(i, "a", finish_reason=STOP)] for i in range(5)], True),
        # The other answers of several may end at any time.
        ([[role(0)], [role(1)], [text(0, "a")], [end(1)], [text(0, "b")]], False),
        ([[role(0), role(1)], [text(0, "a")], [end(0)], [text(1, "b")]], False),
    ],
)
def test_text_after_a_finish_reason(events: list[list[Part]], has_gone_on: bool) -> None:
    choices = Choices()
    for event in events:
        choices.receive(event)
    assert choices.has_gone_on is has_gone_on


@given(
    st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=30),
    st.sampled_from([lambda i: 0, lambda i: 1, lambda i: i, lambda i: i + 1, lambda i: None]),
)
def test_no_text_of_one_answer_is_lost(tokens: list[str], number: Any) -> None:
    events = [[text(number(position), token)] for position, token in enumerate(tokens)]
    texts, reason = receive([*events, [end(number(len(tokens) - 1))]])
    assert ("".join(texts), reason) == ("".join(tokens), STOP)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.text("ab", min_size=1, max_size=2)),
        min_size=1,
        max_size=20,
    )
)
def test_parallel_answers_that_begin_with_a_role_are_told_apart(tokens: Any) -> None:
    events = [[text(index, token)] for index, token in tokens]
    # Without any text of the first one it would be an error.
    events.append([text(0, "z")])
    tokens = [*tokens, (0, "z")]
    texts, reason = receive([[role(i)] for i in range(3)] + events + [[end(i)] for i in range(3)])
    assert "".join(texts) == "".join(token for index, token in tokens if index == 0)
    assert reason == STOP
