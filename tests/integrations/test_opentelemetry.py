"""Spans and metrics of calls and of requests, in memory, over real sockets."""

from __future__ import annotations

import asyncio
import builtins
import gc
import hashlib
import importlib
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest
import trio
from opentelemetry import propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from runtimes import ASYNC_RUNTIMES, Runtime, outcome
from starlette.applications import Starlette
from starlette.routing import Mount
from upstreams import answer_texts, serve_gateway

from cromicle_sdk import (
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    Client,
    IncompleteReplyError,
    InternalServerError,
    Retry,
    Timeout,
)
from cromicle_sdk._core import observers as _observers
from cromicle_sdk._core.observers import OBSERVERS
from cromicle_sdk.integrations import opentelemetry as _opentelemetry
from cromicle_sdk.integrations.opentelemetry import CromicleInstrumentor
from cromicle_sdk.server import LocalServer, create_app, create_openai_app
from cromicle_sdk.testing import FaultyServer

PROMPT = "a private prompt"
TOKEN = "canary-token-4711"
ONCE = Retry(attempts=1)


class Telemetry:
    """What has been recorded."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.traces = TracerProvider(shutdown_on_exit=False)
        self.traces.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)

    def instrument(self, **options: Any) -> None:
        CromicleInstrumentor().instrument(
            tracer_provider=self.traces, meter_provider=self.meters, **options
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def find(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is kind]

    @property
    def call(self) -> ReadableSpan:
        (span,) = self.find(SpanKind.CLIENT)
        return span

    @property
    def facts(self) -> dict[str, Any]:
        """The attributes of the only call."""
        return dict(self.call.attributes or {})

    @property
    def points(self) -> dict[str, list[Any]]:
        """The points of each metric."""
        data = self._reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in ([] if data is None else data.resource_metrics)
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def dump(self) -> str:
        points = [str(point) for points in self.points.values() for point in points]
        return "".join(span.to_json() for span in self.spans) + "".join(points)


def context_of(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    telemetry.instrument()
    yield telemetry
    CromicleInstrumentor().uninstrument()
    telemetry.meters.shutdown()


@pytest.fixture(autouse=True)
def _token(_clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROMICLE_TOKEN", TOKEN)


def run(runtime: Runtime, server: FaultyServer, scenario: Callable[[Any], Any]) -> None:
    """Run a scenario with a client of the runtime, which makes one attempt."""

    async def connected() -> None:
        async with runtime.client(base_url=server.base_url, retry=ONCE) as client:
            await scenario(client)

    runtime.run(connected)


def test_a_call_is_a_span(telemetry: Telemetry, runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario(client: Any) -> None:
        await client.chat(
            PROMPT, extra_body={"temperature": 0.5, "model": "m", "seed": "no int", "top_k": 4}
        )

    faults.reply("Hi.", finish_reason="length")
    run(runtime, faults, scenario)
    assert telemetry.call.name == "chat m"
    assert telemetry.call.status.status_code is StatusCode.UNSET
    assert telemetry.facts == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "cromicle",
        "server.address": "127.0.0.1",
        "server.port": int(faults.base_url.rpartition(":")[2]),
        "gen_ai.request.model": "m",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.finish_reasons": ("length",),
        "cromicle.attempts": 1,
        "cromicle.end": "complete",
    }
    assert set(telemetry.points) == {"gen_ai.client.operation.duration"}
    (point,) = telemetry.points["gen_ai.client.operation.duration"]
    assert point.count == 1
    assert point.attributes["gen_ai.request.model"] == "m"


def test_a_stream_is_a_span_until_its_end(
    telemetry: Telemetry, runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario(client: Any) -> None:
        async for text in client.stream(PROMPT):
            # The end may arrive together with the last chunk.
            assert telemetry.spans == [] or "b" in text
            # The context of the call does not leak into the caller's code.
            assert not trace.get_current_span().get_span_context().is_valid
        assert len(telemetry.spans) == 1

    faults.reply(chunks=["a", "b"], delay=0.1)
    run(runtime, faults, scenario)
    facts = telemetry.facts
    assert facts["gen_ai.request.stream"] is True
    assert 0 < facts["gen_ai.response.time_to_first_chunk"] < 60
    assert facts["cromicle.end"] == "complete"
    (point,) = telemetry.points["gen_ai.client.operation.time_to_first_chunk"]
    assert point.sum == facts["gen_ai.response.time_to_first_chunk"]


def test_a_call_is_below_the_span_of_its_caller(
    telemetry: Telemetry, runtime: Runtime, faults: FaultyServer
) -> None:
    tracer = telemetry.traces.get_tracer("test")

    async def scenario(client: Any) -> None:
        with tracer.start_as_current_span("outer") as outer:
            await client.chat(PROMPT)
            assert trace.get_current_span() is outer

    faults.reply("Hi.")
    run(runtime, faults, scenario)
    call, outer = telemetry.spans
    assert call.parent is not None
    assert call.parent.span_id == context_of(outer).span_id
    (request,) = faults.requests
    context = context_of(call)
    expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-"
    assert request.headers["traceparent"].startswith(expected)


def test_a_traceparent_of_the_callers_own_stays(
    telemetry: Telemetry, runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario(client: Any) -> None:
        await client.chat(PROMPT, headers={"Traceparent": "mine"})

    faults.reply("Hi.")
    run(runtime, faults, scenario)
    assert faults.requests[0].headers["traceparent"] == "mine"


def test_the_attempts_are_counted(
    telemetry: Telemetry, runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario(client: Any) -> None:
        await client.chat(PROMPT, retry=Retry(attempts=3, first_delay=0))

    faults.fail(503).fail(503).reply("At last.")
    run(runtime, faults, scenario)
    assert telemetry.facts["cromicle.attempts"] == 3
    assert telemetry.facts["cromicle.end"] == "complete"
    assert "error.type" not in telemetry.facts


@pytest.mark.parametrize("whole", [True, False])
def test_a_failed_call(
    telemetry: Telemetry, runtime: Runtime, faults: FaultyServer, whole: bool
) -> None:
    async def scenario(client: Any) -> None:
        call = client.chat(PROMPT) if whole else client.stream(PROMPT).read()
        assert isinstance(await outcome(call), APIStatusError)

    faults.fail(429, body=f"do not say {PROMPT} with {TOKEN}")
    run(runtime, faults, scenario)
    assert telemetry.call.status.status_code is StatusCode.ERROR
    assert telemetry.call.status.description == "status 429"
    assert telemetry.facts["error.type"] == "RateLimitError"
    assert telemetry.facts["cromicle.end"] == "failed"
    (point,) = telemetry.points["gen_ai.client.operation.duration"]
    assert point.attributes["error.type"] == "RateLimitError"


def test_a_stream_that_breaks_off(
    telemetry: Telemetry, runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario(client: Any) -> None:
        assert isinstance(await outcome(client.stream(PROMPT).read()), IncompleteReplyError)

    faults.cut(after="Hello, wor")
    run(runtime, faults, scenario)
    assert telemetry.facts["error.type"] == "IncompleteReplyError"
    assert telemetry.facts["gen_ai.response.time_to_first_chunk"] > 0


def test_a_timeout(telemetry: Telemetry, runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario(client: Any) -> None:
        call = client.chat(PROMPT, timeout=Timeout(first_byte=0.05))
        assert isinstance(await outcome(call), APITimeoutError)

    faults.stall()
    run(runtime, faults, scenario)
    assert telemetry.call.status.description == "timeout (first_byte)"


def test_a_stream_that_is_closed_early(
    telemetry: Telemetry, runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario(client: Any) -> None:
        async with client.stream(PROMPT) as stream:
            async for _ in stream:
                break
            assert telemetry.spans == []
        assert telemetry.facts["cromicle.end"] == "closed"
        await stream.aclose()

    faults.stall(after="Once")
    run(runtime, faults, scenario)
    assert telemetry.call.status.status_code is StatusCode.UNSET
    assert telemetry.facts["gen_ai.response.time_to_first_chunk"] > 0


def test_a_stream_that_is_dropped(
    telemetry: Telemetry, runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario(client: Any) -> None:
        async for _ in client.stream(PROMPT):
            break
        gc.collect()
        assert telemetry.facts["cromicle.end"] == "closed"

    faults.stall(after="Once")
    run(runtime, faults, scenario)


def test_a_stream_that_is_never_read_is_no_call(
    telemetry: Telemetry, runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario(client: Any) -> None:
        await client.stream(PROMPT).aclose()

    run(runtime, faults, scenario)
    assert telemetry.spans == []


@pytest.mark.parametrize("runtime", ASYNC_RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_cancelled_call(telemetry: Telemetry, runtime: Runtime, faults: FaultyServer) -> None:
    async def scenario(client: Any) -> None:
        with anyio.move_on_after(0.1):
            await client.chat(PROMPT)

    faults.stall()
    run(runtime, faults, scenario)
    assert telemetry.facts["cromicle.end"] == "cancelled"
    assert telemetry.facts["error.type"] in ("CancelledError", "Cancelled")
    assert telemetry.call.status.status_code is StatusCode.UNSET


def test_an_error_of_a_hook_of_the_callers(telemetry: Telemetry, faults: FaultyServer) -> None:
    def fail(request: httpx.Request) -> None:
        raise KeyError("the hook's own")

    with (
        httpx.Client(event_hooks={"request": [fail]}) as http_client,
        Client(base_url=faults.base_url, http_client=http_client) as client,
        pytest.raises(KeyError),
    ):
        client.chat(PROMPT)
    assert telemetry.facts["error.type"] == "KeyError"
    assert telemetry.call.status.description == "KeyError"


def test_streams_in_generators_of_one_task_do_not_mix_their_contexts(
    telemetry: Telemetry, faults: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    tracer = telemetry.traces.get_tracer("test")

    async def scenario() -> None:
        async with AsyncClient(base_url=faults.base_url) as client:

            async def relay(name: str) -> Any:
                with tracer.start_as_current_span(name):
                    stream = client.stream(name)
                async with stream:
                    async for text in stream:
                        yield text

            first, second = relay("first"), relay("second")
            await anext(first)
            await anext(second)
            await first.aclose()
            # As a framework does, in the context of another task.
            await asyncio.create_task(second.aclose())
            assert not trace.get_current_span().get_span_context().is_valid

    faults.stall(after="Once")
    asyncio.run(scenario())
    assert len(telemetry.find(SpanKind.CLIENT)) == 2
    assert caplog.text == ""


def test_a_context_that_is_left_in_another_task_stays_as_it_is(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a coroutine is dropped while it waits, whose task is over."""
    span = telemetry.traces.get_tracer("test").start_span("dropped")
    current = _opentelemetry._make_current(span)

    async def enter() -> None:
        current.__enter__()
        assert trace.get_current_span() is span

    asyncio.run(enter())
    current.__exit__(None, None, None)
    assert not trace.get_current_span().get_span_context().is_valid
    assert caplog.text == ""


