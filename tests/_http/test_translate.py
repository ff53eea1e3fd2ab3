"""Exceptions of the network and of httpx become errors of this package."""

from __future__ import annotations

import errno
import socket
import ssl
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import anyio
import h11
import httpcore
import httpcore2
import httpx
import httpx2
import pytest
import socksio

from cromicle_sdk import Client, CromicleError, Retry, Timeout
from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._core.errors import APIConnectionError, APITimeoutError
from cromicle_sdk._http.sockets import ClosedByCaller, TimeLimitReached
from cromicle_sdk._http.translate import (
    redact_error,
    redact_reason,
    translate_error,
)
from cromicle_sdk.testing import FaultyServer

CANARY = "sk-canary-123456"
URL = "https://server.test/chat"


def build_timeouts(total: float = 100) -> CallTimeouts:
    timeout = Timeout(connect=1, first_byte=2, stall=3, total=total)
    return CallTimeouts.for_call(timeout, now=time.monotonic())


def translate(
    error: Exception,
    timeouts: CallTimeouts | None = None,
    proxy_status: int | None = None,
    *,
    uses_proxy: bool = False,
) -> APIConnectionError | None:
    return translate_error(
        error,
        url=URL,
        timeouts=timeouts or build_timeouts(),
        redact=lambda text: text.replace(CANARY, "[redacted]"),
        proxy_status=proxy_status,
        uses_proxy=uses_proxy,
    )


def verification_error(text: str | None = "self-signed certificate") -> ssl.SSLError:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] failed")
    if text is not None:
        error.verify_message = text
    return error


def caused(error: Exception, cause: Exception, *, by: str = "__cause__") -> Exception:
    setattr(error, by, cause)
    return error


NETWORK_ERRORS: list[Exception] = [
    ConnectionRefusedError(111, "Connection refused"),
    TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
    socket.gaierror(-2, "Name or service not known"),
    ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"),
    ssl.SSLEOFError(8, "EOF occurred"),
    *(
        getattr(module, name)("it broke")
        for module in (httpcore, httpcore2, httpx, httpx2)
        for name in (
            *("ConnectError", "ReadError", "WriteError"),
            *("RemoteProtocolError", "LocalProtocolError", "UnsupportedProtocol"),
        )
    ),
    httpcore.ConnectionNotAvailable("it broke"),
    *(
        getattr(module, name)("it broke")
        for module in (httpx, httpx2)
        for name in ("CloseError", "DecodingError", "TooManyRedirects", "InvalidURL")
    ),
    httpx.StreamConsumed(),
    httpx2.StreamClosed(),
]


@pytest.mark.parametrize("error", NETWORK_ERRORS, ids=lambda e: f"{type(e).__module__}.{e!r}")
def test_errors_of_the_network(error: Exception) -> None:
    made = translate(error)
    assert type(made) is APIConnectionError
    detail = made.detail
    assert detail
    what = "Invalid response" if "ProtocolError" in type(error).__name__ else "No response"
    assert str(made) == (
        f"{what} from {URL}: {detail}. Check that the server is running and that base_url is right."
    )
    assert (made.option, made.is_final) == ("base_url", False)


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (httpx.ReadError("it broke. "), "it broke"),
        (httpx.ReadError("no route to host X"), "no route to host X"),
        (httpx.ReadError(""), "ReadError"),
        (caused(httpx.ReadError(""), ConnectionResetError(104, "Reset by peer")), "Reset by peer"),
        (
            caused(httpx.ReadError(""), KeyError("the caller's"), by="__context__"),
            "ReadError",
        ),
        (caused(httpx.ReadError(""), ConnectionResetError()), "ReadError"),
    ],
)
def test_detail(error: Exception, detail: str) -> None:
    made = translate(error)
    assert made is not None
    assert made.detail == detail


@pytest.mark.parametrize(
    "error",
    [
        verification_error(),
        caused(httpcore.ConnectError("x"), verification_error()),
        caused(httpx.ConnectError(""), caused(httpcore.ConnectError("x"), verification_error())),
        caused(httpx2.ConnectError(""), verification_error()),
    ],
)
def test_a_certificate_that_does_not_verify(error: Exception) -> None:
    made = translate(error)
    assert type(made) is APIConnectionError
    assert str(made) == (
        f"The certificate of {URL} cannot be verified: self-signed certificate. "
        "For a private certificate authority, pass verify=ssl_context."
    )
    assert (made.option, made.is_final) == ("verify", True)


