"""Translation of exceptions of sockets, httpcore, httpx and httpx2 to errors of this package."""

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

__all__ = [
    "redact_error",
    "redact_reason",
    "translate_error",
]


def translate_error(
    error: Exception,
    *,
    url: str,
    timeouts: CallTimeouts,
    redact: Callable[[str], str],
    proxy_status: int | None = None,
    uses_proxy: bool = False,
) -> APIConnectionError | None:
    """Translate an error of the network. Return None for any other error, which is the caller's.

    `redact` removes secrets that the server echoed from the text of the error and of its causes.
    `proxy_status` is the status of the last response, which is the proxy's if the proxy failed.
    With `uses_proxy`, a connection that fails is one to the proxy.
    """
    if not _is_of_network(error):
        return None
    redact_error(error, redact)
    if isinstance(error, ClosedByCaller):
        return _failed(f"The call to {url} was cancelled", str(error), is_final=True)
    if isinstance(error, (TimeLimitReached, *_kinds("TimeoutException"))):
        return _timed_out(error, url, timeouts)
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            what, advice = f"The certificate of {url} cannot be verified", _CERTIFICATE_ADVICE
            said = getattr(cause, "verify_message", None) or str(cause)
            return _failed(what, said, advice, option="verify", is_final=True)
        if isinstance(cause, UnicodeError) and _is_bad_name(cause):
            what = f"The host of {url} is not a valid DNS name"
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
        is_refused = proxy_status in _REFUSALS or _SOCKS_REFUSAL.match(detail) is not None
        return _failed(what, detail, _PROXY_ADVICE, option="proxy", is_final=is_refused)
    if uses_proxy and isinstance(error, _kinds("ConnectError")) and not _is_of_tls(error):
        what = f"The proxy on the way to {url} is unreachable"
        return _failed(what, _detail(error), _PROXY_ADVICE, option="proxy")
    what = "Invalid response" if isinstance(error, _kinds("ProtocolError")) else "No response"
    return _failed(f"{what} from {url}", _detail(error), _ADVICE, option="base_url")


