"""The recipes for web frameworks: a status, chunks as they arrive, and no end that is none."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from documents import list_blocks
from model_servers import NEEDS_SIGNALS, find_port, run, wait_for_status
from recipes import build_environment, install_for, write_recipes

from cromicle_sdk.testing import FaultyServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), NEEDS_SIGNALS]

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
TEXTS = ["Grüße, ", "日本 🎉\n", "and an end."]


@dataclass(frozen=True)
class App:
    """A recipe, its command line, and the path that relays."""

    command: str
    path: str = "chat"
    is_wsgi: bool = False

    @property
    def recipe(self) -> str:
        return self.command.split()[-1].partition(":")[0] + ".py"


APPS = {
    "fastapi": App("uvicorn --port {port} fastapi_app:app"),
    "starlette": App("uvicorn --port {port} starlette_app:app"),
    "django": App("uvicorn --port {port} django_app:asgi", "async-chat"),
    "django wsgi": App(
        "gunicorn -b 127.0.0.1:{port} --threads 4 --graceful-timeout 1 django_app:wsgi",
        is_wsgi=True,
    ),
    "flask": App(
        "gunicorn -b 127.0.0.1:{port} --threads 4 --graceful-timeout 1 flask_app:app", is_wsgi=True
    ),
    "quart": App("hypercorn -b 127.0.0.1:{port} --worker-class trio quart_app:app"),
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


@pytest.fixture(scope="module", params=APPS)
def app(request: pytest.FixtureRequest) -> App:
    return APPS[request.param]


@pytest.fixture(scope="module")
def base_url(
    app: App, endpoint: FaultyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The recipe behind its server."""
    folder = tmp_path_factory.mktemp("recipes")
    write_recipes(folder)
    port, log = find_port(), folder / "log"
    name, *arguments = app.command.format(port=port).split()
    command = [str(install_for(app.recipe) / name), *arguments]
    environment = build_environment(folder, endpoint.base_url)
    with run(command, log, stop=signal.SIGTERM, **environment) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for_status(f"{url}/nowhere", process, log, status=404)
        yield url


@pytest.fixture
def faults(endpoint: FaultyServer) -> FaultyServer:
    return endpoint.clear()


@pytest.fixture
def url(base_url: str, app: App) -> str:
    return f"{base_url}/{app.path}"


def test_the_text_is_passed_on(url: str, faults: FaultyServer) -> None:
    faults.reply(chunks=TEXTS)
    answer = httpx.post(url, json=HELLO)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == "".join(TEXTS)


def test_a_chunk_is_passed_on_as_it_arrives(url: str, faults: FaultyServer) -> None:
    gate = threading.Event()
    faults.reply(chunks=["Once", " upon a time"], gate=gate)
    with httpx.stream("POST", url, json=HELLO) as answer:
        texts = answer.iter_text()
        assert next(texts) == "Once"
        gate.set()
        assert "".join(texts) == " upon a time"


def leave_after_the_first_chunk(url: str) -> str:
    """Return the first chunk, after the connection is closed."""
    with httpx.stream("POST", url, json=HELLO) as answer:
        return next(answer.iter_text())


def test_the_stream_is_closed_when_the_caller_leaves(
    url: str, app: App, faults: FaultyServer
) -> None:
    if app.is_wsgi:
        # A WSGI server notices it when it sends the next chunk.
        faults.drip("Once", forever=True)
    else:
        faults.stall(after="Once")
    leave_after_the_first_chunk(url)
    faults.wait_until_closed()


@pytest.mark.parametrize(("status", "expected"), [(429, 429), (401, 502)])
def test_an_error_before_the_text_has_a_status(
    url: str, faults: FaultyServer, status: int, expected: int
) -> None:
    faults.fail(status)
    assert httpx.post(url, json=HELLO).status_code == expected


def test_invalid_messages_have_a_status(url: str, faults: FaultyServer) -> None:
    answer = httpx.post(url, json={"messages": [{"role": "user", "content": 7}]})
    assert answer.status_code == 400
    assert "message 0" in answer.text
    assert faults.requests == []


def test_a_reply_that_breaks_off_has_no_end(url: str, faults: FaultyServer) -> None:
    faults.cut(after="Hello, wor")
    received = ""
    with (
        httpx.stream("POST", url, json=HELLO) as answer,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        for text in answer.iter_text():
            received += text
    assert received == "Hello, wor"


@pytest.mark.parametrize("app", ["fastapi"], indirect=True, scope="module")
class TestEvents:
    """Server-sent events."""

    @staticmethod
    def read(base_url: str) -> list[tuple[str, str]]:
        """The name and the data of each event."""
        answer = httpx.post(f"{base_url}/events", json=HELLO)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = []
        for block in answer.text.strip().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            events.append((fields.get("event", "message"), json.loads(fields["data"])))
        return events

    def test_the_last_event_has_the_finish_reason(
        self, base_url: str, faults: FaultyServer
    ) -> None:
        faults.reply("\n".join(TEXTS), finish_reason="length")
        assert self.read(base_url) == [("message", "\n".join(TEXTS)), ("done", "length")]

    def test_a_reply_that_breaks_off_ends_with_an_error(
        self, base_url: str, faults: FaultyServer
    ) -> None:
        faults.cut(after="Hello, wor")
        first, (name, problem) = self.read(base_url)
        assert first == ("message", "Hello, wor")
        assert name == "error"
        assert "was truncated" in problem

    def test_the_stream_is_closed_when_the_caller_leaves(
        self, base_url: str, faults: FaultyServer
    ) -> None:
        faults.stall(after="Once")
        assert leave_after_the_first_chunk(f"{base_url}/events") == 'data: "Once"\n\n'
        faults.wait_until_closed()

    def test_an_error_before_the_text_has_a_status(
        self, base_url: str, faults: FaultyServer
    ) -> None:
        faults.fail(429)
        assert httpx.post(f"{base_url}/events", json=HELLO).status_code == 429


def test_every_recipe_is_tested(tmp_path: Path) -> None:
    names = write_recipes(tmp_path)
    served = {app.recipe for app in APPS.values()}
    others = {"celery_app.py", "gradio_app.py", "notebook.py", "statuses.py", "streamlit_app.py"}
    assert names == served | others


def test_every_command_line_of_the_page_is_tested() -> None:
    """By its program and its app."""
    blocks = (block for block in list_blocks("sh") if block.name.startswith("relaying"))
    lines = [line.split() for block in blocks for line in block.text.splitlines()]
    tested = [app.command.split() for app in APPS.values()]
    others = {("streamlit", "streamlit_app.py"), ("python", "gradio_app.py")}
    assert {(line[0], line[-1]) for line in lines} == {(app[0], app[-1]) for app in tested} | others
