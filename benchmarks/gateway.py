"""The time that the gateway adds to the first text of a model server."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Final, Literal

from .measure import Case, Sample, Settings
from .server import ReplySpec

if TYPE_CHECKING:
    import httpx

__all__ = ["ADDED", "CASES", "LATENCY_BOUND"]

ADDED: Final = "added by the gateway"
LATENCY_BOUND: Final = "5 ms"

_SPEC = ReplySpec(tokens=2, gap=1)
_CALLS = 100
_PROMPT = "Hello"

_Part = Literal["directly", "through the gateway", "added by the gateway"]


def _measure(part: _Part, settings: Settings) -> Sample:
    """Return the median of alternating calls by one client, on keep-alive connections."""
    import httpx

    upstream = f"{settings.base_url}{_SPEC.path}/v1"
    token = "abc"  # noqa: S105 - the default
    digest = hashlib.sha256((token + _PROMPT).encode()).hexdigest()
    question = {"model": "m", "messages": [{"role": "user", "content": _PROMPT}], "stream": True}
    direct, through = [], []
    with _serve_gateway(upstream) as gateway, httpx.Client(timeout=60) as client:
        for _ in range(settings.scale(_CALLS) + 1):
            direct.append(_first_bytes(client, f"{upstream}/chat/completions", question))
            signed = {"message": _PROMPT, "token": token, "hash": digest}
            through.append(_first_bytes(client, f"{gateway}/chat", signed))
    # The first calls open the connections.
    medians = {"directly": median(direct[1:]), "through the gateway": median(through[1:])}
    if part == ADDED:
        return Sample(wall=medians["through the gateway"] - medians["directly"])
    return Sample(wall=medians[part])


@contextmanager
def _serve_gateway(upstream: str) -> Iterator[str]:
    """Run `cromicle serve` in its own process, and yield its base URL."""
    command = [sys.executable, "-m", "cromicle_sdk", "serve", "--port", "0", "--no-access-log"]
    command += ["--upstream", upstream, "--model", "m", "--token", "abc"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 - the command of this package
        assert process.stderr is not None, "it is a pipe"
        try:
            line = process.stderr.readline()
            if not line.startswith("Serving at "):
                raise RuntimeError(f"the gateway failed to start: {line.strip()}")
            yield line.split()[-1]
        finally:
            process.kill()


def _first_bytes(client: httpx.Client, url: str, content: object) -> float:
    """Return the seconds to the first bytes of a response, which is read to its end."""
    first = 0.0
    started = perf_counter()
    with client.stream("POST", url, json=content) as response:
        response.raise_for_status()
        for _ in response.iter_raw():
            first = first or perf_counter() - started
    return first


def _get_bound(settings: Settings) -> Sample:
    """Return a constant, because this bound is a time and not a ratio."""
    return Sample(wall=0.005)


CASES = (
    Case("directly", partial(_measure, "directly")),
    Case("through the gateway", partial(_measure, "through the gateway")),
    Case(ADDED, partial(_measure, ADDED)),
    Case(LATENCY_BOUND, _get_bound),
)
