"""logfire: a call is a span of it."""

from __future__ import annotations

from collections.abc import Iterator

import logfire
import pytest
from callers import Caller, has_secret
from logfire.testing import TestExporter
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from cromicle_sdk.testing import FaultyServer


@pytest.fixture
def exporter() -> Iterator[TestExporter]:
    exporter = TestExporter()
    instance = logfire.configure(
        local=True,
        send_to_logfire=False,
        console=False,
        metrics=False,
        additional_span_processors=[SimpleSpanProcessor(exporter)],
    )
    instance.instrument_httpx(capture_headers=True)
    yield exporter
    HTTPXClientInstrumentor().uninstrument()
    HTTPX2ClientInstrumentor().uninstrument()
    instance.shutdown()


def test_a_call_is_a_span_with_its_headers(
    exporter: TestExporter, caller: Caller, faults: FaultyServer
) -> None:
    faults.reply("Traced.")
    (reply,) = caller.chat(faults.base_url)
    (span,) = exporter.exported_spans_as_dict()
    assert reply.text == "Traced."
    assert span["attributes"]["http.url"] == f"{faults.base_url}/chat"
    assert span["attributes"]["http.status_code"] == 200
    assert "http.response.header.content-type" in span["attributes"]
    assert not has_secret(repr(span))
    assert f"{span['context']['trace_id']:032x}" in faults.requests[0].headers["traceparent"]
