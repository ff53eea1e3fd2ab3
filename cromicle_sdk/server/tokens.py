"""The accepted tokens: passed as options, or read from a file that can be reloaded."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from starlette.types import Scope

from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.options import check_token, find_token
from cromicle_sdk._core.secrets import DEFAULT_TOKEN, Secret

__all__ = [
    "AcceptedToken",
    "TokenFile",
    "Tokens",
    "build_tokens",
    "find_token_of",
    "hide_tokens",
    "set_token",
]

# The key in a scope's state.
_TOKEN = "cromicle_sdk.token"  # noqa: S105 - a name

# A token file is short; a wrong path (a disk image, a log) must not be read into memory.
_MAX_FILE_BYTES = 16 * 1024 * 1024

# The start of a comment after a token. A `#` without white space before it is part of the token.
_COMMENT = re.compile(rb"\s+#")

# The log consists of `key=value` pairs, so a label must not have white space or `=`.
_NOT_IN_LABEL = re.compile(r"[^\w.@+-]+")
_MAX_LABEL_LENGTH = 40

# 95 bits if the token is random. A shorter token is likely to be a word.
_MIN_SAFE_LENGTH = 16


@dataclass(frozen=True)
class AcceptedToken:
    """A token, and the comment on its line of a file, which may be empty."""

    secret: Secret
    comment: str = ""

    @property
    def label(self) -> str:
        """The name of the token in the log: its comment, otherwise a fingerprint of 32 bits."""
        if self.comment:
            return self.comment
        # The prefix makes it unrelated to the hashes of the protocol.
        data = b"cromicle token: " + self.secret.reveal().encode()
        return hashlib.sha256(data).hexdigest()[:8]


class Tokens:
    """A set of accepted tokens. Its repr shows only their number."""

    def __init__(self, tokens: Iterable[AcceptedToken]) -> None:
        self._key = secrets.token_bytes(32)
        self._by_digest = {self._digest(token.secret.reveal()): token for token in tokens}

    @property
    def has_well_known(self) -> bool:
        """Whether the well-known default token is accepted."""
        return self.find(DEFAULT_TOKEN) is not None

    def find(self, token: str) -> AcceptedToken | None:
        """Return the accepted token that equals `token`, or None.

        The duration does not depend on the number of tokens and reveals nothing about them, because
        digests with a random key are compared.
        """
        return self._by_digest.get(self._digest(token))

    def warn_of_short_ones(self) -> None:
        """Log a warning if any token is short enough to be guessed."""
        tokens = self._by_digest.values()
        short = sum(len(token.secret.reveal()) < _MIN_SAFE_LENGTH for token in tokens)
        if short:
            logging.getLogger("cromicle_sdk.server").warning(
                "tokens: %d of %d have fewer than %d characters and can be guessed; "
                'python -c "import secrets; print(secrets.token_urlsafe())" prints a safe one',
                short,
                len(tokens),
                _MIN_SAFE_LENGTH,
            )

    def replace(self, other: Tokens) -> None:
        """Accept the tokens of `other` in place of these."""
        self._key, self._by_digest = other._key, other._by_digest

    def __len__(self) -> int:
        return len(self._by_digest)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"

    def _digest(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode(), key=self._key, digest_size=32).digest()


class TokenFile(Tokens):
    """The tokens in a file: UTF-8, one per line; a line that starts with `#` is a comment.

    White space around a token is ignored. A `#` after white space begins a comment, which
    represents the token in the access log: `s3cret  # alice`. The constructor reads the file.
    `serve` and `cromicle serve` reload it on SIGHUP. If all users of the machine can read the file,
    a warning is logged.

    Raises `ConfigurationError` if it is not a regular file or a link to one, if it cannot be read,
    or if it contains no token. Errors name the file and the line, never its content.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        super().__init__(_read_tokens(self._path))

    def reload(self, *, allow_well_known: bool = True) -> bool:
        """Reload the file. Returns True if its tokens are now the accepted ones.

        If the file is invalid, or contains the well-known token while `allow_well_known` is false,
        the previous tokens stay valid and False is returned. The result is logged as one line of
        `cromicle_sdk.server`. If `allow_well_known` is false, short tokens cause a warning.
        """
        logger = logging.getLogger("cromicle_sdk.server")
        try:
            tokens = Tokens(_read_tokens(self._path))
            if tokens.has_well_known and not allow_well_known:
                raise ConfigurationError(
                    f"{self._path} contains the well-known token, which admits everybody",
                    option="tokens",
                )
        except ConfigurationError as error:
            logger.error("%s; the previous tokens stay valid", error)
            return False
        self.replace(tokens)
        logger.info("tokens: %d loaded from %s", len(self), self._path)
        if not allow_well_known:
            self.warn_of_short_ones()
        return True


