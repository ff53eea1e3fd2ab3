"""The accepted tokens: given ones, or those of a file that can be reloaded."""

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

# A token file is short; a wrong path (a device, a log) must not be read into memory.
_LONGEST_FILE_BYTES = 1024 * 1024

# It would be part of the token, which no client would then match.
_TRAILING_COMMENT = re.compile(rb"\s#")


class Tokens:
    """A set of accepted tokens. Its repr shows their number and none of them."""

    def __init__(self, tokens: Iterable[Secret]) -> None:
        self._tokens = tuple(tokens)

    @property
    def has_well_known(self) -> bool:
        """Whether the well-known default token is accepted."""
        return any(token.reveal() == DEFAULT_TOKEN for token in self._tokens)

    def find(self, token: str) -> Secret | None:
        """The accepted token that equals `token`, or None.

        Every token is compared, each in constant time, so that the duration reveals neither which
        one matched nor how much of any was correct.
        """
        sent, found = token.encode(), None
        for accepted in self._tokens:
            if hmac.compare_digest(sent, accepted.reveal().encode()):
                found = accepted
        return found

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._tokens)}>"


class TokenFile(Tokens):
    """The tokens in a file: UTF-8, one per line; a line that starts with `#` is a comment.

    White space around a token is not part of it. The constructor reads the file; `reload` reads
    it again, which `serve` and `cromicle serve` do on SIGHUP.

    Raises `ConfigurationError` if the file cannot be read or holds no token. Errors name the file
    and the line, never its content.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        super().__init__(_read_tokens(self._path))

    def reload(self, *, allow_well_known: bool = True) -> bool:
        """Read the file again; returns True if its tokens are now the accepted ones.

        If that fails, or if the file holds the well-known token and `allow_well_known` is
        false, the previous tokens stay valid. Either case logs one line to `cromicle_sdk.server`.
        """
        logger = logging.getLogger("cromicle_sdk.server")
        try:
            tokens = Tokens(_read_tokens(self._path))
            if tokens.has_well_known and not allow_well_known:
                raise ConfigurationError(
                    f"{self._path} holds the well-known token, which admits everybody",
                    option="tokens",
                )
        except ConfigurationError as error:
            logger.error("%s; the previous tokens stay valid", error)
            return False
        self._tokens = tokens._tokens
        logger.info("tokens: %d loaded from %s", len(self._tokens), self._path)
        return True


@dataclass(frozen=True)
class GivenTokens:
    """The options `token` and `tokens` of `create_app`, not yet checked and hidden in any repr.

    `several` holds the values of `tokens`, or its type if that is not an iterable of tokens.
    """

    token: Secret | None
    several: Tokens | tuple[Secret, ...] | type | None


def hide_tokens(token: str | None, tokens: Iterable[str] | Tokens | None) -> GivenTokens:
    """Wrap both options before any check.

    A `ConfigurationError` passes through frames whose locals a traceback may print.
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
    """The accepted tokens. Raises `ConfigurationError`, which names the option or variable."""
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
        raise ConfigurationError(f"{path} is too long for a token file", option="tokens")
    return _parse_tokens(path, data)


def _parse_tokens(path: Path, data: bytes) -> list[Secret]:
    tokens: list[Secret] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith(b"#"):
            continue
        if _TRAILING_COMMENT.search(stripped):
            raise ConfigurationError(
                f"line {number} of {path} ends in a comment",
                option="tokens",
                hint="a comment needs its own line",
            )
        try:
            tokens.append(Secret(stripped.decode()))
        except UnicodeDecodeError:
            problem = f"line {number} of {path} is not UTF-8"
        else:
            continue
        # Raised here, so that the UnicodeDecodeError, which holds the line, is not its context.
        raise ConfigurationError(problem, option="tokens")
    if not tokens:
        raise ConfigurationError(f"{path} holds no token", option="tokens")
    return tokens
