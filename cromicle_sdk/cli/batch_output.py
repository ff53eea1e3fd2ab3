"""OUT of `cromicle batch`: one line for each result, without losses or duplicates."""

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

# Each line is written to the system at once, so it survives `kill -9`. A loss of power loses at
# most the lines of this many seconds. An fsync takes milliseconds on a disk.
_SYNC_SECONDS = 1.0

# The suffix of the new version of OUT while it is being written.
_NEW = ".cromicle-new"

# The beginning of each line that this command writes.
_BEGINNING = b'{"id": '


@dataclass
class Earlier:
    """The results of earlier runs in OUT: the offset and length of each id's line, in bytes.

    `failed` are the ids whose result is an error. `size` is the end of the last complete result,
    which may lack its line break. `version` changes when another process writes to the file; it is
    None if there was no file.
    """

    lines: dict[Id, tuple[int, int]] = field(default_factory=dict[Id, tuple[int, int]])
    failed: set[Id] = field(default_factory=set[Id])
    size: int = 0
    has_last_break: bool = True
    version: tuple[int, ...] | None = None


def read_earlier(path: Path, entries: Mapping[Id, Entry], name: str, *, resume: bool) -> Earlier:
    """Read OUT without changing it.

    Raises `Misuse` if it is not empty and `resume` is false, or if it is not the output of this IN,
    whose name is `name`.
    """
    try:
        with _open_regular(path) as file:
            if not resume and os.fstat(file.fileno()).st_size:
                raise Misuse(
                    f"{path} is not empty.",
                    advice="Continue with --resume, or choose another name.",
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
    # Opening a FIFO would block until another process writes to it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise Misuse(f"{path} is not a regular file. Only a regular file can be resumed.")
    with path.open("rb") as file:
        yield file


def _read_lines(file: BinaryIO, path: Path, entries: Mapping[Id, Entry], name: str) -> Earlier:
    earlier = Earlier()
    for number, line in enumerate(file, 1):
        result = _parse(line)
        if result is None:
            if _is_half_written(line):
                break
            raise Misuse(f"{path}, line {number}: not a result of `cromicle batch`.")
        key = result["id"]
        if key not in entries:
            raise Misuse(
                f"{path}, line {number}: its id is not in {name}, so it belongs to another input."
            )
        is_failed, digest = "error" in result, entries[key].digest
        # A prompt that failed is sent again, and may have been corrected.
        if not is_failed and result.get("digest", digest) != digest:
            raise Misuse(
                f"{path}, line {number}: it belongs to another prompt than the one in line"
                f" {entries[key].number} of {name}."
            )
        if key not in earlier.lines or key in earlier.failed:
            earlier.lines[key] = (earlier.size, len(line))
            earlier.failed.discard(key)
            if is_failed:
                earlier.failed.add(key)
        earlier.size += len(line)
        earlier.has_last_break = line.endswith(b"\n")
    return earlier


def _get_version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_half_written(line: bytes) -> bool:
    """Whether writing this line was interrupted.

    Any other text is the user's own and must not be discarded.
    """
    # After a loss of power, a file may have zeros in place of its last bytes.
    written = line.rstrip(b"\0")
    if line.endswith(b"\n") or written[: len(_BEGINNING)] != _BEGINNING[: len(written)]:
        return False
    try:
        json.loads(written)
    except (ValueError, RecursionError):
        return True
    return False


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the result on a line, or None if it is not a result."""
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
    """Appends results to OUT, after removing the errors of earlier runs.

    Raises `ClickException` if the file cannot be written; results written before stay intact.
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
            # Removes an incomplete line at the end.
            os.ftruncate(self._descriptor, self._size)
            if self._size == earlier.size and not earlier.has_last_break:
                self._write(b"\n")
                self._size += 1
            self._sync()
            stack.pop_all()

    def append(self, result: Mapping[str, Any]) -> None:
        """Append a result with a new id. Call `sync_if_due` afterwards."""
        # A lone surrogate in an id is written as its JSON escape.
        text = json.dumps(result, ensure_ascii=False) + "\n"
        line = text.encode("utf-8", "backslashreplace")
        with self._errors():
            try:
                self._write(line)
            except BaseException:
                # On a full disk or Ctrl-C, remove the incomplete line.
                os.ftruncate(self._descriptor, self._size)
                raise
            self._lines[result["id"]] = (self._size, len(line))
            self._size += len(line)

    def sync_if_due(self) -> None:
        """Sync the file if the last time is more than a second ago, which may take long."""
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            with self._errors():
                self._sync()

    def close(self, order: Iterable[Id] | None = None) -> None:
        """Sync and close the file. With `order`, sort its lines in the order of these ids."""
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
        # A file that did not exist has been created by the lock.
        is_new = earlier.version is None and version is not None and version[2] == 0
        if version != earlier.version and not is_new:
            raise Misuse(
                f"{self._path} was changed by another process in the meantime.",
                advice="Nothing was sent. Continue with --resume when that process has ended.",
            )

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _sync(self) -> None:
        os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def _rewrite(self, lines: Mapping[Id, tuple[int, int]]) -> None:
        """Replace OUT atomically with a version that has only these lines."""
        # Follows a link, so that the link itself stays.
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
                # The lock of the old file does not apply to the new one.
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
                f"{self._path} cannot be written: {error.strerror or error}. The results in it are"
                " intact: fix the problem, and continue with --resume."
            ) from error


def _open_to_append(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)


@contextlib.contextmanager
def _lock(path: Path) -> Generator[None]:
    """Lock a file, which is created if missing, against other processes of this command.

    The system releases the lock when the process ends, even if it is killed. Raises `Misuse` if
    another process holds it. On Windows, and on some file systems, there is no lock.
    """
    try:
        # Does not exist on Windows.
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
