"""docs/protocol.md shows the bytes that clients and servers send."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import cromicle_sdk
from cromicle_sdk import Client
from cromicle_sdk.server import BackendRequest, LocalServer

PAGE = (Path(cromicle_sdk.__file__).parent / "docs" / "protocol.md").read_text(encoding="utf-8")
REQUEST, RESPONSE = re.findall(r"^```http\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

# The values that differ in each exchange.
VALUE = re.compile(r"(?m)^(host|user-agent|date|x-request-id): .*?$")


def hide_values(text: str) -> str:
    return VALUE.sub(r"\1: …", text)


async def greet(prompt: str, request: BackendRequest) -> AsyncIterator[str]:
    request.finish_reason = "stop"
    yield "Hello, "
    yield "you."


class Recorder:
    """Passes one connection on to a server, and records the bytes."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = "http://127.0.0.1:{1}".format(*self._listener.getsockname())
        self.sent = bytearray()
        self.received = bytearray()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._listener, self._listener.accept()[0] as client:
            with socket.create_connection(self._address) as server:
                sending = threading.Thread(target=self._pass_on, args=(client, server, self.sent))
                sending.start()
                self._pass_on(server, client, self.received)
                sending.join()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, record: bytearray) -> None:
        while data := source.recv(65_536):
            record += data
            target.sendall(data)
        with contextlib.suppress(OSError):  # reset by its peer
            target.shutdown(socket.SHUT_WR)

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def exchange() -> Recorder:
    with LocalServer(greet) as server:
        recorder = Recorder(server.base_url)
        with Client(base_url=recorder.base_url) as client:
            reply = client.chat("Hi")
        recorder.join()
    assert (reply.text, reply.finish_reason) == ("Hello, you.", "stop")
    return recorder


def test_the_page_has_the_bytes_of_a_request(exchange: Recorder) -> None:
    head, _, body = exchange.sent.decode().partition("\r\n\r\n")
    sent = "\n".join([*head.split("\r\n"), "", body])
    assert hide_values(REQUEST.rstrip("\n")) == hide_values(sent)


def test_the_page_has_the_bytes_of_a_response(exchange: Recorder) -> None:
    received = exchange.received.decode()
    assert received.count("\n") == received.count("\r\n")
    assert hide_values(RESPONSE) == hide_values(received.replace("\r\n", "\n"))


def test_the_extract_of_the_request_is_a_part_of_it() -> None:
    extract = re.search(r"POST \{base_url\}/chat HTTP/1.1\n(.*?)\n\n", PAGE, re.DOTALL)
    assert extract is not None
    for line in extract[1].splitlines():
        assert line.strip() in REQUEST
