"""Redaction: every spelling of a secret is found, in linear time."""

from __future__ import annotations

import html
import json
import secrets
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cromicle_sdk._core.redaction import redact
from cromicle_sdk._core.secrets import Secret

TOKEN = 'sk-"c\u00e4n\\ary" 1'

# How long redaction may take for the body of an error, in seconds of CPU: 6 ms on a machine that
# does nothing else, and a multiple of that for those that do. A quadratic search takes minutes.
BODY_BYTES = 72 * 1024
PATIENCE = 0.25


def hide(text: str, token: str) -> str:
    return redact(text, [Secret(token)])


def as_latin_1(token: str) -> str:
    return token.encode().decode("latin-1")


def as_html_numbers(token: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else f"&#{ord(c)};" for c in token)


# A program that echoes a token spells it in one of these ways.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "JSON": lambda token: json.dumps(token)[1:-1],
    "JSON in UTF-8": lambda token: json.dumps(token, ensure_ascii=False)[1:-1],
    "JSON in JSON": lambda token: json.dumps(json.dumps(token))[3:-3],
    "JSON in JSON in JSON": lambda token: json.dumps(json.dumps(json.dumps(token)))[7:-7],
    "repr": lambda token: repr(token)[1:-1],
    "ascii": lambda token: ascii(token)[1:-1],
    "repr of bytes": lambda token: repr(token.encode())[2:-1],
    "repr of JSON": lambda token: repr(json.dumps(token))[2:-2],
    "in a URL": lambda token: quote(token, safe=""),
    "in a URL in lower case": lambda token: quote(token, safe="").replace("%C3%A4", "%c3%a4"),
    "in a form": quote_plus,
    "in HTML": html.escape,
    "in HTML, in numbers": as_html_numbers,
    "in HTML, in hexadecimal": lambda token: "".join(
        c if c.isalnum() and c.isascii() else f"&#x00{ord(c):X};" for c in token
    ),
    "JSON in HTML": lambda token: html.escape(json.dumps(token))[6:-6],
    "HTML in JSON": lambda token: json.dumps(html.escape(token))[1:-1],
    "as Latin-1": as_latin_1,
    "JSON of Latin-1": lambda token: json.dumps(as_latin_1(token))[1:-1],
    "repr of Latin-1": lambda token: repr(as_latin_1(token))[1:-1],
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize(
    "token",
    [
        *(TOKEN, "-_x", "\u65e5\u672c \U0001f600", "a+b c", "a%2d-", "<&>'", "t\tn\nr\r\x00"),
        # The rest in ASCII is found too, and ends earlier.
        *("kanarien-4711\u65e5", "\U00010000 x"),
    ],
)
def test_a_secret_is_found_in_every_spelling(name: str, token: str) -> None:
    assert hide(f"<{SPELLINGS[name](token)}>", token) == "<[redacted]>"


@pytest.mark.parametrize(
    "text",
    [
        r"sk-\"c\xe4n\\ary\" 1",
        r"sk\-\\\\\"c\u00E4n\\\\ary\\u0022\U000000201",
        "sk%2d%22c%c3%a4n%5cary%22+1",
        "sk&#045;&#x0000022;c&#228;n&#x5C;ary&#00034; 1",
        "sk%2D&quot;c\u00c3\u00a4n\\ary\\u0022\\x201",
    ],
)
def test_a_secret_is_found_in_a_mixture_of_spellings(text: str) -> None:
    assert hide(f"<{text}>", TOKEN) == "<[redacted]>"


LATIN = "kanarien-v\u00f6gel\u65e5 4711"


@pytest.mark.parametrize(
    "echo",
    [
        LATIN.encode("ascii", "ignore").decode(),
        LATIN.encode("ascii", "replace").decode(),
        LATIN.encode("latin-1", "replace").decode("latin-1"),
        LATIN.encode("latin-1", "replace").decode("utf-8", "replace"),
        LATIN.encode().decode("ascii", "replace"),
        quote_plus(LATIN.encode("latin-1", "replace")),
        json.dumps(LATIN.encode("cp1252", "replace").decode("utf-8", "replace"))[1:-1],
    ],
)
def test_a_secret_is_found_after_a_wrong_decoding(echo: str) -> None:
    assert hide(f"<{echo}>", LATIN) == "<[redacted]>"
    assert hide("What? kanarien-vogel 4711?", LATIN) == "What? kanarien-vogel 4711?"


