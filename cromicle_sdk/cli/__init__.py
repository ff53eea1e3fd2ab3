"""The command `cromicle`: the SDK and its embedded server from a shell.

Needs the extra `cli`: `pip install "cromicle-sdk[cli]"`.
"""

from __future__ import annotations

from ._run import run

__all__ = ["run"]
