"""README and the pages, their blocks of code, and what they name that a block requires."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "DOCUMENTS",
    "FOLDER",
    "ROOT",
    "Block",
    "fill_in",
    "find_blocks",
    "list_blocks",
    "needs_packages",
    "parse_page",
    "write_samples",
]

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

# A fenced block, a heading, or the prose between them.
_PART = re.compile(
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$"
    r"|^(?P<level>#+) [^\n]*$"
    r"|(?P<prose>(?:^(?!```|#+ )[^\n]*\n?)+)",
    re.MULTILINE | re.DOTALL,
)
_INSTALL = re.compile(r"\bpip install ([^`\n&|;#]+)")
_EXTRAS = re.compile(r"\bextras? ((?:`\w[\w-]*`(?:, and |, | and )?)+)")
_PROJECT = re.compile(r"(?:\.|cromicle-sdk)(?:\[([\w,-]+)\])?")

# The files that the command lines of the documents read.
_SAMPLES = {
    "main.py": "print('Hello')\n",
    "notes.txt": "Notes\n",
    "prompts.jsonl": '{"id": 1, "prompt": "One"}\n',
    "prompts.txt": "One\n",
    "README.md": "# Hello\n",
    "style.txt": "Be brief.\n",
    "talk.json": '[{"role": "user", "content": "One?"}]\n',
}


@dataclass(frozen=True)
class Block:
    """A fenced block, and the requirements that its page names for it.

    An extra of this project is a requirement in brackets, such as `[cli]`. Requirements are named
    in prose, as in "the extra `cli`" or "`pip install trio`", in the introduction of the page or of
    a section around the block, or above the block in its own section. A shell block with
    `pip install` applies to itself and to the rest of the page. Tables name nothing, because they
    list options.
    """

    name: str
    language: str
    text: str
    requirements: frozenset[str]


def list_blocks(*languages: str) -> list[Block]:
    """Return the blocks in these languages."""
    return [
        block
        for name, text in DOCUMENTS.items()
        for block in parse_page(Path(name).stem, text)
        if block.language in languages
    ]


def find_blocks(language: str) -> list[tuple[str, str]]:
    """Return each fenced block in this language, with a name for its test."""
    return [(block.name, block.text) for block in list_blocks(language)]


def needs_packages(block: str) -> bool:
    """Whether a Python block imports a package that is installed in another environment."""
    return bool(_PACKAGES.search(block))


def fill_in(text: str, base_url: str) -> str:
    """Replace the default address of `cromicle serve` in a block."""
    return text.replace("http://127.0.0.1:8000", base_url)


def parse_page(page: str, text: str) -> Iterator[Block]:
    """Yield the blocks of a page with this name."""
    # The requirements that each of the sections around the current part has named so far.
    sections: list[tuple[int, set[str]]] = [(0, set())]
    counts: dict[str, int] = {}
    for part in _PART.finditer(text):
        language, code, heading, prose = part.group("language", "code", "level", "prose")
        if heading:
            while sections[-1][0] >= len(heading):
                sections.pop()
            sections.append((len(heading), set()))
        elif code is None:
            lines = (line for line in prose.splitlines() if not line.startswith("|"))
            sections[-1][1].update(_find_requirements(" ".join(lines)))
        else:
            if language == "sh":
                sections[0][1].update(_find_requirements(code))
            counts[language] = counts.get(language, 0) + 1
            requirements = frozenset[str]().union(*(named for _, named in sections))
            yield Block(f"{page} {counts[language]}", language, code, requirements)


def write_samples(folder: Path) -> None:
    """Write the files that the command lines of the documents read."""
    for name, text in _SAMPLES.items():
        (folder / name).write_text(text, encoding="utf-8")


def _find_requirements(text: str) -> Iterator[str]:
    """Yield the requirements that a text names."""
    for arguments in _INSTALL.findall(text):
        for argument in shlex.split(arguments):
            project = _PROJECT.fullmatch(argument)
            if project:
                extras = (project[1] or "").split(",")
                yield from (f"[{extra}]" for extra in extras if extra)
            elif not argument.startswith("-"):
                yield argument
    for names in _EXTRAS.findall(text):
        yield from (f"[{name}]" for name in re.findall(r"[\w-]+(?=`)", names))
