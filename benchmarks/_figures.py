"""The figures that the SDK is held to: who against whom, and what ratio at most."""

from __future__ import annotations

from dataclasses import dataclass

from ._gateway import ADDED, BOUND
from ._measure import Measure

__all__ = ["FIGURES", "Figure"]


@dataclass(frozen=True)
class Figure:
    """`subject`'s cost is to be `at_most` so many times `rival`'s; both are contenders."""

    scenario: str
    subject: str
    rival: str
    measure: Measure
    at_most: float


def _build_figures() -> tuple[Figure, ...]:
    figures = [
        Figure("call", f"cromicle {colour}", f"httpx {colour}", "cpu", at_most)
        for colour, at_most in (("blocking", 0.70), ("asyncio", 0.85), ("trio", 0.75))
    ]
    figures += [
        Figure("call", "cromicle blocking", rival, "cpu", at_most)
        for rival, at_most in (
            ("openai blocking", 0.25),
            ("ollama blocking", 0.55),
            ("first provider asyncio", 0.85),
        )
    ]
    figures.append(Figure("call", "cromicle asyncio", "openai asyncio", "cpu", 0.42))
    figures += [
        Figure("burst", f"cromicle {colour}", f"httpx {colour}", "cpu", 0.85)
        for colour in ("blocking", "asyncio", "trio")
    ]
    figures += [
        Figure("burst", "cromicle blocking", "openai blocking", "cpu", 0.10),
        Figure("burst", "cromicle blocking", "ollama blocking", "cpu", 0.58),
        Figure("fan-out", "cromicle asyncio 1000", "httpx asyncio 1000", "wall", 0.12),
        Figure("fan-out", "cromicle trio 1000", "httpx trio 1000", "wall", 0.12),
        Figure("fan-out", "cromicle asyncio 1000", "aiohttp asyncio 1000", "wall", 1.3),
    ]
    figures += [
        Figure("fan-out", f"cromicle {runtime} 2000", f"cromicle {runtime} 100", "cpu", 1.3)
        for runtime in ("asyncio", "uvloop", "trio")
    ]
    figures += [
        Figure("import", "cromicle_sdk", "httpx", "cpu", 1.15),
        Figure("construct", "cromicle.Client", "httpx.Client", "cpu", 0.10),
        Figure("prompt", "cromicle", "bare", "cpu", 1.5),
        Figure("memory", "cromicle blocking", "the reply's size", "memory", 2.5),
        Figure("memory", "cromicle asyncio", "the reply's size", "memory", 2.5),
        Figure("gateway", ADDED, BOUND, "wall", 1.0),
    ]
    return tuple(figures)


FIGURES = _build_figures()
