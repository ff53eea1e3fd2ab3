"""The Markdown of a reply: what is drawn, in which style, and that nothing of it is lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from screens import Screen

from cromicle_sdk.cli import rendering as _rendering
from cromicle_sdk.cli.rendering import RenderedText, build_console


def open_console(width: int = 40, encoding: str = "utf-8") -> Console:
    return build_console(encoding, width=width, color_system="256", _environ={})


def draw(text: str, width: int = 40, encoding: str = "utf-8") -> Screen:
    """The screen after a whole text."""
    screen = Screen(width, 200)
    screen.feed("\r\n".join(render(text, open_console(width, encoding))).encode())
    return screen


def render(text: str, console: Console) -> list[str]:
    """The lines of a whole text, with their styles."""
    rendered = RenderedText(console)
    rendered.append(text)
    lines, rest = rendered.render(console.width, 24, is_last=True)
    assert not rest
    return lines


def stream(text: str, sizes: list[int], height: int, width: int = 40) -> str:
    """What has become final of a text that comes in pieces, without its styles."""
    rendered = RenderedText(open_console(width))
    final: list[str] = []
    position = 0
    for size in sizes:
        rendered.append(text[position : position + size])
        position += size
        lines, open_lines = rendered.render(width, height)
        assert len(open_lines) <= height
        final += lines
    rendered.append(text[position:])
    final += rendered.render(width, height, is_last=True)[0]
    screen = Screen(width, max(1, len(final)))
    screen.feed("\r\n".join(final).encode())
    return screen.text


BLOCKS = """# Title

Some **bold**, *italic*, ~~old~~ words, `code`
and a line break.

1. One
2. Two
   - below

     another paragraph

> A quote
> > in a quote

---

| a | b |
|---|--:|
| 1 | 23 |

```python
def f():

    return 1
```
The end.
"""

SHOWN = """Title

Some bold, italic, old words, code
and a line break.

 1. One
 2. Two
     • below

       another paragraph

▌ A quote
▌
▌ ▌ in a quote

----------------------------------------

a    b
──────
1   23

 def f():

     return 1

