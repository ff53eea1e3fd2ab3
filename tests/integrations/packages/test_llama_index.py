"""`Cromicle` as a language model of LlamaIndex, by its methods and by LlamaIndex's own engines."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import pytest
from conftest import Endpoint
from llama_index.core import Document, PromptTemplate, SummaryIndex
from llama_index.core.base.llms import types
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import LLM, ChatMessage, MessageRole
from pydantic import BaseModel, ValidationError

from cromicle_sdk import (
    AsyncClient,
    Client,
    ConfigurationError,
    IncompleteReplyError,
    InvalidMessageError,
    RateLimitError,
)
from cromicle_sdk.integrations.llama_index import Cromicle
from cromicle_sdk.testing import FaultyServer

KINDS = [
    *("chat", "achat", "stream_chat", "astream_chat"),
    *("complete", "acomplete", "stream_complete", "astream_complete"),
]
every_kind = pytest.mark.parametrize("kind", KINDS)


def call(kind: str, model: Cromicle, text: str = "Hello", /, **options: Any) -> list[Any]:
    """The responses, one or as many as arrive, by one of the eight ways."""
    value: Any = text if "complete" in kind else [ChatMessage(role="user", content=text)]

    async def main() -> list[Any]:
        result = await getattr(model, kind)(value, **options)
        return [response async for response in result] if "stream" in kind else [result]

    if kind.startswith("a"):
        return asyncio.run(main())
    result = getattr(model, kind)(value, **options)
    return list(result) if "stream" in kind else [result]


def get_text(response: Any) -> str:
    return str(response.text if hasattr(response, "text") else response.message.content)


def test_it_is_a_model_of_llama_index() -> None:
    model = Cromicle(model="llama", max_tokens=9, context_window=4096)
    assert isinstance(model, LLM)
    assert Cromicle.class_name() == "Cromicle"
    assert model.metadata.is_chat_model
    assert not model.metadata.is_function_calling_model
    assert model.metadata.model_name == "llama"
    assert (model.metadata.num_output, model.metadata.context_window) == (9, 4096)
    assert Cromicle().metadata.model_name == "cromicle"


@every_kind
def test_a_reply(kind: str, faults: FaultyServer) -> None:
    faults.reply(chunks=["Fine, ", "thanks."], finish_reason="stop", headers={"x-request-id": "r"})
    responses = call(kind, Cromicle())
    assert get_text(responses[-1]) == "Fine, thanks."
    assert responses[-1].additional_kwargs == {"finish_reason": "stop", "request_id": "r"}
    if "stream" in kind:
        assert "".join(response.delta for response in responses) == "Fine, thanks."
        assert get_text(responses[0]) == responses[0].delta
    (request,) = faults.requests
    assert request.json["message"] == "Hello"


def test_each_chunk_arrives_as_it_is_sent(faults: FaultyServer) -> None:
    gate = threading.Event()
    faults.reply(chunks=["Fine, ", "thanks."], gate=gate)
    responses = Cromicle().stream_complete("Hello")
    assert next(responses).delta == "Fine, "
    gate.set()
    assert [(each.delta, each.text) for each in responses] == [
        ("thanks.", "Fine, thanks."),
        ("", "Fine, thanks."),
    ]


def test_the_messages_are_sent_with_their_roles(endpoint: Endpoint) -> None:
    thinking: list[Any] = [types.TextBlock(text="Yes?")]
    # LlamaIndex 0.13.0 has none.
    if hasattr(types, "ThinkingBlock"):
        thinking.insert(0, types.ThinkingBlock(content="Hm."))
    Cromicle().chat(
        [
            ChatMessage(role="system", content="Answer briefly."),
            ChatMessage(role="user", content="One"),
            ChatMessage(role="assistant", content=thinking),
            ChatMessage(role="model", content="And?"),
            ChatMessage(role="user", content="Two"),
        ]
    )
    assert endpoint.messages == [
        [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Yes?"},
            {"role": "assistant", "content": "And?"},
            {"role": "user", "content": "Two"},
        ]
    ]


@every_kind
def test_fields_are_sent_if_they_are_given(kind: str, endpoint: Endpoint) -> None:
    call(kind, Cromicle())
    model = Cromicle(temperature=0, seed=1, stop="x", extra_body={"best_of": 2})
    call(kind, model)
    call(kind, model, temperature=1, model="llama", timeout=20, headers={"x-mine": "1"})
    first = {"best_of": 2, "temperature": 0, "seed": 1, "stop": "x"}
    assert endpoint.options == [{}, first, {**first, "temperature": 1, "model": "llama"}]


def test_a_chat_engine(endpoint: Endpoint) -> None:
    engine = SimpleChatEngine.from_defaults(llm=Cromicle(), system_prompt="Answer briefly.")
    assert str(engine.chat("One")) == "One"
    assert "".join(engine.stream_chat("Two").response_gen) == "Two"
    assert [message["role"] for message in endpoint.messages[-1] or ()] == [
        *("system", "user", "assistant", "user")
    ]


def test_an_index(faults: FaultyServer) -> None:
    faults.reply("Paris.")
    index = SummaryIndex.from_documents([Document(text="The capital of France is Paris.")])
    reply = index.as_query_engine(llm=Cromicle()).query("What is the capital of France?")
    assert str(reply) == "Paris."
    assert "The capital of France is Paris." in faults.requests[0].json["message"]


def test_structured_output_by_the_prompt(faults: FaultyServer) -> None:
    class City(BaseModel):
        name: str

    faults.reply('{"name": "Paris"}')
    model = Cromicle()
    city = model.structured_predict(City, PromptTemplate("Which city is it?"))
    assert city == City(name="Paris")


def test_completions_are_formatted_once(endpoint: Endpoint) -> None:
    model = Cromicle(completion_to_prompt=lambda text: f"<{text}>")
    model.complete("Hello")
    model.complete("Hello", formatted=True)
    assert endpoint.prompts == ["<Hello>", "Hello"]


def test_a_model_is_used_on_one_event_loop_after_another(endpoint: Endpoint) -> None:
    model = Cromicle()
    for _ in range(3):
        assert get_text(call("achat", model)[0]) == "Hello"
        assert get_text(call("astream_complete", model)[-1]) == "Hello"


@every_kind
def test_a_reply_that_breaks_off_is_an_error(kind: str, faults: FaultyServer) -> None:
    faults.cut(after="Hello, th")
    with pytest.raises(IncompleteReplyError) as caught:
        call(kind, Cromicle(max_retries=0))
    assert caught.value.partial_text == "Hello, th"


def test_calls_are_retried(faults: FaultyServer) -> None:
    faults.fail(429, retry_after=0).fail(429, retry_after=0).reply("Hello")
    with pytest.raises(RateLimitError) as caught:
        Cromicle(max_retries=1).complete("Hi")
    assert caught.value.attempts == 2
    assert Cromicle().complete("Hi").text == "Hello"


def test_headers_and_the_token_are_sent_and_not_shown(
    faults: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    monkeypatch.setenv("CROMICLE_TOKEN", "s3cret")
    model = Cromicle(
        base_url=faults.base_url.replace("//", "//user:s3cret@"),
        headers={"x-key": "s3cret"},
        callback_manager=CallbackManager([debug]),
    )
    model.complete("Hi", headers={"x-mine": "1"})
    (request,) = faults.requests
    assert request.token == request.headers["x-key"] == "s3cret"
    assert request.headers["x-mine"] == "1"
    assert "s3cret" not in f"{model!r} {model}"
    model = Cromicle(headers={"x-key": "s3cret"})
    assert "s3cret" not in f"{model.to_dict()} {model.to_json()}"
    again = Cromicle.from_dict(model.to_dict())
    assert again.complete("Hi").text
    assert pickle.loads(pickle.dumps(model)).complete("Hi").text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"toke": "s3cret"}, "toke"),
        ({"token": ["s3cret"]}, "token"),
        ({"token": " s3cret"}, "token"),
        ({"base_url": "s3cret"}, "base_url"),
        ({"temperature": "s3cret"}, "temperature"),
        ({"timeout": -1}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
    ],
)
def test_an_invalid_option_is_named_and_its_value_is_not_shown(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValidationError, match=named) as caught:
        Cromicle(**options)
    assert "s3cret" not in f"{caught.value} {caught.value!r}"


@every_kind
def test_an_unknown_argument_of_a_call_is_named(kind: str, faults: FaultyServer) -> None:
    with pytest.raises(ConfigurationError) as caught:
        call(kind, Cromicle(), temprature="s3cret")
    assert caught.value.option == "temprature"
    assert "s3cret" not in str(caught.value)
    assert faults.requests == []


@every_kind
def test_an_invalid_extra_body_of_a_call_is_named(kind: str, faults: FaultyServer) -> None:
    with pytest.raises(ConfigurationError) as caught:
        call(kind, Cromicle(), extra_body="s3cret")
    assert caught.value.option == "extra_body"
    assert "s3cret" not in str(caught.value)
    assert faults.requests == []


@pytest.mark.parametrize(
    "message",
    [
        ChatMessage(role="user", blocks=[types.ImageBlock(url="https://example.org/a.png")]),
        ChatMessage(role="tool", content="4"),
        ChatMessage(role=MessageRole.ASSISTANT, additional_kwargs={"tool_calls": [1]}),
    ],
    ids=["image", "tool", "tool call"],
)
def test_what_is_not_text_is_refused(message: ChatMessage, faults: FaultyServer) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        Cromicle().chat([ChatMessage("Hi"), message])
    assert caught.value.index == 1
    assert faults.requests == []


def test_clients_of_ones_own(faults: FaultyServer) -> None:
    with Client(base_url=faults.base_url, token="mine") as client:
        async_client = AsyncClient(base_url=faults.base_url, token="mine")
        model = Cromicle(client=client, async_client=async_client)
        call("chat", model)
        call("astream_chat", model)
        asyncio.run(async_client.aclose())
    assert [request.token for request in faults.requests] == ["mine", "mine"]
