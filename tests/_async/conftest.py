"""Fixtures for the tests of the clients and their connections."""

from __future__ import annotations

from typing import Any

import httpx
import httpx2
import pytest


@pytest.fixture(params=[httpx, httpx2], ids=lambda library: library.__name__)
def library(request: pytest.FixtureRequest) -> Any:
    return request.param
