"""Where the command `cromicle` starts, and `python -m cromicle_sdk`, which is the same."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run the command with the arguments of this process, and end it with its exit code."""
    if any(find_spec(name) is None for name in ("click", "rich")):
        sys.exit('The command needs an extra: pip install "cromicle-sdk[cli]"')
    from cromicle_sdk.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
