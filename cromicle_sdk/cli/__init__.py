"""The command `cromicle`: the client and the embedded server in a shell.

Needs the extra `cli`: `pip install "cromicle-sdk[cli]"`.
"""

from __future__ import annotations

try:
    from .main import run
except ImportError as _error:
    raise ImportError(
        'cromicle_sdk.cli needs an extra; install it with: pip install "cromicle-sdk[cli]"'
    ) from _error

__all__ = ["run"]
