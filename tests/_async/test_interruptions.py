"""What interrupts a call from outside: signal handlers, cancellation, another thread."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import itertools
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from queue import Empty
from types import SimpleNamespace
from typing import Any

import anyio
import httpcore
import httpx
import pytest
from runtimes import ASYNC_RUNTIMES, RUNTIMES, Runtime, notice_reads, outcome

from cromicle_sdk import (
    APIConnectionError,
    APITimeoutError,
    AsyncTransport,
    Client,
    ConfigurationError,
    CromicleError,
    IncompleteReplyError,
    Retry,
    Timeout,
    Transport,
)
from cromicle_sdk._async import concurrency as async_concurrency
from cromicle_sdk._async import network as async_network
from cromicle_sdk._async.session import AsyncHTTPClient
from cromicle_sdk._core.deadline import CallTimeouts, Phase
from cromicle_sdk._http import framing, resolver, slots, sockets
from cromicle_sdk._sync import concurrency as sync_concurrency
from cromicle_sdk._sync import network as sync_network
from cromicle_sdk._sync import pool as sync_pool
from cromicle_sdk._sync.session import HTTPClient
from cromicle_sdk.testing import FaultyServer

ONCE = Retry(attempts=1)


def own_client(runtime: Runtime) -> Any:
    return httpx.Client() if runtime.is_blocking else httpx.AsyncClient()


async def close(client: Any) -> None:
    client.close() if isinstance(client, httpx.Client) else await client.aclose()


# Signal handlers


@contextlib.contextmanager
def alarm(error: BaseException, after: Callable[[], object]) -> Generator[None]:
    """A signal handler that raises, as programs have them to end a job, when `after` has returned.

    Before the call has come to its wait, Python ignores the error in some places, such as the
    `__del__` of any object. A signal that comes just before a system call does not end it, so that
    it is repeated.
    """
    errors = [error]

    def handle(*args: object) -> None:
        if errors:
            raise errors.pop()

    def start() -> None:
        after()
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.1)

    before = signal.signal(signal.SIGALRM, handle)
    thread = threading.Thread(target=start)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def request_of(faults: FaultyServer) -> Callable[[], object]:
    """A wait for the first request."""
    return functools.partial(faults.wait_for_requests, 1, timeout=60)


def call_of(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """A wait for the first call of a function."""
    called = threading.Event()
    function = getattr(owner, name)

    def notice(*args: Any, **options: Any) -> Any:
        called.set()
        return function(*args, **options)

    monkeypatch.setattr(owner, name, notice)
    return functools.partial(called.wait, 60)


SCRIPTS: dict[str, Callable[[FaultyServer], object]] = {
    "waiting for the head": lambda faults: faults.stall(),
    "waiting for the body": lambda faults: faults.stall(after="Hel"),
    "waiting for a retry": lambda faults: faults.fail(503, retry_after=50),
}


# Whatever a handler raises is the caller's, also what looks like an error of the network's.
ERRORS_OF_HANDLERS: list[Callable[[], Exception]] = [
    lambda: TimeoutError("mine"),
    lambda: TimeoutError(errno.ETIMEDOUT, "mine"),
    lambda: ConnectionError("mine"),
    lambda: BrokenPipeError(errno.EPIPE, "mine"),
    lambda: BlockingIOError(errno.EAGAIN, "mine"),
    lambda: socket.gaierror(socket.EAI_NONAME, "mine"),
    lambda: UnicodeError("mine"),
    lambda: ssl.SSLCertVerificationError(1, "mine"),
    lambda: httpx.ReadTimeout("mine"),
    lambda: httpcore.ReadError("mine"),
    lambda: CromicleError("mine"),
    lambda: Empty("mine"),
]


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("make", ERRORS_OF_HANDLERS, ids=lambda make: repr(make()))
def test_an_exception_of_a_signal_handler_ends_the_call_at_once(
    make: Callable[[], Exception], script: Callable[[FaultyServer], object], faults: FaultyServer
) -> None:
    error = make()
    script(faults)
    script(faults)
    with Client(base_url=faults.base_url) as client:
        started = time.monotonic()
        with alarm(error, request_of(faults)), pytest.raises(type(error)) as caught:
            client.chat("Hi")
        assert caught.value is error
        assert time.monotonic() - started < 10
    assert len(faults.requests) == 1
    faults.wait_until_closed()


def test_a_signal_that_another_thread_receives_ends_a_wait(
    faults: FaultyServer, interrupter: threading.Thread
) -> None:
    """The interpreter runs its handler only when the system call of the main thread returns."""
    faults.stall()
    started = time.monotonic()
    with Client(base_url=faults.base_url, timeout=Timeout(first_byte=60)) as client:
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            client.chat("Hi")
    interrupter.join()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("script", ["waiting for the head", "waiting for the body"])
@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("mine"),
        BrokenPipeError(errno.EPIPE, "mine"),
        UnicodeError("mine"),
        httpx.ReadError("mine"),
    ],
    ids=repr,
)
def test_an_exception_of_a_signal_handler_passes_through_a_custom_client(
    error: Exception, script: str, faults: FaultyServer
) -> None:
    """httpcore takes what interrupts its system calls for an error of the network."""
    SCRIPTS[script](faults)
    with own_client(RUNTIMES[0]) as own:
        client = Client(base_url=faults.base_url, http_client=own)
        with alarm(error, request_of(faults)), pytest.raises(type(error)) as caught:
            client.chat("Hi")
    assert caught.value is error
    # The frames between the call and the handler hold the request.
    names = [entry.name for entry in caught.traceback]
    assert names[-1] == "handle"
    assert "handle_request" not in names
    assert len(faults.requests) == 1


def test_a_call_in_the_handler_of_an_earlier_interrupt_fails_by_itself(
    faults: FaultyServer,
) -> None:
    """The interrupt is the context of the errors of that call, not their cause."""
    faults.stall().reset()
    with Client(base_url=faults.base_url, retry=ONCE) as client:
        try:
            with alarm(TimeoutError("mine"), request_of(faults)):
                client.chat("Hi")
        except TimeoutError:
            with pytest.raises(APIConnectionError):
                client.chat("Hi")


@pytest.mark.parametrize("error", [TimeoutError("mine"), ConnectionError("mine")], ids=repr)
@pytest.mark.parametrize("wait", ["resolver", "connection", "slot", "upload"])
def test_an_exception_of_a_signal_handler_ends_every_other_wait(
    wait: str, error: Exception, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    if wait == "resolver":
        monkeypatch.setattr(resolver, "look_up", lambda *args: ended.wait(20))
        waiting = call_of(resolver, "look_up", monkeypatch)
    elif wait == "connection":
        faults.black_hole()
        waiting = call_of(sync_network, "start_connect", monkeypatch)
    elif wait == "upload":
        faults.stall(when="head")
        waiting = request_of(faults)
    else:
        faults.stall(after="Hel")
        waiting = call_of(slots.Slots, "wait", monkeypatch)
    url = "http://h.example" if wait == "resolver" else faults.base_url
    prompt = "x" * 20_000_000 if wait == "upload" else "Hi"
    timeout = Timeout(connect=60)
    with Client(base_url=url, max_connections=1, timeout=timeout) as client:
        with client.stream("first") if wait == "slot" else contextlib.nullcontext():
            started = time.monotonic()
            with alarm(error, waiting), pytest.raises(type(error)) as caught:
                client.chat(prompt)
        assert caught.value is error
        assert time.monotonic() - started < 10
    ended.set()


class InterruptedSocket:
    """A socket whose every operation is interrupted by a signal handler that raises."""

    def __init__(self, error: OSError) -> None:
        self._error = error

    def _fail(self, *args: object) -> Any:
        raise self._error

    recv = send = _fail


@pytest.mark.parametrize("operation", ["receive", "send"])
def test_an_exception_that_comes_during_a_system_call_passes_unchanged(
    operation: str, runtime: Runtime
) -> None:
    error = TimeoutError("mine")
    network = open_network(runtime, InterruptedSocket(error))
    network._may_have_data = True

    async def scenario() -> None:
        with pytest.raises(TimeoutError) as caught:
            result = getattr(network, operation)(b"x" if operation == "send" else 10)
            if not runtime.is_blocking:
                await result
        assert caught.value is error

    runtime.run(scenario)


def test_an_exception_that_comes_while_connecting_passes_unchanged(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError("mine")

    def fail(*args: Any, **options: Any) -> Any:
        raise error

    for side in ("async", "sync"):
        monkeypatch.setattr(f"cromicle_sdk._{side}.network.start_connect", fail)

    async def scenario() -> None:
        async with runtime.client(base_url="http://127.0.0.1:9") as client:
            assert await outcome(client.chat("Hi")) is error

    runtime.run(scenario)


def test_an_exception_that_comes_while_resolving_passes_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: resolved.wait(60) and [])
    asked = call_of(socket, "getaddrinfo", monkeypatch)
    error = OSError("mine")
    with Client(base_url="http://h.example") as client:
        with alarm(error, asked), pytest.raises(OSError, match="mine") as caught:
            client.chat("Hi")
        assert caught.value is error
    resolved.set()


def test_an_exception_that_comes_during_an_operation_of_tls_passes_unchanged(
    runtime: Runtime,
) -> None:
    error = OSError("mine")
    module: Any = sync_network if runtime.is_blocking else async_network
    layer = module._TLS if runtime.is_blocking else module._AsyncTLS

    def fail() -> Any:
        raise error

    async def scenario() -> None:
        with pytest.raises(OSError, match="mine") as caught:
            tls = SimpleNamespace(_lock=threading.Lock())
            result = layer._run(tls, fail, httpx.ReadError, fail)
            if not runtime.is_blocking:
                await result
        assert caught.value is error

    runtime.run(scenario)


# Custom clients: limits, cancellation, closing


def test_the_total_ends_a_custom_client_that_waits_for_the_head(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.stall()

    async def scenario() -> None:
        own = own_client(runtime)
        limits = Timeout(first_byte=None, total=0.3)
        async with runtime.client(
            base_url=faults.base_url, http_client=own, timeout=limits, retry=ONCE
        ) as client:
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, APITimeoutError)
            assert error.phase == "total"
        await close(own)

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_the_total_ends_a_custom_client_in_the_middle_of_a_body(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.drip("x", forever=True)

    async def scenario() -> None:
        own = own_client(runtime)
        limits = Timeout(total=0.4)
        async with runtime.client(
            base_url=faults.base_url, http_client=own, timeout=limits, retry=ONCE
        ) as client:
            started = time.monotonic()
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, APITimeoutError)
            assert error.phase == "total"
            assert error.partial_text.strip("x") == ""
            assert time.monotonic() - started < 5
        await close(own)

    runtime.run(scenario)
    faults.wait_until_closed()


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_cancellation_from_outside_passes_through_a_custom_client(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.stall(after="Hel")

    async def scenario() -> None:
        own = own_client(runtime)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            for _ in range(3):
                stream = client.stream("Hi")
                assert await anext(stream) == "Hel"
                with anyio.move_on_after(0.1) as scope:
                    await anext(stream)
                assert scope.cancelled_caught
                await stream.aclose()
        await close(own)

    runtime.run(scenario)
    faults.wait_until_closed()


def test_a_stream_over_a_custom_client_ends_with_its_client(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.stall(after="Hel")

    async def scenario() -> None:
        own = own_client(runtime)
        client = runtime.client(base_url=faults.base_url, http_client=own)
        stream = client.stream("Hi")
        assert await anext(stream) == "Hel"
        await client.aclose()
        error = await outcome(anext(stream))
        assert isinstance(error, IncompleteReplyError)
        assert "closed" in str(error)
        await close(own)

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_plain_request_that_is_cancelled_in_its_body_releases_its_connection(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.stall(after="Hel")

    async def scenario() -> None:
        transport = AsyncTransport(max_connections=1)
        async with httpx.AsyncClient(transport=transport) as client:
            with anyio.move_on_after(0.2) as scope:
                await client.post(f"{faults.base_url}/chat", json={})
            assert scope.cancelled_caught
            faults.clear().reply("Hello.")
            assert (await client.post(f"{faults.base_url}/chat", json={})).text == "Hello."

    runtime.run(scenario)


def test_a_stream_that_is_closed_before_its_call_has_begun(runtime: Runtime) -> None:
    """By another thread, between the first lines of the first read."""

    async def scenario() -> None:
        async with runtime.client(base_url="http://127.0.0.1:9") as client:
            stream = client.stream("Hi")
            inner: Any = getattr(stream, "inner", stream)
            inner._check_readable = lambda: setattr(inner, "_state", "closed")
            error = await outcome(anext(stream))
            assert isinstance(error, APIConnectionError)
            assert "closed" in str(error)

    runtime.run(scenario)


# Details below


def test_a_client_of_our_own_keeps_no_cookies(runtime: Runtime) -> None:
    async def scenario() -> None:
        if runtime.is_blocking:
            client: Any = HTTPClient(Transport())
        else:
            client = AsyncHTTPClient(AsyncTransport())
        assert not client.cookies
        with pytest.raises(AttributeError, match=r"^this client keeps no cookies$"):
            client.cookies = {"a": "b"}
        await close(client)

    runtime.run(scenario)


def test_a_network_stream_says_where_it_is_connected(
    runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        transport: Any = Transport() if runtime.is_blocking else AsyncTransport()
        kind: Any = httpx.Client if runtime.is_blocking else httpx.AsyncClient
        client = kind(transport=transport)
        request = client.build_request("POST", f"{faults.base_url}/chat", json={})
        sent = client.send(request, stream=True)
        response = sent if runtime.is_blocking else await sent
        network_stream = response.extensions["network_stream"]
        port = int(faults.base_url.rpartition(":")[2])
        assert network_stream.get_extra_info("server_addr") == ("127.0.0.1", port)
        assert network_stream.get_extra_info("client_addr")[0] == "127.0.0.1"
        assert isinstance(network_stream.get_extra_info("socket"), socket.socket)
        assert network_stream.get_extra_info("is_readable") in (True, False)
        assert network_stream.get_extra_info("ssl_object") is None
        assert network_stream.get_extra_info("unknown") is None
        response.close() if runtime.is_blocking else await response.aclose()
        await close(client)
        module: Any = sync_network if runtime.is_blocking else async_network
        unconnected = (module.Network if runtime.is_blocking else module.AsyncNetwork)()
        assert unconnected.get_extra_info("server_addr") is None

    runtime.run(scenario)


def test_a_kept_connection_that_closes_after_work_is_a_failed_attempt(
    runtime: Runtime, faults: FaultyServer
) -> None:
    """The prompt is not sent twice behind the caller's back."""

    def work(connection: Any, request: Any) -> None:
        connection.pause(0.5)
        connection.close()

    faults.reply("one").script(work)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url, retry=ONCE) as client:
            await client.chat("Hi")
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, APIConnectionError)
            assert error.attempts == 1
        assert len(faults.requests) == 2

    runtime.run(scenario)


