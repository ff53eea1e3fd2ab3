"""The limit of file descriptors, and that of connections that follows from it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cromicle_sdk import ConfigurationError
from cromicle_sdk.server.run.descriptors import choose_max_connections, raise_descriptor_limit

UNIX = pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")

PROBE = """
import resource
from cromicle_sdk.server.run.descriptors import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@UNIX
def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["300", "300", "300"]


class FakeResource:
    """The module `resource` of a system whose limits differ from those of this one."""

    RLIMIT_NOFILE = 7
    RLIM_INFINITY = -1

    def __init__(self, soft: int, hard: int, *, most: int | None = None) -> None:
        self.limits = (soft, hard)
        self.most = most

    def getrlimit(self, kind: int) -> tuple[int, int]:
        assert kind == 7
        return self.limits

    def setrlimit(self, kind: int, limits: tuple[int, int]) -> None:
        if self.most is not None and limits[0] > self.most:
            raise ValueError("current limit exceeds maximum limit")
        self.limits = limits


@pytest.mark.parametrize(
    ("resource", "limit"),
    [
        (FakeResource(256, -1), 65_536),
        (FakeResource(100_000, -1), 100_000),
        (FakeResource(256, -1, most=10_240), 256),
        (FakeResource(-1, -1, most=0), None),
    ],
)
def test_the_limit_of_a_system(
    resource: FakeResource, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "resource", resource)
    assert raise_descriptor_limit() == limit


def test_a_system_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert raise_descriptor_limit() is None


@pytest.mark.parametrize(
    ("wanted", "descriptors", "chosen"),
    [
        (None, 1024, 480),
        (None, 65_536, 10_000),
        (None, None, 10_000),
        (None, 10, 1),
        (900, 1024, 900),
        (50_000, None, 50_000),
    ],
)
def test_the_default_leaves_half_for_the_model_server(
    wanted: int | None, descriptors: int | None, chosen: int
) -> None:
    assert choose_max_connections(wanted, descriptors) == chosen


def test_more_connections_than_descriptors_are_rejected() -> None:
    with pytest.raises(
        ConfigurationError, match=r"max_connections: 961 is more than 960"
    ) as caught:
        choose_max_connections(961, 1024)
    assert "LimitNOFILE" in caught.value.hint
