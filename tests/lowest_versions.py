"""Print the lowest versions that pyproject.toml declares, as constraints for pip.

The extras for development are omitted, because users do not install them.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["find_lowest_versions"]

PROJECT = Path(__file__).parent.parent / "pyproject.toml"

# A name, optional extras, and a lower bound. A regular expression, because Python 3.10 has no TOML
# parser.
REQUIREMENT = re.compile(r'"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)')


def find_lowest_versions(text: str) -> dict[str, str]:
    """Return the lowest accepted version of each package that users install."""
    return dict(REQUIREMENT.findall(text.partition("\nbench = [")[0]))


if __name__ == "__main__":
    for name, version in find_lowest_versions(PROJECT.read_text(encoding="utf-8")).items():
        print(f"{name}=={version}")
