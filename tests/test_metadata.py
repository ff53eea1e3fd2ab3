"""The metadata of the installed package."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

import cromicle_sdk

METADATA = importlib.metadata.metadata("cromicle-sdk")
CHANGELOG = Path(__file__).parent.parent / "CHANGELOG.md"
CLASSIFIERS = set(METADATA.get_all("Classifier", []))
PYTHONS = {"3.10", "3.11", "3.12", "3.13", "3.14"}


def test_package_metadata_and_changelog_have_one_version() -> None:
    pattern = r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$"
    versions = re.findall(pattern, CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == cromicle_sdk.__version__ == METADATA["Version"]
    assert len(versions) == len(set(versions))


def test_each_supported_python_has_its_classifier() -> None:
    prefix = "Programming Language :: Python :: "
    named = {text.removeprefix(prefix) for text in CLASSIFIERS if text.startswith(prefix)}
    assert {version for version in named if version.startswith("3.")} == PYTHONS
    assert METADATA["Requires-Python"] == ">=3.10"


@pytest.mark.parametrize("name", ["Framework :: AsyncIO", "Framework :: Trio", "Typing :: Typed"])
def test_the_classifiers_name_event_loops_and_types(name: str) -> None:
    assert name in CLASSIFIERS


def test_the_licence_is_an_expression_with_its_text() -> None:
    # PEP 639: no classifier repeats the expression.
    assert METADATA["License-Expression"] == "MIT"
    assert METADATA.get_all("License-File") == ["LICENSE"]
    assert not [text for text in CLASSIFIERS if text.startswith("License ::")]
