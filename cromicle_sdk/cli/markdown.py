"""Rendering of a reply's Markdown for a terminal, block by block.

rich's own `Markdown` is not used, because it omits parts of a reply: HTML, link definitions, the
targets of images, and line breaks. Here, all of them are shown.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.rule import Rule
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from .output import remove_controls

__all__ = ["Block", "build_plain", "divide", "divide_anywhere", "split_blocks"]

# At a deeper nesting, the parser omits text, so such a text is shown unrendered.
_MAX_NESTING = 40

_CODE_THEME = "monokai"

_INLINE_STYLES = {"strong": Style(bold=True), "em": Style(italic=True), "s": Style(strike=True)}
_CODE_STYLE = Style(color="cyan", bold=True)
_URL_STYLE = Style(color="blue", underline=True)
_HEADING_STYLES = {
    "h1": Style(bold=True, underline=True, color="magenta"),
    "h2": Style(bold=True, color="magenta"),
}
_MARK_STYLE = Style(bold=True, color="yellow")

# The number of an item in an ordered list.
_NUMBER = re.compile(r"^\d+(?=[.)])")

# The marks of lists and quotes on a terminal that supports only ASCII.
_ASCII = {ord("•"): "-", ord("▌"): "|"}


@dataclass(frozen=True)
class Block:
    """A block of a text, such as a paragraph or a list, with the number of its first line."""

    start: int
    node: SyntaxTreeNode | None
    drawing: RenderableType


def split_blocks(text: str) -> list[Block]:
    """Split a text into its blocks."""
    tokens = _parser().parse(text)
    if any(token.level >= _MAX_NESTING - 1 for token in tokens):
        return [Block(0, None, build_plain(text))]
    return [
        Block(node.map[0], node, _build(node))
        for node in SyntaxTreeNode(tokens).children
        if node.map is not None
    ]


def divide(block: Block, lines: list[str]) -> tuple[str, str] | None:
    """Divide the only block of these lines into two texts that together look the same.

    The second text is as short as possible. Returns None if the block cannot be divided.
    """
    node = block.node
    if node is None:
        return None
    if node.type == "fence":
        # The last line may be the closing fence, which must stay with the line before.
        cut = len(lines) - 2
        is_divisible = cut >= block.start + 2
        first_line = f"{lines[block.start]}\n{lines[cut]}"
    else:
        cut = _find_last_item(node)
        is_divisible = cut > block.start
        # Markdown numbers the items from the first one, regardless of the other numbers.
        number = int(node.attrs.get("start", 1)) + len(node.children) - 1
        first_line = _NUMBER.sub(str(number), lines[cut])
    if not is_divisible:
        return None
    return "\n".join(lines[block.start : cut]), "\n".join([first_line, *lines[cut + 1 :]])


def divide_anywhere(block: Block, text: str) -> tuple[str, str]:
    """Divide the only block at a line break or a space. Both parts of a code block are code."""
    prefix = ""
    if block.node is not None and block.node.type == "fence":
        prefix = text.split("\n")[block.start] + "\n"
    _, _, rest = text.partition(prefix) if prefix else ("", "", text)
    cut = max(rest.rfind("\n"), rest.rfind(" ")) + 1 or len(rest)
    return prefix + rest[:cut], prefix + rest[cut:]


def _find_last_item(node: SyntaxTreeNode) -> int:
    """Return the line at which the last item of a list begins, or 0 if it is not a list."""
    if node.type not in ("bullet_list", "ordered_list"):
        return 0
    lines = node.children[-1].map
    return 0 if lines is None else lines[0]


def build_plain(text: str) -> Text:
    """Return a text without rendering."""
    return Text(remove_controls(text).rstrip("\n"), overflow="fold")


@functools.cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": _MAX_NESTING})
    # A link definition would not be shown, and a reference to it may already be on the screen.
    return parser.enable(["strikethrough", "table"]).disable("reference")


def _build(node: SyntaxTreeNode) -> RenderableType:
    match node.type:
        case "fence" | "code_block":
            return _build_code(node)
        case "heading":
            text = _build_inline(node)
            text.stylize_before(_HEADING_STYLES.get(node.tag, Style(bold=True)))
            return text
        case "bullet_list" | "ordered_list":
            return _build_list(node)
        case "blockquote":
            return _Marked("▌ ", "▌ ", node.children)
        case "table":
            return _build_table(node)
        case "hr":
            return Rule(style="dim", characters="-")
        case _:
            return _build_inline(node)


def _build_code(node: SyntaxTreeNode) -> RenderableType:
    language = remove_controls(node.info).split(maxsplit=1)
    return Syntax(
        remove_controls(node.content).removesuffix("\n"),
        language[0] if language else "text",
        theme=_CODE_THEME,
        word_wrap=True,
        padding=(0, 1),
    )


def _build_list(node: SyntaxTreeNode) -> RenderableType:
    is_ordered = node.type == "ordered_list"
    first = int(node.attrs.get("start", 1))
    # Numbers are not aligned, so that an item does not depend on later ones, which may not have
    # arrived yet.
    return Group(
        *(
            _Marked(f" {first + index}. " if is_ordered else " • ", None, item.children)
            for index, item in enumerate(node.children)
        )
    )


def _build_table(node: SyntaxTreeNode) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for row in node.walk():
        if row.type != "tr":
            continue
        cells = [_build_inline(cell) for cell in row.children]
        if row.parent is not None and row.parent.type == "thead":
            for cell, source in zip(cells, row.children, strict=True):
                style = str(source.attrs.get("style", ""))
                side = style.removeprefix("text-align:")
                table.add_column(
                    cell, overflow="fold", justify="right" if side == "right" else "left"
                )
        else:
            table.add_row(*cells)
    return table


def _join(nodes: list[SyntaxTreeNode]) -> RenderableType:
    """Render the blocks of a list item or a quote, with the blank lines of the text."""
    parts: list[RenderableType] = []
    for index, node in enumerate(nodes):
        if index and not nodes[index - 1].hidden:
            parts.append(Text(""))
        parts.append(_build(node))
    return Group(*parts)


class _Marked:
    """Blocks with a mark at the left of the first line, and another mark at all other lines."""

    def __init__(self, first: str, others: str | None, nodes: list[SyntaxTreeNode]) -> None:
        self._first = first
        self._others = " " * len(first) if others is None else others
        self._style = _MARK_STYLE if others is None else Style(dim=True)
        self._drawing = _join(nodes)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inner = options.update(width=max(1, options.max_width - len(self._first)))
        mark = self._first
        # An empty item has a mark, too.
        for line in console.render_lines(self._drawing, inner, pad=False) or [[]]:
            yield Segment(mark.translate(_ASCII) if options.ascii_only else mark, self._style)
            yield from line
            yield Segment.line()
            mark = self._others


def _build_inline(node: SyntaxTreeNode) -> Text:
    text = Text(overflow="fold")
    for content, style in _walk_inline(node, Style()):
        # Entities such as &#x202e; have only now become characters.
        text.append(remove_controls(content), style)
    return text


def _walk_inline(node: SyntaxTreeNode, style: Style) -> Iterator[tuple[str, Style]]:
    """Yield the texts in a node, each with its style."""
    match node.type:
        case "text":
            yield node.content, style
        case "softbreak" | "hardbreak":
            # Models write poems and addresses with plain line breaks.
            yield "\n", style
        case "code_inline":
            yield node.content, style + _CODE_STYLE
        case "link":
            yield from _walk_link(node, style)
        case "image":
            yield from _walk_children(node, style)
            yield f" ({node.attrs['src']})", style + _URL_STYLE
        case _:
            yield from _walk_children(node, style + _INLINE_STYLES.get(node.type, Style()))


def _walk_link(node: SyntaxTreeNode, style: Style) -> Iterator[tuple[str, Style]]:
    """Yield the text of a link and its target, so that a link cannot hide its target."""
    shown = list(_walk_children(node, style))
    target = str(node.attrs["href"])
    if "".join(content for content, _ in shown) != target:
        yield from shown
        yield " (", style
        yield target, style + _URL_STYLE
        yield ")", style
    else:
        yield target, style + _URL_STYLE


def _walk_children(node: SyntaxTreeNode, style: Style) -> Iterator[tuple[str, Style]]:
    for child in node.children:
        yield from _walk_inline(child, style)
