"""The examples of docs/gateway.md for nginx, Caddy and systemd work as they stand."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from model_servers import NEEDS_SIGNALS, find_port, run, wait_for_status

import cromicle_sdk
from cromicle_sdk import Client, IncompleteReplyError, Retry
from cromicle_sdk.testing import FaultyServer

pytestmark = NEEDS_SIGNALS

PAGE = (Path(cromicle_sdk.__file__).parent / "docs" / "gateway.md").read_text(encoding="utf-8")


def find_block(language: str, beginning: str) -> str:
    pattern = rf"^```{language}\n({beginning}.*?)^```"
    (block,) = re.findall(pattern, PAGE, re.MULTILINE | re.DOTALL)
    return str(block)


NGINX = """
daemon off;
{user}
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {block}
    }}
}}
"""


def require(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"requires {name}")
    return path


def build_nginx(folder: Path, port: int, upstream: str) -> list[str]:
    block = find_block("nginx", "client_max_body_size").replace("http://127.0.0.1:8000", upstream)
    # Without this, its workers have no access to the folder of the tests if root runs them.
    user = "user root;" if os.geteuid() == 0 else ""
    config = NGINX.format(user=user, folder=folder, port=port, block=block)
    (folder / "nginx.conf").write_text(config)
    return [require("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]


def build_caddy(folder: Path, port: int, upstream: str) -> list[str]:
    caddy = require("caddy")
    version = re.search(
        r"(\d+)\.(\d+)", subprocess.run([caddy, "version"], capture_output=True, text=True).stdout
    )
    if version is None or (int(version[1]), int(version[2])) < (2, 8):
        pytest.skip("requires Caddy 2.8, as the page says")
    block = find_block("", "chat.example {").replace("127.0.0.1:8000", upstream.partition("//")[2])
    # Without a certificate, and without the API for changes of its configuration.
    config = block.replace("chat.example", f"http://127.0.0.1:{port}")
    (folder / "Caddyfile").write_text("{\n\tadmin off\n}\n" + config)
    return [caddy, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


@pytest.fixture(scope="module", params=[build_nginx, build_caddy], ids=["nginx", "caddy"])
def base_url(
    request: pytest.FixtureRequest, server: FaultyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The proxy of the page in front of the server."""
    folder, port = tmp_path_factory.mktemp("proxy"), find_port()
    command = request.param(folder, port, server.base_url)
    environment = {"HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with run(command, folder / "log", stop=signal.SIGTERM, **environment) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for_status(f"{url}/metrics", process, folder / "log", status=404)
        yield url


@pytest.fixture
def faults(server: FaultyServer) -> FaultyServer:
    return server.clear()


def test_each_chunk_is_passed_on_as_it_arrives(base_url: str, faults: FaultyServer) -> None:
    gate = threading.Event()
    faults.reply(chunks=["Once", " upon a time"], gate=gate)
    with Client(base_url=base_url) as client, client.stream("Hi") as stream:
        assert next(stream) == "Once"
        gate.set()
        assert stream.read().text == "Once upon a time"


def test_a_truncated_reply_stays_truncated(base_url: str, faults: FaultyServer) -> None:
    faults.cut(after="Hello, wor")
    with Client(base_url=base_url, retry=Retry(attempts=1)) as client:
        with pytest.raises(IncompleteReplyError) as caught:
            client.chat("Hi")
    assert caught.value.partial_text == "Hello, wor"


def test_the_server_gets_the_address_and_the_host(base_url: str, faults: FaultyServer) -> None:
    faults.reply("Hello.")
    with Client(base_url=base_url, headers={"x-forwarded-for": "192.0.2.1"}) as client:
        client.chat("Hi")
    (request,) = faults.requests
    assert request.headers["x-forwarded-for"] == "127.0.0.1"
    assert request.headers["host"] == base_url.removeprefix("http://")


def test_the_metrics_are_not_passed_on(base_url: str, faults: FaultyServer) -> None:
    assert httpx.get(f"{base_url}/metrics").status_code == 404
    assert faults.requests == []


@pytest.mark.skipif(not shutil.which("caddy"), reason="requires Caddy")
def test_caddy_accepts_the_example(tmp_path: Path) -> None:
    file = tmp_path / "Caddyfile"
    file.write_text(find_block("", "chat.example {"))
    command = ["caddy", "adapt", "--config", str(file), "--adapter", "caddyfile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="requires systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "cromicle.service"
    text = find_block("ini", re.escape("[Unit]"))
    assert "/opt/cromicle/bin/cromicle serve" in text
    # It also checks that the program exists.
    unit.write_text(text.replace("/opt/cromicle/bin/cromicle", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr
