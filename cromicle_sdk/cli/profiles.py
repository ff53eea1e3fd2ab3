"""The file `config.toml`: profiles, each with the settings of an endpoint."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import click
import platformdirs
from click.shell_completion import CompletionItem

from cromicle_sdk import ConfigurationError
from cromicle_sdk._core.endpoint import Endpoint
from cromicle_sdk._core.fields import ExtraBody
from cromicle_sdk._core.options import check_text, check_token
from cromicle_sdk._core.secrets import Secret

from .errors import Misuse
from .files import replace_file
from .output import report

if sys.version_info >= (3, 11):  # pragma: no cover - one of the two, on each version
    import tomllib
else:  # pragma: no cover - as above
    import tomli as tomllib

__all__ = [
    "DEFAULT_PROFILE",
    "NAMES",
    "Profile",
    "Profiles",
    "change_file",
    "check",
    "check_table",
    "check_value",
    "complete_profile",
    "find_file",
    "read_profiles",
    "warn_of_other_users",
]

# The settings of a profile, in the order in which they are shown.
NAMES = ("base_url", "token", "system", "model", "extra_body")

# The profile in use if neither an option, the environment nor the file names one.
DEFAULT_PROFILE = "default"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The settings of one profile, which are None if not set."""

    base_url: str | None = field(default=None, repr=False)
    token: Secret | None = None
    system: str | None = field(default=None, repr=False)
    model: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """The checked content of `config.toml`."""

    default_profile: str | None = None
    by_name: Mapping[str, Profile] = field(default_factory=dict[str, Profile])


def find_file() -> Path:
    """Return the path of `config.toml`, which may not exist."""
    return platformdirs.user_config_path("cromicle", appauthor=False) / "config.toml"


def complete_profile(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names of profiles for shell completion; none if the file is invalid."""
    try:
        names = read_profiles(find_file()).by_name
    except Misuse:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def warn_of_other_users(file: Path) -> None:
    """Print a warning on stderr if other users of this machine can read or change the file."""
    with contextlib.suppress(OSError):
        if os.name != "nt" and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            line = f"other users of this machine can access {file}; chmod 600 prevents it."
            report(line, label="Warning: ", style="bold yellow")


def read_profiles(file: Path) -> Profiles:
    """Return the checked content of the file, or empty profiles if it does not exist.

    Raises `Misuse`, which names the file and the key, and never quotes a value.
    """
    text = _read_text(file)
    try:
        content: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise Misuse(f"{file} is not TOML: {error}.") from None
    return _check_content(file, content)


def _read_text(file: Path) -> str:
    """Return the text of the file, or "" if it does not exist. Raises `Misuse`."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Misuse(f"{file} cannot be read: {error.strerror or error}.") from None
    try:
        # Windows tools begin a file with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Misuse(f"{file} is not UTF-8 (byte {error.start}).") from None


def change_file(file: Path, change: Callable[[Any], None], *, is_removal: bool = False) -> None:
    """Apply a change to the file, which is created if missing and replaced atomically.

    `change` receives the tomlkit document, which preserves comments and order. Only the owner can
    read the new file. Raises `Misuse`, also if the new content is invalid, unless `is_removal` is
    true: a removal may be the first of several repairs.
    """
    # Imported here because only this needs it, and its import takes as long as that of click.
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    # Follows a link, because dotfiles are often kept elsewhere.
    target = Path(os.path.realpath(file))
    try:
        document = tomlkit.parse(_read_text(target))
    except (TOMLKitError, RecursionError) as error:
        raise Misuse(f"{file} is not TOML: {error}.") from None
    change(document)
    text = tomlkit.dumps(document)
    if not is_removal:
        _check_content(file, tomllib.loads(text))
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(target, text.encode())
    except OSError as error:
        raise Misuse(f"{file} cannot be written: {error.strerror or error}.") from None


def _check_content(file: Path, content: Mapping[str, Any]) -> Profiles:
    _check_keys(file, "", content, ("default_profile", "profile"))
    default_profile = content.get("default_profile")
    profiles = check_table(file, "profile", content.get("profile", {}))
    if default_profile is not None and default_profile not in list(profiles):
        names = ", ".join(profiles) or "none"
        raise Misuse(f"{file}: default_profile: expected one of the profiles ({names}).")
    return Profiles(
        default_profile=default_profile,
        by_name={
            name: _check_profile(file, f"profile.{name}", settings)
            for name, settings in profiles.items()
        },
    )


def _check_profile(file: Path, key: str, settings: object) -> Profile:
    table = check_table(file, key, settings)
    _check_keys(file, f"{key}.", table, NAMES)
    values = {
        name: check_value(f"{file}: {key}.{name}", name, value) for name, value in table.items()
    }
    if "model" in values and "model" in values.get("extra_body", {}):
        raise Misuse(f"{file}: {key}.extra_body: the field 'model' is set by {key}.model.")
    return Profile(**values)


def check_table(file: Path, key: str, value: object) -> dict[str, Any]:
    """Return the value if it is a table. Raises `Misuse` otherwise."""
    if not isinstance(value, dict):
        raise Misuse(f"{file}: {key}: expected a table, as in [profile.work].")
    return cast("dict[str, Any]", value)


def _check_keys(file: Path, prefix: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            names = ", ".join(known)
            raise Misuse(f"{file}: {prefix}{key}: unknown key; the keys are {names}.")


def check_value(label: str, name: str, value: object) -> Any:
    """Check and return the value of a setting. A token becomes a `Secret`.

    Raises `Misuse`, which begins with the label and never quotes the value.
    """
    return check(label, name, Secret(cast("str", value)) if name == "token" else value)


def check(label: str, name: str, value: object) -> Any:
    """Check and return a value; a token is a `Secret`. Raises as `check_value` does."""
    try:
        return _CHECKS[name](value)
    except ConfigurationError as error:
        hint = f"; {error.hint}" if error.hint and name != "extra_body" else ""
        problem = f"{label}: {error.detail}{hint}"
    # Raised here, so that the error, whose frames contain the value, is not its context.
    raise Misuse(problem)


def _check_base_url(value: object) -> object:
    Endpoint.parse("base_url", value)
    return value


def _check_extra_body(value: object) -> object:
    ExtraBody.build(value)
    return value


def _check_system(value: object) -> object:
    # An empty text means no system message.
    return value if value == "" else check_text("system", value)


_CHECKS: dict[str, Callable[[Any], object]] = {
    "base_url": _check_base_url,
    "token": lambda value: check_token("token", value),
    "system": _check_system,
    "model": lambda value: check_text("model", value),
    "extra_body": _check_extra_body,
}
