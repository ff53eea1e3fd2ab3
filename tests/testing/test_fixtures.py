"""The pytest plugin: its fixtures, what they check, and what its import costs."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cromicle_sdk import AsyncClient, Client, IncompleteReplyError, Retry, testing
from cromicle_sdk.testing import fixtures

# Defined here as well, so that these tests need no installed entry point.
cromicle_faults = fixtures.cromicle_faults
cromicle_server = fixtures.cromicle_server
_cromicle_earlier_clients = fixtures._cromicle_earlier_clients

ROOT = Path(__file__).parents[2]


def test_the_faults_fixture_serves_a_client_without_options(
    request: pytest.FixtureRequest,
) -> None:
    faults = request.getfixturevalue("cromicle_faults")
    faults.cut(after="Hello, wor")
    with Client(retry=Retry(attempts=1)) as client, pytest.raises(IncompleteReplyError) as caught:
        client.chat("Hi")
    assert caught.value.partial_text == "Hello, wor"
    assert [recorded.message for recorded in faults.requests] == ["Hi"]


def test_the_server_fixture_echoes_to_a_client_without_options(
    request: pytest.FixtureRequest,
) -> None:
    server = request.getfixturevalue("cromicle_server")
    assert os.environ["CROMICLE_BASE_URL"] == server.base_url
    with Client() as client:
        assert "Hi" in client.chat("Hi").text


def test_a_test_with_both_fixtures_reaches_both_servers(request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("cromicle_server")
    with Client() as first:
        faults = request.getfixturevalue("cromicle_faults")
        faults.reply("From the faulty server.")
        with Client() as second, Client(base_url=server.base_url, token="test-token") as third:
            assert first.chat("Hi").text == third.chat("Hi").text
            assert second.chat("Hi").text == "From the faulty server."


def test_the_server_fixture_names_the_missing_extra(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("cromicle_sdk.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(pytest.fail.Exception, match=r"pip install .cromicle-sdk\[server\]"):
        request.getfixturevalue("cromicle_server")


@pytest.mark.parametrize("name", ["cromicle_server", "cromicle_faults"])
@pytest.mark.parametrize("earlier", [None, "http://earlier.test/api/"])
def test_a_client_created_before_the_fixture_fails_the_test_and_sends_nothing(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    earlier: str | None,
) -> None:
    if earlier:
        monkeypatch.setenv("CROMICLE_BASE_URL", earlier)
        monkeypatch.setenv("CROMICLE_TOKEN", "t")
    expected = f"before the fixture and would connect to {earlier or 'https://cromicle.top'}"
    with Client() as client:
        request.getfixturevalue(name)
        for call in (client.chat, client.stream, client.with_options(strict=False).chat):
            with pytest.raises(pytest.fail.Exception, match=expected.rstrip("/")):
                call("Hi")


def test_an_async_client_created_before_the_fixture_fails_the_test(
    request: pytest.FixtureRequest,
) -> None:
    async def call() -> None:
        async with AsyncClient() as client:
            request.getfixturevalue("cromicle_faults")
            with pytest.raises(pytest.fail.Exception, match="This AsyncClient was created before"):
                await client.chat("Hi")
            with pytest.raises(pytest.fail.Exception, match="This AsyncClient was created before"):
                client.stream("Hi")

    asyncio.run(call())


def test_chat_of_an_async_client_stays_a_coroutine_function(
    request: pytest.FixtureRequest,
) -> None:
    request.getfixturevalue("cromicle_faults")
    assert inspect.iscoroutinefunction(AsyncClient.chat)

    async def call() -> str:
        async with AsyncClient() as client:
            return (await client.chat("Hi")).text

    assert asyncio.run(call()) == "Hello from the faulty server."


PYTEST_SOCKET = """
    import pytest
    from cromicle_sdk import Client

    def test_server(cromicle_server):
        with Client() as client:
            assert client.chat("Hi").text

    def test_faults(cromicle_faults):
        with Client() as client:
            assert client.chat("Hi").text
"""

BLOCKED = """
    import socket
    import pytest
    from pytest_socket import SocketBlockedError, SocketConnectBlockedError

    @pytest.mark.disable_socket
    def test_marker_of_the_test(request):
        with pytest.raises(SocketBlockedError):
            request.getfixturevalue("cromicle_faults")

    def test_without_the_fixtures():
        with pytest.raises((SocketBlockedError, SocketConnectBlockedError)):
            socket.create_connection(("127.0.0.1", 9))
"""


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--disable-socket",),
        ("--allow-hosts=192.0.2.1",),
        ("--disable-socket", "--allow-hosts=192.0.2.1"),
    ],
)
def test_both_fixtures_work_under_pytest_socket(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    pytester.makepyfile(PYTEST_SOCKET)
    run = pytester.runpytest_inprocess("-q", "-W", "error", *options)
    run.assert_outcomes(passed=2)


@pytest.mark.parametrize("option", ["--disable-socket", "--allow-hosts=192.0.2.1"])
def test_pytest_socket_blocks_other_tests_and_obeys_their_markers(
    pytester: pytest.Pytester, option: str
) -> None:
    pytester.makepyfile(BLOCKED)
    pytester.runpytest_subprocess("-q", option).assert_outcomes(passed=2)


def test_the_installed_plugin_has_both_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_faults(cromicle_faults): cromicle_faults.cut(after="Hello, wor")
        def test_server(cromicle_server): assert cromicle_server.base_url
        """
    )
    pytester.runpytest_subprocess("-q", "-W", "error").assert_outcomes(passed=2)


def test_the_plugin_and_the_faulty_server_import_no_third_party_package(tmp_path: Path) -> None:
    run = run_python(
        "-c",
        "import sys, pytest\n"
        "before = set(sys.modules)\n"
        "import cromicle_sdk.testing.fixtures\n"
        "print('plugin', sorted(set(sys.modules) - before))\n"
        "cromicle_sdk.testing.FaultyServer\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print('server', sorted(names - sys.stdlib_module_names))\n",
        cwd=tmp_path,
    )
    plugin, server = run.splitlines()
    names = ("", "._version", ".testing", ".testing.fixtures")
    assert plugin == f"plugin {[f'cromicle_sdk{name}' for name in names]}"
    assert server == "server ['cromicle_sdk']"


def test_the_testing_package_lists_its_names() -> None:
    assert set(testing.__all__) <= set(dir(testing))
    assert all(getattr(testing, name) is not None for name in testing.__all__)
    with pytest.raises(AttributeError, match=r"'cromicle_sdk\.testing' has no attribute 'nothing'"):
        _ = testing.nothing


def run_python(*arguments: str, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
