"""The selection of the choice of a completion that is the reply.

`n` is never sent, so there is one reply. Servers number it in several ways: 0 throughout, 1
throughout, or a new index for each token. Some servers still send several replies. They send them
in parallel, and the first one is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import build_invalid_error

__all__ = ["UNKNOWN_REASON", "Choices", "Part"]

# Stands for any unknown finish reason: the reply is incomplete.
UNKNOWN_REASON = "unknown"

# The reasons of a reply that was cut. If a usual one follows, a proxy has added it.
_EARLY = ("length", "content_filter")
_USUAL = ("stop", "tool_calls")

# This many different indexes in ascending order are those of tokens, not of several replies.
_ENOUGH_INDEXES = 3


@dataclass(frozen=True, slots=True)
class Part:
    """One choice in one event. `index` is None if the event does not number it."""

    index: int | None
    text: str = field(default="", repr=False)
    finish_reason: str | None = None
    has_role: bool = False


class Choices:
    """Selects the text of the reply. Text is held back until it is known to belong to it."""

    def __init__(self) -> None:
        self._selected: int | None = None
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
        """Whether text of the reply has followed a finish reason.

        Some servers send one in every event, so it does not mark the end.
        """
        return self._has_gone_on

    @property
    def finish_reason(self) -> str | None:
        """Why the reply ended, or None while the server has not sent a finish reason."""
        if self._selected in self._reasons:
            return self._reasons[self._selected]
        if self._is_parallel and self._selected is not None:
            return None
        # A server that numbers tokens may send the reason under any index.
        return next(reversed(self._reasons.values()), None)

    def receive(self, parts: Sequence[Part]) -> list[str]:
        """Return the texts of the reply in an event with these choices."""
        self._started |= {part.index or 0 for part in parts if part.has_role and not part.text}
        indexes = sorted({part.index for part in parts if part.index is not None})
        if len(indexes) > 1 or len(self._started) > 1:
            self._set_parallel()
            if self._selected is None:
                self._selected = min(self._started.union(indexes))
        if self._selected is None:
            self._selected = min((part.index or 0 for part in parts if part.text), default=None)
            self._last = self._selected or 0
        texts: list[str] = []
        for part in parts:
            index = (self._selected or 0) if part.index is None else part.index
            if part.text:
                texts += self._receive_text(index, part.text)
            if part.finish_reason is not None:
                self._receive_reason(index, part.finish_reason)
        return texts

    def receive_eof(self) -> list[str]:
        """Return the texts that were held back, if they are part of the reply."""
        # Parallel replies have a finish reason each.
        ended = self._reasons.keys()
        if self._selected in ended and ended >= {index for index, _ in self._held}:
            self._set_parallel()
        if self._has_dropped and not self._has_text:
            raise build_invalid_error("it sent text only in a choice other than the first")
        return self._release()

    def _receive_reason(self, index: int, reason: str) -> None:
        before = self._reasons.pop(index, None)
        is_early = before in _EARLY and reason in _USUAL and index not in self._resumed
        self._reasons[index] = before if before is not None and is_early else reason
        self._resumed.discard(index)

    def _receive_text(self, index: int, text: str) -> list[str]:
        self._resumed.add(index)
        if (self._is_single or index == self._selected) and self.finish_reason is not None:
            self._has_gone_on = True
        if self._is_single:
            if index < self._last:
                raise build_invalid_error("it sent several replies that cannot be separated")
            self._last = index
            return [text]
        if index == self._selected:
            if self._held:
                self._set_parallel()
            # An earlier finish reason belongs to another choice, or was not the end.
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
