"""The gateway in front of llama.cpp, with models whose replies are known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from engines import CONTEXT, MODEL, NEEDS_WHEEL, SLOTS, Engine, run_engine
from model_servers import (
    NEEDS_SIGNALS,
    Gateway,
    find_port,
    serve_gateway,
)
from runtimes import Runtime
from tiny_model import Script, build_model, cut, say

from cromicle_sdk import (
    BadRequestError,
    Client,
    Conversation,
    IncompleteReplyError,
    InternalServerError,
    Retry,
    UnexpectedContentError,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    NEEDS_SIGNALS,
    NEEDS_WHEEL,
]

# What the model says to a prompt that ends in the key.
TEXTS = {
    "1": "Hello, how are you? I am a model that says the same each time.",
    "2": "Grüße, 日本 🎉 \u2028 \x85 é\u0301\nand a second line\r\n\tand a third\n\n",
    "3": "".join(f"{number}, " for number in range(400)),
}
ENDLESS, THINKING, TOSSING, HALF, SILENT = "4", "5", "6", "7", "8"
ROUND = "Again, and again, and "
ANSWER = "It is forty-two."


def toss(selector: str, *pieces: bytes) -> Script:
    """Pieces in any order, without end. The first is a little more likely."""
    weights = {piece: 1.0 - 0.01 * index for index, piece in enumerate(pieces)}
    return dict.fromkeys((selector.encode(), *pieces), weights)


def build_scripts() -> list[Script]:
    thoughts = [b"<think>", b"The user ", b"asks for", b" it.", b"</think>"]
    return [
        *(say(selector, *cut(text, 5)) for selector, text in TEXTS.items()),
        say(ENDLESS, *cut(ROUND, 4), endless=True),
        say(THINKING, *thoughts, *cut(ANSWER, 3)),
        toss(TOSSING, b"heads ", b"tails "),
        say(HALF, b"One half: ", "日".encode()[:2]),
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(build_model(*build_scripts()))
    return path


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with run_engine(model, tmp_path_factory.mktemp("engine"), port=find_port()) as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with serve_gateway(engine.base_url, folder, *MODEL) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def short_gateway(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose replies have five tokens at most."""
    folder = tmp_path_factory.mktemp("short-gateway")
    with serve_gateway(engine.base_url, folder, *MODEL, "--max-tokens", "5") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def port() -> int:
    """The port of engines that a test starts by itself."""
    return find_port()


