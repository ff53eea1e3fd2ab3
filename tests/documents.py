"""README and the pages, and their blocks of code."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["DOCUMENTS", "FOLDER", "ROOT", "find_blocks", "needs_packages"]

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "cromicle_sdk" / "docs"

DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(FOLDER.glob("*.md")))
}

# The packages in the environments of tests/integrations/packages.
_PACKAGES = re.compile(
    r"^(?:from|import) (?:g4f|langchain\w*|llama_index|llm|pydantic_ai"
    r"|cromicle_sdk\.integrations\.(?:langchain|llama_index|llm|pydantic_ai))\b",
    re.MULTILINE,
)


def find_blocks(language: str) -> list[tuple[str, str]]:
    """Return each fenced block in this language, with a name for its test."""
    return [
        (f"{Path(name).stem} {number}", block)
        for name, text in DOCUMENTS.items()
        for number, block in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL), 1
        )
    ]


def needs_packages(block: str) -> bool:
    """Whether a Python block imports a package that is installed in another environment."""
    return bool(_PACKAGES.search(block))