def test_a_kept_connection_that_closes_in_the_middle_of_an_upload_is_a_failed_attempt(
    runtime: Runtime,
) -> None:
    """The server has taken a part of the prompt: it may have worked on it."""
    heads: list[bytes] = []
    size = 8_000_000

    def serve(sock: socket.socket) -> None:
        with sock:
            heads.append(sock.recv(65536))
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none")
            heads.append(sock.recv(1000))
            # Longer than a close takes that was already on its way.
            time.sleep(0.3)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                serve(listener.accept()[0])

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=accept, args=(listener,), daemon=True).start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with runtime.client(base_url=url, retry=ONCE) as client:
                assert (await client.chat("Hi")).text == "one"
                error = await outcome(client.chat("x" * size))
            # Closing alone does not wake who accepts.
            listener.shutdown(socket.SHUT_RDWR)
        assert isinstance(error, APIConnectionError)
        assert error.attempts == 1
        assert len(heads) == 2

    runtime.run(scenario)


def test_without_poll_sockets_are_waited_for_by_select(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("select.poll")
    faults.drip("Hello.", interval=0.01)
    with Client(base_url=faults.base_url) as client:
        assert client.chat("Hi").text == "Hello."
        assert client.chat("Hi", timeout=None).text == "Hello."


def test_an_observer_that_loses_track_does_not_call_a_connection_clean() -> None:
    for data, has_trailing_data in (
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxy", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx", True),
        (b"no HTTP\r\n\r\n", True),
    ):
        observer = framing.FramingObserver()
        observer.receive_data(data)
        assert observer.has_trailing_data is has_trailing_data, data


