"""A server with scripted replies and faults, for the tests of code that uses this SDK.

The pytest fixtures `cromicle_server` and `cromicle_faults` come with the package.
"""

from __future__ import annotations

from ._connection import Connection, DisconnectedError
from ._request import RecordedRequest
from ._script import Behaviour
from ._server import FaultyServer
from ._wire import LAST_CHUNK, build_chunk, build_head

__all__ = [
    "LAST_CHUNK",
    "Behaviour",
    "Connection",
    "DisconnectedError",
    "FaultyServer",
    "RecordedRequest",
    "build_chunk",
    "build_head",
]
