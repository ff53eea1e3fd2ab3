"""Requests and responses of httpx's and httpx2's clients."""

from __future__ import annotations

import logging
import socket
import sys
import time
import weakref
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import httpx2
import pytest

from cromicle_sdk import Retry, Timeout, Transport
from cromicle_sdk._core.deadline import CallTimeouts
from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.options import Options
from cromicle_sdk._core.request import Request, build_request
from cromicle_sdk._core.response import Head
from cromicle_sdk._core.secrets import Secret
from cromicle_sdk._http import callers, clients
from cromicle_sdk._http.clients import (
    Response,
    ResponseObserver,
    build_head,
    check_http_client,
    find_body,
    find_source,
    is_byte_stream,
    release_when_dropped,
)
from cromicle_sdk.testing import FaultyServer

CANARY = "sk-canary-123456"


@pytest.fixture(scope="module", params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_http_client(library: Any) -> None:
    with library.Client(transport=library.MockTransport(lambda request: None)) as client:
        check_http_client(client, "Client")
        with pytest.raises(ConfigurationError) as caught:
            check_http_client(client, "AsyncClient")
    assert str(caught.value) == (
        "http_client: expected an httpx.AsyncClient or an httpx2.AsyncClient, "
        f"not {type(client).__module__}.Client"
    )


@pytest.mark.parametrize("client", ["x", 5, object(), httpx.Client, httpx])
def test_a_wrong_http_client(client: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^http_client: expected an httpx\.Client or"):
        check_http_client(client, "Client")


def test_httpx2_is_looked_for_only_where_it_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "httpx2")
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        check_http_client(client, "Client")
    with (
        httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200))) as client2,
        pytest.raises(ConfigurationError),
    ):
        check_http_client(client2, "Client")
    assert "httpx2" not in sys.modules


