"""The token and the hash appear in the request body and nowhere else: a canary for each sink."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import signal
import ssl
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from certificates import build_authority
from proxies import Proxy
from rich.console import Console
from rich.traceback import Traceback
from runtimes import ASYNC_RUNTIMES, Runtime, outcome

from cromicle_sdk import AsyncClient, Client, ConfigurationError, CromicleError, Retry, Timeout
from cromicle_sdk.testing import Connection, FaultyServer, RecordedRequest

TOKEN = "canary-token-4711"
URL = "http://127.0.0.1:9"
PROMPT = "What is in a frame?"
ONCE = Retry(attempts=1)


def shown(error: BaseException) -> dict[str, str]:
    """Return an error in each form in which it may be displayed or stored."""
    console = Console(record=True, width=300, file=io.StringIO())
    console.print(
        Traceback.from_exception(
            type(error),
            error,
            error.__traceback__,
            show_locals=True,
            locals_max_length=100_000,
            locals_max_string=100_000,
        )
    )
    rich = console.export_text()
    captured = traceback.TracebackException.from_exception(error, capture_locals=True)
    return {
        "repr": repr(error),
        "str": str(error),
        "args": repr(error.args),
        "facts": repr(vars(error)),
        "pickle": repr(pickle.dumps(error)),
        "traceback with locals": "".join(captured.format()),
        "rich traceback with locals": rich,
        "frames": repr(list(frames_of(error))),
    }


def frames_of(error: BaseException | None) -> Any:
    """Yield the locals of each frame of this package, for an error and all of its causes."""
    while error is not None:
        step = error.__traceback__
        while step is not None:
            if "cromicle_sdk" in step.tb_frame.f_code.co_filename:
                yield dict(step.tb_frame.f_locals)
            step = step.tb_next
        error = error.__cause__ or error.__context__


def check_causes(error: BaseException) -> None:
    """Check that causes have no frames, because the frames contain the request."""
    cause = error.__cause__
    while cause is not None:
        assert cause.__traceback__ is None
        assert cause.__context__ in (None, cause.__cause__)
        cause = cause.__cause__


def check(sinks: dict[str, str], token: str = TOKEN) -> None:
    hashed = hashlib.sha256((token + PROMPT).encode()).hexdigest()
    for sink, text in sinks.items():
        # An escaped token may remain in part.
        for secret in (token, hashed, token[-6:]):
            assert secret not in text, sink


SCRIPTS: dict[str, Callable[[FaultyServer], object]] = {
    "a reply": lambda s: s.reply("fine"),
    "refused": lambda s: s.stop(),
    "dropped": lambda s: s.reset(),
    "cut": lambda s: s.cut(after="Hello"),
    "garbage": lambda s: s.raw(b"BANANA\r\n\r\n", end="close"),
    "stalled": lambda s: s.stall(),
    "stalled reply": lambda s: s.stall(after="Hello"),
    "a status": lambda s: s.fail(500),
    "an echo of the request": lambda s: s.script(
        lambda connection, request: connection.send(
            b"HTTP/1.1 400 No\r\nx-echo: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (request.hash.encode(), len(request.body), request.body)
        )
    ),
    "an echo that is no reply": lambda s: s.script(
        lambda connection, request: connection.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(request.body), request.body)
        )
    ),
    "a redirect with the token": lambda s: s.redirect(307, location=f"/?token={TOKEN}"),
    "not UTF-8": lambda s: s.reply(b"\xff"),
    "no reply": lambda s: s.reply("<p>", content_type="text/html"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_failing_call_shows_no_secret(
    script: str, runtime: Runtime, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    SCRIPTS[script](faults)
    caplog.set_level(logging.DEBUG)
    for name in list(logging.Logger.manager.loggerDict):
        caplog.set_level(logging.DEBUG, logger=name)

    async def scenario() -> None:
        timeout = Timeout(connect=5, first_byte=0.2, stall=0.2)
        client = runtime.client(base_url=faults.base_url, token=TOKEN, retry=ONCE, timeout=timeout)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for own in (False, True):
                stream = client.stream(PROMPT)
                call = stream.read() if own else client.chat(PROMPT)
                result = await outcome(call)
                if isinstance(result, CromicleError):
                    check(shown(result))
                    check_causes(result)
                check(
                    {
                        "client": repr(client),
                        "stream": repr(stream),
                        "state": repr(vars(getattr(stream, "inner", stream))),
                        "options": repr(vars(getattr(client, "inner", client))),
                        "result": repr(result),
                    }
                )
            await client.aclose()
        check({"warnings": repr([str(warning) for warning in caught])})

    runtime.run(scenario)
    assert any(record.name == "httpcore.http11" for record in caplog.records) or script == "refused"
    for record in caplog.records:
        check({"logs": record.getMessage()})
    assert all(request.token == TOKEN for request in faults.requests)


def test_the_password_of_a_socks_proxy_is_not_logged(
    runtime: Runtime, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("httpcore", "httpcore.socks", "httpx", "cromicle_sdk"):
        caplog.set_level(logging.DEBUG, logger=name)

    async def scenario() -> None:
        with Proxy() as proxy:
            url = f"socks5://user:{TOKEN}@127.0.0.1:{proxy.port}"
            async with runtime.client(base_url=faults.base_url, proxy=url) as client:
                assert (await client.chat(PROMPT)).text
            assert proxy.heads == [f"user:{TOKEN}"]

    runtime.run(scenario)
    assert "setup_socks5_connection" in caplog.text
    check({"logs": caplog.text})


@pytest.mark.parametrize("token", [TOKEN, "kanarien-v\u00f6gel-4711", "a'b\\c\"d-4711"])
@pytest.mark.parametrize("is_custom", [False, True])
def test_a_head_that_echoes_a_secret_is_not_logged(
    token: str,
    is_custom: bool,
    runtime: Runtime,
    faults: FaultyServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """This includes non-ASCII bytes, and a custom client."""

    def echo(connection: Connection, request: RecordedRequest) -> None:
        name, hashed = token.encode(), request.hash.encode()
        line = b"HTTP/1.1 200 %b %b\r\n" % (hashed, name)
        head = b"x-token: %b\r\nx-hash: %b\r\ncontent-encoding: %b\r\n\r\n"
        connection.send(line + head % (name, hashed, name))
        connection.close()

    faults.script(echo)
    for name in ("httpcore", "httpcore.http11", "httpx", "cromicle_sdk"):
        caplog.set_level(logging.DEBUG, logger=name)

    async def scenario() -> None:
        kind = httpx.Client if runtime.is_blocking else httpx.AsyncClient
        own: Any = {"http_client": kind()} if is_custom else {}
        client = runtime.client(base_url=faults.base_url, token=token, retry=ONCE, **own)
        error = await outcome(client.chat(PROMPT))
        assert isinstance(error, CromicleError)
        check({"error": repr(error)}, token)
        await client.aclose()
        if is_custom:
            own["http_client"].close() if runtime.is_blocking else await own["http_client"].aclose()

    runtime.run(scenario)
    assert "receive_response_headers.complete" in caplog.text
    assert "x-token" in caplog.text
    check({"logs": caplog.text}, token)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Client(token=TOKEN),
        lambda: Client(base_url=URL, token=TOKEN, timeout=-1),
        lambda: Client(token=TOKEN, base_url="ftp://x"),
        lambda: Client(base_url=URL, token=TOKEN.encode()),  # type: ignore[arg-type]  # the mistake under test
        lambda: Client(base_url=URL, token=TOKEN + "\ud800"),
        lambda: Client(base_url=URL, token=TOKEN).with_options(token=TOKEN, timeout=-1),
        lambda: Client(base_url=URL, token=TOKEN).with_options(token=TOKEN, proxy="x"),  # type: ignore[call-arg]  # as above
        lambda: Client(base_url=URL, token=TOKEN).stream("Hi", token=TOKEN),  # type: ignore[call-arg]  # as above
        lambda: Client(base_url=URL, token=TOKEN).chat([{"role": "user", "content": "\ud800"}]),
        lambda: AsyncClient(base_url=URL, token=TOKEN, max_connections=0),
    ],
)
def test_a_refused_option_shows_no_secret(make: Callable[[], object]) -> None:
    # An option that a method does not have is Python's TypeError.
    with pytest.raises((CromicleError, TypeError)) as caught:
        make()
    check({name: text for name, text in shown(caught.value).items() if "traceback" not in name})


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"x": f"Bearer\n{TOKEN}"}},
        {"proxy": f"nonsense://user:{TOKEN}@host"},
        {"base_url": f"http://user:{TOKEN}@host/?x"},
    ],
)
def test_a_refused_option_does_not_quote_a_password(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Client(**options)
    error = caught.value
    check({"str": str(error), "args": repr(error.args), "pickle": repr(pickle.dumps(error))})


def test_the_environments_token_is_a_secret_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROMICLE_TOKEN", TOKEN)
    with pytest.raises(ConfigurationError) as caught:
        Client(base_url=URL, timeout=-1)
    check({"frames": shown(caught.value)["frames"]})


def test_a_password_in_a_url_is_sent_and_not_shown(runtime: Runtime, faults: FaultyServer) -> None:
    faults.fail(500)
    url = faults.base_url.replace("://", f"://user:{TOKEN}@")

    async def scenario() -> None:
        async with runtime.client(base_url=url, retry=ONCE) as client:
            error = await outcome(client.chat(PROMPT))
            assert faults.base_url in str(error)
            check({"client": repr(client), **shown(error)})

    runtime.run(scenario)
    assert faults.requests[0].headers["authorization"].startswith("Basic ")


def test_a_time_out_while_sending_shows_no_secret(runtime: Runtime, faults: FaultyServer) -> None:
    faults.stall(when="head")

    async def scenario() -> None:
        timeout = Timeout(first_byte=0.2)
        async with runtime.client(
            base_url=faults.base_url, token=TOKEN, retry=ONCE, timeout=timeout
        ) as client:
            error = await outcome(client.chat(PROMPT + "x" * 30_000_000))
        assert isinstance(error, CromicleError)
        check_causes(error)

    runtime.run(scenario)


def test_an_interrupt_while_sending_shows_no_secret(
    faults: FaultyServer, interrupt: Callable[[], None]
) -> None:
    faults.stall(when="head")
    client = Client(base_url=faults.base_url, token=TOKEN)

    def interrupt_sending() -> None:
        faults.wait_for_requests(1)
        interrupt()

    threading.Thread(target=interrupt_sending, daemon=True).start()
    prompt = PROMPT + "x" * 30_000_000
    with pytest.raises(KeyboardInterrupt) as caught:
        client.chat(prompt)
    assert_frames_are_ours(caught.value)
    client.close()


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_cancellation_while_sending_shows_no_secret(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.stall(when="head")
    seen: list[BaseException] = []

    async def scenario() -> None:
        async with AsyncClient(base_url=faults.base_url, token=TOKEN) as client:
            with anyio.move_on_after(0.2):
                try:
                    await client.chat(PROMPT + "x" * 30_000_000)
                except BaseException as error:
                    seen.append(error)
                    raise

    runtime.run(scenario)
    assert_frames_are_ours(seen[0])


def assert_frames_are_ours(error: BaseException) -> None:
    step = error.__traceback__
    while step is not None:
        assert "httpcore" not in step.tb_frame.f_code.co_filename
        if "cromicle_sdk" in step.tb_frame.f_code.co_filename:
            assert TOKEN not in repr(step.tb_frame.f_locals)
        step = step.tb_next


def test_pickled_options_do_carry_the_token() -> None:
    assert TOKEN.encode() in pickle.dumps(Client(base_url="http://h", token=TOKEN))


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_call_cancelled_while_it_sends_shows_no_secret(
    runtime: Runtime, faults: FaultyServer
) -> None:
    faults.stall(when="head")
    seen: list[BaseException] = []

    async def call(client: AsyncClient) -> None:
        try:
            # More than the kernel buffers, since the server does not read.
            await client.chat("x" * 20_000_000)
        except BaseException as error:
            seen.append(error)
            raise

    async def scenario() -> None:
        async with AsyncClient(base_url=faults.base_url, token=TOKEN, retry=ONCE) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(call, client)
                await anyio.to_thread.run_sync(faults.wait_for_requests, 1)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()

    runtime.run(scenario)
    (error,) = seen
    assert error.__context__ is None
    captured = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert TOKEN not in "".join(captured.format())


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("is_custom", [False, True])
def test_an_exception_of_a_signal_handler_while_sending_shows_no_secret(
    is_custom: bool, scheme: str
) -> None:
    """It passes unchanged, with the frames of the handler but none that contain the request."""
    authority = build_authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    signals: list[object] = []

    def raise_mine(*args: object) -> None:
        signals.append(args)
        # The next signal may arrive before the timer is stopped.
        if len(signals) == 1:
            # Not an OSError, which httpcore would interpret as a network error.
            raise ValueError("mine")

    before = signal.signal(signal.SIGALRM, raise_mine)
    try:
        with (
            FaultyServer(ssl_context=context if scheme == "https" else None) as faults,
            httpx.Client(verify=trusting) as own,
        ):
            faults.stall(when="head")
            options: dict[str, Any] = {"http_client": own} if is_custom else {"verify": trusting}
            client = Client(base_url=faults.base_url, token=TOKEN, retry=ONCE, **options)

            def interrupt() -> None:
                faults.wait_for_requests(1)
                signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)

            threading.Thread(target=interrupt, daemon=True).start()
            with pytest.raises(ValueError, match="mine") as caught:
                # More than the kernel buffers, since the server does not read.
                client.chat(PROMPT + "x" * 30_000_000)
            signal.setitimer(signal.ITIMER_REAL, 0)
            client.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert_frames_are_ours(caught.value)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "raise_mine"
    assert "_send" not in names
    captured = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    # Including the frame of this test, which contains the prompt but not the token.
    assert TOKEN not in "".join(captured.format())


def test_an_exception_of_a_hook_keeps_its_text_and_its_frames(
    runtime: Runtime, faults: FaultyServer
) -> None:
    def fail(request: httpx.Request) -> None:
        raise ValueError(f"no {TOKEN}")

    async def fail_later(request: httpx.Request) -> None:
        fail(request)

    async def scenario() -> None:
        kind: Any = httpx.Client if runtime.is_blocking else httpx.AsyncClient
        own = kind(event_hooks={"request": [fail if runtime.is_blocking else fail_later]})
        client = runtime.client(base_url=faults.base_url, token=TOKEN, http_client=own)
        error = await outcome(client.chat(PROMPT))
        assert isinstance(error, ValueError)
        assert str(error) == f"no {TOKEN}"
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert names[-1] == "fail"
        assert not {"send", "_send", "_send_handling_auth"} & set(names)
        own.close() if runtime.is_blocking else await own.aclose()

    runtime.run(scenario)
    assert not faults.requests
