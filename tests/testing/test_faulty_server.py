"""The faulty server sends the bytes that its methods document, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import gzip
import os
import resource
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest
from certificates import build_authority

from cromicle_sdk import Transport
from cromicle_sdk.testing import (
    LAST_CHUNK,
    Connection,
    DisconnectedError,
    FaultyServer,
    RecordedRequest,
    build_chunk,
    build_head,
    build_last_chunk,
)

if TYPE_CHECKING:
    import trustme
    from typing_extensions import Self

BODY = b'{"message":"Hi","token":"canary","hash":"1f"}'
REQUEST = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
TEXT = "Hello from the faulty server."
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def headed(framing: str, status: str = "200 OK") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\n{framing}\r\n\r\n"
    ).encode()


def in_chunks(*texts: str) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(text.encode()), text.encode()) for text in texts)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


class RawClient:
    """A bare TCP client."""

    def __init__(self, server: FaultyServer, request: bytes = REQUEST) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port_of(server)), timeout=20)
        try:
            self.sock.sendall(request)
        except OSError:
            # A reset on accept may arrive first.
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (more := self.sock.recv(count - len(data))):
            data += more
        return data

    def read_to_end(self) -> bytes:
        data = b""
        while more := self.sock.recv(65536):
            data += more
        return data

    def is_silent(self) -> bool:
        """Whether nothing, an end included, is there to be read."""
        self.sock.settimeout(0)
        try:
            self.sock.recv(1)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(20)
        return False


def connect_and_read(server: FaultyServer) -> bytes:
    with RawClient(server, b"") as raw:
        return raw.read_to_end()


def port_of(server: FaultyServer) -> int:
    return httpx.URL(server.base_url).port or 0


def post(server: FaultyServer) -> httpx.Response:
    return httpx.post(f"{server.base_url}/chat", content=BODY, timeout=20)


# The bytes that are sent

KEPT: list[tuple[str, Callable[[FaultyServer], object], bytes]] = [
    ("nothing scripted", lambda s: None, HEAD + in_chunks(TEXT) + LAST_CHUNK),
    ("reply", lambda s: s.reply("Grüße"), HEAD + in_chunks("Grüße") + LAST_CHUNK),
    (
        "chunks, an empty one left out, half characters kept",
        lambda s: s.reply(chunks=[b"\xc3", "", b"\xbc", "ok"]),
        HEAD + b"1\r\n\xc3\r\n1\r\n\xbc\r\n2\r\nok\r\n" + LAST_CHUNK,
    ),
    ("empty text", lambda s: s.reply(""), HEAD + LAST_CHUNK),
    (
        "exact length",
        lambda s: s.reply("ü", length="exact"),
        headed("content-length: 2") + "ü".encode(),
    ),
    (
        "length too short",
        lambda s: s.reply("Hello", length=2),
        headed("content-length: 2") + b"Hello",
    ),
    (
        "byte order mark",
        lambda s: s.reply("a", bom=True),
        HEAD + b"4\r\n\xef\xbb\xbfa\r\n" + LAST_CHUNK,
    ),
    (
        "finish reason",
        lambda s: s.reply("Hello", finish_reason="length"),
        headed("transfer-encoding: chunked\r\ntrailer: x-finish-reason")
        + b"5\r\nHello\r\n0\r\nx-finish-reason: length\r\n\r\n",
    ),
    (
        "trailers",
        lambda s: s.raw(build_last_chunk([("a", "1"), ("a", "2")]) + build_last_chunk()),
        b"0\r\na: 1\r\na: 2\r\n\r\n" + LAST_CHUNK,
    ),
    ("mark alone", lambda s: s.reply(chunks=[], bom=True), HEAD + in_chunks("\ufeff") + LAST_CHUNK),
    (
        "repeated headers",
        lambda s: s.reply("", headers=[("x", "1"), ("x", "2")]),
        HEAD[:-2] + b"x: 1\r\nx: 2\r\n\r\n" + LAST_CHUNK,
    ),
    (
        "no content type",
        lambda s: s.reply("", content_type=None, status=205),
        b"HTTP/1.1 205 Reset Content\r\ntransfer-encoding: chunked\r\n\r\n" + LAST_CHUNK,
    ),
    (
        "fail",
        lambda s: s.fail(),
        headed("content-length: 36", "503 Service Unavailable")
        + b"The faulty server responds with 503.",
    ),
    (
        "retry after",
        lambda s: s.fail(429, retry_after=1.5, body="no", headers={"x-request-id": "7"}),
        headed("content-length: 2\r\nretry-after: 1.5\r\nx-request-id: 7", "429 Too Many Requests")
        + b"no",
    ),
    (
        "a status without a name",
        lambda s: s.fail(599, body=""),
        headed("content-length: 0", "599 Unknown"),
    ),
    (
        "no content",
        lambda s: s.fail(204, content_type=None),
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ),
    (
        "redirect",
        lambda s: s.redirect(307, location="http://[x"),
        headed("content-length: 36\r\nlocation: http://[x", "307 Temporary Redirect")
        + b"The faulty server responds with 307.",
    ),
    (
        "redirect to nowhere",
        lambda s: s.redirect(location=None),
        headed("content-length: 36", "302 Found") + b"The faulty server responds with 302.",
    ),
    (
        "dripped body",
        lambda s: s.drip("aü", interval=0),
        HEAD + b"1\r\na\r\n1\r\n\xc3\r\n1\r\n\xbc\r\n" + LAST_CHUNK,
    ),
    (
        "dripped head",
        lambda s: s.drip("a", interval=0.0001, where="head"),
        HEAD + in_chunks("a") + LAST_CHUNK,
    ),
    (
        "informational responses",
        lambda s: s.drip("ab", interval=0.0001, where="informational"),
        b"HTTP/1.1 102 Processing\r\n\r\n" * 2 + HEAD + in_chunks("ab") + LAST_CHUNK,
    ),
    (
        "second response",
        lambda s: s.trailing("a", second="b"),
        HEAD + in_chunks("a") + LAST_CHUNK + HEAD + in_chunks("b") + LAST_CHUNK,
    ),
    ("raw", lambda s: s.raw([b"garbage", b"\r\n\r\n"], delay=0.0001), b"garbage\r\n\r\n"),
    (
        "bad chunk size",
        lambda s: s.raw(build_head() + build_chunk("a") + build_chunk("b", size="zz")),
        HEAD + in_chunks("a") + b"zz\r\nb\r\n",
    ),
    (
        "bad chunk end",
        lambda s: s.raw(build_head() + build_chunk("Hello", end=b"XX")),
        HEAD + b"5\r\nHelloXX",
    ),
]

CLOSED: list[tuple[str, Callable[[FaultyServer], object], bytes]] = [
    ("cut before the head", lambda s: s.cut(), b""),
    ("cut after the head", lambda s: s.cut(after=""), HEAD),
    ("cut in the body", lambda s: s.cut(after="Hello, wor"), HEAD + in_chunks("Hello, wor")),
    ("cut inside a chunk", lambda s: s.cut("Hello", inside_chunk=True), HEAD + b"45\r\nHello"),
    (
        "cut short of a length",
        lambda s: s.cut("Hello", framing="length"),
        headed("content-length: 69") + b"Hello",
    ),
    (
        "cut that looks like an end",
        lambda s: s.cut("Hello", framing="none"),
        headed("connection: close") + b"Hello",
    ),
    (
        "length too long",
        lambda s: s.reply("Hello", length=9),
        headed("content-length: 9") + b"Hello",
    ),
    (
        "no framing",
        lambda s: s.reply("Hello", length="none"),
        headed("connection: close") + b"Hello",
    ),
    (
        "reply and close",
        lambda s: s.reply("a", close=True),
        HEAD[:-2] + b"connection: close\r\n\r\n" + in_chunks("a") + LAST_CHUNK,
    ),
    ("closed without notice", lambda s: s.close_idle("a"), HEAD + in_chunks("a") + LAST_CHUNK),
    (
        "fail and close",
        lambda s: s.fail(500, body="", close=True),
        headed("content-length: 0\r\nconnection: close", "500 Internal Server Error"),
    ),
    ("HTTP/0.9", lambda s: s.raw(b"Hello", end="close"), b"Hello"),
]


@pytest.mark.parametrize(
    ("configure", "expected"), [row[1:] for row in KEPT], ids=[r[0] for r in KEPT]
)
def test_a_response_that_keeps_the_connection_alive(
    server: FaultyServer, configure: Callable[[FaultyServer], object], expected: bytes
) -> None:
    configure(server)
    with RawClient(server) as raw:
        assert raw.read(len(expected)) == expected
        # Extra bytes of the first response would precede the second one.
        raw.sock.sendall(REQUEST)
        assert raw.read(len(expected)) == expected
        assert raw.is_silent()
    assert server.connections == 1


@pytest.mark.parametrize(
    ("configure", "expected"), [r[1:] for r in CLOSED], ids=[r[0] for r in CLOSED]
)
def test_a_response_that_closes_the_connection(
    server: FaultyServer, configure: Callable[[FaultyServer], object], expected: bytes
) -> None:
    configure(server)
    with RawClient(server) as raw:
        assert raw.read_to_end() == expected
    server.wait_until_closed()


def test_a_cut_inside_a_chunk_needs_a_chunk() -> None:
    with pytest.raises(ValueError, match="inside_chunk"):
        FaultyServer().cut(inside_chunk=True)
    with pytest.raises(ValueError, match="inside_chunk"):
        FaultyServer().cut("Hello", inside_chunk=True, framing="length")


@pytest.mark.parametrize("length", ["exact", "none", 5])
def test_a_finish_reason_needs_chunks(length: Any) -> None:
    with pytest.raises(ValueError, match="finish_reason"):
        FaultyServer().reply("Hello", length=length, finish_reason="length")


@pytest.mark.parametrize("after", [None, "", "Hello"])
def test_reset_sends_a_rst(server: FaultyServer, after: str | None) -> None:
    server.reset(after)
    expected = b"" if after is None else HEAD + (in_chunks(after) if after else b"")
    with RawClient(server) as raw:
        assert raw.read(len(expected)) == expected
        with pytest.raises(ConnectionResetError):
            raw.sock.recv(1)


def test_a_reset_on_accept_needs_and_records_no_request(server: FaultyServer) -> None:
    server.reset(when="accept").reply("ok")
    with pytest.raises(ConnectionResetError):
        connect_and_read(server)
    assert post(server).text == "ok"
    assert (len(server.requests), server.connections) == (1, 2)


def test_a_cut_on_accept_needs_no_request(server: FaultyServer) -> None:
    server.cut(when="accept")
    assert connect_and_read(server) == b""
    assert server.requests == []


def test_raw_bytes_on_accept_come_before_the_request(server: FaultyServer) -> None:
    server.raw(b"Who is there?", when="accept").reply("ok")
    with RawClient(server, b"") as raw:
        assert raw.read(13) == b"Who is there?"
        raw.sock.sendall(REQUEST)
        assert raw.read(len(HEAD) + 7) == HEAD + in_chunks("ok")


def test_an_accept_behaviour_acts_on_the_next_request_of_a_kept_connection(
    server: FaultyServer,
) -> None:
    server.reply("").cut(when="accept")
    with RawClient(server) as raw:
        assert raw.read(len(HEAD) + 5) == HEAD + LAST_CHUNK
        raw.sock.sendall(REQUEST)
        assert raw.read_to_end() == b""


def test_a_status_on_head_is_sent_before_the_body_is_read(server: FaultyServer) -> None:
    server.fail(413, when="head")
    head, _, _ = REQUEST.partition(BODY)
    with RawClient(server, head) as raw:
        assert raw.read_to_end().startswith(b"HTTP/1.1 413 ")
    assert server.requests[0].body == b""


# Faults that take time


@pytest.mark.parametrize("after", [None, "", "Hello"])
def test_a_stall_lasts_until_the_client_disconnects(
    server: FaultyServer, after: str | None
) -> None:
    server.stall(after).reply(close=True)
    expected = b"" if after is None else HEAD + (in_chunks(after) if after else b"")
    with RawClient(server) as raw:
        assert raw.read(len(expected)) == expected
        server.wait_for_requests(1)
        raw.sock.sendall(REQUEST)
        assert post(server).text == TEXT
        assert raw.is_silent()
        assert server.open_connections >= 1
    server.wait_until_closed()
    assert server.open_connections == 0


@pytest.mark.parametrize("when", ["accept", "head", "request"])
def test_a_stall_ends_when_the_server_stops(when: Literal["accept", "head", "request"]) -> None:
    with FaultyServer() as server:
        server.stall(when=when)
        with RawClient(server) as raw:
            server.stop()
            assert_ended(raw)


def test_a_stall_on_head_blocks_a_client_that_sends_a_long_body(server: FaultyServer) -> None:
    server.stall(when="head")
    with RawClient(server, b"POST /chat HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n") as raw:
        server.wait_for_requests(1)
        raw.sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            send_endlessly(raw)


def test_the_second_chunk_waits_for_the_gate(server: FaultyServer) -> None:
    gate = threading.Event()
    server.reply(chunks=["a", "b"], gate=gate, delay=0.001).reply()
    with RawClient(server) as raw:
        assert raw.read(len(HEAD) + 6) == HEAD + in_chunks("a")
        assert post(server).text == TEXT
        assert raw.is_silent()
        gate.set()
        assert raw.read(11) == in_chunks("b") + LAST_CHUNK


def test_a_wait_for_a_gate_ends_when_the_client_disconnects(server: FaultyServer) -> None:
    server.reply("a", gate=threading.Event())
    with RawClient(server) as raw:
        assert raw.read(len(HEAD) + 6) == HEAD + in_chunks("a")
    server.wait_until_closed()


@pytest.mark.parametrize(
    ("configure", "expected"),
    [
        (lambda s: s.drip("ab", interval=0.001, forever=True), HEAD + in_chunks(*"abab")),
        (
            lambda s: s.drip(interval=0.001, where="head", forever=True),
            HEAD[:-2] + b"x-drip: xxx",
        ),
        (
            lambda s: s.drip(interval=0.001, where="informational", forever=True),
            b"HTTP/1.1 102 Processing\r\n\r\n" * 3,
        ),
    ],
)
def test_an_endless_drip_ends_when_the_client_disconnects(
    server: FaultyServer, configure: Callable[[FaultyServer], object], expected: bytes
) -> None:
    configure(server)
    with RawClient(server) as raw:
        assert raw.read(len(expected)) == expected
    server.wait_until_closed()


def test_a_flood_ends_when_the_client_disconnects(server: FaultyServer) -> None:
    server.flood("tick")
    with RawClient(server) as raw:
        assert len(raw.read(5_000_000)) == 5_000_000
    server.wait_until_closed()


def test_a_flood_ends_when_the_server_stops(server: FaultyServer) -> None:
    server.flood(newline=False)
    with RawClient(server) as raw:
        raw.read(1)
        server.stop()
        assert_ended(raw)


@pytest.mark.parametrize("size", [0, 10, 65540, 200_000])
@pytest.mark.parametrize("newline", [True, False])
def test_a_flood_of_a_given_size(server: FaultyServer, size: int, newline: bool) -> None:
    server.flood("tick", size=size, newline=newline, status=500)
    response = post(server)
    line = "tick\n" if newline else "tick"
    assert response.status_code == 500
    assert response.text == (line * size)[:size]


def send_endlessly(raw: RawClient) -> None:
    while True:
        raw.sock.send(bytes(100_000))


def assert_ended(raw: RawClient) -> None:
    with contextlib.suppress(ConnectionResetError):
        raw.read_to_end()


# Content codings


@pytest.mark.parametrize(
    ("coding", "decode"),
    [
        ("gzip", gzip.decompress),
        ("deflate", zlib.decompress),
        ("gzip, gzip", lambda data: gzip.decompress(gzip.decompress(data))),
        ("zstd", bytes),
    ],
)
def test_an_encoded_reply(
    server: FaultyServer, coding: str, decode: Callable[[bytes], bytes]
) -> None:
    server.encoded("Hello", coding=coding)
    with httpx.stream("POST", server.base_url, content=BODY) as response:
        assert response.headers["content-encoding"] == coding
        assert decode(b"".join(response.iter_raw())) == b"Hello"


def test_a_decompression_bomb_is_sent_compressed(server: FaultyServer) -> None:
    server.encoded("ab", size=3_000_001)
    response = post(server)
    assert response.text == "ab" * 1_500_000 + "a"
    assert int(response.headers["content-length"]) < 30_000


# The script


def test_each_request_takes_the_next_behaviour_and_the_last_repeats(server: FaultyServer) -> None:
    server.fail(503).fail(429).reply("ok")
    statuses = [post(server).status_code for _ in range(5)]
    assert statuses == [503, 429, 200, 200, 200]


def test_a_behaviour_added_while_the_last_repeats_is_next(server: FaultyServer) -> None:
    server.fail(503)
    assert [post(server).status_code for _ in range(3)] == [503, 503, 503]
    server.fail(502).fail(501)
    assert [post(server).status_code for _ in range(3)] == [502, 501, 501]


def test_clear_removes_behaviours_and_requests(server: FaultyServer) -> None:
    server.fail(503)
    post(server)
    assert server.clear() is server
    assert server.requests == []
    assert post(server).text == TEXT
    assert server.connections == 2


def test_script_calls_the_behaviour_with_connection_and_request(server: FaultyServer) -> None:
    def echo_and_reset(connection: Connection, request: RecordedRequest) -> None:
        connection.send(build_head(length=2) + request.message.encode())
        connection.pause(0)
        assert not connection.closed
        connection.reset()

    server.script(echo_and_reset)
    with RawClient(server) as raw:
        assert raw.read(len(headed("content-length: 2")) + 2).endswith(b"\r\n\r\nHi")
        with pytest.raises(ConnectionResetError):
            raw.sock.recv(1)
    assert server.requests[0].connection == 1


def test_sending_after_close_raises_disconnected_error(server: FaultyServer) -> None:
    raised = threading.Event()

    def close_twice(connection: Connection, request: RecordedRequest) -> None:
        connection.close()
        connection.reset()
        try:
            connection.send(b"Too late.")
        except DisconnectedError:
            raised.set()
            raise

    server.script(close_twice)
    with RawClient(server) as raw:
        assert raw.read_to_end() == b""
    assert raised.wait(20)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_in_a_behaviour_reaches_the_excepthook_and_closes(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_value))

    def mistake(connection: Connection, request: RecordedRequest) -> None:
        raise LookupError("mistake")

    server.script(mistake)
    with RawClient(server) as raw:
        assert raw.read_to_end() == b""
    server.stop()
    assert repr(seen) == "[LookupError('mistake')]"


# Recorded requests


def test_a_request_is_recorded(server: FaultyServer) -> None:
    headers = [("X-Two", "1"), ("x-two", "2"), ("authorization", "canary")]
    httpx.post(f"{server.base_url}/api/chat?a=b", content=BODY, headers=headers)
    (request,) = server.wait_for_requests(1)
    assert (request.method, request.path, request.body) == ("POST", "/api/chat?a=b", BODY)
    assert request.headers["x-two"] == "1, 2"
    assert request.json == {"message": "Hi", "token": "canary", "hash": "1f"}
    assert (request.message, request.token, request.hash) == ("Hi", "canary", "1f")
    assert request == server.requests[0]
    assert isinstance(hash(request), int)
    assert "canary" not in repr(request) + repr(server)


def test_a_request_has_its_messages_and_options(server: FaultyServer) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    fields = {"message": "Hi", "token": "canary", "hash": "1f", "messages": messages, "seed": 1}
    httpx.post(server.base_url, json=fields)
    post(server)
    extended, plain = server.requests
    assert (extended.messages, extended.options) == (messages, {"seed": 1})
    assert (plain.messages, plain.options) == (None, {})


def test_requests_is_a_copy(server: FaultyServer) -> None:
    before = server.requests
    post(server)
    assert (before, len(server.requests)) == ([], 1)


def test_a_request_has_the_number_of_its_connection(server: FaultyServer) -> None:
    with httpx.Client() as client:
        for _ in range(2):
            client.post(server.base_url)
    post(server)
    assert [request.connection for request in server.requests] == [1, 1, 2]


def test_pipelined_requests_are_answered_in_order(server: FaultyServer) -> None:
    server.reply("a", delay=0.001).reply("b")
    expected = HEAD + in_chunks("a") + LAST_CHUNK + HEAD + in_chunks("b") + LAST_CHUNK
    with RawClient(server, REQUEST * 2) as raw:
        assert raw.read(len(expected)) == expected


def test_a_body_of_many_megabytes_is_read_whole(server: FaultyServer) -> None:
    body = os.urandom(20_000_000)
    httpx.post(server.base_url, content=body, timeout=20)
    assert server.requests[0].body == body


def test_a_chunked_body_is_read_whole(server: FaultyServer) -> None:
    httpx.post(server.base_url, content=iter([b"a" * 70_000, b"b"]))
    assert server.requests[0].body == b"a" * 70_000 + b"b"


def test_extensions_and_trailers_of_a_chunked_body_are_ignored(server: FaultyServer) -> None:
    chunked = b"POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n"
    with RawClient(server, chunked + b"2;a=b\r\nHi\r\n0\r\nx: y\r\n\r\n" + REQUEST) as raw:
        raw.read(1)
        assert [r.body for r in server.wait_for_requests(2)] == [b"Hi", BODY]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01 hello\r\n\r\n",
        b"GET / SPDY/1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: many\r\n\r\n",
        b"GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_bytes_that_are_not_http_get_a_400_and_are_not_recorded(
    server: FaultyServer, request_bytes: bytes
) -> None:
    with RawClient(server, request_bytes) as raw:
        assert raw.read_to_end().startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert server.requests == []


def test_a_request_that_breaks_off_is_not_recorded(server: FaultyServer) -> None:
    with RawClient(server, REQUEST[:-1]) as raw:
        raw.sock.shutdown(socket.SHUT_WR)
        assert raw.read_to_end() == b""
    server.wait_until_closed()
    assert server.requests == []


def test_a_timeout_of_wait_for_requests_has_the_number_that_arrived(server: FaultyServer) -> None:
    post(server)
    with pytest.raises(TimeoutError, match=r"1 of 2 requests arrived within 0\.01 s"):
        server.wait_for_requests(2, timeout=0.01)


def test_wait_for_requests_and_wait_until_closed_return_at_once(server: FaultyServer) -> None:
    def wait_for_both() -> None:
        server.wait_for_requests(1, timeout=90)
        arrived.set()
        server.wait_until_closed(timeout=90)

    arrived = threading.Event()
    waiting = threading.Thread(target=wait_for_both, daemon=True)
    waiting.start()
    with RawClient(server):
        assert arrived.wait(20)
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_timeout_of_wait_until_closed_has_the_number_of_open_connections(
    server: FaultyServer,
) -> None:
    with RawClient(server):
        server.wait_for_requests(1)
        with pytest.raises(TimeoutError, match=r"1 connections still open after 0\.01 s"):
            server.wait_until_closed(timeout=0.01)


# Start and stop


def test_base_url_before_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="start"):
        _ = FaultyServer().base_url


def test_starting_twice_is_an_error(server: FaultyServer) -> None:
    with pytest.raises(RuntimeError, match="already started"):
        server.start()


def test_after_stop_the_port_refuses_until_the_next_start(server: FaultyServer) -> None:
    url = server.base_url
    post(server)
    server.stop()
    server.stop()
    assert server.base_url == url
    assert len(server.requests) == 1
    with pytest.raises(httpx.ConnectError):
        post(server)
    server.start()
    assert server.base_url == url
    assert post(server).text == TEXT


def test_connecting_to_a_black_hole_hangs_until_stop(server: FaultyServer) -> None:
    server.black_hole()
    with pytest.raises(httpx.ConnectTimeout):
        httpx.post(server.base_url, timeout=0.1)
    server.stop()
    server.start()
    assert post(server).text == TEXT


def test_stop_ends_fifty_connections_and_leaves_no_thread_and_no_socket() -> None:
    threads = set(threading.enumerate())
    with FaultyServer() as server, contextlib.ExitStack() as stack:
        server.stall("Hello").drip(forever=True).reply("", gate=threading.Event()).flood()
        server.reply(delay=60, chunks=["a", "b"]).stall(when="head").reply("idle")
        clients = [stack.enter_context(RawClient(server)) for _ in range(50)]
        server.wait_for_requests(50)
        server.stop()
        assert server.open_connections == 0
        for raw in clients:
            assert_ended(raw)
    assert set(threading.enumerate()) <= threads


def test_two_hundred_clients_at_once(server: FaultyServer) -> None:
    barrier = threading.Barrier(200)

    def meet_then_answer(connection: Connection, request: RecordedRequest) -> None:
        barrier.wait(timeout=20)
        connection.send(build_head(length=len(request.body)) + request.body)
        connection.close()

    def ask(number: int) -> bool:
        body = b"%d" % number
        request = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        with RawClient(server, request) as raw:
            return raw.read_to_end().endswith(b"\r\n\r\n" + body)

    server.script(meet_then_answer)
    with ThreadPoolExecutor(200) as pool:
        assert all(pool.map(ask, range(200)))
    server.wait_until_closed()
    assert (server.connections, len(server.requests)) == (200, 200)


def test_a_server_out_of_file_descriptors_accepts_once_there_are_some(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()
    wait = server._stopping.wait

    def wait_and_set(timeout: float) -> bool:
        failed.set()
        return wait(timeout)

    monkeypatch.setattr(server._stopping, "wait", wait_and_set)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = [socket.socket() for _ in range(3)]
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        for client in clients:
            client.connect(("127.0.0.1", port_of(server)))
        assert failed.wait(20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for client in clients:
        client.settimeout(20)
        client.sendall(REQUEST)
        assert client.recv(len(HEAD)) == HEAD
        client.close()


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return build_authority()


@pytest.fixture
def tls_server(authority: trustme.CA) -> Iterator[FaultyServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FaultyServer(ssl_context=context) as server:
        yield server


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_the_script_works_over_tls(tls_server: FaultyServer, trusting: ssl.SSLContext) -> None:
    tls_server.reply(chunks=["a", "b"], delay=0.001).cut("Hello").reset().stall("").flood()
    with httpx.Client(verify=trusting, base_url=tls_server.base_url, timeout=20) as client:
        assert client.post("/chat").text == "ab"
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/chat")
        # CPython's ssl shows some clients a reset as an end.
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            client.post("/chat")
        with client.stream("POST", "/chat") as response:
            assert response.status_code == 200
        with client.stream("POST", "/chat") as response:
            assert next(response.iter_raw())
    tls_server.wait_until_closed()


def test_a_failed_tls_handshake_is_not_reported(tls_server: FaultyServer) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.post(tls_server.base_url)
    with contextlib.suppress(ConnectionResetError), RawClient(tls_server) as raw:
        raw.read_to_end()
    tls_server.wait_until_closed()
    assert tls_server.requests == []


@pytest.mark.parametrize("fault", ["cut", "reset", "stall"])
def test_a_fault_on_accept_breaks_the_handshake(
    tls_server: FaultyServer, trusting: ssl.SSLContext, fault: str
) -> None:
    getattr(tls_server, fault)(when="accept")
    # Not httpx's own transport: `wrap_socket` leaves its socket open after an early reset.
    with (
        httpx.Client(transport=Transport(verify=trusting), timeout=0.2) as client,
        pytest.raises((httpx.ConnectError, httpx.ConnectTimeout)),
    ):
        client.post(tls_server.base_url)


def test_stop_ends_tls_connections(tls_server: FaultyServer, trusting: ssl.SSLContext) -> None:
    tls_server.stall("Hello")
    with (
        RawClient(tls_server, b"") as before_its_handshake,
        httpx.Client(verify=trusting) as client,
        client.stream("POST", tls_server.base_url) as response,
    ):
        tls_server.stop()
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()
        assert_ended(before_its_handshake)
    assert tls_server.open_connections == 0


def test_abort_during_the_switch_to_tls_is_not_lost() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here, there = socket.socketpair()
    with here, there:
        connection = Connection(here, 1)
        connection.abort()
        with pytest.raises(DisconnectedError):
            connection.start_tls(context)
        connection.close()


def test_a_status_that_is_not_an_int_is_an_error() -> None:
    with FaultyServer() as server, pytest.raises(TypeError, match="status: expected an int"):
        server.redirect("/elsewhere")  # type: ignore[arg-type]  # the mistake under test