def test_a_client_that_another_process_used_first_is_rejected(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with library.Client() as client:
        clients.check_process(client)
        clients.check_process(client)
        monkeypatch.setattr("os.getpid", lambda: -1)
        with pytest.raises(ConfigurationError) as caught:
            clients.check_process(client)
    assert str(caught.value) == (
        "http_client: it was used before this process was forked, and shares its connections with "
        "the parent process; create a new one after the fork"
    )


def build_timeout(**limits: float | None) -> Timeout:
    return Timeout(**{"connect": 1, "first_byte": 2, "stall": 3, "total": 100, **limits})


def build_http_request(client: Any, request: Request, timeout: Timeout | None = None) -> Any:
    timeout = timeout or build_timeout()
    timeouts = CallTimeouts.for_call(timeout, now=time.monotonic())
    extensions = clients.build_extensions(Held(), None, timeout)
    clients.adapt_extensions(extensions, None, timeouts)
    return clients.build_http_request(client, request, extensions)


class Held:
    """An exchange, of which the extensions have a weak reference."""


def limit_reads(request: Any, timeout: Timeout) -> None:
    timeouts = CallTimeouts.for_call(timeout, now=time.monotonic())
    clients.limit_reads(SimpleNamespace(request=request), timeout, timeouts)


def our_request(base_url: str = "http://user:pw@h:8000/api", **headers: str) -> Any:
    options = Options.build(
        base_url=base_url,
        token=Secret(CANARY),
        timeout=None,
        retry=Retry(),
        max_reply_bytes=5,
        strict=True,
        headers=headers,
    )
    return build_request("Hi", options, httpx_version=httpx.__version__)


@pytest.fixture
def client(library: Any) -> Iterator[Any]:
    def answer(request: Any) -> Any:
        return library.Response(201, headers=[("X-One", "1"), ("x-one", "2")], content=b"x")

    with library.Client(
        transport=library.MockTransport(answer),
        headers={"x-default": "d", "user-agent": "theirs"},
        cookies={"session": "s"},
        base_url="http://other/prefix",
    ) as client:
        yield client


def test_a_request_of_a_custom_client(client: Any) -> None:
    ours = our_request(**{"x-own": "o"})
    theirs = build_http_request(client, ours)
    assert theirs.method == "POST"
    assert str(theirs.url) == "http://h:8000/api/chat"
    assert theirs.read() == ours.body
    for name, value in ours.headers:
        assert theirs.headers.get_list(name.decode()) == [value.decode()]
    assert theirs.headers["x-default"] == "d"
    assert "cookie" not in theirs.headers
    with_cookie = build_http_request(client, our_request(cookie="mine=1"))
    assert with_cookie.headers.get_list("cookie") == ["mine=1"]


def test_a_client_with_cookies_for_other_hosts_sends_none(library: Any) -> None:
    with library.Client() as client:
        client.cookies.set("session", "s", domain="other.test")
        request = build_http_request(client, our_request())
    assert "cookie" not in request.headers


def test_a_client_without_cookies_leaves_the_header(library: Any) -> None:
    with library.Client() as client:
        request = build_http_request(client, our_request(cookie="mine=1"))
    assert request.headers.get_list("cookie") == ["mine=1"]


@pytest.mark.parametrize(
    ("limits", "waits", "read_later"),
    [
        ({}, {"connect": 1, "read": 2, "write": 2, "pool": 3600}, 3),
        (
            {"total": None},
            {"connect": 1, "read": 2, "write": 2, "pool": 3600},
            3,
        ),
        (
            {"connect": None, "first_byte": None, "stall": None},
            {"connect": 100, "read": 100, "write": 100, "pool": 3600},
            100,
        ),
        (
            {"connect": None, "first_byte": None, "stall": None, "total": None},
            {"connect": None, "read": None, "write": None, "pool": 3600},
            None,
        ),
        (
            {"total": 0.0001},
            {"connect": 0.001, "read": 0.001, "write": 0.001, "pool": 3600},
            0.001,
        ),
    ],
)
def test_its_timeouts(
    limits: dict[str, float | None],
    waits: dict[str, float | None],
    read_later: float | None,
    client: Any,
) -> None:
    timeout = build_timeout(**limits)
    theirs = build_http_request(client, our_request(), timeout)
    given = theirs.extensions["timeout"]
    assert given == pytest.approx(waits, abs=0.1 if limits.get("total", 1) == 1 else 1e-3)
    limit_reads(theirs, timeout)
    later = theirs.extensions["timeout"]
    expected = read_later if read_later is None else pytest.approx(read_later, abs=0.1)
    assert later == {**given, "read": expected}
    # A hook may have removed them.
    theirs.extensions.clear()
    limit_reads(theirs, timeout)
    assert theirs.extensions == {"timeout": {"read": expected}}


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_the_exchange_and_the_trace_are_in_the_extensions(
    level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(level, logger="httpcore.http11")
    exchange, trace = Held(), object()
    extensions = clients.build_extensions(exchange, trace, build_timeout())
    assert clients.find_exchange(extensions) is exchange
    # Without records of httpcore, the trace would only cost time.
    assert extensions.get("trace") is (trace if level == logging.DEBUG else None)
    del exchange
    assert clients.find_exchange(extensions) is None
    assert clients.find_exchange({}) is None


def test_a_custom_client_is_always_traced(caplog: pytest.LogCaptureFixture) -> None:
    """Its pool does not report the heads of responses."""
    caplog.set_level(logging.INFO, logger="httpcore.http11")
    trace, timeout = object(), build_timeout()
    extensions = clients.build_extensions(Held(), trace, timeout)
    timeouts = CallTimeouts.for_call(timeout, now=time.monotonic())
    clients.adapt_extensions(extensions, trace, timeouts)
    assert extensions["trace"] is trace


@pytest.mark.parametrize("total", [1e10, 1e300, None])
def test_its_timeouts_can_be_waited_for(total: float | None, client: Any) -> None:
    timeout = build_timeout(connect=1e10, first_byte=1e300, stall=1e300, total=total)
    theirs = build_http_request(client, our_request(), timeout)
    limit_reads(theirs, timeout)
    with socket.socket() as sock:
        for wait in theirs.extensions["timeout"].values():
            sock.settimeout(wait)


def test_the_head_of_its_response(client: Any) -> None:
    response = client.send(build_http_request(client, our_request()))
    head = build_head(response)
    assert head.status_code == 201
    assert list(head.headers)[:2] == [(b"X-One", b"1"), (b"x-one", b"2")]
    assert head.http_version == b"HTTP/1.1"
    assert not head.came_over_network
    response.extensions.update(http_version=b"HTTP/2", network_stream=object())
    assert build_head(response).http_version == b"HTTP/2"
    assert build_head(response).came_over_network


HEADERS = [(b"location", b"/")]


@pytest.mark.parametrize(
    ("name", "value", "version"),
    [
        ("http11.receive_response_headers.complete", (b"HTTP/1.0", 307, b"", HEADERS), b"HTTP/1.0"),
        ("http2.receive_response_headers.complete", (307, HEADERS), b"HTTP/2"),
    ],
)
def test_a_head_that_is_traced(name: str, value: Any, version: bytes) -> None:
    observer = ResponseObserver(None)
    assert observer.head is None
    observer.observe("http11.receive_response_headers.started", {"request": object()})
    observer.observe(name, {"return_value": value})
    assert observer.head == (307, HEADERS, version, True)


@pytest.mark.parametrize(
    ("name", "info"),
    [
        # As another version of httpcore may send them.
        ("http11.receive_response_headers.complete", {"return_value": None}),
        ("http11.receive_response_headers.complete", {"return_value": (307, HEADERS)}),
        ("http2.receive_response_headers.complete", {"return_value": (307, b"", HEADERS)}),
        ("http3.receive_response_headers.complete", {"return_value": (307, HEADERS)}),
        ("http11.receive_response_headers.failed", {"exception": ValueError("mine")}),
    ],
)
def test_an_unknown_event_of_a_trace_is_ignored(name: str, info: Any) -> None:
    observer = ResponseObserver(None)
    observer.observe(name, info)
    assert observer.head is None


def test_a_head_from_the_pool() -> None:
    observer = ResponseObserver(None)
    observer.receive_head(307, HEADERS, {"http_version": b"HTTP/1.0"})
    assert observer.head == (307, HEADERS, b"HTTP/1.0", True)
    observer.receive_head(200, [], {})
    assert observer.head == (200, [], b"HTTP/1.1", True)


def test_secrets_are_redacted_where_httpcore_logs_the_head(
    caplog: pytest.LogCaptureFixture,
) -> None:
    observer = ResponseObserver(lambda text: text.replace(CANARY, "[redacted]"))
    value = (b"HTTP/1.1", 200, CANARY.encode(), HEADERS)
    for level, shown in ((logging.INFO, CANARY), (logging.DEBUG, "[redacted]")):
        caplog.set_level(level, logger="httpcore.http11")
        info: dict[str, Any] = {"return_value": value, "exception": None}
        observer.observe("http11.receive_response_headers.complete", info)
        assert shown in repr(info["return_value"])
        assert (CANARY in repr(info)) is (level == logging.INFO)
        assert observer.head == (200, HEADERS, b"HTTP/1.1", True)
    failure = {"exception": ValueError(CANARY)}
    observer.observe("http11.receive_response_body.failed", failure)
    assert "[redacted]" in repr(failure)
    assert CANARY not in repr(failure)


def test_the_response_of_an_error_of_a_hook(client: Any, library: Any) -> None:
    request = build_http_request(client, our_request())
    response = client.send(request)
    error = library.HTTPStatusError("no", request=request, response=response)
    assert clients.find_response(error, request) is response
    assert clients.find_response(error, build_http_request(client, our_request())) is None
    assert clients.find_response(library.ReadError("no"), request) is None
    other: Any = ValueError("no")
    assert clients.find_response(other, request) is None
    other.response = response
    assert clients.find_response(other, request) is None


def test_the_head_of_a_redirect_that_httpx_cannot_parse(library: Any) -> None:
    error, head = library.RemoteProtocolError("no"), Head(302, HEADERS, b"HTTP/1.1", True)
    for status, is_redirect in ((299, False), (300, True), (399, True), (400, False)):
        head = head._replace(status_code=status)
        assert clients.find_redirect(error, head) is (head if is_redirect else None)
    assert clients.find_redirect(error, None) is None
    assert clients.find_redirect(ValueError("no"), head) is None


def test_a_body_that_a_hook_has_read_or_closed(library: Any) -> None:
    def answer(request: Any) -> Any:
        return library.Response(200, stream=library.ByteStream(b"x"))

    with library.Client(transport=library.MockTransport(answer)) as client:
        for end in ("read", "close"):
            request = client.build_request("GET", "http://h.test")
            response = client.send(request, stream=True)
            assert not clients.was_read(response)
            getattr(response, end)()
            assert clients.was_read(response)


def test_a_wrapper_of_httpx_whose_private_names_have_moved(library: Any) -> None:
    class Wrapper(library.SyncByteStream):  # type: ignore[misc]  # of either library
        pass

    Wrapper.__module__ = f"{library.__name__}._client"
    wrapper = Wrapper()
    assert find_source(wrapper) is wrapper
    assert find_body(SimpleNamespace(stream=wrapper)) == (wrapper, False)


def test_a_jar_keeps_no_cookies() -> None:
    jar = clients.NoCookies()
    request = httpx.Request("GET", "http://h.test")
    jar.extract_cookies(httpx.Response(200, headers={"set-cookie": "a=b"}, request=request))
    assert not jar
    assert list(jar.jar) == []


def test_a_url_is_parsed_once() -> None:
    assert clients.parse_url("http://h.test/chat") is clients.parse_url("http://h.test/chat")


def test_a_response_that_is_dropped_is_freed_at_once() -> None:
    """Also where the stream that httpx binds to it lives on: that sets the elapsed time of it."""
    response = release_when_dropped(httpx.Response(200, content=b"x"))
    assert type(response) is Response
    unbound: Any = SimpleNamespace()
    response.stream = unbound
    bound = SimpleNamespace(_response=response)
    stream: Any = bound
    response.stream = stream
    assert response.stream is bound
    bound._response.elapsed = timedelta(seconds=1)
    assert response.elapsed == timedelta(seconds=1)
    freed = weakref.ref(response)
    del response
    assert freed() is None
    bound._response.elapsed = timedelta(seconds=2)
    with pytest.raises(AttributeError, match=r"^elapsed is write-only$"):
        _ = bound._response.elapsed


def test_a_response_of_a_tool_stays_what_it_is() -> None:
    class Recorded(httpx.Response):
        pass

    assert type(release_when_dropped(Recorded(200))) is Recorded


def test_httpx_names_the_response_of_its_streams_as_before() -> None:
    """Otherwise a response that is dropped unread waits for the cyclic GC again."""
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        response = client.send(client.build_request("GET", "http://h.test"), stream=True)
        assert getattr(response.stream, "_response") is response  # noqa: B009 - private
        response.close()


def test_the_private_names_of_httpx_are_where_they_were(library: Any) -> None:
    """By these an exception of a hook, and the response that it is about, are told from others."""
    for kind in (library.Client, library.AsyncClient):
        assert kind.send.__module__ == f"{library.__name__}._client"
        for name in (*callers._CALLERS_OF_HOOKS, "_send_single_request"):
            assert callable(getattr(kind, name))
    assert library.Auth.sync_auth_flow.__module__ == f"{library.__name__}._auth"
    request = library.Request("GET", "http://h.test")
    assert library.Response(200, request=request)._request is request
    assert library.ReadError("x", request=request)._request is request


def test_the_streams_of_httpx_lead_to_that_of_httpcore(library: Any, faults: FaultyServer) -> None:
    """Otherwise a body is read by httpx's generators, at twice the cost of a token."""
    with library.Client() as client, client.stream("POST", faults.base_url) as response:
        assert type(find_source(response.stream)).__module__.startswith("httpcore")
        assert find_body(response) == (response.stream, True)

    async def scenario() -> None:
        async with library.AsyncClient() as client:
            async with client.stream("POST", faults.base_url) as response:
                assert type(find_source(response.stream)).__module__.startswith("httpcore")
                assert find_body(response) == (response.stream, True)

    anyio.run(scenario)


def test_the_streams_of_httpx_lead_to_that_of_this_package(faults: FaultyServer) -> None:
    with httpx.Client(transport=Transport()) as client:
        with client.stream("POST", faults.base_url) as response:
            assert find_body(response) == (response.stream, True)


def test_the_streams_of_httpx_lead_to_a_generator(library: Any) -> None:
    """Which httpx does not close."""

    def parts() -> Iterator[bytes]:
        yield b"x"

    body = parts()
    transport = library.MockTransport(lambda _: library.Response(200, content=body))
    with library.Client(transport=transport) as client:
        response = client.send(client.build_request("GET", "http://h.test"), stream=True)
        assert find_body(response) == (body, False)
        response.close()


def test_a_body_that_is_there_as_a_whole(library: Any) -> None:
    def parts() -> Iterator[bytes]:
        yield b""

    for content, is_whole in ((b"x", True), (None, True), (parts(), False)):
        assert (
            is_byte_stream(library.Request("POST", "http://h", content=content).stream) is is_whole
        )
