"""`Ask` with the batches of Ray Data and Spark: pandas frames, columns, iterators."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest

from cromicle_sdk import Client, ConfigurationError, CromicleError, InvalidMessageError, Reply
from cromicle_sdk.bulk import Ask, Prompt
from cromicle_sdk.bulk.process import _Process
from cromicle_sdk.server import LocalServer


@pytest.fixture
def client(echo: LocalServer) -> Iterator[Client]:
    with Client(base_url=echo.base_url) as client:
        yield client
    # As at the end of the process.
    _Process.get_threads().close_all()


def test_a_frame_gets_two_columns(client: Client) -> None:
    frame = pd.DataFrame({"id": [7, 8], "prompt": ["One", 5]}, index=[3, 4])
    answered = Ask(client)(frame)
    assert list(answered.columns) == ["id", "prompt", "reply", "error"]
    assert list(answered.index) == [3, 4]
    assert answered["reply"][3] == "One"
    assert answered["error"][4].startswith("InvalidMessageError: messages must be a text")
    assert list(frame.columns) == ["id", "prompt"]


def test_columns_of_arrays(client: Client) -> None:
    batch = {"q": np.array(["One", "Two"]), "n": np.array([1, 2])}
    answered = Ask(client, column="q", reply="a", error="e")(batch)
    assert list(answered) == ["q", "n", "a", "e"]
    assert list(answered["a"]) == ["One", "Two"]
    assert list(answered["e"]) == [None, None]


def test_an_iterator_of_frames_gives_an_iterator(client: Client) -> None:
    frames = iter([pd.DataFrame({"prompt": ["One"]}), pd.DataFrame({"prompt": []})])
    answered = Ask(client)(frames)
    assert list(next(answered)["reply"]) == ["One"]
    assert list(next(answered)["reply"]) == []
    assert list(answered) == []


def test_a_list_of_prompts_gives_a_list_of_outcomes_in_order(client: Client) -> None:
    prompts: list[Any] = [str(i) for i in range(50)]
    outcomes = Ask(client, limit=4)([*prompts, []])
    assert [outcome.text for outcome in outcomes[:-1] if isinstance(outcome, Reply)] == prompts
    assert isinstance(outcomes[-1], InvalidMessageError)


def test_it_can_be_pickled_and_shows_no_token(client: Client) -> None:
    ask = Ask(client.with_options(token="abc"))
    assert "abc" not in repr(ask)
    assert [outcome.text for outcome in pickle.loads(pickle.dumps(ask))(["One"])] == ["One"]


@pytest.mark.parametrize("batch", ["One", Prompt("One"), 5])
def test_a_single_prompt_is_no_batch(client: Client, batch: object) -> None:
    with pytest.raises(ConfigurationError, match="expected an iterable of prompts"):
        Ask(client)(batch)


def test_a_column_that_is_not_there(client: Client) -> None:
    with pytest.raises(CromicleError, match="no column 'prompt'"):
        Ask(client)(pd.DataFrame({"text": ["One"]}))


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("column", {"column": "reply"}),
        ("reply", {"reply": 5}),
        ("limit", {"limit": 0}),
        ("client", {"client": 5}),
    ],
)
def test_bad_options(option: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Ask(**given)
    assert caught.value.option == option