def test_what_is_left_of_a_short_secret_may_be_an_ordinary_word() -> None:
    assert hide("plain text", "\u65e5plain") == "plain text"
    assert hide("a planets' orbit", "\u65e5planets") == "a planets' orbit"
    assert hide("a planetary orbit", "\u65e5planetar") == "a [redacted]y orbit"


def test_a_secret_that_looks_like_a_spelling_is_found_without_its_backslashes() -> None:
    assert hide("<x2d->", "\\x2d-") == "<[redacted]>"


def test_an_echo_that_is_the_whole_text() -> None:
    assert hide("%2d", "-") == "[redacted]"


def test_a_character_is_spelled_in_two_digits_only_if_it_has_no_more() -> None:
    text = r"100%, %100 and \x100"
    assert hide(text, "\u0100") == text


def test_several_secrets_and_several_echoes() -> None:
    text = "a-b, a%2db: a-ba-b; c_d c&#95;d"
    redacted = redact(text, [Secret("a-b"), Secret("c_d"), Secret("abc")])
    assert redacted == ("[redacted], [redacted]: [redacted][redacted]; [redacted] [redacted]")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "an ordinary text",
        "a\\b \\ \\\\ \\q \\u12 \\x1 \\U0000000g \\U99999999 \\ud83d \\ud83d\\ude00",
        "% %2 %zz %25 &amp; &#; &#x; &#xzz; &#99999999999; &#x110000; & \\& \\% +",
        "\u00c3\u00a4 \u00c3 \u00ff\u00bf \u00e0\u0080\u0080",
        "-_ sk-c -_",
    ],
)
@pytest.mark.parametrize("token", ["sk-1", "\u00e4\u00f6 -", "a\\b\u65e5", "0-%"])
def test_other_text_stays_as_it_is(text: str, token: str) -> None:
    assert hide(text, token) == text


def test_spellings_that_overlap_are_redacted_once() -> None:
    # Unescaped, this is "%2d--", in which both "%2d-" and what that is unescaped, "--", are found.
    assert hide("%252d--", "%2d-") == "[redacted]-"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("\\\\\\u002dx", "[redacted]"),
        ("\\\\-\\xb\\", "[redacted]b\\"),
        ("a\\u002dxb\\u002d", "a[redacted]b\\u002d"),
        ("%2Dx%2d%41", "[redacted]%2d%41"),
        ("\\n-x\\n", "\\n[redacted]\\n"),
        ('{"a": "\\"q\\" %2dx", "b": "\\u0041"}', '{"a": "\\"q\\" [redacted]", "b": "\\u0041"}'),
    ],
)
def test_the_text_around_an_echo_stays_as_it_is(text: str, redacted: str) -> None:
    assert hide(text, "-x") == redacted


def test_a_text_that_spells_a_secret_very_often_is_redacted_as_a_whole() -> None:
    assert hide("%2dx!" * 1000, "-x") == "[redacted]!" * 1000
    assert hide("%2dx!" * 1001, "-x") == "[redacted]"
    # Not where it needs no decoding.
    assert hide("-x!" * 1001, "-x") == "[redacted]!" * 1001


def test_the_well_known_token_stays() -> None:
    assert hide("abcdef abc", "abc") == "abcdef abc"


@pytest.mark.parametrize("token", ["\\", "\\" * 60])
def test_a_secret_of_backslashes(token: str) -> None:
    assert hide(f"<{token}>", token) == "<[redacted]>"
    assert hide("< >", token) == "< >"


@settings(deadline=None, max_examples=300)
@given(st.text(min_size=1, max_size=20), st.text(max_size=40), st.text(max_size=40))
def test_nothing_of_a_secret_stays(token: str, before: str, after: str) -> None:
    assume(token not in "[redacted]\0" and token != "abc")
    assert token not in hide(before + token + after, token).replace("[redacted]", "\0")


