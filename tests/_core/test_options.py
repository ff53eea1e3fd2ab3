"""Options: defaults, environment variables, checks, and where the token does not appear."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import pickle
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cromicle_sdk
from cromicle_sdk import AsyncClient, Client, CromicleError
from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.options import (
    DEFAULT_MAX_REPLY_BYTES,
    DEFAULT_RETRY,
    DEFAULT_TIMEOUT,
    USE_CLIENT_DEFAULT,
    ConnectionOptions,
    Options,
    Retry,
    Timeout,
    check_count,
    check_number,
    check_seconds,
    check_text,
)
from cromicle_sdk._core.secrets import Secret, hide_token

CANARY = "sk-canary-123456"
PACKAGE = str(Path(cromicle_sdk.__file__).parent)
HUGE = 10**400
MORE_DIGITS_THAN_STR_SHOWS = 10**5000


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CROMICLE_BASE_URL", "CROMICLE_TOKEN", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def build_options(**changes: Any) -> Options:
    values: dict[str, Any] = {
        "base_url": "https://server.test",
        "token": Secret(CANARY),
        "timeout": Timeout(),
        "retry": Retry(),
        "max_reply_bytes": 1000,
        "strict": True,
        "headers": None,
    }
    return Options.build(**{**values, **changes})


def build_connection_options(**changes: Any) -> ConnectionOptions:
    values: dict[str, Any] = {
        "max_connections": None,
        "proxy": None,
        "verify": True,
        "http_client": None,
    }
    return ConnectionOptions.build(**{**values, **changes})


# Defaults and the environment


def test_defaults() -> None:
    options = build_options(base_url=None, token=None)
    assert options.endpoint.url == "https://cromicle.top/chat"
    assert options.token.reveal() == "abc"
    assert options.headers == {}
    assert DEFAULT_MAX_REPLY_BYTES == 64 * 1024 * 1024
    assert dataclasses.astuple(DEFAULT_TIMEOUT) == (5, 300, 120, 600, 3600)
    assert dataclasses.astuple(DEFAULT_RETRY) == (3, 0.5, 8, 60, 500, True)
    assert (Timeout(), Retry()) == (DEFAULT_TIMEOUT, DEFAULT_RETRY)
    assert build_connection_options().max_connections == 1000
    assert build_connection_options(max_connections=3).max_connections == 3


def test_environment_variables_replace_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROMICLE_BASE_URL", "http://from-env/api")
    monkeypatch.setenv("CROMICLE_TOKEN", "env-token")
    options = build_options(base_url=None, token=None)
    assert options.endpoint.url == "http://from-env/api/chat"
    assert options.token.reveal() == "env-token"
    given_ones = build_options()
    assert given_ones.endpoint.url == "https://server.test/chat"
    assert given_ones.token.reveal() == CANARY


def test_an_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROMICLE_BASE_URL", "")
    monkeypatch.setenv("CROMICLE_TOKEN", "")
    options = build_options(base_url=None, token=None)
    assert options.endpoint.url == "https://cromicle.top/chat"
    assert options.token.reveal() == "abc"


@pytest.mark.parametrize("is_variable", [True, False])
@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("http_client", [True, False])
def test_a_token_of_ones_own_does_not_go_to_the_public_service(
    is_variable: bool,
    client: type[Client | AsyncClient],
    http_client: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {} if is_variable else {"token": CANARY}
    if is_variable:
        monkeypatch.setenv("CROMICLE_TOKEN", CANARY)
    if http_client:
        options["http_client"] = httpx.Client() if client is Client else httpx.AsyncClient()
    with pytest.raises(ConfigurationError) as caught:
        client(**options)
    what = "$CROMICLE_TOKEN" if is_variable else "the token"
    assert str(caught.value) == (
        f"base_url: it is not set, and {what} would go to https://cromicle.top, a host that is not"
        " yours; pass base_url or set $CROMICLE_BASE_URL, or leave the token out"
    )
    assert caught.value.option == "base_url"
    # An explicit base_url is the user's choice.
    chosen = client(base_url="https://cromicle.top", **options)
    assert chosen.with_options(token="another")
    monkeypatch.setenv("CROMICLE_BASE_URL", "http://mine")
    assert client(**options)


def test_neither_does_that_of_a_view() -> None:
    options = build_options(base_url=None, token=None)
    for same in (options, options.with_token(Secret("abc"))):
        with pytest.raises(ConfigurationError, match="base_url: it is not set, and the token"):
            same.with_token(Secret(CANARY))


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("CROMICLE_BASE_URL", "ftp://h", "$CROMICLE_BASE_URL: it must begin with http"),
        ("CROMICLE_BASE_URL", "http://h?x", "$CROMICLE_BASE_URL: it must not have a query"),
        ("CROMICLE_TOKEN", f"{CANARY}\udcff", "$CROMICLE_TOKEN: it has a lone surrogate"),
        ("CROMICLE_TOKEN", f"{CANARY}\n", "$CROMICLE_TOKEN: it begins or ends with white space"),
        ("CROMICLE_TOKEN", " ", "$CROMICLE_TOKEN: it begins or ends with white space"),
    ],
)
def test_an_invalid_variable_is_named(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        build_options(base_url=None, token=None)
    assert str(caught.value).startswith(says)
    assert f"{caught.value.option}: {caught.value.detail}" == caught.value.problem
    assert CANARY not in str(caught.value)


def test_an_option_is_named_and_not_the_variable_that_it_replaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CROMICLE_BASE_URL", "http://h")
    with pytest.raises(ConfigurationError) as caught:
        build_options(base_url="ftp://h")
    assert caught.value.option == "base_url"


# Timeouts


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Timeout(total=1), Timeout(total=1)),
        (3, Timeout(connect=3, first_byte=3, stall=3, total=600, pool=3600)),
        (0.25, Timeout(connect=0.25, first_byte=0.25, stall=0.25)),
        (None, Timeout(connect=None, first_byte=None, stall=None, total=None, pool=None)),
    ],
)
def test_timeout(value: float | Timeout | None, expected: Timeout) -> None:
    assert build_options(timeout=value).timeout == expected


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"timeout": 9}, Timeout(connect=9, first_byte=9, stall=9, pool=9)),
        ({"timeout": None}, Timeout(connect=None, first_byte=None, stall=None, pool=None)),
        (
            {"timeout": 9, "connect": 1, "read": 2, "write": 3, "pool": None},
            Timeout(connect=1, first_byte=2, stall=2, pool=None),
        ),
    ],
)
def test_an_httpx_timeout(library: Any, arguments: dict[str, Any], expected: Timeout) -> None:
    assert build_options(timeout=library.Timeout(**arguments)).timeout == expected
    own = build_options(timeout=Timeout(total=7)).with_call_options(
        timeout=library.Timeout(**arguments)
    )
    assert own.timeout == dataclasses.replace(expected, total=7)


def test_an_httpx_timeout_is_checked() -> None:
    with pytest.raises(ConfigurationError, match=r"^timeout\.first_byte: "):
        build_options(timeout=httpx.Timeout(5, read=-1))


BAD_SECONDS = [0, -1, -0.0, math.nan, math.inf, -math.inf, True, "5", b"5", [], 1j, HUGE, -HUGE]


@pytest.mark.parametrize("phase", ["connect", "first_byte", "stall", "total", "pool"])
@pytest.mark.parametrize("value", BAD_SECONDS, ids=lambda value: str(value)[:8])
def test_invalid_seconds(phase: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Timeout(**{phase: value})
    assert str(caught.value).startswith(f"timeout.{phase}: ")
    assert "None for no limit" in str(caught.value)


@pytest.mark.parametrize("value", BAD_SECONDS, ids=lambda value: str(value)[:8])
def test_an_invalid_timeout(value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_options(timeout=value)
    assert str(caught.value).startswith("timeout")


# Retries


@pytest.mark.parametrize(
    "value",
    [
        {"attempts": 1},
        {"attempts": 10**9},
        {"first_delay": 0, "max_delay": 0, "max_retry_after": 0},
        {"first_delay": 1e300},
        {"budget": 1},
        {"budget": None},
    ],
)
def test_retry(value: dict[str, Any]) -> None:
    retry = Retry(**value)
    for name, number in value.items():
        assert getattr(retry, name) == number


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("attempts", value) for value in (0, -1, 1.0, "1", None, True)),
        *(("budget", value) for value in (0, -1, 1.0, "1", True)),
        *(("busy", value) for value in (None, 1, "yes")),
        *(
            (name, value)
            for name in ("first_delay", "max_delay", "max_retry_after")
            for value in (-1, -0.1, math.nan, math.inf, None, "1", True, HUGE)
        ),
    ],
    ids=lambda value: str(value)[:15],
)
def test_an_invalid_retry(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Retry(**{name: value})
    assert str(caught.value).startswith(f"retry.{name}: ")


@pytest.mark.parametrize(
    ("value", "limits", "says"),
    [
        (0, {}, "n: expected 1 or more, not 0"),
        (-1, {"minimum": 0}, "n: expected 0 or more, not -1"),
        (65536, {"minimum": 0, "maximum": 65535}, "n: expected 0 to 65535, not 65536"),
        (10**18 - 1, {"maximum": 9}, f"n: expected 1 to 9, not {10**18 - 1}"),
        (10**18, {"maximum": 9}, "n: expected 1 to 9, not a number of 19 or more digits"),
        (
            MORE_DIGITS_THAN_STR_SHOWS,
            {"maximum": 9},
            "n: expected 1 to 9, not a number of 19 or more digits",
        ),
        ("5", {"maximum": 9}, "n: expected a whole number, 1 to 9, not str"),
        (True, {}, "n: expected a whole number, 1 or more, not bool"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_check_count_rejects(value: Any, limits: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_count("n", value, **limits)
    assert str(caught.value) == says
    assert caught.value.option == "n"


def test_check_count_returns_the_number() -> None:
    assert check_count("n", 1) == 1
    assert check_count("port", 0, minimum=0, maximum=65535) == 0
    assert check_count("port", 65535, minimum=0, maximum=65535) == 65535


def test_check_seconds_returns_the_number() -> None:
    assert [check_seconds("s", value) for value in (0, 0.5, 3)] == [0, 0.5, 3]
    assert check_seconds("s", 0.001, above_zero=True) == 0.001


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, HUGE, True, "1", None])
def test_check_seconds_rejects(value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_seconds("grace", value, hint="do this")
    assert str(caught.value).startswith(
        "grace: expected a finite number of seconds, 0 or more, not"
    )
    assert caught.value.option == "grace"
    assert caught.value.hint == "do this"
    with pytest.raises(ConfigurationError, match=r"0 or more, not str$"):
        check_seconds("grace", "1")
    with pytest.raises(ConfigurationError, match=r"above 0, not 0$"):
        check_seconds("grace", 0, above_zero=True)


def test_check_number_names_the_unit() -> None:
    assert check_number("rate", 0.5, "calls per second") == 0.5
    with pytest.raises(ConfigurationError) as caught:
        check_number("rate", math.inf, "calls per second")
    assert str(caught.value) == (
        "rate: expected a finite number of calls per second, 0 or more, not inf"
    )


@pytest.mark.parametrize("value", ["x", "täxt 😀", "\0"])
def test_check_text_returns_the_text(value: str) -> None:
    assert check_text("model", value) == value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "model: expected a str with at least one character"),
        (CANARY.encode(), "model: expected a str, not bytes"),
        (None, "model: expected a str, not NoneType"),
        (f"{CANARY}\ud800", "model: it has a lone surrogate, which UTF-8 cannot encode"),
    ],
)
def test_check_text_rejects_without_the_value(value: Any, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_text("model", value)
    assert str(caught.value) == says


def test_timeout_and_retry_are_values() -> None:
    for value, other in ((Timeout(), Timeout(total=1)), (Retry(), Retry(attempts=1))):
        assert pickle.loads(pickle.dumps(value)) == value
        assert hash(value) == hash(dataclasses.replace(value))
        assert value != other
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.total = 1  # type: ignore[misc, union-attr]


# The other options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": 5}, "base_url: expected a URL as a str, not int"),
        ({"base_url": b"http://h"}, "base_url: expected a URL as a str, not bytes"),
        ({"base_url": ""}, "base_url: it must begin with http:// or https://"),
        ({"token": Secret("")}, "token: it is empty; leave it out for the default"),
        ({"token": hide_token({"token": None})["token"]}, "token: expected a str, not NoneType"),
        ({"token": hide_token({"token": b"x"})["token"]}, "token: expected a str, not bytes"),
        ({"token": Secret(f"{CANARY}\ud800")}, "token: it has a lone surrogate"),
        *(
            ({"token": Secret(token)}, "token: it begins or ends with white space")
            for token in (f"{CANARY}\n", f" {CANARY}", f"{CANARY}\u00a0", f"\ufeff{CANARY}", "\t")
        ),
        ({"timeout": "5"}, "timeout: expected a number of seconds, a Timeout or None, not str"),
        ({"timeout": True}, "timeout: expected a number of seconds, a Timeout or None, not bool"),
        ({"retry": 3}, "retry: expected a Retry, not int"),
        ({"retry": None}, "retry: expected a Retry, not NoneType"),
        ({"max_reply_bytes": 0}, "max_reply_bytes: expected 1 or more, not 0"),
        ({"max_reply_bytes": -5}, "max_reply_bytes: expected 1 or more, not -5"),
        ({"max_reply_bytes": True}, "max_reply_bytes: expected a whole number"),
        ({"max_reply_bytes": 1.5}, "max_reply_bytes: expected a whole number"),
        ({"max_reply_bytes": None}, "max_reply_bytes: expected a whole number"),
        ({"max_reply_bytes": -MORE_DIGITS_THAN_STR_SHOWS}, "max_reply_bytes: "),
        ({"strict": 1}, "strict: expected True or False, not int"),
        ({"strict": None}, "strict: expected True or False, not NoneType"),
        ({"headers": [("a", "b")]}, "headers: expected a mapping of str to str, not list"),
        ({"headers": "a: b"}, "headers: expected a mapping of str to str, not str"),
        ({"extra_body": ["seed"]}, "extra_body: expected a mapping of str to JSON values, not"),
        ({"extra_body": {"token": CANARY}}, "extra_body: the protocol sets the field 'token'"),
        ({"send_messages": 1}, "send_messages: expected True or False, not int"),
        ({"send_messages": None}, "send_messages: expected True or False, not NoneType"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_invalid_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_options(**options)
    assert str(caught.value).startswith(says)
    assert caught.value.option == says.partition(":")[0]
    assert CANARY not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_connections": 0}, "max_connections: expected 1 or more, not 0"),
        ({"max_connections": 2.0}, "max_connections: expected a whole number"),
        ({"http_client": "x", "proxy": "http://user:hunter2@p"}, "proxy: set it on your own"),
        ({"http_client": "x", "max_connections": 5}, "max_connections: set it on your own"),
        ({"http_client": "x", "verify": False}, "verify: set it on your own"),
        (
            {"http_client": httpx.Client(base_url="http://hunter2")},
            "base_url: pass it here, not to your own http_client",
        ),
    ],
)
def test_invalid_connection_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_connection_options(**options)
    assert str(caught.value).startswith(says)
    assert caught.value.option == says.partition(":")[0]
    assert "hunter2" not in str(caught.value)


def test_a_client_of_ones_own_may_have_no_base_url() -> None:
    own = object()
    assert build_connection_options(http_client=own).http_client is own


def test_the_repr_of_connection_options_shows_no_password() -> None:
    options = build_connection_options(proxy="http://user:hunter2@p")
    assert "hunter2" not in repr(options)
    assert options.proxy == "http://user:hunter2@p"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"http_client": object()},
            "http_client: a client with its own http_client cannot be pickled",
        ),
        (
            {"verify": ssl.create_default_context()},
            "verify: a client with an SSLContext cannot be pickled",
        ),
        (
            {"proxy": httpx.Proxy("https://p", ssl_context=ssl.create_default_context())},
            "proxy: a proxy with an SSLContext cannot be pickled",
        ),
    ],
)
def test_options_that_cannot_be_pickled(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_connection_options(**options).check_picklable()
    assert str(caught.value) == says


@pytest.mark.parametrize("proxy", [None, "http://p", httpx.Proxy("http://p")])
def test_options_that_can_be_pickled(proxy: Any) -> None:
    build_connection_options(proxy=proxy).check_picklable()


@pytest.mark.parametrize("name", ["max_reply_bytes", "max_connections"])
def test_a_large_number_is_accepted(name: str) -> None:
    build: Callable[..., Any]
    build = build_options if name == "max_reply_bytes" else build_connection_options
    assert getattr(build(**{name: 2**70}), name) == 2**70


# Headers


@pytest.mark.parametrize(
    ("headers", "checked"),
    [
        (None, {}),
        ({}, {}),
        ({"X-Key": "v"}, {"x-key": "v"}),
        (MappingProxyType({"a": ""}), {"a": ""}),
        ({"!#$%&'*+.^_`|~09AZaz-": "!~ a\t~"}, {"!#$%&'*+.^_`|~09azaz-": "!~ a\t~"}),
        ({"User-Agent": "mine", "Accept": "x"}, {"user-agent": "mine", "accept": "x"}),
    ],
)
def test_headers(headers: Any, checked: dict[str, str]) -> None:
    assert build_options(headers=headers).headers == checked


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "a b", "a:", "a\r\nb", "é", "a\0", "(", "a/b", '"', "\ud800", "a\n"),
        *(5, None, b"a"),
    ],
)
def test_invalid_header_names(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^headers: .* is not a header name$") as caught:
        build_options(headers={name: "hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "host", "HOST", "Content-Length", "content-type", "CONTENT-ENCODING"),
        *("content-anything", "Transfer-Encoding", "accept-encoding"),
    ],
)
def test_headers_of_the_protocol(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^headers: {name} is set by the protocol"):
        build_options(headers={name: "x"})


@pytest.mark.parametrize(
    "value",
    [
        *("hunter2 ", " hunter2", "\thunter2", "hunter2\n", "hunter2\r\nx: y", "hunter2\0"),
        *("é hunter2", "hunter2\x7f", "hunter2\ud800", " ", b"hunter2", 5, None, ["hunter2"]),
    ],
)
def test_invalid_header_values_are_not_quoted(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^headers: the value of x-key must be") as caught:
        build_options(headers={"x-key": value})
    assert str(caught.value).endswith(
        "must be a str of visible ASCII characters, with spaces and tabs inside only"
    )
    assert "hunter2" not in str(caught.value)


def test_a_header_given_twice() -> None:
    with pytest.raises(ConfigurationError, match=r"^headers: x-key is given twice$"):
        build_options(headers={"X-Key": "hunter2", "x-key": "hunter2"})


def test_the_repr_shows_no_header_values() -> None:
    assert "hunter2" not in repr(build_options(headers={"authorization": "Bearer hunter2"}))


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=5), st.text(max_size=10))
def test_any_header_is_valid_or_rejected(name: str, value: str) -> None:
    try:
        headers = build_options(headers={name: value}).headers
    except ConfigurationError:
        return
    ((lowered, kept),) = headers.items()
    assert (lowered, kept) == (name.lower(), value)
    assert not set("\r\n\0:") & set(lowered)
    assert not set("\r\n\0") & set(kept)
    assert f"{lowered}{kept}".isascii()


# The options of one call and of a view


def test_call_options() -> None:
    options = build_options(headers={"a": "1", "b": "2"})
    assert options.with_call_options() is options
    changed = options.with_call_options(
        timeout=2,
        retry=Retry(attempts=1),
        max_reply_bytes=5,
        strict=False,
        headers={"B": "3", "C": "4"},
    )
    assert changed == options._replace(
        timeout=Timeout(connect=2, first_byte=2, stall=2),
        retry=Retry(attempts=1),
        max_reply_bytes=5,
        strict=False,
        headers={"a": "1", "b": "3", "c": "4"},
    )
    assert options == build_options(headers={"a": "1", "b": "2"})


def test_the_extra_body_of_a_call_is_added_to_that_of_the_view_and_the_client() -> None:
    client = build_options(extra_body={"seed": 1, "stop": ["a", "b"], "top_p": 0.5})
    view = client.with_call_options(extra_body={"stop": "c", "top_p": 1})
    call = view.with_call_options(extra_body={"top_p": 0.9, "user": "x"})
    assert call.extra_body.json_by_name == {
        "seed": "1",
        "stop": '"c"',
        "top_p": "0.9",
        "user": '"x"',
    }
    assert view.with_call_options(extra_body=None) is view
    assert client.extra_body.json_by_name["stop"] == '["a","b"]'


def test_send_messages_of_a_call_overrides_that_of_the_client() -> None:
    options = build_options(send_messages=True)
    assert options.send_messages
    assert not options.with_call_options(send_messages=False).send_messages
    assert build_options().with_call_options(send_messages=True).send_messages


def test_the_repr_of_options_shows_where_they_lead_and_no_value() -> None:
    shown = repr(build_options(extra_body={"user": "private"}, headers={"x-key": "private"}))
    assert build_options().endpoint.url in shown
    assert "private" not in shown


def test_a_number_for_one_call_keeps_total_and_pool_of_the_client() -> None:
    options = build_options(timeout=Timeout(connect=1, total=30, pool=7))
    changed = options.with_call_options(timeout=5).timeout
    assert changed == Timeout(connect=5, first_byte=5, stall=5, total=30, pool=7)
    assert options.with_call_options(timeout=None).timeout.total is None


def test_headers_of_none_for_one_call_keep_those_of_the_client() -> None:
    options = build_options(headers={"a": "1"})
    assert options.with_call_options(headers=None) is options


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"timeout": -1}, "timeout.connect: expected a finite number"),
        ({"retry": 5}, "retry: "),
        ({"max_reply_bytes": 0}, "max_reply_bytes: "),
        ({"retry": None}, "retry: expected a Retry, not NoneType"),
        ({"max_reply_bytes": None}, "max_reply_bytes: "),
        ({"strict": "no"}, "strict: "),
        ({"strict": None}, "strict: "),
        ({"headers": {"host": "x"}}, "headers: "),
        ({"headers": "a: b"}, "headers: "),
        ({"extra_body": {"hash": 1}}, "extra_body: the protocol sets the field 'hash'"),
        ({"extra_body": {"x": {1}}}, "extra_body: the field 'x' is not JSON: "),
        ({"send_messages": "no"}, "send_messages: "),
    ],
)
def test_invalid_call_options(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_options().with_call_options(**changes)
    assert str(caught.value).startswith(says)
    assert says.startswith(str(caught.value.option))


def test_the_token_of_a_view_replaces_that_of_the_client() -> None:
    options = build_options(headers={"a": "1"})
    assert options.with_token(Secret("other")) == options._replace(token=Secret("other"))
    with pytest.raises(ConfigurationError, match=r"^token: it is empty"):
        options.with_token(Secret(""))


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: Timeout(stall=0), "pass None for no limit"),
        (lambda: build_options(retry=3), "Retry(attempts=1) disables retries"),
    ],
)
def test_an_error_says_what_to_do_instead(make: Any, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert caught.value.hint == hint


def test_an_option_that_is_not_given_shows_its_name() -> None:
    assert repr(USE_CLIENT_DEFAULT) == "USE_CLIENT_DEFAULT"
    assert pickle.loads(pickle.dumps(USE_CLIENT_DEFAULT)) is USE_CLIENT_DEFAULT


# The token


def test_the_repr_of_a_secret_shows_nothing() -> None:
    secret = Secret(CANARY)
    for shown in (repr(secret), str(secret), f"{secret}", f"{[secret]}", "%s" % secret):  # noqa: UP031
        assert CANARY not in shown
    assert secret.reveal() == CANARY
    assert secret == Secret(CANARY)
    assert hash(secret) == hash(Secret(CANARY))
    assert secret != Secret("other")
    assert secret != CANARY
    assert pickle.loads(pickle.dumps(secret)) == secret
    assert not hasattr(secret, "__dict__")


def test_hide_token() -> None:
    options = hide_token({"timeout": 5, "token": CANARY})
    assert options == {"timeout": 5, "token": Secret(CANARY)}
    assert hide_token({}) == {}


def test_the_repr_of_options_shows_no_token() -> None:
    options = build_options(base_url="http://user:hunter2@h")
    assert CANARY not in repr(options)
    assert "hunter2" not in repr(options)


def test_pickled_options_carry_the_token() -> None:
    options = build_options(base_url="http://user:hunter2@h")
    twin = pickle.loads(pickle.dumps(options))
    assert twin == options
    assert twin.token.reveal() == CANARY


def _make_client() -> Client:
    return Client(base_url=URL)


def _chat_async(**options: Any) -> None:
    asyncio.run(AsyncClient(base_url=URL).chat("x", **options))


URL = "http://127.0.0.1:9"

FAILURES: dict[str, Callable[[], object]] = {
    "Client without a URL": lambda: Client(token=CANARY),
    "with_options without a URL": lambda: AsyncClient().with_options(token=CANARY),
    "Client": lambda: Client(base_url=URL, token=CANARY, timeout=-1),
    "Client, wrong connections": lambda: Client(base_url=URL, token=CANARY, max_connections=0),
    "Client, wrong verify": lambda: Client(base_url=URL, token=CANARY, verify=False),  # type: ignore[arg-type]
    "Client, wrong proxy": lambda: Client(base_url=URL, token=CANARY, proxy="no"),
    "Client, wrong http_client": lambda: Client(base_url=URL, token=CANARY, http_client="no"),  # type: ignore[arg-type]
    "Client, wrong token": lambda: Client(base_url=URL, token=f"{CANARY}\ud800"),
    "Client, bytes": lambda: Client(base_url=URL, token=CANARY.encode()),  # type: ignore[arg-type]
    "Client, wrong URL": lambda: Client(token=CANARY, base_url="no"),
    "AsyncClient": lambda: AsyncClient(base_url=URL, token=CANARY, timeout=-1),
    "with_options": lambda: _make_client().with_options(token=CANARY, timeout=-1),
    "with_options, wrong name": lambda: _make_client().with_options(token=CANARY, proxy="x"),  # type: ignore[call-arg]
    "with_options, wrong token": lambda: _make_client().with_options(token=f"{CANARY}\ud800"),
    "chat": lambda: _make_client().chat("x", token=CANARY),  # type: ignore[call-arg]
    "chat, wrong timeout": lambda: _make_client().chat("x", token=CANARY, timeout=-1),  # type: ignore[call-arg]
    "stream": lambda: _make_client().stream("x", token=CANARY),  # type: ignore[call-arg]
    "async with_options": lambda: AsyncClient(base_url=URL).with_options(token=CANARY, timeout=-1),
    "async chat": lambda: _chat_async(token=CANARY),
    "async stream": lambda: AsyncClient(base_url=URL).stream("x", token=CANARY),  # type: ignore[call-arg]
    "bad message": lambda: Client(base_url=URL, token=CANARY).chat("\ud800"),
    "bad message in a view": lambda: _make_client().with_options(token=CANARY).stream("\ud800"),
}


def walk(error: BaseException | None) -> Iterator[BaseException]:
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            yield current
            waiting += [current.__cause__, current.__context__]


def package_frames(step: TracebackType | None) -> Iterator[tuple[str, dict[str, Any]]]:
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_filename.startswith(PACKAGE):
            yield code.co_name, step.tb_frame.f_locals
        step = step.tb_next


def show(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"no repr: {error}"


@pytest.mark.parametrize("failure", FAILURES)
def test_the_token_is_in_no_error_and_no_frame(failure: str) -> None:
    # An option that a method does not have is Python's TypeError.
    with pytest.raises((CromicleError, TypeError)) as caught:
        FAILURES[failure]()
    leaks: list[str] = []
    for error in walk(caught.value):
        assert CANARY not in f"{error} {error!r} {error.args}"
        for name, variables in package_frames(error.__traceback__):
            leaks += [f"{name}: {key}" for key, v in variables.items() if CANARY in show(v)]
    assert leaks == []
    assert CANARY.encode() not in pickle.dumps(caught.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_environments_token_is_in_no_frame(
    kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        (CANARY, {}),
        (CANARY, {"base_url": URL, "timeout": -1}),
        (f"{CANARY}\udcff", {}),
    ]
    for value, options in wrong:
        monkeypatch.setenv("CROMICLE_TOKEN", value)
        with pytest.raises(ConfigurationError) as caught:
            kind(**options)
        for name, variables in package_frames(caught.value.__traceback__):
            assert all(CANARY not in show(v) for v in variables.values()), name


def test_the_locals_of_a_failed_constructor_can_be_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Client(timeout=-1)
    for name, variables in package_frames(caught.value.__traceback__):
        for value in variables.values():
            assert not show(value).startswith("no repr"), name


def test_the_repr_of_a_client_shows_no_token() -> None:
    for client in (
        Client(token=CANARY, base_url="http://u:hunter2@h"),
        AsyncClient(token=CANARY, base_url="http://h"),
    ):
        assert CANARY not in repr(client)
        assert "hunter2" not in repr(client)