def test_an_idle_runtime_is_known_to_be_over(runtime: Runtime) -> None:
    concurrency: Any = sync_concurrency if runtime.is_blocking else async_concurrency
    seen: list[Any] = []

    async def scenario() -> None:
        seen.append(concurrency.current_runtime())
        assert concurrency.is_runtime_alive(seen[0])

    runtime.run(scenario)
    assert concurrency.is_runtime_alive(seen[0]) is runtime.is_blocking
    another = -1 if runtime.is_blocking else (-1, seen[0][1])
    assert not concurrency.is_runtime_alive(another)


def test_closing_a_stream_in_a_thread_wakes_its_reader(faults: FaultyServer) -> None:
    faults.stall(after="Hel")
    with Client(base_url=faults.base_url, retry=ONCE) as client:
        stream = client.stream("Hi")
        assert next(stream) == "Hel"
        reading = notice_reads(stream)

        def close_it() -> None:
            assert reading.wait(20)
            # Nothing tells when the read has begun to wait.
            time.sleep(0.2)
            stream.close()

        thread = threading.Thread(target=close_it)
        thread.start()
        started = time.monotonic()
        with pytest.raises(IncompleteReplyError, match="closed"):
            next(stream)
        assert time.monotonic() - started < 10
        thread.join()


# The parts below a client


