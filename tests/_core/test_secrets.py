"""Secrets: values that can be compared, and that nothing prints."""

from __future__ import annotations

import copy
import pickle

from cromicle_sdk._core.secrets import Secret, hide_token


def test_a_secret_shows_nothing_of_its_text() -> None:
    secret = Secret("s3cret")
    assert repr(secret) == str(secret) == f"{secret}" == "<secret>"
    assert secret.reveal() == "s3cret"


def test_secrets_are_values() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({hash(Secret(letter)) for letter in "abcabc"}) == 3
    assert pickle.loads(pickle.dumps(Secret("a"))) == copy.copy(Secret("a")) == Secret("a")


def test_the_token_of_options_is_hidden_where_there_is_one() -> None:
    assert hide_token({"token": "s3cret", "strict": False}) == {
        "token": Secret("s3cret"),
        "strict": False,
    }
    assert hide_token({"strict": False}) == {"strict": False}
