"""Files that are for their owner alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(target: Path, data: bytes) -> None:
    """Write a file in one step: another process sees the old one or the new one, and whole.

    Its mode is 600. Raises `OSError`.
    """
    # In the same folder, for `os.replace` does not move a file between file systems. The mode of
    # what it makes is 600.
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
