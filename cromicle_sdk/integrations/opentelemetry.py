"""Tracing and metrics of clients and servers with OpenTelemetry.

Requires the extra `otel`: `pip install "cromicle-sdk[otel]"`, which installs only the API.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from cromicle_sdk._core.errors import CromicleError, describe
from cromicle_sdk._core.observers import OBSERVERS, CallEnd
from cromicle_sdk._core.options import Options
from cromicle_sdk._core.request import Request, add_headers
from cromicle_sdk._version import __version__

try:
    from opentelemetry import context as otel_context
    from opentelemetry import metrics, propagate, trace
except ImportError as _error:
    raise ImportError(
        "cromicle_sdk.integrations.opentelemetry requires opentelemetry-api; "
        'install it with: pip install "cromicle-sdk[otel]"'
    ) from _error

__all__ = ["CromicleInstrumentor"]

_SCOPE = "cromicle_sdk"

# The buckets that the semantic conventions for generative AI recommend, in seconds.
_DURATION_BUCKETS = [0.01 * 2**power for power in range(14)]
_FIRST_CHUNK_BUCKETS = [
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
]

# The fields of `extra_body` that have a span attribute, and the types of their values.
_REQUEST_FIELDS: Mapping[str, tuple[type, ...]] = {
    "frequency_penalty": (int, float),
    "max_tokens": (int,),
    "model": (str,),
    "presence_penalty": (int, float),
    "seed": (int,),
    "temperature": (int, float),
    "top_p": (int, float),
}


class CromicleInstrumentor:
    """Traces and measures all clients and servers of this package in the process.

    ```python
    CromicleInstrumentor().instrument()
    ```

    Each call of a client is a span `chat` or `chat MODEL` of kind CLIENT, with attributes of the
    semantic conventions for generative AI:

    - at its start: `gen_ai.operation.name`, `gen_ai.provider.name`, `server.address`,
      `server.port`, `gen_ai.request.stream`, and `gen_ai.request.*` for the options in
      `extra_body`;
    - at its end: `gen_ai.response.finish_reasons`, `gen_ai.response.time_to_first_chunk` (seconds,
      streams only), `error.type`, `cromicle.attempts`, and `cromicle.end`: `complete`, `failed`,
      `cancelled` or `closed`.

    The span ends when its stream ends, fails, is closed or is garbage-collected. Each attempt is
    sent in its context and with its `traceparent`, so spans of an instrumented httpx are its
    children.

    The metrics are the histograms `gen_ai.client.operation.duration` and, for streams,
    `gen_ai.client.operation.time_to_first_chunk`, in seconds.

    Each request to a server of this package is a span of kind SERVER, the child of the client's
    span, or INTERNAL inside an instrumented framework. The gateway propagates its context to the
    model server.

    Spans and metrics contain no token, hash, prompt or reply, and no text of a server except the
    finish reason and the request ID. With `capture_content`, prompts and replies are recorded as
    `gen_ai.input.messages` and `gen_ai.output.messages`.
    """

    def instrument(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        capture_content: bool = False,
        **_: Any,
    ) -> None:
        """Start observing. Calls in progress are not observed.

        The providers default to the global ones. `capture_content` records the text of prompts and
        replies. Other options, which `opentelemetry-instrument` passes, are ignored.
        """
        tracer = trace.get_tracer(_SCOPE, __version__, tracer_provider)
        meter = metrics.get_meter(_SCOPE, __version__, meter_provider)
        calls = _Calls(tracer, meter, capture_content=capture_content)
        OBSERVERS.start_call = calls.start
        OBSERVERS.trace_request = _ServerSpans(tracer).trace
        OBSERVERS.build_headers = _build_headers

    def uninstrument(self, **_: Any) -> None:
        """Stop observing. The spans of calls in progress still end."""
        OBSERVERS.start_call = OBSERVERS.trace_request = OBSERVERS.build_headers = None


class _Calls:
    """The tracer and the metric instruments of all calls."""

    def __init__(
        self, tracer: trace.Tracer, meter: metrics.Meter, *, capture_content: bool
    ) -> None:
        self.tracer = tracer
        self.capture_content = capture_content
        self.duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_DURATION_BUCKETS,
        )
        self.first_chunk = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            unit="s",
            description="Time to receive the first chunk.",
            explicit_bucket_boundaries_advisory=_FIRST_CHUNK_BUCKETS,
        )

    def start(self, request: Request, options: Options, is_streamed: bool) -> _Call:
        return _Call(self, request, options, is_streamed=is_streamed)


class _Call:
    """The span of one call."""

    def __init__(
        self, calls: _Calls, request: Request, options: Options, *, is_streamed: bool
    ) -> None:
        self._calls = calls
        self._is_streamed = is_streamed
        self._started = time.monotonic()
        self._facts: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "cromicle",
            "server.address": options.endpoint.host,
            "server.port": options.endpoint.port,
        }
        fields = _find_fields(options)
        model = fields.get("gen_ai.request.model")
        if model is not None:
            self._facts["gen_ai.request.model"] = model
        attributes = {**self._facts, **fields}
        if is_streamed:
            attributes["gen_ai.request.stream"] = True
        if calls.capture_content:
            attributes["gen_ai.input.messages"] = _build_input(request)
        self._span = calls.tracer.start_span(
            "chat" if model is None else f"chat {model}",
            kind=trace.SpanKind.CLIENT,
            attributes=attributes,
        )

    @contextmanager
    def send(self, request: Request) -> Generator[Request]:
        with _make_current(self._span):
            yield request._replace(
                fixed_headers=add_headers(request.fixed_headers, _build_headers())
            )

    def end(self, end: CallEnd) -> None:
        facts = self._facts
        attributes: dict[str, Any] = {"cromicle.attempts": end.attempts}
        if end.error is None:
            attributes["cromicle.end"] = "closed" if end.reply is None else "complete"
        else:
            is_failure = isinstance(end.error, Exception)
            attributes["cromicle.end"] = "failed" if is_failure else "cancelled"
            facts["error.type"] = attributes["error.type"] = type(end.error).__qualname__
            if is_failure:
                self._span.set_status(trace.StatusCode.ERROR, _describe(end.error))
        if end.reply is not None and end.reply.finish_reason is not None:
            attributes["gen_ai.response.finish_reasons"] = (end.reply.finish_reason,)
        if self._is_streamed and end.first_text_after is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = end.first_text_after
            self._calls.first_chunk.record(end.first_text_after, facts)
        if self._calls.capture_content:
            attributes["gen_ai.output.messages"] = _build_output(end)
        self._span.set_attributes(attributes)
        context = trace.set_span_in_context(self._span)
        self._calls.duration.record(time.monotonic() - self._started, facts, context)
        self._span.end()


class _ServerSpans:
    """The spans of requests to an app of this package."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def trace(self, scope: Any, record: Any) -> Generator[None]:
        context = None
        # A child of the current span, if an instrumented framework around the app has one.
        is_inner = trace.get_current_span().get_span_context().is_valid
        if not is_inner:
            pairs = ((name.decode("latin-1"), value) for name, value in scope["headers"])
            context = propagate.extract({name: value.decode("latin-1") for name, value in pairs})
        span = self._tracer.start_span(
            f"{record.method} {record.path}",
            context=context,
            kind=trace.SpanKind.INTERNAL if is_inner else trace.SpanKind.SERVER,
            attributes={
                "http.request.method": record.method if record.method != "other" else "_OTHER",
                "http.route": record.path,
                "url.scheme": scope.get("scheme", "http"),
                "cromicle.request_id": record.request_id,
            },
        )
        try:
            with _make_current(span):
                yield
        finally:
            _end_request(span, record)


