"""Print the lowest versions that pyproject.toml declares for users, as constraints for pip.

The extras for development are left out: what they install is not what users have.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["find_lowest_versions"]

PROJECT = Path(__file__).parent.parent / "pyproject.toml"

# A name, possibly extras, and a lower bound. Python 3.10 has no TOML parser to read them with.
REQUIREMENT = re.compile(r'"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)')


def find_lowest_versions(text: str) -> dict[str, str]:
    """Each package that users install, and the lowest version that the project accepts."""
    return dict(REQUIREMENT.findall(text.partition("\nbench = [")[0]))


if __name__ == "__main__":
    for name, version in find_lowest_versions(PROJECT.read_text(encoding="utf-8")).items():
        print(f"{name}=={version}")
