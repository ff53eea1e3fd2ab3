"""Which clients accept incomplete or wrong replies: `python -m benchmarks.faults`.

Each client streams from a server that fails in nine ways known from networks and proxies. A reply
counts as accepted if the client raises nothing, although the text is not that of the backend.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec

from cromicle_sdk import CromicleError
from cromicle_sdk.testing import FaultyServer

from .libraries import ASYNC, BLOCKING
from .runtimes import run

__all__ = ["CLIENTS", "FAULTS", "accepts", "main"]

_TEXT = "The light went out at three. It was 5 °C and nobody saw it. "
_CUT = _TEXT[:28]
_SPLIT = _TEXT.encode()[: _TEXT.encode().index(b"\xc2") + 1]
_PAGE = "<!DOCTYPE html><title>Bad gateway</title><p>Please try again."

Fault = Callable[[FaultyServer], object]

FAULTS: dict[str, Fault] = {
    "reset": lambda server: server.reset(_CUT),
    "closed within chunks": lambda server: server.cut(_CUT),
    "closed before the length": lambda server: server.cut(_CUT, framing="length"),
    "closed, with neither length nor chunks": lambda server: server.cut(_CUT, framing="none"),
    "the same, within a character": lambda server: server.cut(_SPLIT, framing="none"),
    "an empty body": lambda server: server.reply(""),
    "an error page of a proxy, as 200": lambda server: server.reply(
        _PAGE, content_type="text/html"
    ),
    "an error in JSON, as 200": lambda server: server.reply(
        '{"error": "overloaded"}', content_type="application/json"
    ),
    "a byte that is not UTF-8": lambda server: server.reply(_TEXT.encode() + b"\xff"),
}

CLIENTS = {
    "cromicle": ("blocking", "cromicle"),
    "httpx": ("blocking", "httpx"),
    "aiohttp": ("asyncio", "aiohttp"),
    "first provider": ("asyncio", "first provider"),
}


def main() -> None:
    """Print a line for each fault, and the share of accepted replies at the end."""
    if find_spec("aiohttp") is None:
        sys.exit('This comparison needs an extra: pip install --editable ".[bench]"')
    width = max(map(len, FAULTS))
    _print(f"{'accepted without an error':{width}}  {'  '.join(CLIENTS)}")
    counts = dict.fromkeys(CLIENTS, 0)
    for fault in FAULTS:
        cells: list[str] = []
        for client in CLIENTS:
            is_accepted = accepts(client, fault)
            counts[client] += is_accepted
            cells.append(f"{'yes' if is_accepted else '-':{len(client)}}")
        _print(f"{fault:{width}}  {'  '.join(cells)}".rstrip())
    shares = (f"{f'{count / len(FAULTS):.0%}':{len(name)}}" for name, count in counts.items())
    _print(f"{'of all':{width}}  {'  '.join(shares)}".rstrip())


def accepts(client: str, fault: str) -> bool:
    """Whether a client accepts a reply with this fault without raising an error."""
    with FaultyServer() as server:
        FAULTS[fault](server)
        try:
            characters = _call(client, server.base_url)
        except _find_errors(client):
            return False
    return characters != len(_TEXT)


def _find_errors(client: str) -> tuple[type[Exception], ...]:
    """Return the errors that a client raises for an invalid reply."""
    if client == "cromicle":
        return (CromicleError,)
    if client == "httpx":
        import httpx

        return (httpx.HTTPError,)
    import aiohttp

    # Both decode the text themselves.
    return aiohttp.ClientError, UnicodeDecodeError


def _call(client: str, url: str) -> int:
    """Return the number of characters that a client receives."""
    kind, name = CLIENTS[client]
    if kind == "blocking":
        with BLOCKING[name](url) as call:
            return call().characters

    async def measure() -> int:
        async with ASYNC[name](url) as call:
            return (await call()).characters

    return run("asyncio", measure)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