def _end_request(span: trace.Span, record: Any) -> None:
    problem = None
    if record.status is not None:
        span.set_attribute("http.response.status_code", record.status)
        if record.status >= 500:
            problem = str(record.status)
    span.set_attribute("cromicle.end", record.end)
    if record.end in ("failed", "truncated"):
        problem = record.end
    if problem is not None:
        span.set_attribute("error.type", problem)
        span.set_status(trace.StatusCode.ERROR)
    span.end()


@contextmanager
def _make_current(span: trace.Span) -> Generator[None]:
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        # A garbage-collected coroutine is closed in the context of another task.
        if trace.get_current_span() is span:
            otel_context.detach(token)


def _build_headers() -> Mapping[str, str]:
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def _describe(error: BaseException) -> str:
    return describe(error) if isinstance(error, CromicleError) else type(error).__qualname__


def _find_fields(options: Options) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, text in options.extra_body.json_by_name.items():
        if name in _REQUEST_FIELDS:
            value = json.loads(text)
            if type(value) in _REQUEST_FIELDS[name]:
                fields[f"gen_ai.request.{name}"] = value
    return fields


def _build_input(request: Request) -> str:
    """Format the messages of a request as the semantic conventions define."""
    body = json.loads(request.body)
    messages = body.get("messages") or [{"role": "user", "content": body["message"]}]
    return json.dumps(
        [_build_message(message["role"], message["content"]) for message in messages],
        ensure_ascii=False,
    )


def _build_output(end: CallEnd) -> str:
    if end.reply is not None:
        text, reason = end.reply.text, end.reply.finish_reason or "stop"
    else:
        text = end.error.partial_text if isinstance(end.error, CromicleError) else ""
        reason = "error"
    message = {**_build_message("assistant", text), "finish_reason": reason}
    return json.dumps([message], ensure_ascii=False)


def _build_message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}
