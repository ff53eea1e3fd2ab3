"""Rendering of the pages of the documentation for a terminal."""

from __future__ import annotations

from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Markdown, MarkdownElement
from rich.syntax import Syntax

__all__ = ["Page"]


class _Code(CodeBlock):
    """A code block without padding and line breaks of its own, so that it can be copied."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # In the terminal's own colours, because a background would end with each line.
        code = Syntax("", self.lexer_name, theme="ansi_dark").highlight(str(self.text).rstrip())
        code.no_wrap = True
        code.overflow = "ignore"
        yield code


class Page(Markdown):
    """A page. Print it with `crop=False`: lines of code may be wider than the terminal."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
    }
