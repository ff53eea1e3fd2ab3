"""`ChatCromicle` by the test suites of LangChain, and what these do not ask."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Endpoint
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import ValidationError

from cromicle_sdk import (
    APITimeoutError,
    AsyncClient,
    Client,
    ConfigurationError,
    IncompleteReplyError,
    InvalidMessageError,
    RateLimitError,
    Timeout,
)
from cromicle_sdk.integrations.langchain import ChatCromicle
from cromicle_sdk.testing import FaultyServer


@pytest.mark.usefixtures("endpoint")
class TestUnit(ChatModelUnitTests):
    """LangChain's own tests of the class."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatCromicle

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"CROMICLE_BASE_URL": "https://example.org", "CROMICLE_TOKEN": "s3cret"},
            {},
            {"base_url": "https://example.org", "token": "s3cret"},
        )

    @property
    def supports_model_override(self) -> bool:
        return True


class Integration(ChatModelIntegrationTests):
    """LangChain's own tests of calls.

    That the protocol has neither tools nor structured output is declared by the class, which does
    not override `bind_tools` and `with_structured_output`.
    """

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatCromicle

    @property
    def returns_usage_metadata(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return True


@pytest.mark.usefixtures("endpoint")
class TestWithTheEmbeddedServer(Integration):
    @property
    def model_override_value(self) -> str:
        return "another"


@pytest.mark.skipif("CROMICLE_TEST_GATEWAY" not in os.environ, reason="no engine is running")
class TestWithTheGatewayAndAnEngine(Integration):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": os.environ["CROMICLE_TEST_GATEWAY"], "token": "abc"}

    @property
    def model_override_value(self) -> str:
        return "tiny"


def collect(model: ChatCromicle, messages: Any, /, **options: Any) -> list[str]:
    return [str(chunk.content) for chunk in model.stream(messages, **options) if chunk.content]


async def collect_async(model: ChatCromicle, messages: Any, /, **options: Any) -> list[str]:
    return [
        str(chunk.content) async for chunk in model.astream(messages, **options) if chunk.content
    ]


def call(kind: str, model: ChatCromicle, messages: Any, /, **options: Any) -> str:
    """The text of the reply, by one of the four ways."""
    if kind == "invoke":
        return str(model.invoke(messages, **options).content)
    if kind == "ainvoke":
        return str(asyncio.run(model.ainvoke(messages, **options)).content)
    if kind == "stream":
        return "".join(collect(model, messages, **options))
    return "".join(asyncio.run(collect_async(model, messages, **options)))


every_kind = pytest.mark.parametrize("kind", ["invoke", "ainvoke", "stream", "astream"])


@every_kind
def test_the_messages_are_sent_with_their_roles(kind: str, endpoint: Endpoint) -> None:
    messages: list[BaseMessage] = [
        SystemMessage("Answer briefly."),
        HumanMessage(["Hello, ", {"type": "text", "text": "you."}]),
        AIMessage("Yes?"),
        ChatMessage(role="critic", content="More."),
    ]
    assert call(kind, ChatCromicle(), messages) == "More."
    assert endpoint.messages == [
        [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "Hello, you."},
            {"role": "assistant", "content": "Yes?"},
            {"role": "critic", "content": "More."},
        ]
    ]


@every_kind
def test_fields_are_sent_if_they_are_given(kind: str, endpoint: Endpoint) -> None:
    call(kind, ChatCromicle(), "Hello")
    model = ChatCromicle(temperature=0, stop=["x"], seed=1, extra_body={"best_of": 2, "top_p": 1})
    call(kind, model, "Hello")
    call(kind, model, "Hello", temperature=1, stop=["y"], model="another", max_tokens=9)
    call(kind, model, "Hello", extra_body={"best_of": 3}, temperature=None)
    first = {"best_of": 2, "top_p": 1, "temperature": 0, "seed": 1, "stop": ["x"]}
    assert endpoint.options == [
        {},
        first,
        {**first, "temperature": 1, "stop": ["y"], "model": "another", "max_tokens": 9},
        {**first, "best_of": 3},
    ]


def test_each_chunk_arrives_as_it_is_sent(faults: FaultyServer) -> None:
    for _ in range(2):
        gate = threading.Event()
        faults.reply(chunks=["Hello, ", "you."], gate=gate)
        chunks: Iterator[Any] = iter(ChatCromicle().stream("Hi"))
        assert next(chunks).content == "Hello, "
        gate.set()
        assert next(chunks).content == "you."
        assert [chunk.content for chunk in chunks] == [""]


@every_kind
def test_the_end_of_a_reply_is_described(kind: str, faults: FaultyServer) -> None:
    faults.reply("Cut shor", finish_reason="length", headers={"x-request-id": "r-1"})
    model = ChatCromicle(model="llama")
    message: Any
    if kind == "invoke":
        message = model.invoke("Hi")
    elif kind == "ainvoke":
        message = asyncio.run(model.ainvoke("Hi"))
    elif kind == "stream":
        *_, message = model.stream("Hi")
    else:

        async def read() -> Any:
            return [chunk async for chunk in model.astream("Hi")][-1]

        message = asyncio.run(read())
    assert message.response_metadata == {
        "finish_reason": "length",
        "request_id": "r-1",
        "model_name": "llama",
        "model_provider": "cromicle",
    }
    assert message.usage_metadata is None


