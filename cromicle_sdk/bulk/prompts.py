"""Prompts, which are read only as far as needed, and their outcomes, in order or not."""

from __future__ import annotations

from collections.abc import AsyncIterable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cromicle_sdk import CallOptions, ConfigurationError, CromicleError, Messages, Reply

__all__ = ["InOrder", "Outcome", "Prompt", "Reader", "check_prompts"]

# What becomes of a prompt.
Outcome = Reply | CromicleError


@dataclass(frozen=True)
class Prompt:
    """Messages with options of their own call, such as `{"extra_body": {"temperature": 0.5}}`.

    Raises `ConfigurationError` for an option that a call does not have. Invalid values are errors
    of the call, and so the outcome of the prompt.
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
        """A prompt that can be sent several times and in another process."""
        if not isinstance(prompt, Prompt):
            prompt = cls(prompt)
        if isinstance(prompt.messages, Iterator):
            return cls(list(prompt.messages), prompt.options)
        return prompt


def check_prompts(prompts: object, *, may_be_async: bool = False) -> None:
    """Raise `ConfigurationError` unless it is an iterable of prompts; a text is a single one."""
    kind = type(prompts).__name__
    kinds = (Iterable, AsyncIterable) if may_be_async else Iterable
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, kinds):
        raise ConfigurationError(f"expected an iterable of prompts, not {kind}", option="prompts")


class Reader:
    """Prompts with their indexes. An exception of their source is kept until `check`."""

    def __init__(self, prompts: Iterable[Prompt | Messages]) -> None:
        self._source = enumerate(prompts)
        self._error: Exception | None = None
        self.is_at_end: bool = False

    def read(self, count: int = 1) -> list[tuple[int, Prompt]]:
        """So many prompts, fewer at the end."""
        read: list[tuple[int, Prompt]] = []
        while len(read) < count and not self.is_at_end:
            try:
                index, prompt = next(self._source)
                read.append((index, Prompt.of(prompt)))
            except StopIteration:
                self.is_at_end = True
            except Exception as error:  # noqa: BLE001 - raised once all that was read is answered
                self._error = error
                self.is_at_end = True
        return read

    def check(self) -> None:
        """Raise the exception that ended the source."""
        if self._error is not None:
            raise self._error


class InOrder:
    """Passes outcomes on as they come; or, if `ordered`, holds them back until it is their turn."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._next = 0
        self._held: dict[int, Outcome] = {}

    def add(self, index: int, outcome: Outcome) -> Generator[tuple[int, Outcome]]:
        """What can be passed on, now that this is there."""
        if not self._ordered:
            yield index, outcome
            return
        self._held[index] = outcome
        while self._next in self._held:
            self._next += 1
            yield self._next - 1, self._held.pop(self._next - 1)
