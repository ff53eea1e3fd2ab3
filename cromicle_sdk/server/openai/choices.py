"""Which choice of a completion is the answer.

`n` is never sent, so there is one answer. Servers still number it in several ways: 0 throughout,
1 throughout, or a new index for each token. A server that sends several answers all the same sends
them in parallel, and then the first one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import build_invalid_error

__all__ = ["UNKNOWN_REASON", "Choices", "Part"]

# A finish reason that is none of the known ones: the answer is not whole.
UNKNOWN_REASON = "unknown"

# What a model sends that had more to say. A later reason of the others is the proxy's own.
_EARLY = ("length", "content_filter")
_USUAL = ("stop", "tool_calls")

# So many new indexes, one after the other, are no parallel answers but one in tokens.
_ENOUGH_INDEXES = 3


@dataclass(frozen=True, slots=True)
class Part:
    """What one event says of one choice; `index` is None where it does not number it."""

    index: int | None
    text: str = field(default="", repr=False)
    finish_reason: str | None = None
    has_role: bool = False


class Choices:
    """Selects the text of the answer. Text of which it is not known yet is held back."""

    def __init__(self) -> None:
        self._answer: int | None = None
        self._last = 0
        self._started: set[int] = set()
        self._held: list[tuple[int, str]] = []
        self._reasons: dict[int, str] = {}
        self._resumed: set[int] = set()
        self._has_gone_on = False
        self._is_parallel = False
        self._is_single = False
        self._has_text = False
        self._has_dropped = False

    @property
    def has_gone_on(self) -> bool:
        """Whether text of the answer has followed a finish reason.

        Some servers have one in every event, so then none of them is a sign that nothing follows.
        """
        return self._has_gone_on

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, None where the server has not said so."""
        if self._answer in self._reasons:
            return self._reasons[self._answer]
        if self._is_parallel and self._answer is not None:
            return None
        # A server that numbers tokens numbers the end in its own way.
        return next(reversed(self._reasons.values()), None)

    def receive(self, parts: Sequence[Part]) -> list[str]:
        """The texts of the answer in an event that has these choices."""
        self._started |= {part.index or 0 for part in parts if part.has_role and not part.text}
        indexes = sorted({part.index for part in parts if part.index is not None})
        if len(indexes) > 1 or len(self._started) > 1:
            self._set_parallel()
            if self._answer is None:
                self._answer = min(self._started.union(indexes))
        if self._answer is None:
            self._answer = min((part.index or 0 for part in parts if part.text), default=None)
            self._last = self._answer or 0
        texts: list[str] = []
        for part in parts:
            index = (self._answer or 0) if part.index is None else part.index
            if part.text:
                texts += self._receive_text(index, part.text)
            if part.finish_reason is not None:
                self._receive_reason(index, part.finish_reason)
        return texts

    def receive_eof(self) -> list[str]:
        """The texts that were held back, if they are part of the answer."""
        # Each of several parallel answers ends by itself.
        ended = self._reasons.keys()
        if self._answer in ended and ended >= {index for index, _ in self._held}:
            self._set_parallel()
        if self._has_dropped and not self._has_text:
            raise build_invalid_error("it sent text in another choice than the first")
        return self._release()

    def _receive_reason(self, index: int, reason: str) -> None:
        before = self._reasons.pop(index, None)
        is_early = before in _EARLY and reason in _USUAL and index not in self._resumed
        self._reasons[index] = before if before is not None and is_early else reason
        self._resumed.discard(index)

    def _receive_text(self, index: int, text: str) -> list[str]:
        self._resumed.add(index)
        if (self._is_single or index == self._answer) and self.finish_reason is not None:
            self._has_gone_on = True
        if self._is_single:
            if index < self._last:
                raise build_invalid_error("it sent several answers that cannot be told apart")
            self._last = index
            return [text]
        if index == self._answer:
            if self._held:
                self._set_parallel()
            # The end that was reported is not that of this choice, or not the end.
            self._reasons = {
                each: reason for each, reason in self._reasons.items() if each == index
            }
            self._has_text = True
            return [text]
        if not self._is_parallel:
            return self._hold(index, text)
        self._has_dropped = True
        return []

    def _hold(self, index: int, text: str) -> list[str]:
        self._held.append((index, text))
        indexes = [index for index, _ in self._held]
        if len(set(indexes)) < _ENOUGH_INDEXES or indexes != sorted(indexes):
            return []
        self._is_single = True
        self._last = index
        return self._release()

    def _release(self) -> list[str]:
        texts = [text for _, text in self._held]
        self._held.clear()
        return texts

    def _set_parallel(self) -> None:
        self._is_parallel = not self._is_single
        self._has_dropped = self._has_dropped or bool(self._held)
        self._held.clear()