def set_token(scope: Scope, token: AcceptedToken) -> None:
    """Store the token of a request in its scope."""
    scope["state"][_TOKEN] = token


def find_token_of(scope: Scope) -> AcceptedToken | None:
    """Return the token of a request, or None while it is unknown."""
    token: AcceptedToken | None = scope["state"].get(_TOKEN)
    return token


@dataclass(frozen=True)
class GivenTokens:
    """The unchecked options `token` and `tokens` of `create_app`, hidden in any repr.

    `several` is the value of `tokens`, or its type if that is not an iterable of tokens.
    """

    token: Secret | None
    several: Tokens | tuple[Secret, ...] | type | None


def hide_tokens(token: str | None, tokens: Iterable[str] | Tokens | None) -> GivenTokens:
    """Wrap both options before any check.

    Otherwise the traceback of a `ConfigurationError` could print them as locals of its frames.
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
    """Return the accepted tokens.

    Raises `ConfigurationError`, which names the option or environment variable.
    """
    if given.several is None:
        return Tokens([AcceptedToken(find_token(given.token))])
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
    return Tokens(map(AcceptedToken, given.several))


def _read_tokens(path: Path) -> list[AcceptedToken]:
    try:
        data = _read_regular_file(path)
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise ConfigurationError(f"{path} cannot be read: {problem}", option="tokens") from None
    if data is None:
        raise ConfigurationError(f"{path} is not a regular file", option="tokens")
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is too long for a token file", option="tokens")
    return _parse_tokens(path, data)


def _read_regular_file(path: Path) -> bytes | None:
    """Return at most one byte more than the limit, or None if it is not a regular file."""
    # Opening a FIFO without a writer would block, and a terminal would become the controlling one.
    flags = sum(getattr(os, name, 0) for name in ("O_BINARY", "O_NOCTTY", "O_NONBLOCK"))
    # `os.fdopen` would not close the file descriptor of a directory, which it rejects.
    with open(path, "rb", opener=lambda name, _: os.open(name, os.O_RDONLY | flags)) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            return None
        if sys.platform != "win32" and mode & stat.S_IROTH:
            logging.getLogger("cromicle_sdk.server").warning(
                "tokens: other users of this machine can read %s; chmod o-r prevents it", path
            )
        return file.read(_MAX_FILE_BYTES + 1)


def _parse_tokens(path: Path, data: bytes) -> list[AcceptedToken]:
    tokens: list[AcceptedToken] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith(b"#"):
            continue
        token, *comment = _COMMENT.split(stripped, maxsplit=1)
        try:
            secret = Secret(token.decode())
        except UnicodeDecodeError:
            problem = f"line {number} of {path} is not UTF-8"
        else:
            tokens.append(AcceptedToken(secret, _build_label(b"".join(comment))))
            continue
        # Raised here, so that the UnicodeDecodeError, which holds the line, is not its context.
        raise ConfigurationError(problem, option="tokens")
    if not tokens:
        raise ConfigurationError(f"{path} contains no token", option="tokens")
    return tokens


def _build_label(comment: bytes) -> str:
    text = comment.decode(errors="replace").strip()
    return _NOT_IN_LABEL.sub("_", text)[:_MAX_LABEL_LENGTH].strip("_")