def test_a_certificate_error_that_python_code_raised() -> None:
    # OpenSSL's has the attribute; one that a subclass of SSLContext raises may not.
    made = translate(verification_error(None))
    assert made is not None
    assert made.is_final
    assert "CERTIFICATE_VERIFY_FAILED" in made.detail


@pytest.mark.parametrize(
    "error",
    [
        UnicodeError("label too long"),
        caused(httpcore.ConnectError("x"), UnicodeError("label too long")),
    ],
)
def test_a_host_that_is_no_name(error: Exception) -> None:
    made = translate(error)
    assert type(made) is APIConnectionError
    assert str(made) == (
        f"The host of {URL} is not a valid DNS name: label too long. Check base_url."
    )
    assert (made.option, made.is_final) == ("base_url", True)


@pytest.mark.parametrize(
    "error",
    [
        *(httpcore.ProxyError("502 no"), httpx.ProxyError("502 no"), httpx2.ProxyError("502 no")),
        socksio.ProtocolError("502 no"),
    ],
    ids=repr,
)
def test_a_proxy_that_failed(error: Exception) -> None:
    made = translate(error)
    assert type(made) is APIConnectionError
    assert str(made) == (
        f"The proxy on the way to {URL} failed: 502 no. "
        "Check the option proxy, or the proxy variables of the environment."
    )
    assert (made.option, made.is_final) == ("proxy", False)


def chain(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "uses_proxy", "what"),
    [
        (httpx.ConnectError("refused"), True, f"The proxy on the way to {URL} is unreachable"),
        (httpx.ConnectError("refused"), False, f"No response from {URL}"),
        (httpx.ReadError("refused"), True, f"No response from {URL}"),
        *(
            (chain(httpx.ConnectError("refused"), cause), True, f"No response from {URL}")
            for cause in (ssl.SSLError(), httpcore.ReadError(), httpcore.WriteError())
        ),
    ],
)
def test_a_proxy_that_is_unreachable(error: Exception, uses_proxy: bool, what: str) -> None:
    made = translate(error, uses_proxy=uses_proxy)
    assert made is not None
    assert made.problem == f"{what}: refused."
    is_of_proxy = "proxy" in what
    assert made.option == ("proxy" if is_of_proxy else "base_url")
    assert ("proxy variables" in str(made)) is is_of_proxy
    assert not made.is_final


@pytest.mark.parametrize(
    ("detail", "status", "is_final"),
    [
        *((f"{status} no", status, True) for status in (401, 403, 405, 407)),
        *((f"{status} no", status, False) for status in (302, 408, 429, 502, 504)),
        ("refused, in words of another version", 407, True),
        ("407 no", None, False),
        ("Requested NO AUTHENTICATION REQUIRED from proxy server, but got GSSAPI.", None, True),
        ("Invalid username/password", None, True),
        ("Proxy Server could not connect: Connection not allowed by ruleset.", None, True),
        ("Proxy Server could not connect: Host unreachable.", None, False),
    ],
)
def test_a_proxy_that_refuses_is_final(detail: str, status: int | None, is_final: bool) -> None:
    made = translate(httpcore.ProxyError(detail), proxy_status=status)
    assert isinstance(made, APIConnectionError)
    assert made.is_final is is_final


@pytest.mark.parametrize(
    ("reason", "option", "advice"),
    [
        ("WRONG_VERSION_NUMBER", "base_url", "use http://"),
        ("RECORD_LAYER_FAILURE", "base_url", "use http://"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "verify", "client certificate"),
        ("TLSV1_ALERT_UNKNOWN_CA", "verify", "client certificate"),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", "verify", "no protocol version and cipher in common"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "verify", "no protocol version and cipher in common"),
    ],
)
def test_an_error_of_tls_that_no_retry_changes(reason: str, option: str, advice: str) -> None:
    error = ssl.SSLError(1, f"[SSL: {reason}] no")
    error.reason = reason
    made = translate(error)
    assert isinstance(made, APIConnectionError)
    assert (made.is_final, made.option) == (True, option)
    assert advice in made.hint


