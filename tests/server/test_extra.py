"""The import error of the server without its extra."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "prometheus_client"])
def test_the_import_error_contains_the_install_command(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == missing or name.startswith("cromicle_sdk.server"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "cromicle-sdk\[server\]"') as caught:
        importlib.import_module("cromicle_sdk.server")
    assert isinstance(caught.value.__cause__, ImportError)
