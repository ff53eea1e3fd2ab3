"""Requests: the headers, hash and body for a prompt."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import lru_cache
from json.encoder import encode_basestring as quote
from typing import NamedTuple

from cromicle_sdk._version import __version__

from .endpoint import Endpoint
from .errors import InvalidMessageError
from .fields import ExtraBody
from .messages import Message, Messages, check_messages, join_messages
from .options import Options
from .redaction import redact
from .secrets import Secret

__all__ = ["Request", "add_headers", "build_headers", "build_request", "hash_prompt"]


class Request(NamedTuple):
    """A request. Its repr shows only the method and the endpoint."""

    endpoint: Endpoint
    fixed_headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    secrets: tuple[Secret, ...]
    method: str = "POST"

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        if self.method == "GET":
            return self.fixed_headers
        return (*self.fixed_headers, (b"content-length", b"%d" % len(self.body)))

    def __repr__(self) -> str:
        return f"<{self.method} request to {self.endpoint.url}>"

    def redact(self, text: str) -> str:
        """Redact the token and the hash, which the server may echo in a text."""
        return redact(text, self.secrets)


def add_headers(
    headers: tuple[tuple[bytes, bytes], ...], more: Mapping[str, str]
) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers, and those of `more` with other names."""
    names = {name.lower() for name, _ in headers}
    added = ((name.lower().encode(), value.encode()) for name, value in more.items())
    return (*headers, *(each for each in added if each[0] not in names))


def hash_prompt(token: str, prompt: str) -> str:
    """Return the protocol's hash: the SHA-256 of token and prompt in UTF-8, as lower-case hex."""
    return _hash(Secret(token), prompt).reveal()


def build_request(messages: Messages, options: Options, *, httpx_version: str) -> Request:
    """Build the request for a text or messages.

    Raises `InvalidMessageError`. A blank prompt is invalid, too, because a model would invent one.
    """
    checked = check_messages(messages)
    prompt = join_messages(checked)
    if not prompt or prompt.isspace():
        raise InvalidMessageError("there is no text to send")
    digest = _hash(options.token, prompt)
    return Request(
        endpoint=options.endpoint,
        fixed_headers=_build_cached_headers(
            options.endpoint, tuple(options.headers.items()), httpx_version
        ),
        body=_build_body(
            prompt,
            options.token,
            digest,
            messages=checked if options.send_messages else [],
            extra_body=options.extra_body,
        ),
        secrets=(options.token, digest),
    )


# The locals of these functions, and of the functions that they call, must not be secrets in plain
# text, because an interrupt has these frames in its traceback. Hence no `json.dumps`.
def _hash(token: Secret, prompt: str) -> Secret:
    digest = hashlib.sha256(token.reveal().encode())
    digest.update(prompt.encode())
    return Secret(digest.hexdigest())


def _build_body(
    prompt: str,
    token: Secret,
    digest: Secret,
    *,
    messages: list[Message],
    extra_body: ExtraBody,
) -> bytes:
    return b"".join(
        (
            b'{"message":',
            quote(prompt).encode(),
            b',"token":',
            quote(token.reveal()).encode(),
            b',"hash":"',
            digest.reveal().encode(),
            b'"',
            _build_messages(messages) if messages else b"",
            *(f",{quote(name)}:{text}".encode() for name, text in extra_body.json_by_name.items()),
            b"}",
        )
    )


def _build_messages(messages: list[Message]) -> bytes:
    items = (
        f'{{"role":{quote(message["role"])},"content":{quote(str(message["content"]))}}}'
        for message in messages
    )
    return f',"messages":[{",".join(items)}]'.encode()


# Cached, because they are the same for each call of a client and take 10 us to build.
@lru_cache(maxsize=64)
def _build_cached_headers(
    endpoint: Endpoint, own: tuple[tuple[str, str], ...], httpx_version: str
) -> tuple[tuple[bytes, bytes], ...]:
    return build_headers(endpoint, dict(own), httpx_version=httpx_version)


def build_headers(
    endpoint: Endpoint, own: Mapping[str, str], *, httpx_version: str
) -> tuple[tuple[bytes, bytes], ...]:
    """Build the headers of a request. Those of `own`, in lower case, replace the others."""
    headers = {
        "host": endpoint.netloc,
        "accept": "*/*",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": _build_user_agent(httpx_version),
    }
    if endpoint.authorization is not None:
        headers["authorization"] = endpoint.authorization.reveal()
    headers.update(own)
    return tuple((name.encode(), value.encode()) for name, value in headers.items())


def _build_user_agent(httpx_version: str) -> str:
    """Return the header `user-agent`: the versions of this package, Python and httpx."""
    python = "{}.{}.{}".format(*sys.version_info)
    return f"cromicle-sdk/{__version__} (python/{python}; httpx/{httpx_version})"