def test_the_reason_of_another_error_is_none_of_tls() -> None:
    cause = ValueError("x")
    cause.reason = ["WRONG_VERSION_NUMBER"]  # type: ignore[attr-defined]
    made = translate(caused(httpx.ReadError("it broke"), cause))
    assert isinstance(made, APIConnectionError)
    assert made.option == "base_url"
    assert not made.is_final


def test_a_process_with_too_many_open_files_is_not_the_server() -> None:
    for number in (errno.EMFILE, errno.ENFILE):
        made = translate(caused(httpcore.ConnectError("x"), OSError(number, "Too many open files")))
        assert isinstance(made, APIConnectionError)
        assert (made.option, made.is_final) == ("max_connections", False)
        assert str(made) == (
            f"No socket for {URL} can be opened: Too many open files. "
            "Raise the limit of open files (ulimit -n), or lower max_connections."
        )


def test_closed_by_the_caller() -> None:
    made = translate(ClosedByCaller("its client is closed"))
    assert type(made) is APIConnectionError
    assert str(made) == f"The call to {URL} was cancelled: its client is closed."
    assert made.detail == "its client is closed"
    assert made.is_final


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("x"), KeyError("x"), RuntimeError("x"), AssertionError(), ArithmeticError()),
        # As signal handlers and hooks raise them: those of the system have a number.
        *(TimeoutError("mine"), ConnectionResetError(), BrokenPipeError("mine"), OSError("mine")),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "mine"),
        # What it was caused by is the caller's network.
        caused(ValueError("mine"), verification_error()),
        caused(ValueError("mine"), UnicodeError("label too long")),
    ],
    ids=repr,
)
def test_an_exception_of_the_callers_is_none_of_ours(error: Exception) -> None:
    assert translate(error) is None


def test_an_exception_of_the_callers_keeps_its_text() -> None:
    mine = caused(ValueError(f"mine: {CANARY}"), httpx.ReadError(CANARY))
    for error in (mine, KeyError(CANARY), OSError(CANARY)):
        before = error.args
        assert translate(error) is None
        redact_error(error, lambda text: "[redacted]")
        assert error.args == before
    assert str(mine.__cause__) == CANARY


def test_what_the_server_echoed_is_in_no_error_of_the_network() -> None:
    class Own(httpx.HTTPError):
        """Of a transport of the caller's, which is a part of the network then."""

    inner = h11.RemoteProtocolError(f"illegal: {CANARY}")
    for error in (
        httpx.ReadError(CANARY),
        Own(CANARY),
        httpcore.RemoteProtocolError(inner),
        caused(httpx.ReadError(""), ValueError(CANARY)),
    ):
        made = translate(error)
        assert made is not None
        assert CANARY not in str(made)
        assert CANARY not in "".join(traceback.format_exception(error))


def test_without_socksio_there_is_none_of_its_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "socksio")
    assert translate(ValueError("x")) is None


@pytest.mark.parametrize(
    ("error", "waits_for", "total", "phase"),
    [
        (TimeLimitReached(), "pool", 100, "pool"),
        (TimeLimitReached(), "connect", 100, "connect"),
        (TimeLimitReached(), "first_byte", 100, "first_byte"),
        (TimeLimitReached(), "stall", 100, "stall"),
        (TimeLimitReached(), "stall", 1e-9, "total"),
        *(
            (getattr(module, name)("x"), "first_byte", 100, phase)
            for module in (httpcore, httpx, httpx2)
            for name, phase in (
                ("ConnectTimeout", "connect"),
                ("ReadTimeout", "first_byte"),
                ("WriteTimeout", "first_byte"),
                ("PoolTimeout", "pool"),
            )
        ),
        (httpx.ConnectTimeout("x"), "first_byte", 1e-9, "total"),
        (httpx.PoolTimeout("x"), "first_byte", 1e-9, "total"),
    ],
)
def test_timeouts(error: Exception, waits_for: Any, total: float, phase: str) -> None:
    timeouts = build_timeouts(total)
    timeouts.enter(waits_for, time.monotonic())
    made = translate(error, timeouts)
    assert type(made) is APITimeoutError
    assert made.phase == phase
    assert URL in str(made)
    seconds = timeouts.limit(made.phase)
    assert f" within {seconds:g} s." in str(made)
    assert str(made).count(".") >= 3
    assert "{" not in str(made)


