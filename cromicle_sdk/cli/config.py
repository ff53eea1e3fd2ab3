"""Settings that last: profiles in `config.toml`, and the source of each value in force.

The SDK reads no file; the command does, through `load_settings`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
from .output import report

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "NAMES",
    "Profile",
    "Profiles",
    "Settings",
    "find_file",
    "load_settings",
    "read_profiles",
]

# The settings of a profile, in the order in which they are shown.
NAMES = ("base_url", "token", "system", "model", "extra_body")

# The profile in use where neither an option, the environment nor the file names another.
DEFAULT_PROFILE = "default"

_FLAGS = {
    "base_url": "--base-url",
    "token": "--token",
    "system": "--system",
    "model": "--model",
    "extra_body": "--body",
}
_VARIABLES = {"base_url": "CROMICLE_BASE_URL", "token": "CROMICLE_TOKEN"}
_PROFILE_VARIABLE = "CROMICLE_PROFILE"

DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings in force: of options, else the environment, else the profile, else None.

    `extra_body` holds the fields of all of these, and the model as its field `model`. `sources`
    says in words where each setting comes from.
    """

    profile: str | None = None
    base_url: str | None = field(default=None, repr=False)
    token: Secret | None = None
    system: str | None = field(default=None, repr=False)
    extra_body: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    sources: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def model(self) -> Any:
        """The field `model` of `extra_body`, None where there is none."""
        return self.extra_body.get("model")

    @property
    def labels(self) -> Mapping[str, str]:
        """How an error names the settings: the flag, the variable or the profile in use."""
        labels = dict(_FLAGS)
        for name, source in self.sources.items():
            if source.startswith("$"):
                labels[name] = source
            elif source == f"profile {self.profile}":
                labels[name] = f"{name} of {source}"
        return labels

    def with_system(self, text: str, source: str) -> Settings:
        """These settings with the text of another system message."""
        return replace(self, system=text, sources={**self.sources, "system": source})

    def require_base_url(self) -> str:
        """The base URL. Raises `Misuse`, which says how to get one, where none is set."""
        if self.base_url is None:
            raise Misuse(
                "No endpoint is set: pass --base-url URL, or keep one with"
                " `cromicle config set base_url URL`.",
                advice="To run one on this machine: `cromicle serve`, for a model server with"
                " --upstream URL; for a first try: --local.",
            )
        return self.base_url


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The settings of one profile, None where it does not have them."""

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


def load_settings(
    *,
    profile: str | None = None,
    base_url: str | None = None,
    token: Secret | None = None,
    system: str | None = None,
    model: str | None = None,
    extra_body: Mapping[str, Any] | None = None,
    options_only: bool = False,
) -> Settings:
    """The settings in force, given the options of a command, None where not given.

    With `options_only`, these hold alone. Raises `Misuse`, which names the option, the variable,
    or the file and its key. A file that other users can use is reported on stderr.
    """
    name, chosen, own = (
        (None, DEFAULT, Profile()) if options_only else _choose_profile(find_file(), profile)
    )
    of_profile = f"profile {name}"
    values: dict[str, Any] = {}
    sources: dict[str, str] = {"profile": chosen}
    given = {"base_url": base_url, "token": token, "system": system}
    for setting, value in given.items():
        variable = "" if options_only else _VARIABLES.get(setting, "")
        saved = getattr(own, setting)
        values[setting], sources[setting] = _find(setting, value, variable, saved, of_profile)
    if sources["token"] == of_profile and not _is_same_origin(values["base_url"], own.base_url):
        # A token is for the endpoint that it was saved with.
        values["token"] = None
        sources["token"] = f"{DEFAULT}, as that of {of_profile} is for its own base_url"
    fields, sources_of_fields = _merge_fields(own, of_profile, model, extra_body or {})
    return Settings(
        profile=name, **values, extra_body=fields, sources={**sources, **sources_of_fields}
    )


def _find(
    name: str, given: object, variable: str, saved: object, of_profile: str
) -> tuple[Any, str]:
    """The value of a setting, and where it comes from."""
    if given is not None:
        return _check(_FLAGS[name], name, given), _FLAGS[name]
    # Shells set a variable to nothing to unset it for one command.
    text = os.environ.get(variable)
    if text:
        value = Secret(text) if name == "token" else text
        return _check(f"${variable}", name, value), f"${variable}"
    return (saved, of_profile) if saved is not None else (None, DEFAULT)


def _merge_fields(
    own: Profile, of_profile: str, model: str | None, extra_body: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of a request with the model among them, and where these two come from."""
    if model is not None and "model" in extra_body:
        raise Misuse("--model and --body model=… exclude each other.")
    sources = {"model": DEFAULT, "extra_body": DEFAULT}
    fields = dict(own.extra_body)
    if own.extra_body:
        sources["extra_body"] = of_profile
    if own.model is not None:
        fields["model"] = own.model
    if "model" in fields:
        sources["model"] = of_profile
    if extra_body:
        fields.update(_check("--body", "extra_body", extra_body))
        kept = [sources["extra_body"]] if own.extra_body.keys() - extra_body.keys() else []
        sources["extra_body"] = " and ".join(["--body", *kept])
    if "model" in extra_body:
        sources["model"] = "--body"
    if model is not None:
        fields["model"] = _check("--model", "model", model)
        sources["model"] = "--model"
    return fields, sources


