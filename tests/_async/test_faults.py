"""What networks do, and what comes of it: the same on every runtime."""

from __future__ import annotations

from typing import Any

import pytest
from fault_table import FAULTS, QUICK, Fault, check
from runtimes import Runtime, outcome

from cromicle_sdk import APITimeoutError, Timeout
from cromicle_sdk.testing import FaultyServer


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_has_its_outcome(fault: Fault, runtime: Runtime, faults: FaultyServer) -> None:
    fault.script(faults)

    async def scenario() -> None:
        client = runtime.client(base_url=faults.base_url, retry=QUICK)
        result = await outcome(client.chat("Hi", **fault.options))
        check(fault, result)
        # After a timeout, the server may not have read the last request yet.
        assert len(faults.wait_for_requests(fault.requests)) == fault.requests
        # The client goes on: what was left on a connection is not the next call's answer.
        faults.clear().reply("Next.")
        assert (await client.chat("Hi")).text == "Next."
        await client.aclose()
        faults.wait_until_closed()

    runtime.run(scenario)


@pytest.mark.parametrize("where", ["head", "informational", "body"])
def test_a_drip_ends_with_total(where: Any, runtime: Runtime, faults: FaultyServer) -> None:
    faults.drip("x", where=where, forever=True)

    async def scenario() -> None:
        async with runtime.client(base_url=faults.base_url) as client:
            # The text of a body is to arrive in this time, also on a busy machine.
            limits = Timeout(total=1.5 if where == "body" else 0.3)
            error = await outcome(client.chat("Hi", timeout=limits))
            assert isinstance(error, APITimeoutError)
            assert error.phase == "total"
            assert set(error.partial_text) == ({"x"} if where == "body" else set())

    runtime.run(scenario)
