"""OUT of `cromicle batch`: a line for each result, none of which is lost or there twice."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

import click

from .batch_input import Entry, Id
from .errors import Misuse

__all__ = ["Earlier", "OutputFile", "read_earlier"]

# A line is with the system once it is written, so that it survives `kill -9`; what a loss of power
# may take is at most the lines of this many seconds. An fsync takes milliseconds on a disk.
_SYNC_SECONDS = 1.0

# The name of a new version of OUT while it is written: one that no file of the user's has.
_NEW = ".cromicle-new"

# How each line begins that this command writes.
_BEGINNING = b'{"id": '


@dataclass
class Earlier:
    """What OUT has from earlier runs: where the line of each id begins and how long it is.

    `failed` are the ids whose result is an error. `size` is the end of the last whole result, which
    may lack its line break. `version` tells whether another process has written to it since; it is
    None if there was no file.
    """

    lines: dict[Id, tuple[int, int]] = field(default_factory=dict[Id, tuple[int, int]])
    failed: set[Id] = field(default_factory=set[Id])
    size: int = 0
    has_last_break: bool = True
    version: tuple[int, ...] | None = None


def read_earlier(path: Path, entries: Mapping[Id, Entry], name: str, *, resume: bool) -> Earlier:
    """What OUT has. Nothing is changed.

    Raises `Misuse` if there is something without `resume`, or if it is not from this IN, whose name
    is given.
    """
    try:
        with _open_regular(path) as file:
            if not resume and os.fstat(file.fileno()).st_size:
                raise Misuse(
                    f"{path} is not empty.",
                    advice="Go on with --resume, or choose another name.",
                )
            version = _get_version(os.fstat(file.fileno()))
            earlier = _read_lines(file, path, entries, name)
            earlier.version = version
            return earlier
    except FileNotFoundError:
        return Earlier()
    except OSError as error:
        raise Misuse(f"{path} cannot be read: {error.strerror}.") from error


@contextlib.contextmanager
def _open_regular(path: Path) -> Generator[BinaryIO]:
    # A FIFO would wait for somebody who writes to it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise Misuse(f"{path} is not a regular file, which could be resumed.")
    with path.open("rb") as file:
        yield file


def _read_lines(file: BinaryIO, path: Path, entries: Mapping[Id, Entry], name: str) -> Earlier:
    earlier = Earlier()
    for number, line in enumerate(file, 1):
        result = _parse(line)
        if result is None:
            if _is_half_written(line):
                break
            raise Misuse(f"{path}, line {number}: it is not a result of `cromicle batch`.")
        key = result["id"]
        if key not in entries:
            raise Misuse(
                f"{path}, line {number}: its id is not in {name}, so that it is the output of"
                " another input."
            )
        if result.get("digest", entries[key].digest) != entries[key].digest:
            raise Misuse(
                f"{path}, line {number}: it is the result of another prompt than line"
                f" {entries[key].number} of {name}."
            )
        if key not in earlier.lines or key in earlier.failed:
            earlier.lines[key] = (earlier.size, len(line))
            earlier.failed.discard(key)
            if "error" in result:
                earlier.failed.add(key)
        earlier.size += len(line)
        earlier.has_last_break = line.endswith(b"\n")
    return earlier


def _get_version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_half_written(line: bytes) -> bool:
    """Whether a process or a machine has ended in the middle of this line.

    Anything else is somebody's text, which must not be cut off.
    """
    # After a loss of power, a file may have zeros where its last bytes were not written.
    written = line.rstrip(b"\0")
    if line.endswith(b"\n") or written[: len(_BEGINNING)] != _BEGINNING[: len(written)]:
        return False
    try:
        json.loads(written)
    except (ValueError, RecursionError):
        return True
    return False


def _parse(line: bytes) -> dict[str, Any] | None:
    """The result on a line, None if it is none."""
    try:
        content: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    result = cast("dict[str, Any]", content)
    key = result.get("id")
    is_id = isinstance(key, (str, int)) and not isinstance(key, bool)
    return result if is_id and ("text" in result) != ("error" in result) else None


class OutputFile:
    """Appends results to OUT, of which failed ones from an earlier run are gone.

    Raises `ClickException` where it cannot be written; what was written before is whole then.
    Raises `Misuse` if another process writes to it, or has done so since it was read.
    """

    def __init__(self, path: Path, earlier: Earlier) -> None:
        self._path = path
        self._lines = {
            key: place for key, place in earlier.lines.items() if key not in earlier.failed
        }
        self._size = earlier.size
        self._lock = contextlib.ExitStack()
        with self._errors(), contextlib.ExitStack() as stack:
            self._lock.enter_context(_lock(path))
            stack.callback(self._unlock)
            self._check_version(earlier)
            if sum(length for _, length in self._lines.values()) != earlier.size:
                self._rewrite(self._lines)
            self._descriptor = _open_to_append(path)
            stack.callback(os.close, self._descriptor)
            # Without the beginning of a line that was never finished.
            os.ftruncate(self._descriptor, self._size)
            if self._size == earlier.size and not earlier.has_last_break:
                self._write(b"\n")
                self._size += 1
            self._sync()
            stack.pop_all()

    def append(self, result: Mapping[str, Any]) -> None:
        """Add a result with a new id."""
        # A lone surrogate of an id becomes the escape that JSON has for it.
        text = json.dumps(result, ensure_ascii=False) + "\n"
        line = text.encode("utf-8", "backslashreplace")
        with self._errors():
            try:
                self._write(line)
            except BaseException:
                # Of a full disk, or Ctrl-C: without the beginning of this line.
                os.ftruncate(self._descriptor, self._size)
                raise
            self._lines[result["id"]] = (self._size, len(line))
            self._size += len(line)
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                self._sync()

    def close(self, order: Iterable[Id] | None = None) -> None:
        """Return once all is on the disk, the lines in the order of these ids if they are given."""
        with self._errors(), contextlib.ExitStack() as stack:
            stack.callback(self._unlock)
            try:
                self._sync()
            finally:
                os.close(self._descriptor)
            if order is not None:
                self._rewrite({key: self._lines[key] for key in order if key in self._lines})

    def _unlock(self) -> None:
        self._lock.close()

    def _check_version(self, earlier: Earlier) -> None:
        try:
            version = _get_version(self._path.stat())
        except FileNotFoundError:
            version = None
        # The lock has created it.
        is_new = earlier.version is None and version is not None and version[2] == 0
        if version != earlier.version and not is_new:
            raise Misuse(
                f"{self._path} was changed by another process meanwhile.",
                advice="Nothing was sent. Go on with --resume, once that process has ended.",
            )

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _sync(self) -> None:
        os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def _rewrite(self, lines: Mapping[Id, tuple[int, int]]) -> None:
        """Replace OUT by a version with these lines, in one step."""
        # The file itself, where OUT is a link to it.
        path = self._path.resolve()
        new = path.with_name(path.name + _NEW)
        places: dict[Id, tuple[int, int]] = {}
        try:
            with path.open("rb") as source, new.open("wb") as target:
                new.chmod(stat.S_IMODE(path.stat().st_mode))
                for key, (offset, length) in lines.items():
                    source.seek(offset)
                    line = source.read(length).rstrip(b"\n") + b"\n"
                    places[key] = (target.tell(), len(line))
                    target.write(line)
                target.flush()
                os.fsync(target.fileno())
                size = target.tell()
            with contextlib.ExitStack() as stack:
                # The lock of the old file means nothing to whoever opens the new one.
                stack.enter_context(_lock(new))
                new.replace(path)
                self._unlock()
                self._lock = stack.pop_all()
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        self._lines, self._size = places, size

    @contextlib.contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise click.ClickException(
                f"{self._path} cannot be written: {error.strerror or error}. What it has is whole:"
                " go on with --resume, once that is mended."
            ) from error


def _open_to_append(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)


@contextlib.contextmanager
def _lock(path: Path) -> Generator[None]:
    """Keep other processes of this command from writing to a file, which is created if missing.

    The system releases it when the process ends, in whatever way. Raises `Misuse` if another
    process has it. Windows has no such lock, and some file systems have none.
    """
    try:
        # Not on Windows.
        fcntl: Any = import_module("fcntl")
    except ImportError:
        yield
        return
    descriptor = _open_to_append(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misuse(
                f"Another process is writing to {path}.",
                advice="Nothing was sent. Wait until it has ended, or choose another name.",
            ) from None
        except OSError as error:
            # Some file systems have no locks.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield
    finally:
        os.close(descriptor)