The end."""


def test_every_kind_of_block_is_drawn() -> None:
    assert draw(BLOCKS).text == SHOWN


def test_a_terminal_without_unicode_gets_ascii() -> None:
    assert draw("- a\n\n> b", encoding="ascii").text == " - a\n\n| b"


@pytest.mark.parametrize(
    ("text", "place", "styles"),
    [
        ("# Title", "Title", {"bold", "underscore", "magenta"}),
        ("## Title", "Title", {"bold", "magenta"}),
        ("### Title", "Title", {"bold"}),
        ("a **b** c", "b", {"bold"}),
        ("a *b* c", "b", {"italics"}),
        ("a ~~b~~ c", "b", {"strikethrough"}),
        ("a `b` c", "b", {"bold", "cyan"}),
        ("[a](http://b)", "http", {"underscore", "blue"}),
        ("- a", "•", {"bold", "brown"}),
    ],
)
def test_styles_say_what_the_marks_said(text: str, place: str, styles: set[str]) -> None:
    assert draw(text).find_styles(place) == styles


def test_code_is_highlighted() -> None:
    screen = draw("```python\ndef f(): pass\n```")
    assert screen.find_styles("def") != screen.find_styles("f()")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>Bold</b> & Vec<String>", "<b>Bold</b> & Vec<String>"),
        ("<script>\nalert(1)\n</script>", "<script>\nalert(1)\n</script>"),
        ("See [1].\n\n[1]: http://a.b", "See [1].\n\n[1]: http://a.b"),
        ("[Bank](http://evil.example)", "Bank (http://evil.example)"),
        ("<http://a.b>", "http://a.b"),
        ("![A cat](http://a.b/cat.png)", "A cat (http://a.b/cat.png)"),
        ("[![A cat](http://c.png)](http://a.b)", "A cat (http://c.png) (http://a.b)"),
        ("roses\nviolets", "roses\nviolets"),
        ("```\n\n  code\n", "\n   code"),
        ("    code", " code"),
        ("9. a\n10. b", " 9. a\n 10. b"),
        ("", ""),
        ("\n \n", ""),
        ("-\n- a", " •\n • a"),
    ],
)
def test_nothing_that_was_written_is_left_out(text: str, shown: str) -> None:
    assert draw(text).text == shown


@pytest.mark.parametrize("mark", ["> ", "- ", "1. "])
def test_a_deeply_nested_text_is_shown_as_it_is(mark: str) -> None:
    text = mark * 60 + "deep"
    assert draw(text, width=300).text == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a\x1b[31mb",
            "`a\x9bb`",
            "```\na\x07b\n```",
            "[a\u202eb](http://c)",
            "| a\u2066 |\n|---|",
        ),
        *("&#x202e;", "`&#8238;` \u202e", "# a\x00b", "```a\x1bb\nc\n```", "![\x1b](http://\x1b)"),
        "[a](http://b/\u202e&#x202e;)",
    ],
)
def test_no_control_and_no_bidi_character_reaches_the_terminal(text: str) -> None:
    written = "\n".join(render(text, open_console()))
    assert not set("\x00\x07\x9b\u202e\u2066") & set(written)
    # Those of styles remain.
    assert written.count("\x1b") == written.count("\x1b[")
    assert "\x1b[31mb" not in written


@pytest.mark.parametrize(
    "text", ["日本語" * 30, "👍 " * 50, "שלום עולם " * 20, "a" * 300, "é" * 100]
)
def test_a_narrow_terminal_shows_wide_and_rtl_text_in_its_lines(text: str) -> None:
    screen = draw(text, width=21)
    assert all(len(line) <= 21 for line in screen.lines)
    # pyte has an empty cell behind each wide character.
    shown = "".join(screen.lines).replace(" ", "")
    assert shown == text.replace(" ", "")


def test_a_block_is_final_once_another_one_has_begun() -> None:
    rendered = RenderedText(open_console())
    rendered.append("One\n\nT")
    assert rendered.render(40, 24) == ([], ["One", "", "T"])
    rendered.append("wo\n")
    assert rendered.render(40, 24) == (["One"], ["", "Two"])
    rendered.append("Three")
    assert rendered.render(40, 24) == ([], ["", "Two", "Three"])
    assert rendered.render(40, 24, is_last=True) == (["", "Two", "Three"], [])


def test_a_line_that_only_looks_like_a_heading_stays_in_its_paragraph() -> None:
    assert stream("One\n#hashtag", [5], 24) == "One\n#hashtag"


@pytest.mark.parametrize("height", [4, 7])
@pytest.mark.parametrize(
    "text",
    [
        "Before:\n\n```python\n" + "".join(f"x = {n}\n\n" for n in range(30)) + "```\n\nAfter.",
        "Before:\n\n" + "".join(f"1. item {n}\n   more\n" for n in range(30)) + "\nAfter.",
        "- a\n" * 30 + "\n\n* b\n" * 30,
        "a line\n" * 30 + "\nAfter.",
        "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 30,
        "1. one\n" + "   - below\n" * 30,
        (">" * 50 + " deep\n") * 10,
    ],
)
def test_what_is_longer_than_the_screen_looks_as_it_does_at_once(text: str, height: int) -> None:
    assert stream(text, [5] * (len(text) // 5), height) == draw(text).text


@given(data=st.data(), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_text_looks_the_same_for_any_chunks(data: st.DataObject, seed: int) -> None:
    blocks = BLOCKS.split("\n\n")
    random.Random(seed).shuffle(blocks)
    text = "\n\n".join(blocks)
    sizes = data.draw(st.lists(st.integers(1, 60), max_size=20))
    assert stream(text, sizes, 100) == draw(text).text


@pytest.mark.parametrize("before", ["", "```\n"])
@pytest.mark.parametrize("unit", ["word ", "line\n", "x"])
def test_a_block_without_an_end_costs_no_more_the_longer_it_is(
    before: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rendering, "MAX_BLOCK_LENGTH", 200)
    text = before + unit * 500
    rendered = RenderedText(open_console())
    shown: list[str] = []
    for start in range(0, len(text), 50):
        rendered.append(text[start : start + 50])
        shown += rendered.render(40, 10)[0]
        assert rendered.open_length <= 300
    shown += rendered.render(40, 10, is_last=True)[0]
    screen = Screen(40, len(shown))
    screen.feed("\r\n".join(shown).encode())
    assert "".join("".join(screen.lines).split()) == (unit * 500).replace(" ", "").replace("\n", "")