def open_network(runtime: Runtime, sock: Any = None, left: float = 20) -> Any:
    """A network of the runtime, over a socket, in a call with `left` seconds to go."""
    module: Any = sync_network if runtime.is_blocking else async_network
    concurrency: Any = sync_concurrency if runtime.is_blocking else async_concurrency
    network = module.Network() if runtime.is_blocking else module.AsyncNetwork()
    network.start_exchange(open_timeouts(left), concurrency.CancelHandle(), buffers_writes=True)
    if sock is not None:
        network._set_socket(sock)
    return network


def open_timeouts(left: float = 20) -> CallTimeouts:
    limits: dict[Phase, float] = {"pool": left, "send": left}
    return CallTimeouts(limits, total=None, restarting=frozenset(), now=time.monotonic())


async def finish(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


class Busy:
    """A socket that accepts nothing at its first `send`, although its buffer is empty."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._is_first = True

    def send(self, data: bytes) -> int:
        if self._is_first:
            self._is_first = False
            raise BlockingIOError
        return self._sock.send(data)

    def fileno(self) -> int:
        return self._sock.fileno()


class Paused:
    """A socket whose thread is paused after each `send`, as where others hold the GIL."""

    def __init__(self, sock: socket.socket, run: Callable[[], object]) -> None:
        self._sock = sock
        self._run = run

    def send(self, data: bytes) -> int:
        sent = self._sock.send(data)
        self._run()
        return sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_a_request_that_was_read_while_its_thread_was_paused_is_not_unread(
    runtime: Runtime,
) -> None:
    """It would be sent again behind the caller's back, although the server has worked on it."""

    async def scenario() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)

            def work() -> None:
                assert far.recv(100) == b"prompt"
                time.sleep(sockets._RACE_SECONDS)
                far.close()

            network = open_network(runtime, Paused(near, work))
            await finish(network.send(b"prompt"))
            assert await finish(network.receive(10)) == b""
            assert not network.is_request_unread

    runtime.run(scenario)


