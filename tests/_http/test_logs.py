"""Log records of other packages, redacted while a call runs."""

from __future__ import annotations

import logging
import threading

import pytest

from cromicle_sdk._http.logs import redact_logs


def redact(text: str) -> str:
    return text.replace("canary", "[redacted]")


@pytest.mark.parametrize("name", ["httpx", "httpx2", "hpack.hpack"])
def test_a_record_of_a_call_is_redacted(name: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(name)
    caplog.set_level(logging.DEBUG, logger=name)
    with redact_logs(redact):
        logger.debug("%s %r %d %.1f %s", "a canary", (b"x-token", b"canary"), 5, 0.5, "plain")
        logger.debug("no arguments")
        logger.debug("%(name)s", {"name": "a mapping"})
    assert caplog.messages == [
        "a [redacted] (b'x-token', b'[redacted]') 5 0.5 plain",
        "no arguments",
        "a mapping",
    ]


def test_the_values_of_a_record_without_a_secret_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers of structured logs may look at their types."""
    caplog.set_level(logging.DEBUG, logger="httpx")
    values = ("plain", b"plain", 5, 0.5, None)
    with redact_logs(redact):
        logging.getLogger("httpx").debug("%s %s %s %s %s", *values)
    assert caplog.records[0].args == values


def test_other_records_are_not(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("httpx")
    caplog.set_level(logging.DEBUG, logger="httpx")
    with redact_logs(redact):
        thread = threading.Thread(target=logger.debug, args=("%s", "a canary"))
        thread.start()
        thread.join()
        logging.getLogger("mine").warning("%s", "a canary")
    logger.debug("%s", "a canary")
    assert caplog.messages == ["a canary"] * 3