def test_callbacks_get_each_chunk(faults: FaultyServer) -> None:
    tokens: list[str] = []

    class Handler(BaseCallbackHandler):
        def on_llm_new_token(self, token: str, **options: Any) -> None:
            tokens.append(token)

    faults.reply("Hello")
    model = ChatCromicle(callbacks=[Handler()])
    assert collect(model, "Hi") == ["Hello"]
    assert asyncio.run(collect_async(model, "Hi"))
    # The last one is empty: it has why the reply ended.
    assert next(token for token in tokens if token) == "Hello"


def test_a_chain_of_langchain(endpoint: Endpoint) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Translate."), ("user", "{text}")])
    chain = prompt | ChatCromicle() | StrOutputParser()
    assert chain.invoke({"text": "Hello"}) == "Hello"
    assert "".join(chain.stream({"text": "Hello"})) == "Hello"
    assert chain.batch([{"text": "One"}, {"text": "Two"}]) == ["One", "Two"]


def test_a_model_is_used_on_one_event_loop_after_another(endpoint: Endpoint) -> None:
    model = ChatCromicle()
    for _ in range(3):
        assert call("ainvoke", model, "Hello") == call("astream", model, "Hello") == "Hello"


@every_kind
def test_a_reply_that_breaks_off_is_an_error(kind: str, faults: FaultyServer) -> None:
    faults.cut(after="Hello, th")
    with pytest.raises(IncompleteReplyError) as caught:
        call(kind, ChatCromicle(max_retries=0), "Hi")
    assert caught.value.partial_text == "Hello, th"


def test_the_limits_of_a_call(faults: FaultyServer) -> None:
    faults.fail(429, retry_after=0).fail(429, retry_after=0).reply("Hello")
    with pytest.raises(RateLimitError) as caught:
        ChatCromicle(max_retries=1).invoke("Hi")
    assert caught.value.attempts == 2
    assert ChatCromicle().invoke("Hi").content == "Hello"
    faults.stall(after="Hel")
    for model in (ChatCromicle(timeout=Timeout(stall=0.1), max_retries=0), ChatCromicle()):
        with pytest.raises(APITimeoutError):
            collect(model, "Hi", timeout=0.1)


def test_headers_and_the_token_are_sent_and_not_shown(faults: FaultyServer) -> None:
    model = ChatCromicle(
        base_url=faults.base_url.replace("//", "//user:s3cret@"),
        api_key="s3cret",
        headers={"x-key": "s3cret"},
        extra_body={"best_of": "s3cret"},
    )
    model.invoke("Hi", headers={"x-mine": "1"})
    (request,) = faults.requests
    assert request.token == request.headers["x-key"] == "s3cret"
    assert request.headers["x-mine"] == "1"
    assert "s3cret" not in f"{model!r} {model} {model._get_ls_params()}"
    assert "s3cret" not in repr(ChatCromicle(token="s3cret").model_dump())
    traced = model._get_invocation_params()
    assert "s3cret" not in repr({**traced, "extra_body": None})
    assert pickle.loads(pickle.dumps(model)).invoke("Hi").content


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
        ({"headers": {"x-key": "s3cret\n"}}, "headers"),
    ],
)
def test_an_invalid_option_is_named_and_its_value_is_not_shown(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValidationError, match=named) as caught:
        ChatCromicle(**options)
    assert "s3cret" not in f"{caught.value} {caught.value!r}"


@every_kind
@pytest.mark.parametrize("option", ["tools", "response_format", "temprature"])
def test_an_unknown_argument_of_a_call_is_named(
    kind: str, option: str, faults: FaultyServer
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        call(kind, ChatCromicle(), "Hi", **{option: "s3cret"})
    assert caught.value.option == option
    assert "s3cret" not in str(caught.value)
    assert faults.requests == []


@every_kind
def test_an_invalid_extra_body_of_a_call_is_named(kind: str, faults: FaultyServer) -> None:
    with pytest.raises(ConfigurationError) as caught:
        call(kind, ChatCromicle(), "Hi", extra_body="s3cret")
    assert caught.value.option == "extra_body"
    assert "s3cret" not in str(caught.value)
    assert faults.requests == []


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
TOOL_CALL = {"name": "add", "args": {}, "id": "1"}


@every_kind
@pytest.mark.parametrize(
    "message",
    [
        HumanMessage([IMAGE]),
        AIMessage("", tool_calls=[TOOL_CALL]),
        ToolMessage("4", tool_call_id="1"),
    ],
    ids=["image", "tool call", "tool"],
)
def test_what_is_not_text_is_refused(kind: str, message: BaseMessage, faults: FaultyServer) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        call(kind, ChatCromicle(), [HumanMessage("Hi"), message])
    assert caught.value.index == 1
    assert faults.requests == []


def test_tools_and_structured_output_are_what_langchain_says_of_a_model_without() -> None:
    with pytest.raises(NotImplementedError):
        ChatCromicle().bind_tools([])
    with pytest.raises(NotImplementedError):
        ChatCromicle().with_structured_output({"title": "a", "type": "object"})


def test_clients_of_ones_own(faults: FaultyServer) -> None:
    with Client(base_url=faults.base_url, token="mine") as client:
        async_client = AsyncClient(base_url=faults.base_url, token="mine")
        model = ChatCromicle(client=client, async_client=async_client)
        call("invoke", model, "Hi")
        call("astream", model, "Hi")
        asyncio.run(async_client.aclose())
    assert [request.token for request in faults.requests] == ["mine", "mine"]
    assert [bool(request.messages) for request in faults.requests] == [True, True]
