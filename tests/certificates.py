"""Certificate authorities for the tests of TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from left_out import skip_if_left_out

if TYPE_CHECKING:
    import trustme

__all__ = ["build_authority"]


def build_authority() -> trustme.CA:
    """A new authority. Skips the test where trustme is left out."""
    skip_if_left_out("trustme")
    import trustme

    return trustme.CA()
