"""`cromicle config`: shows the settings in effect, and changes those of a profile."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, cast

import click
from click.shell_completion import CompletionItem

from cromicle_sdk._core.endpoint import Endpoint
from cromicle_sdk._core.secrets import DEFAULT_TOKEN

from .config import PROFILE_VARIABLE, Settings
from .errors import Misuse
from .input import STDIN, read_file
from .output import open_output, remove_controls
from .profiles import DEFAULT_PROFILE, NAMES, change_file, check_table, check_value, find_file
from .target import add_profile_option, add_settings_options, take_settings

__all__ = ["config"]

_NAMES = (*NAMES, "default_profile")
_FIELD = "extra_body."

# The maximum length of a value in the list, in characters.
_MAX_SHOWN_LENGTH = 60


def _complete_name(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(name) for name in _NAMES if name.startswith(incomplete)]


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  cromicle config
  cromicle config set base_url https://chat.example.com
  cromicle config set token
  cromicle config set --profile local base_url http://127.0.0.1:8000
  cromicle config set default_profile local
""",
)
@add_settings_options
@click.pass_context
def config(context: click.Context, /, **options: Any) -> None:
    """Show the settings in effect and their sources, or change one.

    An option overrides the environment, and the environment overrides the profile in use. The
    options are those of `cromicle ask` for settings: with them, the list shows the settings that
    `ask` would use. A token that is set is never shown.

    Settings are saved in config.toml, which has a table for each profile. The profile in use is
    --profile, else $CROMICLE_PROFILE, else the file's default_profile, else the profile named
    default.
    """
    if context.invoked_subcommand is None:
        output = open_output()
        output.write(format_settings(take_settings(options)) + "\n")
    elif any(options.values()):
        command = context.invoked_subcommand
        raise click.UsageError(
            f"{command} does not take these options; --profile must follow {command}."
        )


@config.command("path")
def print_path() -> None:
    """Print the path of config.toml, whether or not it exists."""
    open_output().write(f"{find_file()}\n")


@config.command("set", short_help="Save a setting in a profile.")
@add_profile_option
@click.argument("name", metavar="NAME", shell_complete=_complete_name)
@click.argument("value", metavar="[VALUE]", required=False)
def set_value(profile: str | None, name: str, value: str | None) -> None:
    """Save a setting in the profile in use, or in --profile, which is created if missing.

    NAME is base_url, token, system, model, extra_body (a JSON object), extra_body.FIELD (JSON) or
    default_profile. If VALUE is -, it is read from standard input. Omit VALUE for a token, to keep
    it out of the shell's history: it is then prompted for on a terminal, or read from standard
    input.
    """
    file = find_file()
    key = _parse_name(name)
    checked = _parse_value(name, key, _read_value(name, value))

    def change(document: Any) -> None:
        import tomlkit
        from tomlkit.exceptions import ConvertError

        try:
            item = cast("object", tomlkit.item(checked))
        except ConvertError:
            raise Misuse(f"{name}: TOML has no null.") from None
        *tables, last = _find_path(document, profile, key)
        table = document
        for depth, each in enumerate(tables):
            if each not in table:
                # [profile] has no line of its own, only [profile.NAME].
                table[each] = tomlkit.table(is_super_table=depth == 0)
            table = check_table(file, ".".join(tables[: depth + 1]), table[each])
        table[last] = item

    change_file(file, change)


@config.command("unset", short_help="Remove a setting from a profile.")
@add_profile_option
@click.argument("name", metavar="NAME", shell_complete=_complete_name)
def unset_value(profile: str | None, name: str) -> None:
    """Remove a setting from the profile in use, or from --profile.

    NAME is as for `cromicle config set`. Removing a setting that is not set is not an error.
    """
    file = find_file()
    key = _parse_name(name)

    def change(document: Any) -> None:
        *tables, last = _find_path(document, profile, key)
        table = document
        for depth, each in enumerate(tables):
            table = check_table(file, ".".join(tables[: depth + 1]), table.get(each, {}))
        table.pop(last, None)

    change_file(file, change, is_removal=True)


def _parse_name(name: str) -> tuple[str, ...]:
    """Return the keys below the profile, or `default_profile`. Raises `click.UsageError`."""
    if name.startswith(_FIELD) and name != _FIELD:
        return ("extra_body", name.removeprefix(_FIELD))
    if name not in _NAMES:
        raise click.UsageError(f"There is no setting {name!r}: expected {', '.join(_NAMES)}.")
    return (name,)


def _read_value(name: str, value: str | None) -> str:
    if value is None and name != "token":
        raise click.UsageError(f"Missing the VALUE of {name}.")
    if value is None and sys.stdin is not None and sys.stdin.isatty():
        typed: str = click.prompt("Token", hide_input=True, err=True)
        return typed
    if value is None or value == STDIN:
        return read_file(STDIN, "VALUE").rstrip("\r\n")
    return value


def _parse_value(name: str, key: tuple[str, ...], text: str) -> Any:
    """Return the value to save. Raises `Misuse`, which never quotes it."""
    if name == "default_profile":
        return text
    value: object = text
    if key[0] == "extra_body":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise Misuse(f"{name}: the value is not JSON; put a string in quotes.") from None
    check_value(name, key[0], {key[1]: value} if len(key) > 1 else value)
    return value


def _find_path(document: Any, profile: str | None, key: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path of keys to a setting in the tomlkit document."""
    if key == ("default_profile",):
        return key
    in_use = profile or os.environ.get(PROFILE_VARIABLE) or document.get("default_profile")
    return ("profile", str(in_use or DEFAULT_PROFILE), *key)


def format_settings(settings: Settings) -> str:
    """Format the path of the file, and the name, value and source of each setting, as lines."""
    file = find_file()
    fields = {name: value for name, value in settings.extra_body.items() if name != "model"}
    values = {
        "profile": settings.profile,
        "base_url": None if settings.base_url is None else _hide_password(settings.base_url),
        # The well-known token may be shown.
        "token": DEFAULT_TOKEN if settings.token is None else "set, not shown",
        "system": settings.system,
        "model": settings.model,
        "extra_body": fields or None,
    }
    shown = {name: _format_value(value) for name, value in values.items()}
    width = max(map(len, shown.values()))
    return "\n".join(
        [
            f"{'file':10}  {file}{'' if file.exists() else ' (does not exist)'}",
            *(
                f"{name:10}  {text:{width}}  {settings.sources[name]}"
                for name, text in shown.items()
            ),
        ]
    )


def _hide_password(base_url: str) -> str:
    endpoint = Endpoint.parse("base_url", base_url)
    return endpoint.base_url + (" (with a password)" if endpoint.authorization else "")


def _format_value(value: object) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = remove_controls(" ".join(text.split()))
    return line if len(line) <= _MAX_SHOWN_LENGTH else line[: _MAX_SHOWN_LENGTH - 1] + "…"
