"""Accepted tokens, and reloading of a token file."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import httpx
import pytest

from cromicle_sdk import AuthenticationError, Client, ConfigurationError, Retry
from cromicle_sdk._core.secrets import Secret
from cromicle_sdk.server import LocalServer, TokenFile, create_app
from cromicle_sdk.server.tokens import AcceptedToken, Tokens

ONCE = Retry(attempts=1)
UNIX = pytest.mark.skipif(sys.platform == "win32", reason="its files are of other kinds")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(0o600)
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
        ("one # of alice\ntwo\t#\nthree  ## and #\n", ["one", "two", "three"]),
    ],
)
def test_each_line_of_a_file_is_a_token(path: Path, data: str, tokens: list[str]) -> None:
    accepted = TokenFile(write(path, data))
    assert len(accepted) == len(tokens)
    for token in tokens:
        found = accepted.find(token)
        assert found is not None
        assert found.secret == Secret(token)
    assert accepted.find(" ".join(tokens) + "x") is None


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("s3cret # alice", "alice"),
        ("s3cret\t#alice@example.org", "alice@example.org"),
        ("s3cret # Zoë's laptop, 2nd floor", "Zoë_s_laptop_2nd_floor"),
        ("s3cret # a=b status=200 \x1b[31m", "a_b_status_200_31m"),
        (f"s3cret # {'x' * 100}", "x" * 40),
    ],
)
def test_the_comment_of_a_line_is_the_label_of_its_token(line: str, label: str, path: Path) -> None:
    token = TokenFile(write(path, line)).find("s3cret")
    assert token is not None
    assert token.label == label


@pytest.mark.parametrize("line", ["s3cret", "s3cret #", "s3cret # ???", "s3cret # \x00"])
def test_without_a_comment_the_label_is_a_fingerprint(line: str, path: Path) -> None:
    token = TokenFile(write(path, line)).find("s3cret")
    other = TokenFile(write(path, "another")).find("another")
    assert token is not None
    assert other is not None
    assert re.fullmatch("[0-9a-f]{8}", token.label)
    assert token.label != other.label
    # Not the beginning of what a request with an empty prompt has as its hash.
    assert not hashlib.sha256(b"s3cret").hexdigest().startswith(token.label)
    assert "s3cret" not in repr(token)


def test_finding_a_token_takes_as_long_among_many() -> None:
    one = Tokens([AcceptedToken(Secret("the-only-one"))])
    many = Tokens(AcceptedToken(Secret(f"token-{number}")) for number in range(50_000))

    def measure(tokens: Tokens, sent: str) -> float:
        times = []
        for _ in range(20):
            started = time.perf_counter()
            for _ in range(100):
                tokens.find(sent)
            times.append(time.perf_counter() - started)
        return min(times)

    for sent in ("token-7", "token-49999", "wrong"):
        assert measure(many, sent) < 3 * measure(one, sent)
    assert len(many) == 50_000


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("", "no token"),
        ("# s3cret\n \n", "no token"),
        (b"ok\ns3cret\xff\n", "line 2 of .* is not UTF-8"),
        (b"s3cret\n" * 3_000_000, "too long"),
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
    with pytest.raises(ConfigurationError, match=r"tokens: .*(cannot be read|not a regular file)"):
        TokenFile(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="it reads /proc")
@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_reading_leaves_no_file_open(kind: str, path: Path) -> None:
    tokens = TokenFile(write(path, "old-token"))
    if kind != "file":
        path.unlink()
        path.mkdir() if kind == "directory" else os.mkfifo(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        tokens.reload()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@UNIX
@pytest.mark.timeout(10)
@pytest.mark.parametrize("is_link", [False, True])
@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_anything_but_a_regular_file_is_rejected_at_once(
    kind: str, is_link: bool, path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        target = path
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            target = Path("/dev/zero")
        else:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
        if is_link:
            link = path.with_suffix(".link")
            link.symlink_to(target)
            target = link
        with pytest.raises(ConfigurationError, match=r"tokens: ") as caught:
            TokenFile(target)
    assert str(target) in str(caught.value)


@UNIX
@pytest.mark.timeout(10)
def test_a_file_that_becomes_a_fifo_leaves_the_previous_tokens_valid(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = TokenFile(write(path, "old-token"))
    path.unlink()
    os.mkfifo(path)
    assert not tokens.reload()
    assert tokens.find("old-token")
    assert "is not a regular file; the previous tokens stay valid" in caplog.text


@UNIX
def test_a_link_to_a_regular_file_is_accepted(tmp_path: Path, path: Path) -> None:
    # As a secret of Kubernetes is mounted.
    (tmp_path / "..data").mkdir()
    write(tmp_path / "..data" / "real", "mounted-token")
    path.symlink_to(tmp_path / "..data" / "real")
    assert TokenFile(path).find("mounted-token")


@UNIX
@pytest.mark.parametrize(("mode", "is_warning"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_that_others_can_read_is_a_warning(
    mode: int, is_warning: bool, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, "s3cret-token")
    path.chmod(mode)
    TokenFile(path)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == is_warning
    assert all(f"can read {path}; chmod o-r" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("tokens", "warning"),
    [
        (["x" * 16, "y" * 40], None),
        (["x" * 15, "y" * 40], "tokens: 1 of 2 have fewer than 16 characters"),
        (["a", "b"], "tokens: 2 of 2 have"),
    ],
)
def test_short_tokens_are_a_warning(
    tokens: list[str], warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    Tokens(AcceptedToken(Secret(text)) for text in tokens).warn_of_short_ones()
    assert len(caplog.records) == (warning is not None)
    assert (warning or "") in caplog.text


def test_reloaded_short_tokens_are_a_warning_where_others_can_connect(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = TokenFile(write(path, "x" * 16))
    write(path, "short")
    assert tokens.reload()
    assert "fewer than 16" not in caplog.text
    assert tokens.reload(allow_well_known=False)
    assert "tokens: 1 of 1 have fewer than 16" in caplog.text
    assert "short" not in caplog.text


def test_each_of_several_tokens_is_accepted_and_no_other() -> None:
    with LocalServer(app=create_app(tokens=["first", "clé", "third"])) as server:
        assert all(is_accepted(server, token) for token in ("first", "clé", "third"))
        assert not any(is_accepted(server, token) for token in ("abc", "firs", "first third", "x"))


def test_the_hash_must_match_the_sent_token() -> None:
    body = {"message": "hi", "token": "first", "hash": hashlib.sha256(b"secondhi").hexdigest()}
    with LocalServer(app=create_app(tokens=["first", "second"])) as server:
        assert httpx.post(server.base_url + "/chat", json=body).status_code == 422


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
        ({"max_concurrent_per_token": 0, "token": "s3cret"}, "max_concurrent_per_token"),
        (
            {"max_concurrent": 2, "max_concurrent_per_token": 3, "token": "s3cret"},
            "max_concurrent_per_token: 3 is more than the limit for all tokens, 2",
        ),
        ({"max_waiting": -1, "token": "s3cret"}, "max_waiting"),
        ({"max_waiting": 5, "token": "s3cret"}, "max_waiting: it has no effect"),
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
