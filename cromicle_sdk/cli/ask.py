"""One call: from the command's options to a reply on stdout."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

from cromicle_sdk._core.errors import CromicleError
from cromicle_sdk._core.messages import Conversation, Messages
from cromicle_sdk._core.options import Retry, Timeout
from cromicle_sdk._core.response import Reply
from cromicle_sdk._sync.client import Client

from .local import serve_for_one_call
from .output import open_output
from .stats import format_json

__all__ = ["Target", "build_messages", "print_json", "print_stream"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Whom to ask, and how patiently: the options of `cromicle ask`, None where not given."""

    base_url: str | None
    token: str | None = field(repr=False)
    timeout: float | None
    total: float | None
    retries: int | None
    headers: Mapping[str, str]
    local: bool

    @contextlib.contextmanager
    def open(self) -> Generator[Client]:
        """A client for it. Raises `ConfigurationError`, and `ClickException` for `local`."""
        with contextlib.ExitStack() as stack:
            base_url, token = self.base_url, self.token
            if self.local:
                base_url, token = stack.enter_context(serve_for_one_call(token))
            yield stack.enter_context(
                Client(
                    base_url=base_url,
                    token=token,
                    timeout=_build_timeout(self.timeout, self.total),
                    retry=Retry() if self.retries is None else Retry(attempts=self.retries + 1),
                    headers=self.headers,
                )
            )


def build_messages(text: str, system: str | None) -> Messages:
    """The text alone, or as a turn after the system's; an empty `system` is none."""
    return Conversation(system).user(text) if system else text


def print_stream(client: Client, messages: Messages) -> Reply:
    """Print the reply while it arrives, and return it. Raises as `Client.stream`, and `OSError`."""
    output = open_output()
    printed = 0
    try:
        with client.stream(messages) as stream:
            for text in stream:
                output.write(text)
                printed += len(text)
            return stream.reply
    except CromicleError as error:
        # The last bytes may have held some more text before what is wrong with them.
        output.write(error.partial_text[printed:])
        raise
    finally:
        output.end_line()


def print_json(client: Client, messages: Messages) -> Reply:
    """Print the whole reply as one JSON object, and return it. Raises as `print_stream`."""
    output = open_output()
    reply = client.chat(messages)
    output.write(format_json(reply) + "\n")
    return reply


def _build_timeout(seconds: float | None, total: float | None) -> Timeout:
    limits: dict[str, float] = {}
    if seconds is not None:
        limits.update(connect=seconds, first_byte=seconds, stall=seconds)
    if total is not None:
        limits.update(total=total)
    return Timeout(**limits)
