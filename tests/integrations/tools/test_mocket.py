"""mocket: its fake sockets answer, in blocking and in async code, with TLS and without."""

from __future__ import annotations

import gc
import json
import ssl
from collections.abc import Iterator

import pytest
import trustme
from callers import CALLERS, PROMPT, Caller
from mocket import Mocket, Mocketizer  # type: ignore[import-untyped]
from mocket.mocks.mockhttp import Entry, Response  # type: ignore[import-untyped]
from runtimes import RUNTIMES

from cromicle_sdk import APIConnectionError, Client, RateLimitError
from cromicle_sdk.testing import FaultyServer

# Each of mocket's TLS sockets makes a real socket and never closes it.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

# httpx's own pool does not take mocket's sockets on trio.
_MOCKABLE = [Caller(runtime) for runtime in RUNTIMES] + [
    caller
    for caller in CALLERS
    if caller.brings_http_client and caller.runtime.name in ("blocking", "asyncio")
]


@pytest.fixture(params=_MOCKABLE, ids=str)
def caller(request: pytest.FixtureRequest) -> Caller:
    caller: Caller = request.param
    return caller


@pytest.fixture(params=["http", "https"])
def base_url(request: pytest.FixtureRequest) -> str:
    return f"{request.param}://mocked.test"


@pytest.fixture
def _mocket() -> Iterator[None]:
    """Fake sockets; what no entry answers raises an error and never leaves the machine."""
    with Mocketizer(strict_mode=True):
        yield


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    """Collect the sockets that mocket leaves open here, where the warning is ignored."""
    yield
    for _ in range(3):
        gc.collect()


def answer(base_url: str, *texts: str, status: int = 200) -> None:
    headers = {"content-type": "text/plain"}
    responses = [Response(body=text, status=status, headers=headers) for text in texts]
    Entry.register(Entry.POST, f"{base_url}/chat", *responses)


@pytest.mark.usefixtures("_mocket")
class TestMockedSockets:
    def test_chat_returns_the_mocked_text(self, caller: Caller, base_url: str) -> None:
        answer(base_url, "Mocked.", "Again.")
        replies = caller.chat(base_url, PROMPT, "Again")
        assert [reply.text for reply in replies] == ["Mocked.", "Again."]
        messages = [json.loads(request.body)["message"] for request in Mocket.request_list()]
        assert messages == [PROMPT, "Again"]

    def test_stream_yields_the_mocked_text(self, caller: Caller, base_url: str) -> None:
        answer(base_url, "Mocked.")
        assert "".join(caller.stream(base_url)) == "Mocked."

    def test_a_mocked_status_is_raised(self, caller: Caller, base_url: str) -> None:
        answer(base_url, "Slow down.", status=429)
        error = caller.fail(base_url)
        assert isinstance(error, RateLimitError)
        assert error.body == "Slow down."

    def test_a_long_prompt_arrives_whole(self, caller: Caller, base_url: str) -> None:
        prompt = "A long prompt. " * 20_000
        answer(base_url, "Read.")
        (reply,) = caller.chat(base_url, prompt)
        assert reply.text == "Read."
        assert json.loads(Mocket.last_request().body)["message"] == prompt

    def test_an_address_is_mocked_like_a_name(self, caller: Caller) -> None:
        answer("http://192.0.2.1:8000", "Mocked.")
        (reply,) = caller.chat("http://192.0.2.1:8000")
        assert reply.text == "Mocked."


def test_a_client_made_before_the_mock_leaves_it_no_real_tls_context() -> None:
    with Client(base_url="https://192.0.2.1:1", timeout=0.001) as client:
        with pytest.raises(APIConnectionError):
            client.chat(PROMPT)
    with Mocketizer(strict_mode=True):
        answer("https://mocked.test", "Mocked.")
        with Client(base_url="https://mocked.test") as client:
            assert client.chat(PROMPT).text == "Mocked."


def test_certificates_are_verified_again_after_the_mock() -> None:
    with Mocketizer(strict_mode=True):
        answer("https://mocked.test", "Mocked.")
        with Client(base_url="https://mocked.test") as client:
            client.chat(PROMPT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with FaultyServer(ssl_context=context) as server, Client(base_url=server.base_url) as client:
        with pytest.raises(APIConnectionError, match="certificate"):
            client.chat(PROMPT)
    assert server.requests == []