def test_nothing_private_is_recorded(
    telemetry: Telemetry, runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario(client: Any) -> None:
        await client.chat(PROMPT, headers={"x-key": "a private header"})
        await outcome(client.chat(PROMPT))
        await outcome(client.chat(PROMPT))

    digest = hashlib.sha256((TOKEN + PROMPT).encode()).hexdigest()
    faults.reply("a private reply").fail(400, body=f"{PROMPT} {TOKEN} {digest}")
    faults.raw(f"HTTP/1.1 {TOKEN} {PROMPT}\r\n\r\n".encode(), end="close")
    run(runtime, faults, scenario)
    assert len(telemetry.spans) == 3
    dump = telemetry.dump()
    for private in ("private", TOKEN, digest):
        assert private not in dump


def test_text_is_recorded_where_it_is_asked_for(
    telemetry: Telemetry, runtime: Runtime, faults: FaultyServer
) -> None:
    async def scenario(client: Any) -> None:
        messages = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Grüße"}]
        await client.chat(messages, send_messages=True)
        await outcome(client.stream("Hello").read())
        await client.stream("Hello").aclose()

    telemetry.instrument(capture_content=True)
    faults.reply("Süße", finish_reason="length").cut(after="Hello, wor").stall(after="x")
    run(runtime, faults, scenario)
    whole, cut = telemetry.spans
    assert whole.attributes is not None
    assert cut.attributes is not None
    assert json.loads(str(whole.attributes["gen_ai.input.messages"])) == [
        {"role": "system", "parts": [{"type": "text", "content": "Rhyme."}]},
        {"role": "user", "parts": [{"type": "text", "content": "Grüße"}]},
    ]
    assert json.loads(str(whole.attributes["gen_ai.output.messages"])) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "Süße"}],
            "finish_reason": "length",
        }
    ]
    assert "Hello, wor" in str(cut.attributes["gen_ai.output.messages"])
    assert TOKEN not in telemetry.dump()


