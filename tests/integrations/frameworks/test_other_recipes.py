"""The recipes for tasks, notebooks and chats in a browser, by the test clients of their makers."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from model_servers import NEEDS_SIGNALS, find_port, run, wait_for_status
from recipes import build_environment, install_for, run_script, write_recipes

from cromicle_sdk.testing import (
    LAST_CHUNK,
    Connection,
    FaultyServer,
    RecordedRequest,
    build_chunk,
    build_head,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), NEEDS_SIGNALS]

CELERY = """
import json, os
os.environ["BROKER_URL"] = "memory://"
from celery.contrib.testing.worker import start_worker
from celery_app import app, ask

app.conf.result_backend = "cache+memory://"
app.loader.import_task_module("celery.contrib.testing.tasks")
messages = [{"role": "user", "content": "Hello"}]
answers = {}
with start_worker(app, perform_ping_check=False, pool="solo"):
    answers["text"] = ask.delay(messages).get(timeout=60)
    answers["retried"] = ask.delay(messages).get(timeout=60)
    answers["failed"] = type(ask.delay([]).get(timeout=60, propagate=False)).__name__
print(json.dumps(answers))
"""

NOTEBOOK = """
import json
import nbclient, nbformat
from pathlib import Path

notebook = nbformat.v4.new_notebook()
notebook.cells = [nbformat.v4.new_code_cell(Path("notebook.py").read_text())]
nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
print(json.dumps(notebook.cells[0].outputs))
"""

STREAMLIT = """
import json
from streamlit.testing.v1 import AppTest

app = AppTest.from_file("streamlit_app.py", default_timeout=60).run()
app.chat_input[0].set_value("Hello").run()
said = [[part.value for part in message.markdown] for message in app.chat_message]
app.chat_input[0].set_value("And now?").run()
print(json.dumps([said, [error.value for error in app.error], len(app.exception)]))
app.chat_input[0].set_value("Again").run()
print(json.dumps([[part.value for part in message.markdown] for message in app.chat_message]))
"""

GRADIO = """
import json
import time
from pathlib import Path
from gradio_client import Client

client = Client(URL, verbose=False)
job = client.submit("Hello", api_name="/answer")
while not (job.outputs() or job.done()):
    time.sleep(0.02)
Path("seen").touch()
answers = [job.result(timeout=60)]
answers.append([output for output in job.outputs()])
try:
    client.predict("Hello", api_name="/answer")
except Exception as error:
    answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_recipes(tmp_path)
    return tmp_path


def test_a_task_of_celery(folder: Path, faults: FaultyServer) -> None:
    # Three attempts of the client, then a second one of the task, after 1 s.
    faults.reply("Hi.").fail(429, retry_after=1)
    faults.fail(429, retry_after=1).fail(429, retry_after=1).reply("At last.")
    (line,) = run_script(install_for("celery_app.py"), CELERY, folder, faults.base_url)[-1:]
    assert json.loads(line) == {
        "text": "Hi.",
        "retried": "At last.",
        "failed": "InvalidMessageError",
    }


def test_a_notebook(folder: Path, faults: FaultyServer) -> None:
    faults.reply(chunks=["Because ", "it is."], delay=0.1)
    (line,) = run_script(install_for("notebook.py"), NOTEBOOK, folder, faults.base_url)[-1:]
    shown, printed = json.loads(line)
    assert shown["data"]["text/markdown"] == "Because it is."
    assert printed["text"] == "2 messages\n"


def test_a_chat_of_streamlit(folder: Path, faults: FaultyServer) -> None:
    faults.reply("Hi **there**.").cut(after="Hello, wor").reply("At last.")
    before, after = run_script(install_for("streamlit_app.py"), STREAMLIT, folder, faults.base_url)
    said, (problem,), exceptions = json.loads(before)
    assert said == [["Hello"], ["Hi **there**."]]
    assert "was truncated" in problem
    assert exceptions == 0
    # The question that failed is not part of the conversation.
    assert json.loads(after) == [["Hello"], ["Hi **there**."], ["Again"], ["At last."]]
    assert faults.requests[2].message == (
        "User: Hello\nAssistant: Hi **there**.\nUser: Again\nAssistant:"
    )


def test_the_command_of_streamlit(folder: Path, faults: FaultyServer) -> None:
    port, log = find_port(), folder / "log"
    command = [str(install_for("streamlit_app.py") / "streamlit"), "run", "streamlit_app.py"]
    command += ["--server.headless", "true", "--server.port", str(port)]
    environment = build_environment(folder, faults.base_url)
    with run(command, log, stop=signal.SIGTERM, **environment) as process:
        wait_for_status(f"http://127.0.0.1:{port}/_stcore/health", process, log)


def test_a_chat_of_gradio(folder: Path, faults: FaultyServer) -> None:
    def reply(connection: Connection, request: RecordedRequest) -> None:
        connection.send(build_head() + build_chunk("Hi "))
        while not (folder / "seen").exists():
            connection.pause(0.02)
        connection.send(build_chunk("there.") + LAST_CHUNK)

    faults.script(reply).fail(429, retry_after=100)
    port, log = find_port(), folder / "log"
    environment = {
        **build_environment(folder, faults.base_url),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SERVER_PORT": str(port),
    }
    commands = install_for("gradio_app.py")
    url = f"http://127.0.0.1:{port}"
    with run(
        [str(commands / "python"), "gradio_app.py"], log, stop=signal.SIGTERM, **environment
    ) as process:
        wait_for_status(url, process, log)
        script = GRADIO.replace("URL", repr(url))
        (line,) = run_script(commands, script, folder, faults.base_url)[-1:]
    text, outputs, problem = json.loads(line)
    assert text == "Hi there."
    assert outputs[0] == "Hi "
    assert "429" in problem
