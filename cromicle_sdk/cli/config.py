"""The settings in effect, from options, the environment and profiles, and their sources.

Only the command reads `config.toml`, through `load_settings`; the SDK does not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cromicle_sdk._core.endpoint import Endpoint
from cromicle_sdk._core.secrets import Secret

from .errors import Misuse
from .profiles import DEFAULT_PROFILE, Profile, check, find_file, read_profiles, warn_of_other_users

__all__ = ["PROFILE_VARIABLE", "Settings", "load_settings"]

_FLAGS = {
    "base_url": "--base-url",
    "token": "--token",
    "system": "--system",
    "model": "--model",
    "extra_body": "--body",
}
_VARIABLES = {"base_url": "CROMICLE_BASE_URL", "token": "CROMICLE_TOKEN"}
PROFILE_VARIABLE = "CROMICLE_PROFILE"

# The source of a setting that is set nowhere.
DEFAULT = "default"
_WITHHELD = f"{DEFAULT}, as that of "


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings in effect: from options, else the environment, else the profile, else None.

    `extra_body` merges the fields from all of these, and includes the model as the field `model`.
    `sources` describes where each setting comes from.
    """

    profile: str | None = None
    base_url: str | None = field(default=None, repr=False)
    token: Secret | None = None
    system: str | None = field(default=None, repr=False)
    extra_body: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    sources: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def model(self) -> Any:
        """The field `model` of `extra_body`, or None."""
        return self.extra_body.get("model")

    @property
    def labels(self) -> Mapping[str, str]:
        """The names of the settings in errors: the flag, the variable, or the profile in use."""
        labels = dict(_FLAGS)
        for name, source in self.sources.items():
            if source.startswith("$"):
                labels[name] = source
            elif source == _name_source(self.profile):
                labels[name] = f"{name} of {source}"
            elif name == "token" and source.startswith(_WITHHELD):
                labels[name] = f"--token or ${_VARIABLES[name]}{source.removeprefix(DEFAULT)}"
        return labels

    def with_system(self, text: str, source: str) -> Settings:
        """Return a copy with another system message."""
        return replace(self, system=text, sources={**self.sources, "system": source})

    def require_base_url(self) -> str:
        """Return the base URL. Raises `Misuse`, with instructions, if none is set."""
        if self.base_url is None:
            raise Misuse(
                "No endpoint is set: pass --base-url URL, or save one with"
                " `cromicle config set base_url URL`.",
                advice="To run one on this machine, use `cromicle serve`, with --upstream URL for a"
                " model. To try the command without an endpoint, pass --local.",
            )
        return self.base_url


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
    """Return the settings in effect, given the options of a command, which are None if not given.

    With `options_only`, the environment and the profiles are ignored. Raises `Misuse`, which names
    the option, the variable, or the file and its key. If other users can access the file, a warning
    is printed on stderr.
    """
    name, chosen, own = (
        (None, DEFAULT, Profile()) if options_only else _choose_profile(find_file(), profile)
    )
    of_profile = _name_source(name)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {"profile": chosen}
    given = {"base_url": base_url, "token": token, "system": system}
    for setting, value in given.items():
        variable = "" if options_only else _VARIABLES.get(setting, "")
        saved = getattr(own, setting)
        values[setting], sources[setting] = _find(setting, value, variable, saved, of_profile)
    if sources["token"] == of_profile and not _is_same_origin(values["base_url"], own.base_url):
        # A saved token is sent only to the endpoint that it was saved with.
        values["token"] = None
        sources["token"] = f"{_WITHHELD}{of_profile} is for its own base_url"
    fields, sources_of_fields = _merge_fields(own, of_profile, model, extra_body or {})
    return Settings(
        profile=name, **values, extra_body=fields, sources={**sources, **sources_of_fields}
    )


def _name_source(profile: str | None) -> str:
    return f"profile {profile}"


def _find(
    name: str, given: object, variable: str, saved: object, of_profile: str
) -> tuple[Any, str]:
    """Return the value of a setting and its source."""
    if given is not None:
        return check(_FLAGS[name], name, given), _FLAGS[name]
    # An empty variable counts as unset: `VARIABLE= command` unsets it for one command.
    text = os.environ.get(variable)
    if text:
        value = Secret(text) if name == "token" else text
        return check(f"${variable}", name, value), f"${variable}"
    return (saved, of_profile) if saved is not None else (None, DEFAULT)


def _merge_fields(
    own: Profile, of_profile: str, model: str | None, extra_body: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of a request, including the model, and the sources of both."""
    if model is not None and "model" in extra_body:
        raise Misuse("--model and --body model=… cannot be used together.")
    sources = {"model": DEFAULT, "extra_body": DEFAULT}
    fields = dict(own.extra_body)
    if own.extra_body:
        sources["extra_body"] = of_profile
    if own.model is not None:
        fields["model"] = own.model
    if "model" in fields:
        sources["model"] = of_profile
    if extra_body:
        fields.update(check("--body", "extra_body", extra_body))
        kept = [sources["extra_body"]] if own.extra_body.keys() - extra_body.keys() else []
        sources["extra_body"] = " and ".join(["--body", *kept])
    if "model" in extra_body:
        sources["model"] = "--body"
    if model is not None:
        fields["model"] = check("--model", "model", model)
        sources["model"] = "--model"
    return fields, sources


def _is_same_origin(base_url: object, saved: str | None) -> bool:
    """Whether a profile's token may be sent to `base_url`. `saved` is the profile's base URL."""
    if saved is None or base_url == saved:
        return True
    one, other = (Endpoint.parse("base_url", url) for url in (base_url, saved))
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def _choose_profile(file: Path, given: str | None) -> tuple[str | None, str, Profile]:
    """Return the name of the profile in use (None without one), its source, and the profile."""
    profiles = read_profiles(file)
    warn_of_other_users(file)
    variable = os.environ.get(PROFILE_VARIABLE)
    if given is not None:
        name, source = given, "--profile"
    elif variable:
        name, source = variable, f"${PROFILE_VARIABLE}"
    elif profiles.default_profile is not None:
        name, source = profiles.default_profile, "default_profile"
    elif DEFAULT_PROFILE in profiles.by_name:
        name, source = DEFAULT_PROFILE, DEFAULT
    else:
        return None, DEFAULT, Profile()
    if name not in profiles.by_name:
        known = ", ".join(profiles.by_name) or "no profiles"
        raise Misuse(f"{source}: there is no profile {name!r} in {file}; it has {known}.")
    return name, source, profiles.by_name[name]
