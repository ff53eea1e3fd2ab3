"""Which client takes which wrong reply for a whole one: `python -m benchmarks.faults`.

Each client streams from a server that fails in nine ways known from networks and proxies. A reply
counts as taken if the client raised nothing, although the text is not that of the server's backend.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from cromicle_sdk import CromicleError
from cromicle_sdk.testing import FaultyServer

from .libraries import ASYNC, BLOCKING
from .runtimes import run

__all__ = ["CLIENTS", "FAULTS", "main", "takes_for_whole"]

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
    "nothing at all": lambda server: server.reply(""),
    "a page of a proxy, as 200": lambda server: server.reply(_PAGE, content_type="text/html"),
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
    """Print a line for each fault, and each client's share at the end."""
    width = max(map(len, FAULTS))
    _print(f"{'taken for a whole reply':{width}}  {'  '.join(CLIENTS)}")
    counts = dict.fromkeys(CLIENTS, 0)
    for fault in FAULTS:
        cells: list[str] = []
        for client in CLIENTS:
            is_taken = takes_for_whole(client, fault)
            counts[client] += is_taken
            cells.append(f"{'yes' if is_taken else '-':{len(client)}}")
        _print(f"{fault:{width}}  {'  '.join(cells)}".rstrip())
    shares = (f"{f'{count / len(FAULTS):.0%}':{len(name)}}" for name, count in counts.items())
    _print(f"{'of all':{width}}  {'  '.join(shares)}".rstrip())


def takes_for_whole(client: str, fault: str) -> bool:
    """Whether a client raises none of its errors for a reply with this fault."""
    with FaultyServer() as server:
        FAULTS[fault](server)
        try:
            characters = _call(client, server.base_url)
        except _find_errors(client):
            return False
    return characters != len(_TEXT)


def _find_errors(client: str) -> tuple[type[Exception], ...]:
    """What a client raises for a reply that is not whole."""
    if client == "cromicle":
        return (CromicleError,)
    if client == "httpx":
        import httpx

        return (httpx.HTTPError,)
    import aiohttp

    # Both decode the text themselves.
    return aiohttp.ClientError, UnicodeDecodeError


def _call(client: str, url: str) -> int:
    """The number of characters that a client has received."""
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