def test_text_of_a_stream_that_is_closed_early(telemetry: Telemetry, faults: FaultyServer) -> None:
    telemetry.instrument(capture_content=True)
    faults.stall(after="Once")
    with Client(base_url=faults.base_url) as client, client.stream(PROMPT) as stream:
        next(stream)
    assert json.loads(telemetry.facts["gen_ai.output.messages"])[0]["finish_reason"] == "error"


def test_no_call_is_observed_after_uninstrument(telemetry: Telemetry, faults: FaultyServer) -> None:
    faults.stall(after="Once")
    with Client(base_url=faults.base_url) as client:
        with client.stream(PROMPT) as begun:
            next(begun)
            CromicleInstrumentor().uninstrument()
            with client.stream(PROMPT) as stream:
                next(stream)
    assert len(telemetry.spans) == 1


class TestServer:
    """The spans of requests."""

    def test_a_request_is_below_the_call(self, telemetry: Telemetry, runtime: Runtime) -> None:
        async def scenario() -> None:
            async with runtime.client(base_url=server.base_url) as client:
                await client.chat(PROMPT, headers={"x-request-id": "id-1"})

        with LocalServer(token=TOKEN) as server:
            runtime.run(scenario)
        (request,) = telemetry.find(SpanKind.SERVER)
        assert request.name == "POST /chat"
        assert request.parent is not None
        assert request.parent.span_id == context_of(telemetry.call).span_id
        assert dict(request.attributes or {}) == {
            "http.request.method": "POST",
            "http.route": "/chat",
            "url.scheme": "http",
            "cromicle.request_id": "id-1",
            "http.response.status_code": 200,
            "cromicle.end": "complete",
        }
        assert PROMPT not in telemetry.dump()

    def test_a_backend_runs_in_the_context_of_the_request(self, telemetry: Telemetry) -> None:
        current: list[trace.SpanContext] = []

        async def backend(prompt: str) -> Any:
            current.append(trace.get_current_span().get_span_context())
            yield prompt

        with LocalServer(backend) as server, Client(base_url=server.base_url) as client:
            client.chat(PROMPT)
        (request,) = telemetry.find(SpanKind.SERVER)
        assert current == [context_of(request)]

    def test_the_gateway_passes_the_context_on(
        self, telemetry: Telemetry, faults: FaultyServer
    ) -> None:
        answer_texts(faults, "Hi.")
        with serve_gateway(faults) as gateway, Client(base_url=gateway.base_url) as client:
            client.chat(PROMPT)
        (request,) = telemetry.find(SpanKind.SERVER)
        carried = propagate.extract(dict(faults.requests[0].headers))
        context = trace.get_current_span(carried).get_span_context()
        assert context.span_id == context_of(request).span_id
        assert context.trace_id == context_of(telemetry.call).trace_id

    def test_the_api_of_openai_passes_the_context_on(
        self, telemetry: Telemetry, faults: FaultyServer
    ) -> None:
        faults.reply("Hi.")
        app = create_openai_app(AsyncClient(base_url=faults.base_url))
        traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
        with LocalServer(app=app) as server:
            httpx.post(
                f"{server.base_url}/v1/chat/completions",
                headers={"authorization": f"Bearer {TOKEN}", "traceparent": traceparent},
                json={"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
            )
        (request,) = telemetry.find(SpanKind.SERVER)
        assert telemetry.call.parent is not None
        assert telemetry.call.parent.span_id == context_of(request).span_id
        assert "a" * 32 in faults.requests[0].headers["traceparent"]

    @pytest.mark.parametrize(
        ("fail_after", "problem", "status"), [(0, "500", 500), (1, "truncated", 200)]
    )
    def test_a_failure(
        self, telemetry: Telemetry, fail_after: int, problem: str, status: int
    ) -> None:
        async def backend(prompt: str) -> Any:
            if fail_after:
                yield "text"
            raise ValueError(prompt)

        with (
            LocalServer(backend) as server,
            Client(base_url=server.base_url, retry=ONCE) as client,
            pytest.raises((InternalServerError, IncompleteReplyError)),
        ):
            client.chat(PROMPT)
        (request,) = telemetry.find(SpanKind.SERVER)
        assert request.attributes is not None
        assert request.attributes["error.type"] == problem
        assert request.attributes["http.response.status_code"] == status
        assert request.status.status_code is StatusCode.ERROR
        assert PROMPT not in telemetry.dump()

    def test_a_path_of_the_callers_is_not_recorded(self, telemetry: Telemetry) -> None:
        with LocalServer() as server:
            httpx.request("BREW", f"{server.base_url}/private")
        (request,) = telemetry.find(SpanKind.SERVER)
        assert request.name == "other other"
        assert request.attributes is not None
        assert request.attributes["http.request.method"] == "_OTHER"
        assert request.attributes["http.response.status_code"] == 404

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_a_request_below_a_framework(self, telemetry: Telemetry, backend: str) -> None:
        tracer = telemetry.traces.get_tracer("framework")

        async def scenario() -> None:
            app = Starlette(routes=[Mount("/chat", create_app())])
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                with tracer.start_as_current_span("framework", kind=SpanKind.SERVER):
                    await client.get("/chat/health")

        anyio.run(scenario, backend=backend)
        inner, outer = telemetry.spans
        assert (inner.name, inner.kind) == ("GET /health", SpanKind.INTERNAL)
        assert inner.parent is not None
        assert inner.parent.span_id == context_of(outer).span_id

    def test_a_client_that_disconnects_before_the_response(self, telemetry: Telemetry) -> None:
        async def scenario() -> None:
            async def receive() -> Any:
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                raise OSError

            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": "POST",
                "path": "/chat",
                "headers": [(b"content-type", b"application/json")],
            }
            with pytest.raises(OSError):
                await create_app()(scope, receive, send)

        trio.run(scenario)
        (request,) = telemetry.find(SpanKind.SERVER)
        assert request.attributes is not None
        assert request.attributes["cromicle.end"] == "client_disconnected"


