"""The bounds: the maximum costs of the SDK relative to other cases."""

from __future__ import annotations

from dataclasses import dataclass

from .bulk import MEMORY_BOUND, PATIENT
from .gateway import ADDED, LATENCY_BOUND
from .measure import Measure

__all__ = ["BOUNDS", "Bound"]


@dataclass(frozen=True)
class Bound:
    """The cost of the case `subject` is at most `at_most` times that of the case `baseline`."""

    scenario: str
    subject: str
    baseline: str
    measure: Measure
    at_most: float


BOUNDS = (
    Bound("call", "cromicle blocking", "httpx blocking", "cpu", 0.65),
    Bound("call", "cromicle asyncio", "httpx asyncio", "cpu", 0.70),
    Bound("call", "cromicle trio", "httpx trio", "cpu", 0.70),
    Bound("call", "cromicle blocking", "openai blocking", "cpu", 0.25),
    Bound("call", "cromicle asyncio", "openai asyncio", "cpu", 0.35),
    Bound("call", "cromicle blocking", "ollama blocking", "cpu", 0.55),
    Bound("call", "cromicle blocking", "first provider asyncio", "cpu", 0.80),
    Bound("burst", "cromicle blocking", "httpx blocking", "cpu", 0.60),
    Bound("burst", "cromicle asyncio", "httpx asyncio", "cpu", 0.60),
    Bound("burst", "cromicle trio", "httpx trio", "cpu", 0.60),
    Bound("burst", "cromicle http_client blocking", "httpx blocking", "cpu", 1.3),
    Bound("burst", "cromicle http_client asyncio", "httpx asyncio", "cpu", 1.3),
    Bound("burst", "cromicle blocking", "openai blocking", "cpu", 0.10),
    Bound("burst", "cromicle blocking", "ollama blocking", "cpu", 0.58),
    Bound("paced-streams", "cromicle asyncio", "aiohttp asyncio", "cpu", 1.2),
    Bound("paced-streams", "cromicle asyncio", "aiohttp asyncio", "wall", 1.3),
    Bound("fan-out", "cromicle asyncio 1000", "httpx asyncio 1000", "wall", 0.12),
    Bound("fan-out", "cromicle trio 1000", "httpx trio 1000", "wall", 0.12),
    Bound("fan-out", "cromicle asyncio 2000", "cromicle asyncio 100", "cpu", 1.3),
    Bound("fan-out", "cromicle uvloop 2000", "cromicle uvloop 100", "cpu", 1.3),
    Bound("fan-out", "cromicle trio 2000", "cromicle trio 100", "cpu", 1.3),
    Bound("import", "from cromicle_sdk import Client", "import httpx", "cpu", 1.15),
    Bound("construct", "cromicle.Client", "httpx.Client", "cpu", 0.10),
    Bound("prompt", "cromicle", "bare", "cpu", 1.5),
    Bound("memory", "cromicle blocking", "its size", "memory", 2.5),
    Bound("memory", "cromicle asyncio", "its size", "memory", 2.5),
    Bound("memory", "cromicle blocking, iterated", "its size, iterated", "memory", 2.0),
    Bound("memory", "cromicle asyncio, iterated", "its size, iterated", "memory", 2.0),
    Bound("memory", "cromicle blocking, iterated, dashes", "its size, iterated", "memory", 2.0),
    Bound("flood", "cromicle blocking", "250 ms", "wall", 1.0),
    Bound("flood", "cromicle asyncio", "250 ms", "wall", 1.0),
    Bound("flood", "cromicle trio", "250 ms", "wall", 1.0),
    Bound("bulk", "bulk", "AsyncClient.chat", "cpu", 1.3),
    Bound("bulk", "abulk", "AsyncClient.chat", "cpu", 1.3),
    Bound("bulk", "cromicle batch", "AsyncClient.chat", "cpu", 1.3),
    Bound("bulk", "bulk", MEMORY_BOUND, "memory", 1.0),
    Bound("bulk", "cromicle batch", MEMORY_BOUND, "memory", 1.0),
    Bound("bulk", "5 at once, bulk", PATIENT, "wall", 1.2),
    Bound("bulk", "5 at once, cromicle batch", PATIENT, "wall", 1.2),
    Bound("gateway", ADDED, LATENCY_BOUND, "wall", 1.0),
)
