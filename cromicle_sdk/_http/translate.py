"""Exceptions of the network, of httpcore, httpx and httpx2, as errors of this package."""

from __future__ import annotations

import errno
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from http import HTTPStatus
from typing import Any

from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._core.errors import (
    APIConnectionError,
    APITimeoutError,
    TimeoutPhase,
    shorten,
)

from .clients import httpx_modules
from .sockets import ClosedByCaller, TimeLimitReached

__all__ = ["redact_error", "redact_reason", "strip_frames", "translate_error"]


def translate_error(
    error: Exception, *, url: str, timeouts: CallTimeouts
) -> APIConnectionError | None:
    """This package's error for one of the network; None for any other, which is the caller's."""
    if isinstance(error, ClosedByCaller):
        return _failed(f"The call to {url} was cancelled", str(error), is_final=True)
    if isinstance(error, (TimeLimitReached, *_kinds("TimeoutException"))):
        return _timed_out(error, url, timeouts)
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            what, advice = f"The certificate of {url} cannot be verified", _CERTIFICATE_ADVICE
            said = getattr(cause, "verify_message", "") or str(cause)
            return _failed(what, said, advice, option="verify", is_final=True)
        if isinstance(cause, UnicodeError) and getattr(cause, "encoding", "idna") == "idna":
            what = f"The host of {url} is not a valid name in DNS"
            return _failed(what, str(cause), "Check base_url.", option="base_url", is_final=True)
        if isinstance(cause, OSError) and cause.errno in _OUT_OF_FILES:
            what = f"No socket for {url} can be opened"
            return _failed(what, _detail(cause), _FILES_ADVICE, option="max_connections")
        reason = getattr(cause, "reason", None) if isinstance(cause, ssl.SSLError) else None
        if reason in _TLS_ADVICE:
            option, advice = _TLS_ADVICE[reason]
            what = f"No TLS connection to {url} was established"
            return _failed(what, _detail(error), advice, option=option, is_final=True)
    if isinstance(error, (*_kinds("ProxyError"), *_socksio())):
        what, detail = f"The proxy on the way to {url} failed", _detail(error)
        is_final = _PROXY_REFUSAL.match(detail) is not None
        return _failed(what, detail, _PROXY_ADVICE, option="proxy", is_final=is_final)
    if isinstance(error, (ssl.SSLError, *_kinds(*_NETWORK_ERRORS))) or _is_from_system(error):
        what = "Invalid response" if isinstance(error, _kinds("ProtocolError")) else "No response"
        return _failed(f"{what} from {url}", _detail(error), _ADVICE, option="base_url")
    return None


