"""IN of `cromicle batch`: checked completely first, then reread line by line while sending."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import click

from cromicle_sdk import CallOptions, CromicleError

from .errors import Misuse
from .input import STDIN

if TYPE_CHECKING:
    from cromicle_sdk.bulk import Prompt

__all__ = ["BadLine", "Entry", "Id", "Input", "open_input", "parse_format"]

Id = str | int

_FIELDS = ("id", "prompt", "messages", "extra_body")

# In hexadecimal digits of the SHA-256 of a line: two lines collide with a probability of 10 ** -19.
_DIGEST_LENGTH = 16

_JSONL_SUFFIXES = {".jsonl", ".ndjson"}


class BadLine(Exception):  # noqa: N818 - it becomes a part of a message
    """A line is invalid. The message never quotes it."""


class Entry(NamedTuple):
    """A line of IN: its number, its offset in bytes, and the digest of its content."""

    number: int
    offset: int
    digest: str


class Input:
    """The prompts of IN by their ids, in order. `bad` lists the invalid lines.

    `check` raises `CromicleError` for a prompt that cannot be sent.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        *,
        is_jsonl: bool,
        build: Callable[[str | list[Any]], Prompt],
        check: Callable[[Prompt], None],
    ) -> None:
        self._file = file
        self._name = name
        self._is_jsonl = is_jsonl
        self._build = build
        self.entries: dict[Id, Entry] = {}
        self.bad: list[tuple[int, str]] = []
        offset = 0
        for number, line in enumerate(file, 1):
            try:
                if line.strip():
                    key, prompt, digest = self._parse(line, number)
                    check(prompt)
                    if key in self.entries:
                        first = self.entries[key].number
                        raise BadLine(f"it has the same id as line {first}, {_quote(key)}")
                    self.entries[key] = Entry(number, offset, digest)
            except (BadLine, CromicleError) as error:
                self.bad.append((number, str(error)))
            offset += len(line)

    def read(self, ids: Iterable[Id]) -> Generator[Prompt]:
        """Yield the prompts with these ids. Raises `ClickException` if the file has changed."""
        for key in ids:
            entry = self.entries[key]
            self._file.seek(entry.offset)
            try:
                found, prompt, digest = self._parse(self._file.readline(), entry.number)
            except BadLine:
                found, prompt, digest = key, None, ""
            if prompt is None or (found, digest) != (key, entry.digest):
                raise click.ClickException(
                    f"{self._name} has changed while it was being read, at line {entry.number}."
                )
            yield prompt

    def _parse(self, line: bytes, number: int) -> tuple[Id, Prompt, str]:
        if number == 1:
            # Windows tools begin a file with a byte order mark.
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise BadLine(f"it is not UTF-8 (byte {error.start})") from None
        if not self._is_jsonl:
            content = text.rstrip("\r\n")
            return number, self._build(content), _digest(content, None)
        key, messages, extra_body = _parse_object(text)
        prompt = self._build(messages)
        if extra_body is not None:
            options: CallOptions = {**prompt.options, "extra_body": extra_body}
            prompt = replace(prompt, options=options)
        return key, prompt, _digest(messages, extra_body)


@contextlib.contextmanager
def open_input(path: str) -> Generator[tuple[BinaryIO, str]]:
    """Open IN, and yield it and its name for messages.

    A pipe or standard input is copied to a temporary file, because IN is read twice.
    """
    with contextlib.ExitStack() as stack:
        name = path
        if path == STDIN:
            name = "Standard input"
            source = None if sys.stdin is None else sys.stdin.buffer
        else:
            try:
                source = stack.enter_context(Path(path).open("rb"))
            except OSError as error:
                raise Misuse(f"{path} cannot be read: {error.strerror}.") from error
        if source is None:
            raise Misuse("There is no standard input.")
        if not (path != STDIN and source.seekable()):
            spooled = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(source, spooled)
            spooled.seek(0)
            source = cast("BinaryIO", spooled)
        yield source, name


def parse_format(file: BinaryIO, path: str, given: str) -> bool:
    """Whether IN is JSONL, according to `--format`, its suffix, or its first line."""
    if given != "auto":
        return given == "jsonl"
    if Path(path).suffix.lower() in _JSONL_SUFFIXES:
        return True
    first = next((line for line in file if line.strip()), b"")
    file.seek(0)
    with contextlib.suppress(ValueError, RecursionError):
        return isinstance(json.loads(first.decode("utf-8-sig")), dict)
    return False


def _parse_object(text: str) -> tuple[Id, str | list[Any], dict[str, Any] | None]:
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError):
        raise BadLine("it is not JSON") from None
    if not isinstance(content, dict):
        raise BadLine("it is not a JSON object")
    fields = cast("dict[str, Any]", content)
    unknown = next((name for name in fields if name not in _FIELDS), None)
    if unknown is not None:
        raise BadLine(
            f"it has an unknown field {_quote(unknown)}; put fields of the request in extra_body"
        )
    key = fields.get("id")
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise BadLine("it must have an id that is a string or a whole number")
    if ("prompt" in fields) == ("messages" in fields):
        raise BadLine("it must have either a prompt or messages")
    messages: Any = fields.get("prompt", fields.get("messages"))
    if not isinstance(messages, str if "prompt" in fields else list):
        kinds = "prompt must be a string", "messages must be an array"
        raise BadLine(kinds[0] if "prompt" in fields else kinds[1])
    extra_body: Any = fields.get("extra_body")
    if extra_body is not None and not isinstance(extra_body, dict):
        raise BadLine("extra_body must be an object")
    return key, cast("Any", messages), cast("dict[str, Any] | None", extra_body)


def _digest(messages: object, extra_body: object) -> str:
    content = json.dumps([messages, extra_body], sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]


def _quote(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
