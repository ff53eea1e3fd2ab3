"""Errors of the SDK in the words of the command: flags for options, advice that fits a shell."""

from __future__ import annotations

import re

from cromicle_sdk._core.errors import CromicleError

__all__ = ["describe_error"]

# Not inside a URL or a longer name.
_ALONE = r"(?<![\w/.-]){}(?![\w/-])"

_COMMAND_WORDS = [
    (re.compile(r"^token(?=:)|\bthe option token\b"), "--token"),
    (re.compile(r"^headers(?=:)"), "--header"),
    (re.compile(r" The text so far is in partial_text\."), " Ask again for the whole reply."),
    (
        re.compile(r" The text before that is in partial_text;.*"),
        " Check that --base-url is a Cromicle endpoint.",
    ),
    (re.compile(r"\bpass verify=ssl_context\b"), "set $SSL_CERT_FILE to its certificate"),
    (re.compile(r" Raise that option if such a reply is wanted\."), " Ask for a shorter one."),
    (
        re.compile(r"\bpass a token of your own, or a loopback host$"),
        "pass a --token of your own, or --tokens-file without it, or a loopback --host",
    ),
    (re.compile(r"^host(?= '| must)"), "--host"),
    (
        re.compile(r"\bmust be a str of visible ASCII characters, or None$"),
        "must be visible ASCII characters, without spaces",
    ),
    (re.compile(r"\bthe option proxy, or (?=the proxy variables\b)"), ""),
    (re.compile(_ALONE.format("base_url")), "--base-url"),
    (re.compile(_ALONE.format(r"timeout\.(?:connect|first_byte|stall)")), "--timeout"),
    (re.compile(_ALONE.format(r"timeout\.total")), "--total"),
]


def describe_error(error: CromicleError) -> str:
    """The error's message for somebody who has the command, and no Python, before them."""
    message = str(error)
    for pattern, words in _COMMAND_WORDS:
        message = pattern.sub(words, message)
    return message
