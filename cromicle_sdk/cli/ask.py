"""`cromicle ask`: one call, and its reply on stdout."""

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

# What is said of a reply by its finish reason; nothing of any other.
_EARLY_ENDS = {
    "length": "cut short by the model's length limit",
    "content_filter": "cut short by a content filter",
}


def build_messages(text: str, system: str | None) -> Messages:
    """The text alone, or the user's message after the system's if that is not empty."""
    return Conversation(system).user(text) if system else text


def print_stream(stream: Stream, output: Output) -> Reply:
    """Print a reply while it arrives, and return it. Raises as `Stream`, and `OSError`."""
    printed = 0
    try:
        output.begin()
        with stream:
            for text in stream:
                output.write(text)
                printed += len(text)
            return stream.reply
    except CromicleError as error:
        # The chunk in which the error was found may begin with valid text.
        output.write(error.partial_text[printed:])
        raise
    finally:
        output.end_line()


def print_json(client: Client, messages: Messages, output: Output) -> Reply:
    """Print the whole reply as one JSON object, and return it. Raises as `print_stream`."""
    reply = client.chat(messages)
    output.write(format_json(reply) + "\n")
    return reply


def format_json(reply: Reply) -> str:
    """A JSON object in one line of ASCII, which every terminal and code page can show."""
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
    """What has ended a reply that the model did not end itself; None for any other."""
    return _EARLY_ENDS.get(reply.finish_reason or "")


def format_stats(reply: Reply) -> str:
    """One line: chunks, characters, seconds to the first text and in total, attempts, speed."""
    characters = len(reply.text)
    first = "none" if reply.first_text_after is None else f"{reply.first_text_after:.3f} s"
    # On a clock with a coarse tick, a call may take no time.
    speed = characters / reply.elapsed if reply.elapsed else 0.0
    return (
        f"chunks: {reply.chunks}, characters: {characters}, first text after: {first}, "
        f"elapsed: {reply.elapsed:.3f} s, attempts: {reply.attempts}, "
        f"characters per second: {speed:.0f}"
    )
