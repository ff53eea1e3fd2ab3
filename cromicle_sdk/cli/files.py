"""Files that only their owner can read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(target: Path, data: bytes) -> None:
    """Write a file atomically: another process sees either the old or the new content.

    Its mode is 600. Raises `OSError`.
    """
    # In the same folder, because `os.replace` does not work across file systems. `mkstemp` sets the
    # mode 600.
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
