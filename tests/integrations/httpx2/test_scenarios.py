"""httpx2: the scenarios of the clients over its clients, with our transports in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
SCENARIOS = ("test_client", "test_extensions", "test_start", "test_stream")

# The scenarios of the default client alone.
DIFFERENCES = (
    # httpx2 has default headers of its own, such as `connection`, and the caller's come after them.
    "test_the_request_is_the_protocols",
    # A client closes no `http_client`, so that the connection stays open for its owner.
    "test_a_connection_is_used_again",
    "test_a_stream_that_is_only_iterated_closes_itself",
    "test_with_another_httpcore_connections_are_reused_when_clean",
)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_scenarios_are_the_same(tmp_path: Path) -> None:
    # Neither the measurement of this run nor the token of this folder's tests.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if "COV" not in name and not name.startswith("CROMICLE_")
    }
    without = " or ".join(["uvloop", *DIFFERENCES])
    log = tmp_path / "log"
    with log.open("wb") as output:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "--quiet", "-p", "httpx2_clients"),
                *("-m", "not slow", "-k", f"not ({without})"),
                *(f"tests/_async/{name}.py" for name in SCENARIOS),
            ],
            cwd=TESTS.parent,
            env={**inherited, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=300,
        )
    assert done.returncode == 0, log.read_text()[-8000:]
