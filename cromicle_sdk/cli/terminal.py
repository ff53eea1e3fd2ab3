"""What a terminal may be shown: text, and nothing that could drive it."""

from __future__ import annotations

__all__ = ["make_harmless"]

# The controls of ECMA-48, C0, DEL and C1: an escape sequence can retitle the window, write to the
# clipboard or overwrite what stands on the screen. A mark in its place shows that it was there;
# carriage returns are the half of a line break in too many texts to mark each.
_HARMLESS = {
    **dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}"),
    ord("\r"): "",
    ord("\n"): "\n",
    ord("\t"): "\t",
}


def make_harmless(text: str) -> str:
    """The text with U+FFFD for control characters; line breaks and tabs stay, "\\r" goes."""
    return text.translate(_HARMLESS)
