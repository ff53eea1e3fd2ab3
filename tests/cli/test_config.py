"""Settings that last: `config.toml`, the precedence of settings, and `cromicle config`."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from cromicle_sdk.cli import profiles as _profiles
from cromicle_sdk.cli import run
from cromicle_sdk.cli.config import load_settings
from cromicle_sdk.cli.profiles import complete_profile
from cromicle_sdk.testing import FaultyServer

Capture = pytest.CaptureFixture[str]

WORK = """\
# Mine.
default_profile = "work"

[profile.work]
base_url = "BASE_URL"
token = "s3cret-of-work"   # from the wiki
system = "Be brief."
model = "llama3.2"
extra_body = { seed = 1, stop = ["x"] }

[profile.other]
base_url = "http://other.example"
"""

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")


@pytest.fixture
def file(config_folder: Path) -> Path:
    return config_folder / "config.toml"


@pytest.fixture(autouse=True)
def _no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"")


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def save(file: Path, text: str, base_url: str = "http://work.example", mode: int = 0o600) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace("BASE_URL", base_url), encoding="utf-8")
    file.chmod(mode)


def read_error(capsys: Capture) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert "s3cret" not in err
    return err


# What a request has


def test_a_profile_gives_what_is_not_given(file: Path, faults: FaultyServer) -> None:
    save(file, WORK, faults.base_url)
    assert run(["ask", "Hi"]) == 0
    (request,) = faults.requests
    assert request.message == "System: Be brief.\nUser: Hi\nAssistant:"
    assert request.token == "s3cret-of-work"
    assert request.options == {"seed": 1, "stop": ["x"], "model": "llama3.2"}


def test_an_option_replaces_a_setting(file: Path, faults: FaultyServer) -> None:
    save(file, WORK)
    arguments = [*("--base-url", faults.base_url, "--token", "mine", "--system", "")]
    assert run(["ask", *arguments, "--model", "big", "--body", "seed=2", "Hi"]) == 0
    (request,) = faults.requests
    assert (request.message, request.token) == ("Hi", "mine")
    assert request.options == {"seed": 2, "stop": ["x"], "model": "big"}


def test_a_model_may_be_a_field_of_the_body(file: Path, faults: FaultyServer) -> None:
    save(file, WORK, faults.base_url)
    assert run(["ask", "--body", "model=null", "Hi"]) == 0
    assert faults.requests[0].options["model"] is None
    assert run(["ask", "--model", "a", "--body", 'model="b"', "Hi"]) == 2


def test_the_environment_comes_before_the_profile(
    file: Path, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(file, WORK)
    monkeypatch.setenv("CROMICLE_BASE_URL", faults.base_url)
    monkeypatch.setenv("CROMICLE_TOKEN", "of the environment")
    assert run(["ask", "Hi"]) == 0
    assert faults.requests[0].token == "of the environment"
    assert faults.requests[0].options["model"] == "llama3.2"


@pytest.mark.parametrize("is_variable", [True, False])
def test_the_token_of_a_profile_goes_to_no_other_server(
    is_variable: bool,
    file: Path,
    faults: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    save(file, WORK)
    option = [] if is_variable else ["--base-url", faults.base_url]
    if is_variable:
        monkeypatch.setenv("CROMICLE_BASE_URL", faults.base_url)
    faults.fail(401)
    assert run(["ask", *option, "Hi"]) == 1
    assert faults.requests[0].token == "abc"
    assert "as that of profile work is for its own base_url." in read_error(capsys)


def test_the_token_of_a_profile_without_an_endpoint_goes_to_any(
    file: Path, faults: FaultyServer
) -> None:
    save(file, '[profile.default]\ntoken = "s3cret"\n')
    faults.reply("Hello.")
    assert run(["ask", "--base-url", faults.base_url, "Hi"]) == 0
    assert faults.requests[0].token == "s3cret"


def test_the_token_of_a_profile_goes_to_another_path_of_its_server(
    file: Path, faults: FaultyServer
) -> None:
    save(file, WORK, f"{faults.base_url}/v1")
    assert run(["ask", "--base-url", f"{faults.base_url}/v2", "Hi"]) == 0
    save(file, '[profile.default]\ntoken = "s3cret-of-any"')
    assert run(["ask", "--base-url", faults.base_url, "Hi"]) == 0
    assert [request.token for request in faults.requests] == ["s3cret-of-work", "s3cret-of-any"]


@pytest.mark.parametrize(
    ("option", "variable", "default", "chosen"),
    [
        (None, None, None, "default"),
        (None, None, "a", "a"),
        (None, "b", "a", "b"),
        ("c", "b", "a", "c"),
        (None, "", "a", "a"),
    ],
)
def test_the_profile_in_use(
    option: str | None,
    variable: str | None,
    default: str | None,
    chosen: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = "".join(f'[profile.{n}]\nmodel = "of {n}"\n' for n in ("default", "a", "b", "c"))
    save(file, (f'default_profile = "{default}"\n' if default else "") + tables)
    if variable is not None:
        monkeypatch.setenv("CROMICLE_PROFILE", variable)
    settings = load_settings(profile=option)
    assert (settings.profile, settings.model) == (chosen, f"of {chosen}")


@pytest.mark.parametrize("arguments", [["--profile", "no"], []])
def test_a_profile_that_is_not_there_is_an_error(
    arguments: list[str], file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("CROMICLE_PROFILE", "no")
    source = "--profile" if arguments else "$CROMICLE_PROFILE"
    for known in ("no profiles", "work, other"):
        assert run(["ask", *arguments, "Hi"]) == 2
        assert read_error(capsys) == (
            f"Error: {source}: there is no profile 'no' in {file}; it has {known}.\n"
        )
        save(file, WORK)


def test_without_an_endpoint_nothing_is_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    # Not even where there is a token.
    monkeypatch.setenv("CROMICLE_TOKEN", "s3cret")
    assert run(["ask", "Hi"]) == 2
    first, second = read_error(capsys).splitlines()
    assert first.startswith("Error: No endpoint is set: pass --base-url URL, or save one with ")
    assert "cromicle serve" in second
    assert "--local" in second


def test_local_reads_no_file(file: Path, capsys: Capture) -> None:
    save(file, "nonsense")
    assert run(["ask", "--local", "Hi"]) == 0
    assert capsys.readouterr() == ("Hi", "")
    assert run(["ask", "--local", "--profile", "work", "Hi"]) == 2
    assert "--local and --profile cannot be used together" in read_error(capsys)


def test_an_error_names_where_a_setting_comes_from(
    file: Path, faults: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    save(file, WORK, faults.base_url)
    faults.fail(401).fail(404).fail(401).fail(404)
    for advice in ("Check the token of profile work.", "Check base_url of profile work: "):
        assert run(["ask", "Hi"]) == 1
        assert advice in read_error(capsys)
    monkeypatch.setenv("CROMICLE_BASE_URL", faults.base_url)
    monkeypatch.setenv("CROMICLE_TOKEN", "s3cret")
    for advice in ("Check the token: $CROMICLE_TOKEN.", "Check $CROMICLE_BASE_URL: "):
        assert run(["ask", "Hi"]) == 1
        assert advice in read_error(capsys)


# The file


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nonsense", "is not TOML: "),
        ("a = " + "[" * 100_000, "is not TOML: "),
        ("a = " + "1" * 5_000, "is not TOML: "),
        ('profil = "x"', "profil: unknown key; the keys are default_profile, profile."),
        ("default_profile = 1", "default_profile: expected one of the profiles (none)."),
        ('default_profile = "x"\n[profile.y]', "expected one of the profiles (y)."),
        ("profile = 1", "profile: expected a table, as in [profile.work]."),
        ("profile.work = 1", "profile.work: expected a table, as in [profile.work]."),
        (
            "[profile.w]\nbase-url = 1",
            "profile.w.base-url: unknown key; the keys are base_url, token, system, ",
        ),
        ("[profile.w]\nbase_url = 1", "profile.w.base_url: expected a URL as a str, not int"),
        ('[profile.w]\nbase_url = "ftp://s3cret@h"', "w.base_url: it must begin with http"),
        ('[profile.w]\nbase_url = "http://s3cret@"', "w.base_url: it has no host; expected https"),
        ("[profile.w]\ntoken = 1", "profile.w.token: expected a str, not int"),
        ('[profile.w]\ntoken = "s3cret "', "profile.w.token: it begins or ends with white space"),
        ("[profile.w]\nsystem = 1", "profile.w.system: expected a str, not int"),
        ('[profile.w]\nmodel = ""', "profile.w.model: expected a str with at least one character"),
        ("[profile.w]\nextra_body = 1", "profile.w.extra_body: expected a mapping"),
        ("[profile.w.extra_body]\na = nan", "extra_body: the field 'a' is not JSON"),
        ("[profile.w.extra_body]\na = 2026-01-01", "extra_body: the field 'a' is not JSON"),
        ("[profile.w.extra_body]\nmessages = []", "sets the field 'messages', which cannot be"),
        (
            '[profile.w]\nmodel = "m"\nextra_body.model = "s3cret"',
            "profile.w.extra_body: the field 'model' is set by profile.w.model.",
        ),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_file_and_the_key(
    text: str, problem: str, file: Path, capsys: Capture
) -> None:
    save(file, text)
    assert run(["ask", "--base-url", "http://127.0.0.1:1", "Hi"]) == 2
    error = read_error(capsys)
    assert error.startswith(f"Error: {file}")
    assert problem in error
    assert error.count("\n") == 1


def test_a_file_that_cannot_be_read_is_an_error(file: Path, capsys: Capture) -> None:
    file.mkdir(parents=True)
    assert run(["ask", "Hi"]) == 2
    assert f"{file} cannot be read: " in read_error(capsys)
    assert complete_profile(Any, Any, "") == []  # type: ignore[arg-type]  # it uses neither
    file.rmdir()
    file.write_bytes(b"a = '\xff'")
    file.chmod(0o600)
    assert run(["ask", "Hi"]) == 2
    assert f"{file} is not UTF-8 (byte 5)." in read_error(capsys)


def test_a_byte_order_mark_is_ignored(file: Path) -> None:
    save(file, "\ufeff" + WORK)
    assert load_settings().profile == "work"


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_use_is_a_warning(
    mode: int, file: Path, faults: FaultyServer, capsys: Capture
) -> None:
    save(file, WORK, faults.base_url, mode)
    assert run(["ask", "--json", "Hi"]) == 0
    assert capsys.readouterr().err == (
        f"Warning: other users of this machine can access {file}; chmod 600 prevents it.\n"
    )


def test_the_file_of_the_documentation_is_valid(file: Path) -> None:
    page = Path(_profiles.__file__).parents[1] / "docs" / "command.md"
    (block,) = re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    save(file, block)
    settings = load_settings()
    assert settings.profile == "work"
    assert settings.token is not None
    # It has an example of each.
    assert set(settings.sources.values()) == {"default_profile", "profile work"}


# cromicle config


def test_config_shows_each_setting_and_its_source(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert run(["config"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"file        {file} (does not exist)",
        "profile     -    default",
        "base_url    -    default",
        "token       abc  default",
        "system      -    default",
        "model       -    default",
        "extra_body  -    default",
    ]
    save(file, WORK, "https://me:s3cret@work.example/api")
    monkeypatch.setenv("CROMICLE_TOKEN", "s3cret")
    long = "One\ttwo\n" * 20
    arguments = ["--system", f"\x1b[31m{long}", "--body", "seed=2", "--body", "a=null"]
    assert run(["config", *arguments, "--model", "big"]) == 0
    out, err = capsys.readouterr()
    assert "s3cret" not in out + err
    rows = [re.split(r" {2,}", line) for line in out.splitlines()]
    assert {name: (value, source) for name, value, source in rows[1:]} == {
        "profile": ("work", "default_profile"),
        "base_url": ("https://work.example/api (with a password)", "profile work"),
        "token": ("set, not shown", "$CROMICLE_TOKEN"),
        "system": ("\N{REPLACEMENT CHARACTER}[31mOne" + " two One" * 6 + " tw…", "--system"),
        "model": ("big", "--model"),
        "extra_body": ('{"seed": 2, "stop": ["x"], "a": null}', "--body and profile work"),
    }
    assert run(["config", "--profile", "other", "--body", 'model="m"']) == 0
    out = capsys.readouterr().out
    assert "profile     other" in out
    assert out.splitlines()[-1].split() == ["extra_body", "-", "--body"]
    assert out.splitlines()[-2].split() == ["model", "m", "--body"]


def test_config_shows_why_a_token_is_not_sent(file: Path, capsys: Capture) -> None:
    save(file, WORK)
    assert run(["config", "--base-url", "http://127.0.0.1:1"]) == 0
    line = capsys.readouterr().out.splitlines()[3]
    assert line.split("  ")[0] == "token"
    assert line.endswith("default, as that of profile work is for its own base_url")


def test_config_path(file: Path, capsys: Capture) -> None:
    assert run(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{file}\n"


def test_set_makes_a_file_for_its_owner_alone(file: Path, faults: FaultyServer) -> None:
    assert run(["config", "set", "base_url", faults.base_url]) == 0
    assert run(["config", "set", "model", "m"]) == 0
    assert run(["config", "set", "extra_body.temperature", "0.5"]) == 0
    assert run(["config", "set", "extra_body.stop", '["a", {"b": 1}]']) == 0
    assert run(["config", "set", "system", 'Say "no".\nOften.']) == 0
    assert run(["ask", "Hi"]) == 0
    (request,) = faults.requests
    assert request.message == 'System: Say "no".\nOften.\nUser: Hi\nAssistant:'
    assert request.options == {"temperature": 0.5, "stop": ["a", {"b": 1}], "model": "m"}
    if os.name != "nt":
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in file.parent.iterdir()] == ["config.toml"]


def test_set_keeps_comments_and_what_it_does_not_change(file: Path, capsys: Capture) -> None:
    save(file, WORK)
    assert run(["config", "set", "model", "big"]) == 0
    assert run(["config", "set", "--profile", "new", "extra_body", '{"a": 1}']) == 0
    assert run(["config", "set", "--profile", "new", "extra_body.b", "true"]) == 0
    assert run(["config", "set", "default_profile", "new"]) == 0
    assert run(["config", "unset", "system", "--profile", "work"]) == 0
    assert run(["config", "unset", "extra_body.seed", "--profile", "work"]) == 0
    assert capsys.readouterr() == ("", "")
    expected = WORK.replace("BASE_URL", "http://work.example").replace("llama3.2", "big")
    expected = expected.replace('"work"', '"new"').replace('system = "Be brief."\n', "")
    expected = expected.replace("seed = 1, ", "")
    # tomlkit leaves the space beside what it removes.
    lines = re.sub(" +", " ", file.read_text(encoding="utf-8")).splitlines()
    assert lines[: expected.count("\n")] == re.sub(" +", " ", expected).splitlines()
    assert load_settings().extra_body == {"a": 1, "b": True}


@pytest.mark.parametrize("arguments", [["token"], ["token", "-"]])
def test_a_token_is_read_from_standard_input(
    arguments: list[str], file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pipe_in(monkeypatch, b"s3cret\r\n")
    assert run(["config", "set", *arguments]) == 0
    assert capsys.readouterr() == ("", "")
    token = load_settings().token
    assert token is not None
    assert token.reveal() == "s3cret"


def test_a_token_is_prompted_for_on_a_terminal(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("click.prompt", lambda *_, **options: "s3cret" * options["hide_input"])
    assert run(["config", "set", "token"]) == 0
    assert "s3cret" in file.read_text()


def test_unset_of_what_is_not_there(file: Path) -> None:
    for name in ("default_profile", "model", "extra_body.a"):
        assert run(["config", "unset", name]) == 0
    save(file, WORK)
    assert run(["config", "unset", "--profile", "no", "extra_body.a"]) == 0
    assert run(["config", "unset", "default_profile"]) == 0
    assert load_settings().profile is None


def test_unset_repairs_a_file(file: Path, capsys: Capture) -> None:
    save(file, "[profile.default]\ntoken = 1\nmodel = 2\nsystem = 'x'")
    assert run(["config", "set", "system", "y"]) == 2
    assert f"{file}: profile.default.token: expected a str" in read_error(capsys)
    assert run(["config", "unset", "token"]) == 0
    assert run(["config", "set", "model", "m"]) == 0
    assert load_settings().model == "m"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["base_url", "s3cret"], "base_url: it must begin with http:// or https://"),
        (["token", "s3cret "], "token: it begins or ends with white space"),
        (["token", "-"], "token: it is empty"),
        (["model", ""], "model: expected a str with at least one character"),
        (["extra_body", "s3cret"], "extra_body: the value is not JSON; put a string in quotes."),
        (["extra_body", "[1]"], "extra_body: expected a mapping"),
        (["extra_body.a", "[" * 100_000], "extra_body.a: the value is not JSON"),
        (["extra_body.token", "1"], "extra_body.token: the protocol sets the field 'token'"),
        (["extra_body.a", '{"b": null}'], "extra_body.a: TOML has no null."),
        (["extra_body.", "1"], "There is no setting 'extra_body.': expected base_url, token"),
        (["timeout", "1"], "There is no setting 'timeout'"),
        (["model"], "Missing the VALUE of model."),
        (["default_profile", "no"], "default_profile: expected one of the profiles ("),
        (["extra_body.model", '"m"'], "the field 'model' is set by profile.work.model"),
    ],
)
def test_set_rejects_a_bad_value_and_changes_nothing(
    arguments: list[str], problem: str, file: Path, capsys: Capture
) -> None:
    save(file, WORK)
    before = file.read_bytes()
    assert run(["config", "set", *arguments]) == 2
    assert problem in read_error(capsys)
    assert file.read_bytes() == before


@pytest.mark.parametrize("command", [["set", "extra_body.a", "1"], ["unset", "extra_body.a"]])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nonsense", "is not TOML"),
        ("profile = 1", "profile: expected a table"),
        ("profile.default = 1", "profile.default: expected a table"),
        ("[profile.default]\nextra_body = 1", "profile.default.extra_body: expected a table"),
    ],
)
def test_a_file_that_is_not_valid_is_not_changed(
    text: str, problem: str, command: list[str], file: Path, capsys: Capture
) -> None:
    save(file, text)
    assert run(["config", *command]) == 2
    assert f"Error: {file}" in (error := read_error(capsys))
    assert problem in error
    assert file.read_text() == text


def test_a_file_that_cannot_be_written_is_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    save(file, WORK)
    before = file.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    assert run(["config", "set", "model", "m"]) == 2
    assert f"{file} cannot be written: No space left on device." in read_error(capsys)
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == ["config.toml"]


@posix
def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    kept = tmp_path / "dotfiles"
    kept.write_text("")
    file.parent.mkdir(parents=True)
    file.symlink_to(kept)
    assert run(["config", "set", "model", "m"]) == 0
    assert file.is_symlink()
    assert 'model = "m"' in kept.read_text()


def test_options_of_the_list_are_no_options_of_set(capsys: Capture) -> None:
    assert run(["config", "--profile", "work", "set", "model", "m"]) == 2
    assert "--profile must follow set" in read_error(capsys)


def test_the_repr_of_settings_shows_no_secret(file: Path) -> None:
    save(file, WORK, "http://me:s3cret@work.example")
    settings = load_settings(extra_body={"key": "s3cret"})
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in repr(_profiles.read_profiles(file))
    assert json.dumps(settings.extra_body["key"]) == '"s3cret"'