def test_a_client_of_ones_own_may_have_a_limit_where_there_is_none() -> None:
    timeouts = CallTimeouts.for_call(Timeout(first_byte=None), now=time.monotonic())
    timeouts.enter("first_byte", time.monotonic())
    made = translate(httpx.ReadTimeout("x"), timeouts)
    assert str(made) == (
        f"{URL} did not respond in time. "
        "Raise timeout.first_byte if the server is known to be slow."
    )


# What the program was doing when it called


def handle(mine: Exception, error: Exception) -> Exception:
    """An error of the network while the caller handles one of its own."""
    try:
        raise mine
    except type(mine):
        try:
            raise error
        except type(error) as raised:
            return raised


@pytest.mark.parametrize(
    "mine",
    [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "mine"), verification_error("mine")],
    ids=["UnicodeError", "certificate"],
)
def test_an_error_that_the_caller_is_handling_is_not_the_cause(mine: Exception) -> None:
    """A call in an `except` block: its errors have the caller's for their context."""
    error: CromicleError | None = None
    try:
        raise mine
    except type(mine):
        with (
            Client(base_url=closed_port(), retry=Retry(attempts=1)) as client,
            pytest.raises(APIConnectionError) as caught,
        ):
            client.chat("x")
        error = caught.value
    assert "mine" not in str(error)
    assert not caught.value.is_final


def test_the_callers_own_error_keeps_its_frames() -> None:
    """An error of the caller's is no business of ours."""
    with Client(base_url=closed_port(), retry=Retry(attempts=1)) as client:
        frames = None
        try:
            raise KeyError("mine")
        except KeyError as mine:
            with pytest.raises(APIConnectionError):
                client.chat("x")
            frames = mine.__traceback__
        assert frames is not None


def closed_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def h11_error(line: bytes) -> h11.RemoteProtocolError:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(line)
    with pytest.raises(h11.RemoteProtocolError) as caught:
        connection.next_event()
    return caught.value


@pytest.mark.parametrize("filler", [0, 100, *range(135, 160, 4), 1000])
@pytest.mark.parametrize("own", [True, False], ids=["own", "http_client"])
def test_an_echo_in_broken_framing_is_nowhere(filler: int, own: bool, faults: FaultyServer) -> None:
    """What h11 quotes of the answer is in no message and in no cause."""
    line = b"no colon %s%s" % (b"y" * filler, CANARY.encode())
    faults.raw(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n" % line, end="close")
    with (
        httpx.Client() as http_client,
        Client(
            base_url=faults.base_url,
            token=CANARY,
            retry=Retry(attempts=1),
            http_client=None if own else http_client,
        ) as client,
        pytest.raises(APIConnectionError) as caught,
    ):
        client.chat("x")
    assert CANARY[:8] not in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert CANARY not in shown


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nno colon %s\r\n\r\n", b"no status %s\r\n\r\n"]
)
def test_a_detail_is_short_and_safe_to_print(answer: bytes) -> None:
    """h11 quotes the line that it could not read, however long it is."""
    error = h11_error(answer % (b"y" * 15_000))
    made = translate(httpcore.RemoteProtocolError(error))
    assert made is not None
    assert str(made).isprintable()
    assert len(str(made)) < 1000


def test_no_error_of_anyio_is_missed() -> None:
    for kind in (anyio.ClosedResourceError, anyio.BrokenResourceError):
        error: Callable[..., Exception] = kind
        assert translate(caused(httpcore.ReadError(""), error())) is not None


@pytest.mark.parametrize(
    ("reason", "redacted"),
    [
        (b"", b""),
        # The standard phrase of the status.
        (b"Forbidden", b"Forbidden"),
        (b"Not Found", b"<Not Found?>"),
        (b"caf\xe9", b"<caf\xe9?>"),
    ],
)
def test_a_reason_phrase_is_redacted(reason: bytes, redacted: bytes) -> None:
    extensions = {"reason_phrase": reason}
    # A replacement need not be latin-1.
    redact_reason(403, extensions, lambda text: f"<{text}\u2026>")
    assert extensions == {"reason_phrase": redacted}


def test_a_response_without_a_reason_phrase() -> None:
    extensions: dict[str, bytes] = {}
    redact_reason(403, extensions, str)
    assert extensions == {}