def test_a_send_that_has_to_wait_goes_on(runtime: Runtime) -> None:
    async def scenario() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            await finish(open_network(runtime, Busy(near)).send(b"prompt"))
            assert far.recv(100) == b"prompt"

    runtime.run(scenario)


def test_the_timeout_of_a_write_begins_with_it(runtime: Runtime) -> None:
    """Not with the write before it: the next part of a body may take its time."""

    async def scenario() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            network = open_network(runtime, Busy(near))
            handle = network._use_call().cancel_handle
            timeouts = CallTimeouts.for_request({"write": 5}, now=time.monotonic() - 10)
            timeouts.enter("send", time.monotonic() - 10)
            network.start_exchange(timeouts, handle, buffers_writes=False)
            module: Any = sync_network if runtime.is_blocking else async_network
            layer = module._TCP if runtime.is_blocking else module._AsyncTCP
            await finish(network.open_stream(layer(network)).write(b"part"))
            assert far.recv(100) == b"part"
            assert (timeouts.left(time.monotonic()) or 0) > 0

    runtime.run(scenario)


def test_a_connection_whose_time_is_up_is_not_waited_for(runtime: Runtime) -> None:
    async def scenario() -> None:
        network = open_network(runtime, left=-1)
        with pytest.raises(httpcore.ConnectTimeout):
            await finish(network._wait_connected([], network._use_call(), is_last=True))

    runtime.run(scenario)


