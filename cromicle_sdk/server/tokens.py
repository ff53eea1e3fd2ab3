"""Which tokens are accepted: given ones, or those of a file that can be read again."""

from __future__ import annotations

import hmac
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.options import check_token, find_token
from cromicle_sdk._core.secrets import DEFAULT_TOKEN, Secret

__all__ = ["TokenFile", "Tokens", "build_tokens", "hide_tokens"]

# A file of tokens is short; a wrong path (a disk, a log) is not to be read whole.
_LONGEST_FILE_BYTES = 1024 * 1024

# It would be taken for a part of the token, with which nobody gets in.
_COMMENT_BEHIND = re.compile(rb"\s#")


class Tokens:
    """The accepted tokens. Its repr shows how many they are, and none of them."""

    def __init__(self, tokens: Iterable[Secret]) -> None:
        self._tokens = tuple(tokens)

    @property
    def has_well_known(self) -> bool:
        """Whether the token that everyone knows is one of them."""
        return any(token.reveal() == DEFAULT_TOKEN for token in self._tokens)

    def find(self, token: str) -> Secret | None:
        """The accepted token that this is, or None.

        All of them are compared, each in constant time: how long it takes doesn't tell which one
        it was, nor how much of any was right.
        """
        sent, found = token.encode(), None
        for accepted in self._tokens:
            if hmac.compare_digest(sent, accepted.reveal().encode()):
                found = accepted
        return found

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._tokens)}>"


class TokenFile(Tokens):
    """The tokens in a file: UTF-8, one on each line; a line that begins with `#` is a comment.

    White space around a token is not part of it. The file is read here, and again by `reload`;
    `serve` and `cromicle serve` do that on SIGHUP.

    Raises `ConfigurationError` where it can't be read or holds no token. Errors name the file and
    the line, never what is in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        super().__init__(_read_tokens(self._path))

    def reload(self, *, allow_well_known: bool = True) -> bool:
        """Read the file again; whether its tokens are the accepted ones now.

        Where that fails, or the file holds the well-known token and `allow_well_known` is false,
        the tokens of before stay. Either way it is one line of the logger `cromicle_sdk.server`.
        """
        logger = logging.getLogger("cromicle_sdk.server")
        try:
            tokens = Tokens(_read_tokens(self._path))
            if tokens.has_well_known and not allow_well_known:
                raise ConfigurationError(
                    f"{self._path} holds the well-known token, which lets everybody in",
                    option="tokens",
                )
        except ConfigurationError as error:
            logger.error("%s; the tokens of before stay", error)
            return False
        self._tokens = tokens._tokens
        logger.info("tokens: %d read from %s", len(self._tokens), self._path)
        return True


@dataclass(frozen=True)
class GivenTokens:
    """The options `token` and `tokens` of `create_app`, unchecked, and shown to nobody.

    `several` is what `tokens` holds, or the type of it where it can hold none.
    """

    token: Secret | None
    several: Tokens | tuple[Secret, ...] | type | None


def hide_tokens(token: str | None, tokens: Iterable[str] | Tokens | None) -> GivenTokens:
    """The two options, wrapped before any of them can be wrong.

    An error about an option leaves through frames whose locals a traceback may print.
    """
    several: Tokens | tuple[Secret, ...] | type | None
    if tokens is None or isinstance(tokens, Tokens):
        several = tokens
    elif isinstance(tokens, (str, bytes)) or not isinstance(cast("object", tokens), Iterable):
        several = type(tokens)
    else:
        several = tuple(Secret(text) for text in tokens)
    return GivenTokens(None if token is None else Secret(token), several)


def build_tokens(given: GivenTokens) -> Tokens:
    """The accepted tokens. Raises `ConfigurationError`, which names the option or the variable."""
    if given.several is None:
        return Tokens([find_token(given.token)])
    if given.token is not None:
        raise ConfigurationError("pass token or tokens, not both", option="tokens")
    if isinstance(given.several, Tokens):
        return given.several
    if isinstance(given.several, type):
        kind = given.several.__name__
        raise ConfigurationError(
            f"expected an iterable of str or a TokenFile, not {kind}", option="tokens"
        )
    if not given.several:
        raise ConfigurationError("expected at least one token", option="tokens")
    for each in given.several:
        check_token("tokens", each)
    return Tokens(given.several)


def _read_tokens(path: Path) -> list[Secret]:
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_FILE_BYTES + 1)
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise ConfigurationError(f"{path} cannot be read: {problem}", option="tokens") from None
    if len(data) > _LONGEST_FILE_BYTES:
        raise ConfigurationError(f"{path} is too long for a file of tokens", option="tokens")
    return _parse_tokens(path, data)


def _parse_tokens(path: Path, data: bytes) -> list[Secret]:
    tokens: list[Secret] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith(b"#"):
            continue
        if _COMMENT_BEHIND.search(stripped):
            raise ConfigurationError(
                f"line {number} of {path} has a # in it",
                option="tokens",
                hint="a comment needs its own line",
            )
        try:
            tokens.append(Secret(stripped.decode()))
        except UnicodeDecodeError:
            problem = f"line {number} of {path} is not UTF-8"
        else:
            continue
        # Raised out here so that the error above, which holds the line, is not its context.
        raise ConfigurationError(problem, option="tokens")
    if not tokens:
        raise ConfigurationError(f"{path} holds no token", option="tokens")
    return tokens