def _is_same_origin(base_url: object, saved: str | None) -> bool:
    """Whether a profile's token may go to `base_url`; where the profile has none, to any."""
    if saved is None or base_url == saved:
        return True
    one, other = (Endpoint.parse("base_url", url) for url in (base_url, saved))
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


# Profiles


def find_file() -> Path:
    """The path of `config.toml`, which need not be there."""
    return platformdirs.user_config_path("cromicle", appauthor=False) / "config.toml"


def complete_profile(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The names of profiles, for a shell's completion; none of a file that is not valid."""
    try:
        names = read_profiles(find_file()).by_name
    except Misuse:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _choose_profile(file: Path, given: str | None) -> tuple[str | None, str, Profile]:
    """The profile in use, None and an empty one if there is none, and where its name comes from."""
    profiles = read_profiles(file)
    _warn_of_other_users(file)
    variable = os.environ.get(_PROFILE_VARIABLE)
    if given is not None:
        name, source = given, "--profile"
    elif variable:
        name, source = variable, f"${_PROFILE_VARIABLE}"
    elif profiles.default_profile is not None:
        name, source = profiles.default_profile, f"default_profile in {file}"
    elif DEFAULT_PROFILE in profiles.by_name:
        name, source = DEFAULT_PROFILE, DEFAULT
    else:
        return None, DEFAULT, Profile()
    if name not in profiles.by_name:
        known = ", ".join(profiles.by_name) or "none"
        raise Misuse(f"{source}: {file} has no profile {name!r}; it has {known}.")
    return name, source, profiles.by_name[name]


def _warn_of_other_users(file: Path) -> None:
    with contextlib.suppress(OSError):
        if os.name != "nt" and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            line = f"other users of this machine can use {file}; chmod 600 takes that away."
            report(line, label="Warning: ", style="bold yellow")


def read_profiles(file: Path) -> Profiles:
    """The checked content of the file; nothing if it is not there.

    Raises `Misuse`, which names the file and the key, and never quotes a value.
    """
    text = read_text(file)
    try:
        content: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Misuse(f"{file} is not TOML: {error}.") from None
    return _check_content(file, content)


def read_text(file: Path) -> str:
    """The text of the file, "" if it is not there. Raises `Misuse`."""
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


def _check_content(file: Path, content: Mapping[str, Any]) -> Profiles:
    known = {"default_profile", "profile"}
    _check_keys(file, "", content, known)
    default_profile = content.get("default_profile")
    if default_profile is not None and not isinstance(default_profile, str):
        raise Misuse(f"{file}: default_profile: expected the name of a profile, as a text.")
    profiles = _check_table(file, "profile", content.get("profile", {}))
    return Profiles(
        default_profile=default_profile,
        by_name={
            name: _check_profile(file, f"profile.{name}", settings)
            for name, settings in profiles.items()
        },
    )


def _check_profile(file: Path, key: str, settings: object) -> Profile:
    table = _check_table(file, key, settings)
    _check_keys(file, f"{key}.", table, set(NAMES))
    values = {
        name: check_value(f"{file}: {key}.{name}", name, value) for name, value in table.items()
    }
    if "model" in values and "model" in values.get("extra_body", {}):
        raise Misuse(f"{file}: {key}.extra_body: the field 'model' is set by {key}.model.")
    return Profile(**values)


def _check_table(file: Path, key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Misuse(f"{file}: {key}: expected a table, as in [profile.work].")
    return cast("dict[str, Any]", value)


def _check_keys(file: Path, prefix: str, table: Mapping[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            names = ", ".join(name for name in (*NAMES, *sorted(known)) if name in known)
            raise Misuse(f"{file}: {prefix}{key}: there is no such key; the keys are {names}.")


# Values


def check_value(label: str, name: str, value: object) -> Any:
    """A setting's value as it is used, checked; a token becomes a `Secret`.

    Raises `Misuse`, which begins with the label and never quotes the value.
    """
    return _check(label, name, Secret(cast("str", value)) if name == "token" else value)


def _check(label: str, name: str, value: object) -> Any:
    try:
        return _CHECKS[name](value)
    except ConfigurationError as error:
        hint = f"; {error.hint}" if error.hint and name != "extra_body" else ""
        problem = f"{label}: {error.detail}{hint}"
    # Raised here, so that the error's frames, which hold the value, are not its context.
    raise Misuse(problem)


def _check_base_url(value: object) -> object:
    Endpoint.parse("base_url", value)
    return value


def _check_extra_body(value: object) -> object:
    ExtraBody.build(value)
    return value


def _check_system(value: object) -> object:
    # An empty text is that of no system message.
    return value if value == "" else check_text("system", value)


_CHECKS: dict[str, Callable[[Any], object]] = {
    "base_url": _check_base_url,
    "token": lambda value: check_token("token", value),
    "system": _check_system,
    "model": lambda value: check_text("model", value),
    "extra_body": _check_extra_body,
}