def test_a_closed_network_is_not_used(runtime: Runtime) -> None:
    async def scenario() -> None:
        network = open_network(runtime)
        network.close()
        with pytest.raises(sockets.ClosedByCaller, match=r"^it was closed while it was in use$"):
            await finish(network.receive(10))
        # Closed by another thread or a signal handler, just before the next request.
        network.start_exchange(
            open_timeouts(), async_concurrency.CancelHandle(), buffers_writes=True
        )
        with pytest.raises(sockets.ClosedByCaller):
            await finish(network.receive(10))

    runtime.run(scenario)


def test_a_wait_for_bytes_is_as_long_as_its_timeout(runtime: Runtime) -> None:
    async def scenario() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            network = open_network(runtime, near, left=0.9)
            timer = threading.Timer(0.1, far.send, [b"Hello."])
            timer.start()
            assert await finish(network.receive(10)) == b"Hello."
            timer.join()
            network = open_network(runtime, near, left=0.2)
            with pytest.raises(httpcore.ReadTimeout):
                await finish(network.receive(10))

    runtime.run(scenario)


def test_a_request_that_was_sent_is_not_on_its_way(runtime: Runtime) -> None:
    """So a response that stalls does not get the time of an upload that makes progress."""

    async def scenario() -> None:
        near, far = socket.socketpair()
        with near, far:
            network = open_network(runtime, near)
            network.finish_read(b"HTTP/1.1 200 OK")
            assert not network._is_sending(near, network._use_call())

    runtime.run(scenario)


def test_another_thread_cancels_a_wait_for_a_socket(runtime: Runtime) -> None:
    async def scenario() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            network = open_network(runtime, near)
            timer = threading.Timer(0.2, network._use_call().cancel_handle.cancel)
            timer.start()
            with pytest.raises(sockets.ClosedByCaller):
                await finish(network.receive(10))
            timer.join()

    runtime.run(scenario)


