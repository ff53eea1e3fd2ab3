"""httpx2: each fault of the table over its clients, with their own transport and with ours."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from fault_table import FAULTS, QUICK, TEXT, Fault, check
from runtimes import RUNTIMES, Runtime, outcome

from cromicle_sdk import APITimeoutError, AsyncTransport, Reply, Timeout, Transport
from cromicle_sdk.testing import FaultyServer

# Another response in the same read: httpx2 gives the next request what is left on the connection.
LEFT_OVER = {"a second response"}
# The blocking transport of httpx2 returns no sooner than the head is complete.
NEVER_ENDING_HEADS = {"dripped head", "endless 1xx"}


def build_client(runtime: Runtime, *, ours: bool) -> Any:
    options: dict[str, Any] = {}
    if ours:
        options["transport"] = Transport() if runtime.is_blocking else AsyncTransport()
    return httpx2.Client(**options) if runtime.is_blocking else httpx2.AsyncClient(**options)


async def close(runtime: Runtime, *clients: Any) -> None:
    for client in clients:
        client.close() if runtime.is_blocking else await client.aclose()


def build_cases() -> list[Any]:
    """The fast suite has our transports on two runtimes, the slow one the others as well."""
    return [
        pytest.param(
            fault,
            runtime,
            ours,
            id=f"{fault.name}-{runtime.name}-{'ours' if ours else 'httpx2'}",
            marks=() if ours and runtime.name != "trio" else pytest.mark.slow,
        )
        for fault in FAULTS
        for runtime in RUNTIMES
        if runtime.name != "uvloop"
        for ours in (True, False)
        if ours or not (runtime.is_blocking and fault.name in NEVER_ENDING_HEADS)
    ]


@pytest.mark.parametrize(("fault", "runtime", "ours"), build_cases())
def test_each_fault_has_its_outcome(
    fault: Fault, runtime: Runtime, ours: bool, faults: FaultyServer
) -> None:
    fault.script(faults)

    async def scenario() -> None:
        own = build_client(runtime, ours=ours)
        client = runtime.client(base_url=faults.base_url, retry=QUICK, http_client=own)
        check(fault, await outcome(client.chat("Hi", **fault.options)))
        # After a timeout, the server may not have read the last request yet.
        assert len(faults.wait_for_requests(fault.requests)) == fault.requests
        faults.clear().reply("Next.")
        if ours or fault.name not in LEFT_OVER:
            assert (await client.chat("Hi")).text == "Next."
        await client.aclose()
        await close(runtime, own)
        faults.wait_until_closed()

    runtime.run(scenario)


@pytest.mark.parametrize(
    "runtime", [r for r in RUNTIMES if r.name != "uvloop"], ids=lambda r: r.name
)
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "httpx2"])
def test_a_second_answer_is_the_next_calls_only_without_a_transport_of_ours(
    ours: bool, runtime: Runtime, faults: FaultyServer
) -> None:
    faults.trailing(TEXT).reply("Next.")

    async def scenario() -> None:
        own = build_client(runtime, ours=ours)
        client = runtime.client(base_url=faults.base_url, retry=QUICK, http_client=own)
        assert (await client.chat("Hi")).text == TEXT
        result = await outcome(client.chat("Hi"))
        assert isinstance(result, Reply)
        assert (result.text == "Next.") is ours
        await client.aclose()
        await close(runtime, own)

    runtime.run(scenario)


def test_a_blocking_call_over_httpx2_notices_total_once_the_head_is_complete(
    faults: FaultyServer,
) -> None:
    faults.drip("x", where="head", interval=0.02)

    async def scenario() -> None:
        own = build_client(RUNTIMES[0], ours=False)
        client = RUNTIMES[0].client(base_url=faults.base_url, http_client=own)
        error = await outcome(client.chat("Hi", timeout=Timeout(total=0.3)))
        assert isinstance(error, APITimeoutError)
        assert error.phase == "total"
        await client.aclose()
        await close(RUNTIMES[0], own)

    RUNTIMES[0].run(scenario)
