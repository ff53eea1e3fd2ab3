"""`cromicle ask --verbose`: what a call does, on stderr."""

from __future__ import annotations

import logging
import re

import pytest

from cromicle_sdk.cli import run
from cromicle_sdk.testing import FaultyServer

Capture = pytest.CaptureFixture[str]


def test_verbose_prints_attempts_waits_statuses_and_request_ids(
    faults: FaultyServer, capsys: Capture
) -> None:
    faults.fail(503, retry_after=0, headers={"x-request-id": "r1"})
    faults.reply("Hello", headers={"x-request-id": "r2"})
    arguments = ["ask", "--base-url", faults.base_url, "--token", "s3cret"]
    logger = logging.getLogger("cromicle_sdk")
    level = logger.level
    assert run([*arguments, "--verbose", "secret prompt"]) == 0
    out, err = capsys.readouterr()
    assert out == "Hello"
    lines = err.splitlines()
    url = f"{faults.base_url}/chat"
    assert lines[:3] == [
        f"attempt 1: POST {url}",
        "retrying in 0.00 s, after attempt 1 of 3: status 503, request id r1",
        f"attempt 2: POST {url}",
    ]
    assert re.fullmatch(
        r"attempt 2 succeeded: status 200, request id r2, 5 bytes in 1 chunks, \d\.\d+ s", lines[3]
    )
    assert len(lines) == 4
    assert not re.search("s3cret|secret|Hello", err)
    # Nothing of it stays.
    assert (logger.level, logger.handlers) == (level, [])
    assert run([*arguments, "Hi"]) == 0
    assert capsys.readouterr().err == ""


def test_verbose_says_nothing_of_the_embedded_server(capsys: Capture) -> None:
    assert run(["ask", "--local", "--verbose", "Hello"]) == 0
    out, err = capsys.readouterr()
    assert out == "Hello"
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "attempt 1",
        "attempt 1 succeeded",
    ]