# Of the process, or of the system.
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
_FILES_ADVICE = "Raise the limit of open files (ulimit -n), or lower max_connections."
_CERTIFICATE_ADVICE = "For a private certificate authority, pass verify=ssl_context."
_PROXY_ADVICE = "Check the option proxy, or the proxy variables of the environment."
# httpcore has no more of a proxy's refusal than a text: a status of CONNECT, or that of SOCKS5.
_PROXY_REFUSAL = re.compile(r"40[1357] |Requested |Invalid username|.*: Connection not allowed")
_PLAIN_ADVICE = "If the server speaks plain HTTP, use http:// in base_url."
_REFUSED_ADVICE = "If the server asks for a client certificate, load it into verify=ssl_context."
# By OpenSSL's reason: an answer that is not TLS, and a server's alerts about a certificate of the
# client's, which no retry changes. Servers of TLS 1.2 send HANDSHAKE_FAILURE for a missing one.
_TLS_ADVICE = {
    **dict.fromkeys(
        ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"),
        ("base_url", _PLAIN_ADVICE),
    ),
    **dict.fromkeys(
        (
            *("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"),
            *("SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
            *("SSLV3_ALERT_CERTIFICATE_EXPIRED", "SSLV3_ALERT_CERTIFICATE_REVOKED"),
            *("SSLV3_ALERT_CERTIFICATE_UNKNOWN", "TLSV1_ALERT_UNKNOWN_CA"),
            *("TLSV1_ALERT_ACCESS_DENIED", "TLSV1_ALERT_DECRYPT_ERROR"),
        ),
        ("verify", _REFUSED_ADVICE),
    ),
}
_ADVICE = "Check that the server runs and that base_url is right."
# httpcore's, then the bases of httpx's.
_NETWORK_ERRORS = (
    "ConnectionNotAvailable",
    "NetworkError",
    "ProtocolError",
    "UnsupportedProtocol",
    "HTTPError",
    "InvalidURL",
    "StreamError",
)


def redact_error(error: BaseException, redact: Callable[[str], str]) -> None:
    """Blank the secrets that the server echoed: h11 quotes a line that it can't read."""
    for cause in _chain(error):
        if not isinstance(cause, OSError):
            for inner in cause.args:
                # httpcore's errors are made of the errors below, which it does not chain.
                if isinstance(inner, Exception):
                    redact_error(inner, redact)
            cause.args = tuple(redact(a) if isinstance(a, str) else a for a in cause.args)


def redact_reason(
    status: int, extensions: MutableMapping[str, Any], redact: Callable[[str], str]
) -> None:
    """Take the secrets out of a reason phrase, which httpx logs."""
    reason = extensions.get("reason_phrase")
    if reason and reason != _PHRASES.get(status):
        redacted = redact(reason.decode("latin-1"))
        extensions["reason_phrase"] = redacted.encode("latin-1", "replace")


_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


def strip_frames(error: BaseException) -> BaseException:
    """The error without its frames, whose locals hold the request, and so the token."""
    for cause in _chain(error):
        cause.__traceback__ = None
        # What it came up in may be an error that the caller is handling: not ours to touch.
        cause.__context__ = None
        if getattr(cause, "_request", None) is not None:
            cause._request = None  # type: ignore[attr-defined]  # httpx's errors carry theirs
    return error


def _kinds(*names: str) -> tuple[type[Exception], ...]:
    """The exception classes of these names in httpcore, httpx and their successors."""
    loaded = (sys.modules.get(name) for name in ("httpcore", "httpcore2"))
    modules = [*(module for module in loaded if module is not None), *httpx_modules()]
    return tuple(getattr(m, name) for m in modules for name in names if hasattr(m, name))


def _socksio() -> tuple[type[Exception], ...]:
    # It is imported by httpcore when a SOCKS proxy is first used; then its error may come.
    module = sys.modules.get("socksio")
    return () if module is None else (module.SOCKSError,)


def _is_from_system(error: Exception) -> bool:
    """Whether a system call for the network raised it, as in a transport of the user's.

    Those have a number, and no name of a file. An exception that a signal handler raises, such as
    `TimeoutError("mine")`, has none; a hook that does not find its file has both.
    """
    return isinstance(error, OSError) and error.errno is not None and error.filename is None


def _timed_out(error: Exception, url: str, timeouts: CallTimeouts) -> APITimeoutError:
    phase = timeouts.expired_phase(time.monotonic())
    if phase != "total" and isinstance(error, _kinds("ConnectTimeout")):
        phase = "connect"
    elif phase != "total" and isinstance(error, _kinds("PoolTimeout")):
        phase = "pool"
    seconds = timeouts.limit(phase)
    within = "in time" if seconds is None else f"within {seconds:g} s"
    problem = _WAITED[phase].format(url=url, within=within)
    return APITimeoutError(problem, hint=_RAISE[phase], phase=phase)


_WAITED: dict[TimeoutPhase, str] = {
    "connect": "No connection to {url} was established {within}.",
    "first_byte": "{url} did not respond {within}.",
    "stall": "{url} sent nothing more {within}.",
    "total": "The call to {url} did not finish {within}.",
    "pool": "No connection to {url} became free {within}.",
}
_RAISE: dict[TimeoutPhase, str] = {
    "connect": _ADVICE,
    "first_byte": "Raise timeout.first_byte if the server is known to be slow.",
    "stall": "Raise timeout.stall if the server is known to be slow.",
    "total": "Raise timeout.total if the reply is long.",
    "pool": "Close streams that are no longer needed, or raise max_connections.",
}


def _failed(
    what: str, detail: str, advice: str = "", *, option: str | None = None, is_final: bool = False
) -> APIConnectionError:
    return APIConnectionError(
        f"{what}: {detail}.", hint=advice, option=option, detail=detail, is_final=is_final
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _detail(error: BaseException) -> str:
    """What happened, in words: some errors come without any."""
    for cause in _chain(error):
        text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        if text:
            return shorten(text).rstrip(".")
    return type(error).__name__
