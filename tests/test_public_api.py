"""The public API is the recorded one."""

from __future__ import annotations

import public_api


def test_the_public_interface_is_the_recorded_one() -> None:
    recorded = public_api.RECORD.read_text(encoding="utf-8").splitlines()
    present = public_api.describe().splitlines()
    missing = [line for line in recorded if line not in present]
    added = [line for line in present if line not in recorded]
    assert not missing, "incompatible with the recorded API"
    assert not added, "not recorded: run python tests/public_api.py"
