"""Building requests of the protocol as bytes."""

from __future__ import annotations

import hashlib
import json

__all__ = ["build_request", "sign"]


def sign(prompt: str, token: str = "abc") -> dict[str, str]:
    """Return the three fields of a request."""
    digest = hashlib.sha256((token + prompt).encode()).hexdigest()
    return {"message": prompt, "token": token, "hash": digest}


def build_request(fields: object, *, headers: bytes = b"", host: bytes = b"localhost") -> bytes:
    """Build a request to /chat with a JSON body."""
    body = json.dumps(fields).encode()
    return (
        b"POST /chat HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\n"
        b"%scontent-length: %d\r\n\r\n" % (host, headers, len(body))
    ) + body