class TestWithoutIt:
    """What a call costs where nothing is configured."""

    def test_nothing_is_imported(self, faults: FaultyServer) -> None:
        faults.reply("Hi.")
        script = f"""
import sys
from cromicle_sdk import Client
from cromicle_sdk.server import LocalServer
with Client(base_url={faults.base_url!r}) as client:
    client.chat("Hello")
print([name for name in sys.modules if "opentelemetry" in name])
"""
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"

    def test_nothing_is_allocated_or_called(self, faults: FaultyServer) -> None:
        faults.reply("Hi.")
        called: list[str] = []

        def profile(frame: Any, event: str, argument: object) -> None:
            if frame.f_code.co_filename == _observers.__file__:
                called.append(frame.f_code.co_name)

        assert OBSERVERS.start_call is None
        with Client(base_url=faults.base_url) as client:
            client.chat("Hello")
            tracemalloc.start()
            sys.setprofile(profile)
            try:
                client.chat("Hello")
                taken = tracemalloc.take_snapshot()
            finally:
                sys.setprofile(None)
                tracemalloc.stop()
        assert called == []
        allocated = taken.filter_traces([tracemalloc.Filter(True, _observers.__file__)])
        assert len(allocated.traces) == 0

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        find = builtins.__import__

        def refuse(name: str, *args: Any, **options: Any) -> Any:
            if name.startswith("opentelemetry"):
                raise ImportError(name)
            return find(name, *args, **options)

        monkeypatch.setattr(builtins, "__import__", refuse)
        with pytest.raises(ImportError, match=r"cromicle-sdk\[otel\]"):
            importlib.reload(_opentelemetry)
