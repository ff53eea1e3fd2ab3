"""What the gateway adds to the time to the first text: through it, and from the server itself."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from ._measure import Contender, Sample, Setting
from ._server import Plan

if TYPE_CHECKING:
    import httpx

__all__ = ["ADDED", "BOUND", "CONTENDERS"]

ADDED = "added by the gateway"
BOUND = "5 ms"

_PLAN = Plan(tokens=2, gap=1)
_CALLS = 100
_PROMPT = "Hello"

_What = Literal["directly", "through the gateway", "added by the gateway"]


def _measure(what: _What, setting: Setting) -> Sample:
    """The median of calls that take turns, each on a kept connection, by the same client."""
    import httpx

    upstream = f"{setting.base_url}{_PLAN.path}/v1"
    token = "abc"  # noqa: S105 - the default
    digest = hashlib.sha256((token + _PROMPT).encode()).hexdigest()
    question = {"model": "m", "messages": [{"role": "user", "content": _PROMPT}], "stream": True}
    direct, through = [], []
    with _serve_gateway(upstream) as gateway, httpx.Client(timeout=60) as client:
        for _ in range(setting.scale(_CALLS) + 1):
            direct.append(_first_bytes(client, f"{upstream}/chat/completions", question))
            signed = {"message": _PROMPT, "token": token, "hash": digest}
            through.append(_first_bytes(client, f"{gateway}/chat", signed))
    # The first calls open the connections.
    medians = {"directly": median(direct[1:]), "through the gateway": median(through[1:])}
    if what == ADDED:
        return Sample(wall=medians["through the gateway"] - medians["directly"])
    return Sample(wall=medians[what])


@contextmanager
def _serve_gateway(upstream: str) -> Iterator[str]:
    """The command in a process of its own; its base URL."""
    command = [sys.executable, "-m", "cromicle_sdk", "serve", "--port", "0", "--no-access-log"]
    command += ["--upstream", upstream, "--model", "m", "--token", "abc"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 - the command of this package
        assert process.stderr is not None, "it was asked for above"
        try:
            said = process.stderr.readline()
            if not said.startswith("Serving at "):
                raise RuntimeError(f"the gateway does not start: {said.strip()}")
            yield said.split()[-1]
        finally:
            process.kill()


def _first_bytes(client: httpx.Client, url: str, content: object) -> float:
    """Seconds from a call to the first bytes of its answer, which is read to its end."""
    first = 0.0
    started = perf_counter()
    with client.stream("POST", url, json=content) as response:
        response.raise_for_status()
        for _ in response.iter_raw():
            first = first or perf_counter() - started
    return first


def _take_bound(setting: Setting) -> Sample:
    """What a figure is held against: it is not measured."""
    return Sample(wall=0.005)


CONTENDERS = (
    Contender("directly", partial(_measure, "directly")),
    Contender("through the gateway", partial(_measure, "through the gateway")),
    Contender(ADDED, partial(_measure, ADDED)),
    Contender(BOUND, _take_bound),
)