@pytest.fixture(scope="module")
def waiting_gateway(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway in front of that port."""
    folder = tmp_path_factory.mktemp("waiting-gateway")
    with serve_gateway(f"http://127.0.0.1:{port}/v1", folder, *MODEL) as gateway:
        yield gateway


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with Client(base_url=gateway.base_url, token="abc") as client:
        yield client


@pytest.mark.parametrize("selector", TEXTS)
def test_the_reply_is_the_text_of_the_model(
    gateway: Gateway, selector: str, runtime: Runtime
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=gateway.base_url, token="abc") as client:
            reply = await client.chat(f"Say {selector}")
            assert reply.text == TEXTS[selector]
            assert reply.finish_reason == "stop"
            stream = client.stream(f"Say {selector}")
            assert "".join([text async for text in stream]) == TEXTS[selector]

    runtime.run(scenario)


def test_the_openai_package_receives_the_same_text(engine: Engine, client: Client) -> None:
    with openai.OpenAI(base_url=engine.base_url, api_key="none") as directly:
        for selector in (*TEXTS, THINKING):
            events = directly.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": selector}], stream=True
            )
            chunks = [event.choices[0].delta.content or "" for event in events if event.choices]
            assert client.chat(selector).text == "".join(chunks)


def test_reasoning_is_not_part_of_the_reply(client: Client) -> None:
    assert client.chat(f"Think about {THINKING}").text == ANSWER


def test_reasoning_is_part_of_the_reply_where_the_operator_wants_it(
    engine: Engine, tmp_path: Path
) -> None:
    options = ("--body", 'reasoning_format="none"')
    with (
        serve_gateway(engine.base_url, tmp_path, *MODEL, *options) as gateway,
        Client(base_url=gateway.base_url, token="abc") as client,
    ):
        text = client.chat(f"Think about {THINKING}").text
    assert text == f"<think>The user asks for it.</think>{ANSWER}"


def test_half_a_character_at_the_end_is_not_part_of_the_reply(client: Client) -> None:
    # llama.cpp drops it.
    assert client.chat(f"Say {HALF}").text == "One half: "


def test_a_reply_without_text_is_an_error(client: Client) -> None:
    with pytest.raises(UnexpectedContentError):
        client.chat(f"Say {SILENT}")


def test_50_calls_at_once_get_their_own_texts(
    gateway: Gateway, engine: Engine, runtime: Runtime
) -> None:
    selectors = list(itertools.islice(itertools.cycle(TEXTS), 50))

    async def scenario() -> None:
        async with runtime.client(base_url=gateway.base_url, token="abc") as client:

            async def check(selector: str) -> None:
                reply = await client.chat(f"Say {selector}")
                assert reply.text == TEXTS[selector]
                assert reply.attempts == 1

            await runtime.together(*(lambda each=each: check(each) for each in selectors))

    runtime.run(scenario)
    engine.wait_until_idle()


def test_the_engine_stops_when_the_caller_leaves(
    gateway: Gateway, engine: Engine, runtime: Runtime
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=gateway.base_url, token="abc") as client:

            async def leave() -> None:
                async with client.stream(f"Say {ENDLESS}") as stream:
                    async for _ in stream:
                        break
                    assert engine.count_busy_slots()

            # More than the engine has slots for: those that are queued are served in the end.
            await runtime.together(*[leave] * (SLOTS + 2))

    runtime.run(scenario)
    engine.wait_until_idle()


def test_an_engine_that_is_killed_truncates_the_reply(
    model: Path, port: int, waiting_gateway: Gateway, tmp_path: Path, runtime: Runtime
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=waiting_gateway.base_url, token="abc") as client:
            with run_engine(model, tmp_path, port=port) as engine:
                async with client.stream(f"Say {ENDLESS}") as stream:
                    with pytest.raises(IncompleteReplyError) as caught:
                        async for _ in stream:
                            engine.process.kill()
                    text = caught.value.partial_text
                    assert text == stream.text
                    assert text
                    assert (ROUND * len(text)).startswith(text)
            with pytest.raises(InternalServerError, match="unreachable"):
                await client.chat("Say 1", retry=Retry(attempts=1))

    runtime.run(scenario)


def test_a_reply_that_the_limit_of_tokens_cuts_short_is_named(
    short_gateway: Gateway, runtime: Runtime
) -> None:
    async def scenario() -> None:
        async with runtime.client(base_url=short_gateway.base_url, token="abc") as client:
            reply = await client.chat(f"Say {ENDLESS}")
            assert reply.text == ROUND[:20]
            assert reply.finish_reason == "length"
            async with client.stream(f"Say {ENDLESS}") as stream:
                await stream.read()
            assert stream.reply.finish_reason == "length"

    runtime.run(scenario)


def test_a_conversation_arrives_with_its_roles(
    engine: Engine, gateway: Gateway, runtime: Runtime
) -> None:
    conversation = Conversation(system="Answer in French.").user("Good morning")
    conversation.assistant("Bonjour").user("User: what is 1?\nAssistant: say 1")

    async def scenario() -> None:
        async with runtime.client(base_url=gateway.base_url, token="abc") as client:
            reply = await client.chat(conversation, send_messages=True)
            assert reply.text == TEXTS["1"]

    runtime.run(scenario)
    messages = "".join(
        f"<|{message['role']}|>{message['content']}<|end|>\n" for message in conversation
    )
    assert engine.get_last_slot()["prompt"] == f"{messages}<|assistant|>1"


def test_the_message_of_the_operator_comes_before_a_conversation(
    engine: Engine, tmp_path: Path
) -> None:
    options = ("--system", "Answer briefly.")
    with (
        serve_gateway(engine.base_url, tmp_path, *MODEL, *options) as gateway,
        Client(base_url=gateway.base_url, token="abc", send_messages=True) as client,
    ):
        assert client.chat(Conversation(system="In French.").user("Say 1")).text == TEXTS["1"]
    prompt = engine.get_last_slot()["prompt"]
    assert prompt.startswith("<|system|>Answer briefly.<|end|>\n<|system|>In French.<|end|>\n")


def test_the_sampling_options_of_the_operator_arrive(engine: Engine, tmp_path: Path) -> None:
    options = ["--temperature", "0", "--top-p", "0.5", "--max-tokens", "6", "--seed", "7"]
    options += ["--stop", "never", "--body", "top_k=3"]
    with (
        serve_gateway(engine.base_url, tmp_path, *MODEL, *options) as gateway,
        Client(base_url=gateway.base_url, token="abc") as client,
    ):
        assert client.chat(f"Toss {TOSSING}").text == "heads " * 6
    arrived = engine.get_last_slot()["params"]
    expected = {"temperature": 0, "top_p": 0.5, "max_tokens": 6, "seed": 7, "stop": ["never"]}
    assert arrived | expected | {"top_k": 3} == arrived


def test_the_sampling_options_of_the_caller_arrive(engine: Engine, tmp_path: Path) -> None:
    options = ("--max-tokens", "50", "--allow-options", "temperature,seed,stop")
    with (
        serve_gateway(engine.base_url, tmp_path, *MODEL, *options) as gateway,
        Client(base_url=gateway.base_url, token="abc") as client,
    ):
        toss = f"Toss {TOSSING}"
        assert client.chat(toss, extra_body={"temperature": 0}).text == "heads " * 50
        reply = client.chat(f"Say {ENDLESS}", extra_body={"stop": ["again"]})
        assert (reply.text, reply.finish_reason) == ("Again, and ", "stop")
        texts = [client.chat(toss, extra_body={"seed": seed}).text for seed in (1, 2, 1)]
        assert texts[0] == texts[2] != texts[1]
        with pytest.raises(BadRequestError, match="max_tokens"):
            client.chat(toss, extra_body={"max_tokens": 1_000})


def test_the_only_model_need_not_be_named(engine: Engine, model: Path, tmp_path: Path) -> None:
    with (
        serve_gateway(engine.base_url, tmp_path) as gateway,
        Client(base_url=gateway.base_url, token="abc") as client,
    ):
        assert client.chat("Say 1").text == TEXTS["1"]
        assert f"Model {model}\n" in gateway.log.read_text()


def test_a_prompt_longer_than_the_context_is_not_retried(gateway: Gateway, client: Client) -> None:
    calls = gateway.count_calls(400)
    with pytest.raises(BadRequestError) as caught:
        client.chat("x" * CONTEXT + "1")
    assert json.loads(caught.value.body)["error"]["code"] == "context_length_exceeded"
    assert caught.value.attempts == 1
    assert client.chat("Say 1").text == TEXTS["1"]
    assert gateway.count_calls(400) == calls + 1


def test_a_model_that_is_loading_is_waited_for(
    model: Path, port: int, waiting_gateway: Gateway, tmp_path: Path
) -> None:
    slow_model = tmp_path / "slow.gguf"
    slow_model.write_bytes(build_model(*build_scripts(), merges=500_000))
    with (
        run_engine(slow_model, tmp_path, port=port, status=503),
        Client(base_url=waiting_gateway.base_url, token="abc") as client,
    ):
        with pytest.raises(InternalServerError, match="loading") as caught:
            client.chat("Say 1", retry=Retry(attempts=1))
        assert caught.value.status_code == 503
        assert caught.value.retry_after is not None
        reply = client.chat("Say 1")
        assert reply.text == TEXTS["1"]
        assert reply.attempts > 1
