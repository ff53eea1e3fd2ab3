"""OpenTelemetry for httpx: each attempt is a span, and its context is sent with the request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from callers import DEFAULT_CALLERS, TOKEN, Caller, has_secret
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from cromicle_sdk import APIConnectionError, Retry
from cromicle_sdk.integrations.opentelemetry import CromicleInstrumentor
from cromicle_sdk.testing import FaultyServer


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


def context_of(span: ReadableSpan) -> str:
    """The header `traceparent` of W3C Trace Context for a span."""
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def test_a_call_is_a_client_span_and_sends_its_context(
    spans: InMemorySpanExporter, caller: Caller, faults: FaultyServer
) -> None:
    faults.reply("Traced.")
    (reply,) = caller.chat(faults.base_url)
    (span,) = spans.get_finished_spans()
    assert reply.text == "Traced."
    assert (span.name, span.kind) == ("POST", SpanKind.CLIENT)
    assert span.attributes is not None
    assert span.attributes["http.url"] == f"{faults.base_url}/chat"
    assert span.attributes["http.status_code"] == 200
    assert [request.headers["traceparent"] for request in faults.requests] == [context_of(span)]


def test_each_attempt_is_a_span(
    spans: InMemorySpanExporter, caller: Caller, faults: FaultyServer
) -> None:
    faults.fail(503).reply("At last.")
    caller.chat(faults.base_url, retry=Retry(first_delay=0))
    failed, succeeded = spans.get_finished_spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert succeeded.status.status_code is StatusCode.UNSET
    assert [request.headers["traceparent"] for request in faults.requests] == [
        context_of(failed),
        context_of(succeeded),
    ]


def test_a_failed_call_is_a_failed_span_without_the_secrets(
    spans: InMemorySpanExporter, caller: Caller, faults: FaultyServer
) -> None:
    faults.reset()
    error = caller.fail(faults.base_url)
    (span,) = spans.get_finished_spans()
    assert isinstance(error, APIConnectionError)
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]
    assert not has_secret(span.to_json())


@pytest.mark.parametrize("caller", DEFAULT_CALLERS, ids=str)
def test_a_token_that_the_server_echoes_in_garbage_is_not_in_the_span(
    spans: InMemorySpanExporter, caller: Caller, faults: FaultyServer
) -> None:
    faults.raw(f"HTTP/1.1 {TOKEN}\r\n\r\n".encode(), end="close")
    error = caller.fail(faults.base_url)
    (span,) = spans.get_finished_spans()
    assert isinstance(error, APIConnectionError)
    assert "RemoteProtocolError" in span.to_json()
    assert not has_secret(span.to_json())


def test_the_span_of_a_call_is_above_those_of_its_attempts(
    spans: InMemorySpanExporter, caller: Caller, faults: FaultyServer
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    CromicleInstrumentor().instrument(tracer_provider=provider)
    faults.fail(503).reply("At last.")
    try:
        caller.chat(faults.base_url, retry=Retry(attempts=2, first_delay=0))
    finally:
        CromicleInstrumentor().uninstrument()
    *attempts, call = spans.get_finished_spans()
    assert [span.name for span in (*attempts, call)] == ["POST", "POST", "chat"]
    above = call.get_span_context()
    assert above is not None
    for span, request in zip(attempts, faults.requests, strict=True):
        assert span.parent is not None
        assert span.parent.span_id == above.span_id
        # That of the attempt replaces that of the call: one header.
        assert request.headers["traceparent"] == context_of(span)
