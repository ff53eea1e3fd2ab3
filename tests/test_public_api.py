"""The public names and their parameters are those that are on record."""

from __future__ import annotations

import public_api


def test_the_public_interface_is_the_recorded_one() -> None:
    recorded = public_api.RECORD.read_text(encoding="utf-8").splitlines()
    present = public_api.describe().splitlines()
    missing = [line for line in recorded if line not in present]
    added = [line for line in present if line not in recorded]
    assert not missing, "this breaks the code of others"
    assert not added, "record it: python tests/public_api.py"
