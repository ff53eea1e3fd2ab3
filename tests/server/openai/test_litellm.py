"""The gateway in front of LiteLLM's proxy, through the command, with every client."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest
from environments import install
from model_servers import (
    NEEDS_SIGNALS,
    find_port,
    run,
    serve_gateway,
    wait_for_status,
)
from runtimes import Runtime

from cromicle_sdk import APIStatusError, Client, Retry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), NEEDS_SIGNALS]

TEXTS = {
    "plain": "Hello, how are you? I am a model that says the same every time.",
    "letters": "Grüße, 日本 🎉 \u2028 \x85 é\u0301\nand a second line\r\n\tand a third\n\n",
    "long": "A word, another one, and so on. " * 30,
}


@dataclass(frozen=True)
class Proxy:
    """A running LiteLLM proxy."""

    base_url: str
    key: str = field(repr=False)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    litellm = install("litellm", "litellm[proxy]>=1.80") / "litellm"
    folder = tmp_path_factory.mktemp("litellm")
    key = f"sk-{secrets.token_hex(32)}"
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": "openai/mock", "api_key": "x", "mock_response": text},
        }
        for name, text in TEXTS.items()
    ]
    config = folder / "config.yaml"
    settings = {"model_list": models, "general_settings": {"master_key": key}}
    # JSON is YAML, except for two characters that end lines in YAML, and surrogate pairs.
    text = json.dumps(settings, ensure_ascii=False)
    config.write_text(text.replace("\u2028", "\\u2028").replace("\x85", "\\x85"), "utf-8")
    port, log = find_port(), folder / "log"
    command = [str(litellm), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    with run(command, log, LITELLM_LOCAL_MODEL_COST_MAP="True") as process:
        base_url = f"http://127.0.0.1:{port}"
        wait_for_status(f"{base_url}/health/liveliness", process, log)
        yield Proxy(f"{base_url}/v1", key)


@pytest.fixture(scope="module", params=list(TEXTS))
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def gateway(proxy: Proxy, model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("gateway")
    with serve_gateway(proxy.base_url, folder, "--model", model, key=proxy.key) as gateway:
        yield gateway.base_url


def test_the_reply_is_the_text_of_the_model(gateway: str, model: str, runtime: Runtime) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=gateway, token="abc") as client:
            reply = await client.chat("Hello")
            assert reply.text == TEXTS[model]
            stream = client.stream("Hello")
            assert "".join([text async for text in stream]) == TEXTS[model]

    runtime.run(scenario)


def test_the_openai_package_receives_the_same_text(proxy: Proxy, gateway: str, model: str) -> None:
    with openai.OpenAI(base_url=proxy.base_url, api_key=proxy.key) as directly:
        events = directly.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        chunks = [event.choices[0].delta.content or "" for event in events if event.choices]
    with Client(base_url=gateway, token="abc") as client:
        assert client.chat("Hello").text == "".join(chunks)


@pytest.mark.parametrize(
    ("model_name", "key", "words"),
    # Without a database some versions respond to a wrong key with a 400.
    [("plain", "sk-wrong", "key|reject"), ("unheard-of", None, "refused|rejected")],
)
def test_its_errors_are_passed_on(
    proxy: Proxy, model_name: str, key: str | None, words: str, tmp_path: Path
) -> None:
    options = ("--model", model_name)
    with (
        serve_gateway(proxy.base_url, tmp_path, *options, key=key or proxy.key) as gateway,
        Client(base_url=gateway.base_url, token="abc", retry=Retry(attempts=1)) as client,
        pytest.raises(APIStatusError, match=words) as caught,
    ):
        client.chat("Hello")
    assert caught.value.status_code in (400, 502)
