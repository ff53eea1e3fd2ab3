"""What the values of options may be, beyond what click knows itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import click

__all__ = ["parse_delay", "parse_headers", "parse_limit"]


def parse_limit(value: object) -> float:
    """The type of an option that is how long something may take, in seconds."""
    seconds = _parse_number(value)
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"{value!r} is not a number of seconds above 0.")
    return seconds


def parse_delay(value: object) -> float:
    """The type of an option that is how long to wait, in seconds."""
    seconds = _parse_number(value)
    if not 0 <= seconds < math.inf:
        raise click.BadParameter(f"{value!r} is not a number of seconds, 0 or more.")
    return seconds


def parse_headers(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> Mapping[str, str]:
    """The callback of `--header NAME:VALUE`.

    Errors never quote a value, which may be a secret. Raises `click.BadParameter`.
    """
    headers: dict[str, str] = {}
    for place, text in enumerate(values, start=1):
        name, colon, value = text.partition(":")
        name = name.strip()
        if not colon or not name:
            raise click.BadParameter(
                f"number {place} is not of the form NAME:VALUE.", context, parameter
            )
        if name.lower() in (other.lower() for other in headers):
            raise click.BadParameter(f"{name} is given twice.", context, parameter)
        headers[name] = value.strip()
    return headers


def _parse_number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return math.nan
