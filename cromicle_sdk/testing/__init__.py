"""A server with scripted replies and faults, for tests of code that uses this SDK.

```python
from cromicle_sdk import Client
from cromicle_sdk.testing import FaultyServer

with FaultyServer() as server, Client(base_url=server.base_url) as client:
    server.fail(503, retry_after=0).reply("Hello, world!")
    assert client.chat("Hi").attempts == 2
```

`FaultyServer` inherits the methods that define its behaviour from `Script`: `reply`, `fail`,
`redirect`, `cut`, `reset`, `stall`, `drip`, `flood`, `encoded`, `trailing`, `close_idle`, `raw` and
`script`. The pytest plugin `cromicle_sdk.testing.fixtures`, which pytest loads automatically, has
the fixtures `cromicle_server` and `cromicle_faults`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Connection, DisconnectedError
    from .faulty_server import FaultyServer
    from .request import RecordedRequest
    from .response import LAST_CHUNK, build_chunk, build_head, build_last_chunk
    from .script import Behaviour

__all__ = [
    "LAST_CHUNK",
    "Behaviour",
    "Connection",
    "DisconnectedError",
    "FaultyServer",
    "RecordedRequest",
    "build_chunk",
    "build_head",
    "build_last_chunk",
]

_MODULES = {
    "Behaviour": "script",
    "Connection": "connection",
    "DisconnectedError": "connection",
    "FaultyServer": "faulty_server",
    "LAST_CHUNK": "response",
    "RecordedRequest": "request",
    "build_chunk": "response",
    "build_head": "response",
    "build_last_chunk": "response",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use (PEP 562).

    pytest imports this package for its plugin in every run, whether or not these names are used.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