# The limit of the process, or of the system.
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
_FILES_ADVICE = "Raise the limit of open files (ulimit -n), or lower max_connections."
_CERTIFICATE_ADVICE = "For a private certificate authority, pass verify=ssl_context."
_PROXY_ADVICE = "Check the option proxy, or the proxy variables of the environment."
# Statuses of a response to CONNECT that a retry does not change.
_REFUSALS = frozenset({401, 403, 405, 407})
# The texts of httpcore if a SOCKS5 proxy rejects the method, the password or the target, which
# nothing else indicates. With any other text, the call is retried.
_SOCKS_REFUSAL = re.compile(r"Requested .* but got |Invalid username|.*: Connection not allowed")
_PLAIN_ADVICE = "If the server speaks plain HTTP, use http:// in base_url."
_MISMATCH_ADVICE = (
    "Client and server have no protocol version and cipher in common: pass verify=ssl_context with "
    "those of the server."
)
_REFUSED_ADVICE = "If the server requires a client certificate, load one into verify=ssl_context."
_HANDSHAKE_ADVICE = (
    "Client and server have no protocol version and cipher in common, or the server, up to TLS "
    "1.2, requires a client certificate: pass verify=ssl_context with those of the server."
)
# The hints for failures that a retry does not change, by OpenSSL's reason: a response that is not
# TLS, no common version or cipher, and alerts about the client's certificate.
_TLS_ADVICE = {
    **dict.fromkeys(
        ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"),
        ("base_url", _PLAIN_ADVICE),
    ),
    **dict.fromkeys(
        (
            *("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION"),
            *("TLSV1_ALERT_INSUFFICIENT_SECURITY", "NO_PROTOCOLS_AVAILABLE"),
            *("NO_CIPHERS_AVAILABLE", "DH_KEY_TOO_SMALL"),
        ),
        ("verify", _MISMATCH_ADVICE),
    ),
    # RFC 5246, section 7.4.6: a server also sends this if the client's certificate is missing.
    "SSLV3_ALERT_HANDSHAKE_FAILURE": ("verify", _HANDSHAKE_ADVICE),
    **dict.fromkeys(
        (
            *("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_BAD_CERTIFICATE"),
            *("SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
            *("SSLV3_ALERT_CERTIFICATE_REVOKED", "SSLV3_ALERT_CERTIFICATE_UNKNOWN"),
            *("TLSV1_ALERT_UNKNOWN_CA", "TLSV1_ALERT_ACCESS_DENIED", "TLSV1_ALERT_DECRYPT_ERROR"),
        ),
        ("verify", _REFUSED_ADVICE),
    ),
}
_ADVICE = "Check that the server is running and that base_url is right."
# The errors of httpcore, then the base classes of httpx's.
_LIBRARY_ERRORS = (
    "ConnectionNotAvailable",
    "NetworkError",
    "ProtocolError",
    "ProxyError",
    "TimeoutException",
    "UnsupportedProtocol",
    "HTTPError",
    "InvalidURL",
    "StreamError",
)


def _is_of_network(error: BaseException) -> bool:
    """Whether the network, an HTTP library or this package raised the error."""
    if isinstance(error, UnicodeError):
        return _is_bad_name(error)
    own = (ClosedByCaller, TimeLimitReached, ssl.SSLError)
    kinds: tuple[type[Exception], ...] = (*own, *_socksio(), *_kinds(*_LIBRARY_ERRORS))
    return isinstance(error, kinds) or _is_from_system(error)


def _is_of_tls(error: BaseException) -> bool:
    """Whether a TLS handshake failed, which through a proxy may be that of the endpoint."""
    kinds: tuple[type[Exception], ...] = (ssl.SSLError, *_kinds("ReadError", "WriteError"))
    return any(isinstance(cause, kinds) for cause in _chain(error))


def _is_bad_name(error: UnicodeError) -> bool:
    """Whether an invalid DNS name raised the error."""
    return getattr(error, "encoding", "idna") == "idna"


def redact_error(error: BaseException, redact: Callable[[str], str]) -> None:
    """Redact the secrets that the server echoed, because h11 quotes a line that it cannot parse.

    An error of the caller, that is, of neither this package nor a library, is not changed.
    """
    if _is_of_network(error):
        _redact_chain(error, redact)


def _redact_chain(error: BaseException, redact: Callable[[str], str]) -> None:
    for cause in _chain(error):
        if not isinstance(cause, OSError):
            for inner in cause.args:
                # httpcore passes the original error as an argument instead of chaining it.
                if isinstance(inner, Exception):
                    _redact_chain(inner, redact)
            cause.args = tuple(redact(a) if isinstance(a, str) else a for a in cause.args)


def redact_reason(
    status: int, extensions: MutableMapping[str, Any], redact: Callable[[str], str]
) -> None:
    """Redact the reason phrase, which httpx logs."""
    reason = extensions.get("reason_phrase")
    if reason and reason != _PHRASES.get(status):
        redacted = redact(reason.decode("latin-1"))
        extensions["reason_phrase"] = redacted.encode("latin-1", "replace")


_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


def _kinds(*names: str) -> tuple[type[Exception], ...]:
    """Return the exception classes with these names in httpcore, httpx and their successors."""
    loaded = (sys.modules.get(name) for name in ("httpcore", "httpcore2"))
    modules = [*(module for module in loaded if module is not None), *httpx_modules()]
    return tuple(getattr(m, name) for m in modules for name in names if hasattr(m, name))


def _socksio() -> tuple[type[Exception], ...]:
    # httpcore imports it when a SOCKS proxy is first used.
    module = sys.modules.get("socksio")
    return () if module is None else (module.SOCKSError,)


def _is_from_system(error: BaseException) -> bool:
    """Whether a system call for the network raised the error, as in a custom transport.

    Such an error has a number but no file name. An exception of a signal handler, such as
    `TimeoutError("mine")`, has no number, and the error of a hook that opens a file has both.
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
    """Yield the error, its cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _detail(error: BaseException) -> str:
    """Return the text of the error, or of its first cause that has one."""
    for cause in _chain(error):
        text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        if text:
            return shorten(text).rstrip(".")
    return type(error).__name__