@settings(deadline=None, max_examples=500)
@given(st.text(min_size=1, max_size=12), st.sampled_from(sorted(SPELLINGS)), st.booleans())
def test_any_secret_is_found_in_any_spelling(token: str, name: str, surrounded: bool) -> None:
    assume(token.strip("\\") and token not in "[redacted]" and token != "abc")
    spelled = SPELLINGS[name](token)
    assert "[redacted]" in hide(f'{{"token": "{spelled}"}}' if surrounded else spelled, token)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_urlsafe_token_is_found_in_any_mixture_of_spellings(data: st.DataObject) -> None:
    token = data.draw(st.text("ab019-_", min_size=3, max_size=12))
    forms = [form for name, form in SPELLINGS.items() if "JSON in" not in name]
    extra: list[Callable[[str], str]] = [
        lambda c: f"\\\\{c}",
        lambda c: f"%{ord(c):02X}",
        lambda c: f"\\\\u{ord(c):04x}",
        lambda c: f"\\x{ord(c):02x}",
        lambda c: f"&#x{ord(c):x};",
    ]
    spelled = "".join(
        c if c.isalnum() else data.draw(st.sampled_from(forms + extra))(c) for c in token
    )
    assert "[redacted]" in hide(f"x{spelled}x", token)


def adversarial_bodies(token: str) -> Iterator[str]:
    """Texts that make a search with backtracking start again and again."""
    yield "\\" * BODY_BYTES
    yield "\\" * 6000 + "q"
    for part in ("\\-", "\\\\_", "%2d", "%5F", "-", "_", "\\u002d", "\\x5f", "&#45;", "&#"):
        yield part * (BODY_BYTES // len(part))
    yield "&#" + "0" * BODY_BYTES
    yield ("\\" * 50 + "q") * (BODY_BYTES // 51)
    yield ("&#" + "0" * 50) * (BODY_BYTES // 52)
    yield "".join("\\-" if number % 2 else "%5f" for number in range(BODY_BYTES * 2 // 5))
    yield "".join(f"\\u{number:04x}" for number in range(BODY_BYTES // 6))
    yield "".join("\\" * number + "-" for number in range(380))
    yield "\\ud83d" * (BODY_BYTES // 6)
    yield ("\\ud83d" + "\\" * 100) * (BODY_BYTES // 106)
    yield json.dumps(json.dumps(json.dumps('"-_' * 3000)))[:BODY_BYTES]
    for part in ("\\u", "\\U", "\\x", "%", "&", "&#x", "\\u002d\\U0000005F", "%2d%5f!"):
        yield part * (BODY_BYTES // len(part))
    almost = "".join(c if c.isalnum() else f"\\{c}" for c in token[:-1])
    yield (almost + "!") * (BODY_BYTES // (len(almost) + 1))
    for spell in (str, lambda text: quote(text, safe=""), as_html_numbers, as_latin_1):
        echo = spell(token)
        yield echo * (BODY_BYTES // len(echo))


def measure(body: str, token: str) -> float:
    """Seconds of CPU; at times with those of a garbage collection, which a large run makes long."""
    started = time.process_time()
    hide(body, token)
    return time.process_time() - started


@pytest.mark.parametrize(
    "token",
    [
        *("-" + secrets.token_urlsafe(32)[1:], "_" + secrets.token_urlsafe(32)[1:]),
        *("-" * 43, "_-" * 21 + "a", "a-" * 21 + "b", secrets.token_urlsafe(32), "-_"),
        *(TOKEN, "\\" * 60, "&#" * 10, "%" * 20, "+ +" * 10, "\u65e5\u672c\u8a9e" * 100),
    ],
    ids=lambda token: ascii(token[:8]),
)
def test_redaction_takes_linear_time(token: str) -> None:
    for body in adversarial_bodies(token):
        assert any(measure(body, token) < PATIENCE for _ in range(3)), body[:40]
