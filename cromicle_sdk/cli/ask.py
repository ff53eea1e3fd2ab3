"""`cromicle ask`: sends one request and prints the reply on stdout."""

from __future__ import annotations

import json

from cromicle_sdk import Client, Conversation, CromicleError, Messages, Reply, Stream

from .output import Output

__all__ = [
    "build_messages",
    "describe_early_end",
    "format_stats",
    "print_json",
    "print_stream",
]

# The descriptions of the finish reasons that mean a cut reply.
_EARLY_ENDS = {
    "length": "cut short by the model's length limit",
    "content_filter": "cut short by a content filter",
}


def build_messages(text: str, system: str | None) -> Messages:
    """Return the text, after the system message if there is one that is not empty."""
    return Conversation(system).user(text) if system else text


def print_stream(stream: Stream, output: Output) -> Reply:
    """Print a reply while it arrives, and return it. Raises as `Stream` does, and `OSError`."""
    printed = 0
    try:
        output.begin()
        with stream:
            for text in stream:
                output.write(text)
                printed += len(text)
            return stream.reply
    except CromicleError as error:
        # The chunk that caused the error may begin with valid text.
        output.write(error.partial_text[printed:])
        raise
    finally:
        output.end_line()


def print_json(client: Client, messages: Messages, output: Output) -> Reply:
    """Print the reply as one JSON object, and return it. Raises as `print_stream` does."""
    reply = client.chat(messages)
    output.write(format_json(reply) + "\n")
    return reply


def format_json(reply: Reply) -> str:
    """Format a reply as one line of JSON, in ASCII, which every code page can encode."""
    return json.dumps(
        {
            "text": reply.text,
            "status_code": reply.status_code,
            "request_id": reply.request_id,
            "finish_reason": reply.finish_reason,
            "attempts": reply.attempts,
            "chunks": reply.chunks,
            "first_text_after": reply.first_text_after,
            "elapsed": reply.elapsed,
        }
    )


def describe_early_end(reply: Reply) -> str | None:
    """Describe why a reply was cut, or return None if it was not."""
    return _EARLY_ENDS.get(reply.finish_reason or "")


def format_stats(reply: Reply) -> str:
    """Format chunks, characters, seconds to the first text and in total, attempts and speed."""
    characters = len(reply.text)
    first = "none" if reply.first_text_after is None else f"{reply.first_text_after:.3f} s"
    # With a coarse clock, a call may take no time.
    speed = characters / reply.elapsed if reply.elapsed else 0.0
    return (
        f"chunks: {reply.chunks}, characters: {characters}, first text after: {first}, "
        f"elapsed: {reply.elapsed:.3f} s, attempts: {reply.attempts}, "
        f"characters per second: {speed:.0f}"
    )
