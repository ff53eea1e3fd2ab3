"""A prompt becomes one HTTP request: headers, hash, body."""

from __future__ import annotations

import hashlib

__all__ = ["hash_prompt"]


def hash_prompt(token: str, prompt: str) -> str:
    """The protocol's hash: lower-case hex of the SHA-256 of token and prompt, UTF-8."""
    return hashlib.sha256((token + prompt).encode()).hexdigest()
