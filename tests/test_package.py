"""What `import cromicle_sdk` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cromicle_sdk


@pytest.mark.parametrize("name", cromicle_sdk.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert name in dir(cromicle_sdk)
    value = getattr(cromicle_sdk, name)
    assert getattr(value, "__name__", name) == name


def test_another_name_is_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(cromicle_sdk, "nothing")  # noqa: B009 - a type checker would see through it


def test_nothing_but_itself_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, cromicle_sdk; print({'httpx', 'httpcore', 'anyio'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert answer.stdout.strip() == b"set()"
