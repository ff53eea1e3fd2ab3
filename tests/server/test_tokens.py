"""Accepted tokens, and reloading of a token file."""

from __future__ import annotations

import hashlib
import logging
import traceback
from pathlib import Path
from typing import Any

import httpx
import pytest

from cromicle_sdk import AuthenticationError, Client, ConfigurationError, Retry
from cromicle_sdk._core.secrets import Secret
from cromicle_sdk.server import LocalServer, TokenFile, create_app
from cromicle_sdk.server.tokens import Tokens

ONCE = Retry(attempts=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def is_accepted(server: LocalServer, token: str) -> bool:
    with Client(base_url=server.base_url, token=token, retry=ONCE) as client:
        try:
            return client.chat("hi").text == "hi"
        except AuthenticationError:
            return False


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one", ["one"]),
        ("\n  # a comment\n\n one \r\n\t\n#two\nthree#four\n", ["one", "three#four"]),
        ("\ufeffone\r\nclé 🔑\n", ["one", "clé 🔑"]),
        ("a\u2028b\n", ["a\u2028b"]),
    ],
)
def test_each_line_of_a_file_is_a_token(path: Path, data: str, tokens: list[str]) -> None:
    accepted = TokenFile(write(path, data))
    assert [token.reveal() for token in accepted._tokens] == tokens
    assert all(accepted.find(token) == Secret(token) for token in tokens)
    assert accepted.find(" ".join(tokens) + "x") is None


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("", "no token"),
        ("# s3cret\n \n", "no token"),
        (b"ok\ns3cret\xff\n", "line 2 of .* is not UTF-8"),
        (b"ok\ns3cret # of mine\n", "line 2 of .* a comment needs its own line"),
        (b"s3cret\n" * 200_000, "too long"),
        (None, "cannot be read: No such file"),
    ],
)
def test_an_invalid_file_is_rejected_by_name(
    path: Path, data: str | bytes | None, problem: str
) -> None:
    if data is not None:
        write(path, data)
    with pytest.raises(ConfigurationError, match=f"tokens: .*{problem}") as caught:
        TokenFile(path)
    assert str(path) in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_directory_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tokens: .*cannot be read"):
        TokenFile(tmp_path)


def test_each_of_several_tokens_is_accepted_and_no_other() -> None:
    with LocalServer(app=create_app(tokens=["first", "clé", "third"])) as server:
        assert all(is_accepted(server, token) for token in ("first", "clé", "third"))
        assert not any(is_accepted(server, token) for token in ("abc", "firs", "first third", "x"))


def test_the_hash_must_match_the_sent_token() -> None:
    body = {"message": "hi", "token": "first", "hash": hashlib.sha256(b"secondhi").hexdigest()}
    with LocalServer(app=create_app(tokens=["first", "second"])) as server:
        assert httpx.post(server.base_url + "/chat", json=body).status_code == 422


def test_every_token_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr("cromicle_sdk.server.tokens.hmac.compare_digest", compare)
    tokens = Tokens([Secret(text) for text in ("a", "b", "c")])
    for sent in ("a", "c", "x"):
        tokens.find(sent)
    assert compared == [b"a", b"b", b"c"] * 3


def test_a_reloaded_file_replaces_the_tokens(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cromicle_sdk.server")
    tokens = TokenFile(write(path, "old-token\n"))
    with LocalServer(app=create_app(tokens=tokens)) as server:
        assert is_accepted(server, "old-token")
        write(path, "new-token\nanother-token\n")
        assert not is_accepted(server, "new-token")
        assert tokens.reload()
        assert is_accepted(server, "new-token")
        assert not is_accepted(server, "old-token")
    (line,) = [r.getMessage() for r in caplog.records if r.name == "cromicle_sdk.server"]
    assert line == f"tokens: 2 loaded from {path}"


@pytest.mark.parametrize("data", ["", b"\xff", "good-token\nabc\n"])
def test_an_invalid_file_leaves_the_previous_tokens_valid(
    path: Path, data: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = TokenFile(write(path, "old-token\n"))
    write(path, data)
    assert not tokens.reload(allow_well_known=False)
    assert tokens.find("old-token")
    assert not tokens.find("abc")
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "the previous tokens stay valid" in record.getMessage()
    assert "old-token" not in caplog.text
    assert "good-token" not in caplog.text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tokens": []}, "tokens: expected at least one token"),
        ({"tokens": "s3cret"}, "tokens: expected an iterable of str or a TokenFile, not str"),
        ({"tokens": 5}, "tokens: expected"),
        ({"tokens": ["mine", "s3cret\n"]}, "tokens: it begins or ends with white space"),
        ({"token": " s3cret"}, "token: it begins or ends with white space"),
        ({"tokens": ["ok", ""]}, "tokens: "),
        ({"tokens": ["s3cret\ud800"]}, "tokens: it has a lone surrogate"),
        ({"tokens": ["ok", 5]}, "tokens: "),
        ({"tokens": ["s3cret"], "token": "other"}, "pass token or tokens"),
        ({"max_concurrent": 0, "token": "s3cret"}, "max_concurrent"),
        ({"max_concurrent": True, "token": "s3cret"}, "max_concurrent"),
        ({"max_concurrent": 1.5, "tokens": ["s3cret"]}, "max_concurrent"),
        ({"metrics": "yes", "tokens": ["s3cret"]}, "metrics"),
    ],
)
def test_an_invalid_option_is_rejected_by_name_without_a_token(
    options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        create_app(**options)
    assert "s3cret" not in show_package_frames(caught.value)


def show_package_frames(error: BaseException) -> str:
    """The error as a traceback with locals prints it, except for the frames of this file."""
    shown = [str(error)]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename != __file__:
            shown.append(repr(frame.f_locals))
    return "\n".join(shown)


def test_a_repr_shows_no_token(path: Path) -> None:
    tokens = TokenFile(write(path, "s3cret\n"))
    assert repr(tokens) == "<TokenFile of 1>"
    assert "s3cret" not in repr(tokens.__dict__)


@pytest.mark.parametrize(
    ("tokens", "may_be_public"), [(["x", "abc"], False), (["abc"], False), (["x", "y"], True)]
)
def test_the_well_known_token_is_found_among_others(tokens: list[str], may_be_public: bool) -> None:
    app = create_app(tokens=tokens)
    if may_be_public:
        LocalServer(app=app, host="0.0.0.0")
        return
    with pytest.raises(ConfigurationError, match="well-known"):
        LocalServer(app=app, host="0.0.0.0")
