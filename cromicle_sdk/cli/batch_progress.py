"""The progress of `cromicle batch` on stderr: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator

from .output import report
from .signals import called_before_termination

__all__ = ["Progress", "show_progress"]

LINE_SECONDS = 10.0


class Progress:
    """The counts of a run. `kinds` counts the errors by type."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done: int = 0
        self.kinds: Counter[str] = Counter()
        self._started = time.monotonic()

    def add(self, kind: str | None) -> None:
        """Count a result: a reply, or an error of type `kind`."""
        self.done += 1
        if kind is not None:
            self.kinds[kind] += 1

    @property
    def failed(self) -> int:
        """The number of errors."""
        return self.kinds.total()

    def measure(self) -> tuple[float, float | None]:
        """Return the results per second, and the seconds left, which are None while unknown."""
        rate = self.done / max(time.monotonic() - self._started, 0.001)
        return rate, (self.total - self.done) / rate if rate else None

    def describe(self) -> str:
        """Return the progress as one line."""
        rate, left = self.measure()
        ending = "" if left is None else f", {_format_seconds(left)} left"
        return (
            f"{self.done:,} of {self.total:,} done, {self.failed:,} failed,"
            f" {rate:.1f} a second{ending}"
        )


@contextlib.contextmanager
def show_progress(progress: Progress) -> Generator[None]:
    """Show the progress while the block runs."""
    if sys.stderr is not None and sys.stderr.isatty():
        with _show_bar(progress):
            yield
        return
    is_over = threading.Event()
    thread = threading.Thread(target=_print_lines, args=(progress, is_over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _print_lines(progress: Progress, is_over: threading.Event) -> None:
    while not is_over.wait(LINE_SECONDS):
        report(progress.describe())


@contextlib.contextmanager
def _show_bar(progress: Progress) -> Generator[None]:
    # Imported here because only a terminal needs it.
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    def render() -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_row(
            ProgressBar(total=max(progress.total, 1), completed=progress.done, width=20),
            progress.describe(),
        )
        return table

    console = Console(stderr=True)
    bar = Live(get_renderable=render, console=console, refresh_per_second=4, transient=True)

    def stop() -> None:
        # Before `stop`, which fails in the middle of `start`.
        console.show_cursor()
        bar.stop()

    # The bar hides the cursor from its start to its end.
    with called_before_termination(stop), bar:
        yield


def _format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
