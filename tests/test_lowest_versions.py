"""The constraints of the test run with the lowest declared versions."""

from __future__ import annotations

from lowest_versions import PROJECT, find_lowest_versions


def test_each_lower_bound_becomes_a_constraint() -> None:
    project = """
    requires-python = ">=3.10"
    dependencies = ["httpx>=0.28.1,<1"]
    cli = ["click>=8.1.8,<9", "rich>=13.9,<16"]
    socks = ["httpx[socks]>=0.28.1,<1"]
    trio = ["trio>=0.31; sys_platform != 'win32'"]
bench = [
    "example[cli]",
    "openai>=1.60",
]
"""
    assert find_lowest_versions(project) == {
        "httpx": "0.28.1",
        "click": "8.1.8",
        "rich": "13.9",
        "trio": "0.31",
    }


def test_the_required_packages_have_a_lower_bound() -> None:
    lowest = find_lowest_versions(PROJECT.read_text(encoding="utf-8"))
    assert {"httpx", "httpcore", "h11", "anyio"} <= set(lowest)
