"""Print the lowest versions that pyproject.toml declares, as constraints for pip."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["find_lowest_versions"]

PROJECT = Path(__file__).parent.parent / "pyproject.toml"

# A name, possibly extras, and a lower bound. Python 3.10 has no TOML parser to read them with.
REQUIREMENT = re.compile(r'"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)')


def find_lowest_versions(text: str) -> dict[str, str]:
    """Each package that a project file requires, and the lowest version that it accepts."""
    return dict(REQUIREMENT.findall(text))


if __name__ == "__main__":
    for name, version in find_lowest_versions(PROJECT.read_text(encoding="utf-8")).items():
        print(f"{name}=={version}")
