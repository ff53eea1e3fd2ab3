"""A reply in figures, for `--stats` and `--json`."""

from __future__ import annotations

import json

from cromicle_sdk._core.response import Reply

__all__ = ["format_json", "format_stats"]


def format_stats(reply: Reply) -> str:
    """One line: pieces, characters, seconds to the first text and in all, attempts, speed."""
    characters = len(reply.text)
    first = "none" if reply.first_text_after is None else f"{reply.first_text_after:.3f} s"
    # Clocks with a coarse tick may see no time pass at all.
    speed = characters / reply.elapsed if reply.elapsed else 0.0
    return (
        f"pieces: {reply.chunks}, characters: {characters}, first text after: {first}, "
        f"elapsed: {reply.elapsed:.3f} s, attempts: {reply.attempts}, "
        f"characters per second: {speed:.0f}"
    )


def format_json(reply: Reply) -> str:
    """A JSON object in one line of ASCII, which no terminal and no code page can spoil."""
    return json.dumps(
        {
            "text": reply.text,
            "status_code": reply.status_code,
            "request_id": reply.request_id,
            "attempts": reply.attempts,
            "chunks": reply.chunks,
            "first_text_after": reply.first_text_after,
            "elapsed": reply.elapsed,
        }
    )
