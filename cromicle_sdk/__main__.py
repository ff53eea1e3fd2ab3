"""The entry point of the command `cromicle` and of `python -m cromicle_sdk`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run the command with the arguments of this process, and exit with its exit code."""
    if any(find_spec(name) is None for name in ("click", "platformdirs", "rich")):
        sys.exit('The command needs an extra: pip install "cromicle-sdk[cli]"')
    from cromicle_sdk.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
