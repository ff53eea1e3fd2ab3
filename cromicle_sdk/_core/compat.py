"""Typing constructs that the oldest supported Python does not have."""

from __future__ import annotations

import sys

# pydantic rejects a `typing.TypedDict` before Python 3.12, which has no `__orig_bases__`. anyio
# requires typing_extensions there, but not on the latest versions.
if sys.version_info >= (3, 12):  # pragma: no cover - one of the two, on each version
    from typing import Self, TypedDict, Unpack
else:  # pragma: no cover - as above
    from typing_extensions import Self, TypedDict, Unpack

__all__ = ["Self", "TypedDict", "Unpack"]