def test_a_stream_that_is_closed_before_its_first_read_begins(
    runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            stream = client.stream("Hi")
            inner = getattr(stream, "inner", stream)
            # Another thread has begun to read, and has no call yet.
            inner._start_reading()
            await stream.aclose()
            inner._reading.release()
            assert "closed" in str(await outcome(anext(stream)))

    runtime.run(scenario)
    assert not faults.requests


def test_an_attempt_that_was_not_sent_is_abandoned(runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            session = getattr(client, "inner", client)._session
            session.start_attempt(session.start_call(Timeout())).abandon()

    runtime.run(scenario)


def test_an_interrupt_while_httpx_reads_releases_the_connection(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> bytes:
        raise KeyboardInterrupt

    with httpx.Client(transport=Transport()) as client:
        with client.stream("POST", faults.base_url, json={}) as response:
            monkeypatch.setattr("cromicle_sdk._sync.pool.Exchange.read", interrupt)
            with pytest.raises(KeyboardInterrupt):
                response.read()
        faults.wait_until_closed()


def test_an_async_body_is_refused_by_a_sync_transport() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b""

    stream = httpx.Request("POST", "http://h.example", content=body()).stream
    request = httpcore.Request("POST", "http://h.example", content=stream)
    with pytest.raises(TypeError, match="not iterable"):
        iter(sync_pool._RequestBody(request.stream, open_timeouts()))


def test_a_custom_client_that_returns_late_is_out_of_time() -> None:
    with pytest.raises(sockets.TimeLimitReached):
        sync_concurrency.time_limit(lambda: time.sleep(0.15), 0.01, sync_concurrency.CancelHandle())


def test_a_custom_client_of_another_process_is_refused(
    runtime: Runtime, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.reply("Hello.").reply("Hello.")

    async def scenario() -> None:
        own = own_client(runtime)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            await client.chat("Hi")
            parent = os.getpid()
            with monkeypatch.context() as child:
                child.setattr(os, "getpid", lambda: parent + 1)
                error = await outcome(client.chat("Hi"))
            assert isinstance(error, ConfigurationError)
            assert error.option == "http_client"
        await close(own)

    runtime.run(scenario)
    assert len(faults.requests) == 1


def test_a_child_process_closes_the_pool_of_its_parent(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(base_url=faults.base_url) as client:
        client.chat("Hi")
        parent = os.getpid()
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: parent + 1)
            client.chat("Hi")
    assert len({request.connection for request in faults.requests}) == 2


def test_a_wait_of_no_time_ends() -> None:
    """A retry without a delay waits so; Python 3.10 gets a `SimpleQueue` wrong then."""
    for _ in range(20_000):
        sync_concurrency.CancelHandle().sleep(0)


def test_a_server_that_is_always_ahead_does_not_run_past_a_timeout(runtime: Runtime) -> None:
    async def scenario() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            network = open_network(runtime, near, left=-1)
            with pytest.raises(httpcore.ReadTimeout):
                while True:
                    far.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                    assert await finish(network.receive(1000))

    runtime.run(scenario)


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_other_tasks_run_between_reads_that_need_not_wait(runtime: Runtime) -> None:
    iterations = 0

    async def count() -> None:
        nonlocal iterations
        while True:
            await anyio.lowlevel.checkpoint()
            iterations += 1

    async def scenario() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            far.send(b"x" * 1_000)
            network = open_network(runtime, near)
            async with anyio.create_task_group() as group:
                group.start_soon(count)
                assert await network.receive(10) == b"x" * 10
                before = iterations
                for _ in range(50):
                    assert await network.receive(10) == b"x" * 10
                assert iterations - before >= 40
                group.cancel_scope.cancel()

    runtime.run(scenario)


def test_a_read_after_a_timeout_does_not_wait(runtime: Runtime) -> None:
    async def scenario() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            network = open_network(runtime, near, left=-1)
            far.send(b"in time")
            assert await finish(network.receive(1000)) == b"in time"
            with pytest.raises(httpcore.ReadTimeout):
                await finish(network.receive(1000))

    runtime.run(scenario)


def test_empty_chunks_of_a_custom_client_do_not_run_past_the_total(runtime: Runtime) -> None:
    async def empty_chunks() -> AsyncIterator[bytes]:
        while True:
            yield b""

    def respond(request: httpx.Request) -> httpx.Response:
        body = itertools.repeat(b"") if runtime.is_blocking else empty_chunks()
        return httpx.Response(200, headers={"content-type": "text/plain"}, content=body)

    async def scenario() -> None:
        transport = httpx.MockTransport(respond)
        kind: Any = httpx.Client if runtime.is_blocking else httpx.AsyncClient
        own = kind(transport=transport)
        async with runtime.client(
            base_url="http://h.example", http_client=own, timeout=Timeout(total=0.2), retry=ONCE
        ) as client:
            error = await outcome(client.chat("Hi"))
            assert isinstance(error, APITimeoutError)
            assert error.phase == "total"
        await close(own)

    runtime.run(scenario)


def test_a_hook_that_does_not_find_its_file_is_not_the_network(
    runtime: Runtime, faults: FaultyServer
) -> None:
    def fail(request: httpx.Request) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/nope")

    async def fail_async(request: httpx.Request) -> None:
        fail(request)

    async def scenario() -> None:
        own = own_client(runtime)
        own.event_hooks["request"].append(fail if runtime.is_blocking else fail_async)
        async with runtime.client(base_url=faults.base_url, http_client=own) as client:
            assert isinstance(await outcome(client.chat("Hi")), FileNotFoundError)
        await close(own)

    runtime.run(scenario)
    assert not faults.requests


def test_a_read_before_its_bytes_have_arrived_waits_for_them(runtime: Runtime) -> None:
    async def scenario() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            network = open_network(runtime, near)
            network._may_have_data = True
            timer = threading.Timer(0.1, far.send, [b"Hello."])
            timer.start()
            assert await finish(network.receive(10)) == b"Hello."
            timer.join()

    runtime.run(scenario)


def test_an_error_of_a_resolver_without_a_number_passes_unchanged(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise OSError("mine")

    monkeypatch.setattr(socket, "getaddrinfo", fail)

    async def scenario() -> None:
        async with runtime.client(base_url="http://h.example") as client:
            error = await outcome(client.chat("Hi"))
            assert (type(error), str(error)) == (OSError, "mine")

    runtime.run(scenario)


def test_an_idle_connection_that_an_interrupt_left_half_removed_is_closed(
    runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            await client.chat("Hi")
            pool = getattr(client, "inner", client)._session._http_client._transport._pool
            pools = pool._process_pools if runtime.is_blocking else pool._loop_pools
            (inner,) = pools.values()
            inner._idle_by_origin.clear()

    runtime.run(scenario)
    faults.wait_until_closed()
