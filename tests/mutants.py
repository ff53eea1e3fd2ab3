"""The mutants of a module: its source with one small change each, by the operators of mutmut.

Only what runs inside a function is changed. Constants, class bodies and default arguments are not,
nor what a type checker alone reads.
"""

from __future__ import annotations

import ast
import difflib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst.metadata import (
    CodeRange,
    MetadataWrapper,
    PositionProvider,
    WhitespaceInclusivePositionProvider,
)
from mutmut.mutation.mutators import mutation_operators

__all__ = ["Mutant", "find_mutants"]

# A wrong argument of these fails at once, or, of `cast`, is only read by type checkers.
_UNCHANGED_CALLS = {"cast", "isinstance", "len"}


@dataclass(frozen=True)
class Mutant:
    path: Path
    source: str
    lines: range
    """The lines of the changed part, and the first one of its statement."""
    function: str
    """The outermost function around it."""
    function_line: int
    """Where that begins, as `co_firstlineno` counts."""
    diff: str
    """The removed and the added lines, without their indentation."""


def find_mutants(path: Path) -> list[Mutant]:
    source = path.read_text("utf-8")
    starts = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]
    wrapper = MetadataWrapper(cst.parse_module(source))
    # With the parentheses around an expression, which are a part of its code.
    spans = wrapper.resolve(WhitespaceInclusivePositionProvider)
    finder = _Finder(wrapper.resolve(PositionProvider))
    wrapper.module.visit(finder)
    unique: dict[str, Mutant] = {}
    for change in finder.changes:
        span = spans[change.node]
        start = starts[span.start.line - 1] + span.start.column
        end = starts[span.end.line - 1] + span.end.column
        changed = source[:start] + wrapper.module.code_for_node(change.replacement) + source[end:]
        if changed not in unique and _compiles(changed):
            unique[changed] = Mutant(
                path,
                changed,
                change.lines,
                change.function.name.value,
                finder.get_first_line(change.function),
                _format_diff(source, changed),
            )
    return list(unique.values())


@dataclass(frozen=True)
class _Change:
    node: cst.CSTNode
    replacement: cst.CSTNode
    lines: range
    function: cst.FunctionDef


class _Finder(cst.CSTVisitor):
    def __init__(self, positions: Mapping[cst.CSTNode, CodeRange]) -> None:
        super().__init__()
        self._positions = positions
        self._functions: list[cst.FunctionDef] = []
        self._statements: list[cst.CSTNode] = []
        self.changes: list[_Change] = []

    def get_first_line(self, function: cst.FunctionDef) -> int:
        first: cst.CSTNode = function.decorators[0] if function.decorators else function
        return self._positions[first].start.line

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, (cst.Annotation, cst.Decorator, cst.Parameters)):
            return False
        if isinstance(node, cst.FunctionDef):
            self._functions.append(node)
        if isinstance(node, (cst.SimpleStatementLine, cst.BaseCompoundStatement)):
            self._statements.append(node)
        if self._functions and not _is_for_type_checkers(node):
            self.changes.extend(self._make_changes(node))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if self._functions and self._functions[-1] is original_node:
            self._functions.pop()
        if self._statements and self._statements[-1] is original_node:
            self._statements.pop()

    def _make_changes(self, node: cst.CSTNode) -> Iterator[_Change]:
        for kind, operator in mutation_operators:
            # The operator for `match` changes whole blocks.
            if isinstance(node, kind) and kind is not cst.Match:
                first = self._positions[self._statements[-1]].start.line
                lines = range(first, self._positions[node].end.line + 1)
                replacements = operator(node)
                if kind is cst.BaseString:
                    # One change is enough; the name of a codec in upper case is the same one.
                    replacements = itertools.islice(replacements, 1)
                for replacement in replacements:
                    yield _Change(node, replacement, lines, self._functions[0])


def _is_for_type_checkers(node: cst.CSTNode) -> bool:
    return (
        isinstance(node, cst.Call)
        and isinstance(node.func, cst.Name)
        and node.func.value in _UNCHANGED_CALLS
    )


def _compiles(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _format_diff(source: str, changed: str) -> str:
    before = [line.strip() for line in source.splitlines()]
    after = [line.strip() for line in changed.splitlines()]
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    return "\n".join(f"{line[0]} {line[1:]}" for line in lines if not line.startswith("@@"))
