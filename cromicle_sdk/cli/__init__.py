"""The command `cromicle`: a client and a server for the shell.

Requires the extra `cli`: `pip install "cromicle-sdk[cli]"`.
"""

from __future__ import annotations

try:
    from .main import run
except ImportError as _error:
    raise ImportError(
        "cromicle_sdk.cli requires the packages of the extra cli; "
        'install them with: pip install "cromicle-sdk[cli]"'
    ) from _error

__all__ = ["run"]
