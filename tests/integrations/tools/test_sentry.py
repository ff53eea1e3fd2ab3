"""sentry-sdk: a call is a span and a breadcrumb, and no event holds the token or the hash."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import sentry_sdk
from callers import PROMPT, Caller, has_secret
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.httpx import HttpxIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport

from cromicle_sdk import CromicleError
from cromicle_sdk.testing import FaultyServer


class Recorder(Transport):
    """Keeps what would be sent to Sentry."""

    def __init__(self, envelopes: list[Envelope]) -> None:
        super().__init__()
        self.envelopes = envelopes

    def capture_envelope(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)


@pytest.fixture(scope="module")
def _sentry() -> Iterator[list[Envelope]]:
    envelopes: list[Envelope] = []
    with pytest.MonkeyPatch.context() as patch:
        # It replaces these once in a process and never puts them back.
        for owner, name in (
            (httpx.Client, "send"),
            (httpx.AsyncClient, "send"),
            (logging.Logger, "callHandlers"),
        ):
            patch.setattr(owner, name, getattr(owner, name))
        sentry_sdk.init(
            dsn="https://public@sentry.test/1",
            transport=Recorder(envelopes),
            traces_sample_rate=1.0,
            include_local_variables=True,
            default_integrations=False,
            auto_enabling_integrations=False,
            integrations=[HttpxIntegration(), LoggingIntegration(level=logging.DEBUG)],
            enable_backpressure_handling=False,
            release="test",
        )
        yield envelopes
        sentry_sdk.get_client().close()
        sentry_sdk.get_global_scope().set_client(None)


@pytest.fixture
def envelopes(_sentry: list[Envelope]) -> Iterator[list[Envelope]]:
    _sentry.clear()
    with sentry_sdk.isolation_scope():
        yield _sentry


def events(envelopes: list[Envelope]) -> list[Any]:
    return [item.payload.json for envelope in envelopes for item in envelope.items]


def test_a_call_is_a_span_and_sends_its_context(
    envelopes: list[Envelope], caller: Caller, faults: FaultyServer
) -> None:
    faults.reply("Traced.")
    with sentry_sdk.start_transaction(name="test") as transaction:
        (reply,) = caller.chat(faults.base_url)
    (event,) = events(envelopes)
    (span,) = event["spans"]
    assert reply.text == "Traced."
    assert span["op"] == "http.client"
    assert span["description"] == f"POST {faults.base_url}/chat"
    assert span["data"]["http.response.status_code"] == 200
    assert transaction.trace_id in faults.requests[0].headers["sentry-trace"]


def echo_request(server: FaultyServer) -> None:
    """Answer with a status, a header and a body that hold the secrets of the request."""
    server.script(
        lambda connection, request: connection.send(
            b"HTTP/1.1 401 No\r\nx-echo: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (request.hash.encode(), len(request.body), request.body)
        )
    )


def echo_in_broken_head(server: FaultyServer) -> None:
    """Answer with what is no HTTP: Sentry shows the `detail` of an error, which quotes it."""
    server.script(
        lambda connection, request: connection.send(
            b"HTTP/1.1 200 OK\r\nno colon %b %b\r\n\r\n"
            % (request.token.encode(), request.hash.encode())
        )
    )


SCRIPTS: dict[str, Callable[[FaultyServer], object]] = {
    "a status": lambda server: server.fail(500),
    "an echo of the request": echo_request,
    "an echo of the request in a broken head": echo_in_broken_head,
    "a reset connection": lambda server: server.reset(),
    "a truncated reply": lambda server: server.cut(after="Hello"),
    "an invalid reply": lambda server: server.reply("<p>", content_type="text/html"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_event_with_local_variables_holds_no_secret(
    script: str, envelopes: list[Envelope], caller: Caller, faults: FaultyServer
) -> None:
    SCRIPTS[script](faults)
    try:
        caller.chat(faults.base_url)
    except CromicleError as error:
        sentry_sdk.capture_exception(error)
    (event,) = events(envelopes)
    frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
    assert any("vars" in frame for frame in frames)
    assert PROMPT in repr(event)
    assert not has_secret(b"".join(envelope.serialize() for envelope in envelopes))


def test_an_event_has_the_call_as_a_breadcrumb(
    envelopes: list[Envelope], caller: Caller, faults: FaultyServer
) -> None:
    faults.fail(500)
    sentry_sdk.capture_exception(caller.fail(faults.base_url))
    (event,) = events(envelopes)
    (data,) = [crumb["data"] for crumb in event["breadcrumbs"]["values"] if crumb["type"] == "http"]
    assert data["url"] == f"{faults.base_url}/chat"
    assert data["http.response.status_code"] == 500
