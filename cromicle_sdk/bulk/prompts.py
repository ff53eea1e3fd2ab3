"""Lazy reading of prompts, and ordering of their outcomes."""

from __future__ import annotations

from collections.abc import AsyncIterable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cromicle_sdk import CallOptions, ConfigurationError, CromicleError, Messages, Reply

__all__ = ["InOrder", "Outcome", "Prompt", "Reader", "check_prompts"]

# The result of a prompt.
Outcome = Reply | CromicleError


@dataclass(frozen=True)
class Prompt:
    """A prompt with its own call options.

    `messages` is a text or messages, as for `Client.chat`. `options` are the options of that call,
    such as `{"extra_body": {"temperature": 0.5}}`.

    Raises `ConfigurationError` for an option that a call does not have. An invalid value of an
    option is an error of the call, and so the outcome of the prompt.
    """

    messages: Messages = field(repr=False)
    options: CallOptions = field(default_factory=CallOptions, repr=False)

    def __post_init__(self) -> None:
        for name in self.options.keys() - CallOptions.__annotations__.keys():
            known = ", ".join(CallOptions.__annotations__)
            raise ConfigurationError(
                "a call has no such option", option=name, hint=f"the options are {known}"
            )

    @classmethod
    def of(cls, prompt: Prompt | Messages) -> Prompt:
        """Return a `Prompt` that can be sent several times and in another process."""
        if not isinstance(prompt, Prompt):
            prompt = cls(prompt)
        if isinstance(prompt.messages, Iterator):
            return cls(list(prompt.messages), prompt.options)
        return prompt


def check_prompts(prompts: object, *, may_be_async: bool = False) -> None:
    """Raise `ConfigurationError` unless it is an iterable of prompts, and not a single text."""
    kind = type(prompts).__name__
    kinds = (Iterable, AsyncIterable) if may_be_async else Iterable
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, kinds):
        raise ConfigurationError(f"expected an iterable of prompts, not {kind}", option="prompts")


class Reader:
    """Reads prompts with their indexes. An exception of the source is kept until `check`."""

    def __init__(self, prompts: Iterable[Prompt | Messages]) -> None:
        self._source = enumerate(prompts)
        self._error: Exception | None = None
        self.is_at_end: bool = False

    def read(self, count: int = 1) -> list[tuple[int, Prompt]]:
        """Return the next `count` prompts, or fewer at the end."""
        read: list[tuple[int, Prompt]] = []
        while len(read) < count and not self.is_at_end:
            try:
                index, prompt = next(self._source)
                read.append((index, Prompt.of(prompt)))
            except StopIteration:
                self.is_at_end = True
            except Exception as error:  # noqa: BLE001 - re-raised by `check`
                self._error = error
                self.is_at_end = True
        return read

    def check(self) -> None:
        """Raise the exception of the source, if any."""
        if self._error is not None:
            raise self._error


class InOrder:
    """Yields outcomes as they arrive or, if `ordered`, in the order of their indexes."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._next = 0
        self._held: dict[int, Outcome] = {}

    def add(self, index: int, outcome: Outcome) -> Generator[tuple[int, Outcome]]:
        """Add an outcome, and yield those that are due."""
        if not self._ordered:
            yield index, outcome
            return
        self._held[index] = outcome
        while self._next in self._held:
            self._next += 1
            yield self._next - 1, self._held.pop(self._next - 1)
