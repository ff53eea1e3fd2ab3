"""`CromicleModel` in the agents of Pydantic AI."""

from __future__ import annotations

import asyncio
import threading
import warnings
from typing import Any

import pytest
from conftest import Endpoint
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, NativeOutput, capture_run_messages
from pydantic_ai.direct import model_request_sync
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, UserError
from pydantic_ai.messages import (
    CachePoint,
    ImageUrl,
    ModelRequest,
    ModelResponse,
    RetryPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.settings import ModelSettings

from cromicle_sdk import (
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    AuthenticationError,
    ConfigurationError,
    IncompleteReplyError,
    InvalidMessageError,
    Retry,
)
from cromicle_sdk.integrations.pydantic_ai import CromicleModel
from cromicle_sdk.testing import FaultyServer


class City(BaseModel):
    name: str


def run(agent: Agent[Any, Any], prompt: Any = "Hello", **options: Any) -> Any:
    return asyncio.run(agent.run(prompt, **options))


def stream(agent: Agent[Any, Any], prompt: Any = "Hello", **options: Any) -> list[str]:
    async def main() -> list[str]:
        async with agent.run_stream(prompt, **options) as result:
            return [text async for text in result.stream_text(delta=True, debounce_by=None)]

    return asyncio.run(main())


def call(kind: str, agent: Agent[Any, Any], prompt: Any = "Hello", **options: Any) -> str:
    if kind == "run":
        return str(run(agent, prompt, **options).output)
    return "".join(stream(agent, prompt, **options))


every_kind = pytest.mark.parametrize("kind", ["run", "stream"])


def get_messages(endpoint: Endpoint, index: int = -1) -> list[tuple[str, str]]:
    return [(each["role"], str(each["content"])) for each in endpoint.messages[index] or ()]


@every_kind
def test_a_conversation_is_sent_with_its_roles(kind: str, endpoint: Endpoint) -> None:
    agent = Agent(CromicleModel(), instructions="Be brief.", system_prompt="You are a critic.")
    first = run(agent, "One")
    assert first.output == "One"
    assert call(kind, agent, "Two", message_history=first.all_messages()) == "Two"
    assert get_messages(endpoint) == [
        ("system", "Be brief."),
        ("system", "You are a critic."),
        ("user", "One"),
        ("assistant", "One"),
        ("user", "Two"),
    ]


@every_kind
def test_parts_of_a_prompt(kind: str, endpoint: Endpoint) -> None:
    history = [ModelResponse(parts=[ThinkingPart(content="Hm."), TextPart(content="Yes?")])]
    prompt = ["One", CachePoint(), TextContent(content="Two")]
    call(kind, Agent(CromicleModel()), prompt, message_history=history)
    assert get_messages(endpoint) == [("assistant", "Yes?"), ("user", "One\n\nTwo")]


def test_each_chunk_arrives_as_it_is_sent(faults: FaultyServer) -> None:
    gate = threading.Event()
    faults.reply(chunks=["Fine, ", "thanks."], gate=gate)

    async def main() -> list[str]:
        texts: list[str] = []
        async with Agent(CromicleModel()).run_stream("Hello") as result:
            async for text in result.stream_text(delta=True, debounce_by=None):
                texts.append(text)
                gate.set()
        return texts

    assert asyncio.run(main()) == ["Fine, ", "thanks."]


@every_kind
def test_the_response_says_why_it_ended(kind: str, faults: FaultyServer) -> None:
    faults.reply("Cut shor", finish_reason="length", headers={"x-request-id": "r-1"})
    with capture_run_messages() as messages:
        call(kind, Agent(CromicleModel("llama")))
    response = messages[-1]
    assert isinstance(response, ModelResponse)
    assert response.finish_reason == "length"
    assert response.provider_response_id == "r-1"
    assert (response.model_name, response.provider_name) == ("llama", "cromicle")
    assert response.timestamp.tzinfo is not None
    assert not response.usage.has_values()


@every_kind
def test_settings_are_sent_if_they_are_given(kind: str, faults: FaultyServer) -> None:
    call(kind, Agent(CromicleModel()))
    model = CromicleModel("llama", settings={"temperature": 0.5, "max_tokens": 9})
    settings = {
        "stop_sequences": ["x"],
        "max_tokens": 8,
        "timeout": 20,
        "extra_headers": {"x-mine": "1"},
        "extra_body": {"best_of": 2},
        "seed": None,
    }
    call(kind, Agent(model), model_settings=settings)
    plain, request = faults.requests
    assert plain.options == {}
    assert request.headers["x-mine"] == "1"
    assert request.options == {
        "model": "llama",
        "best_of": 2,
        "temperature": 0.5,
        "max_tokens": 8,
        "stop": ["x"],
    }


@every_kind
def test_limits_of_a_call(kind: str, faults: FaultyServer) -> None:
    faults.stall(after="Hel")
    client = AsyncClient(base_url=faults.base_url, retry=Retry(attempts=1))
    with pytest.raises(ModelAPIError) as caught:
        call(kind, Agent(CromicleModel(client=client)), model_settings={"timeout": 0.1})
    assert isinstance(caught.value.__cause__, APITimeoutError)


@pytest.mark.skipif(
    "max_retries" not in ModelSettings.__annotations__, reason="this Pydantic AI has no max_retries"
)
def test_retries_of_a_call(faults: FaultyServer) -> None:
    faults.fail(503, retry_after=0).fail(503, retry_after=0).reply("Hello")
    agent = Agent(CromicleModel())
    with pytest.raises(ModelHTTPError) as caught:
        run(agent, model_settings={"max_retries": 0})
    assert isinstance(caught.value.__cause__, APIStatusError)
    assert caught.value.__cause__.attempts == 1
    assert run(agent, model_settings={"max_retries": 1}).output == "Hello"


@every_kind
def test_an_invalid_setting_is_named(kind: str, faults: FaultyServer) -> None:
    with pytest.raises(ConfigurationError, match=r"timeout\.connect"):
        call(kind, Agent(CromicleModel()), model_settings={"timeout": -1})
    assert faults.requests == []


@every_kind
def test_an_invalid_extra_body_is_named(kind: str, faults: FaultyServer) -> None:
    with pytest.raises(ConfigurationError) as caught:
        call(kind, Agent(CromicleModel()), model_settings={"extra_body": "s3cret"})
    assert caught.value.option == "extra_body"
    assert "s3cret" not in str(caught.value)
    assert faults.requests == []


@pytest.mark.skipif(
    "max_retries" not in ModelSettings.__annotations__, reason="this Pydantic AI has no max_retries"
)
@pytest.mark.parametrize("value", [-1, "s3cret", True])
def test_invalid_retries_are_named(value: Any, faults: FaultyServer) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run(Agent(CromicleModel()), model_settings={"max_retries": value})
    assert caught.value.option == "max_retries"
    assert "s3cret" not in str(caught.value)
    assert faults.requests == []


@every_kind
@pytest.mark.parametrize("name", ["temprature", "top_k"])
def test_an_unknown_setting_is_named(kind: str, name: str, faults: FaultyServer) -> None:
    with pytest.raises(ConfigurationError) as caught:
        call(kind, Agent(CromicleModel()), model_settings={name: "s3cret"})
    assert caught.value.option == name
    assert "s3cret" not in str(caught.value)
    assert faults.requests == []


def test_structured_output_is_asked_for_in_the_prompt(faults: FaultyServer) -> None:
    faults.reply("Paris").reply('{"name": "Paris"}')
    assert run(Agent(CromicleModel(), output_type=City)).output == City(name="Paris")
    first, second = faults.requests
    assert first.messages is not None
    assert "compatible with this schema" in str(first.messages[0]["content"])
    # Pydantic AI has told the model what was wrong.
    assert second.messages is not None
    assert [message["role"] for message in second.messages] == [
        *("system", "user", "assistant", "user")
    ]
    assert "json_invalid" in str(second.messages[-1]["content"])


def test_an_output_that_the_application_refuses_is_asked_for_again(endpoint: Endpoint) -> None:
    agent = Agent(CromicleModel())
    refused: list[str] = []

    @agent.output_validator
    def validate(text: str) -> str:
        if not refused:
            refused.append(text)
            raise ModelRetry("Say it again.")
        return text

    assert "Say it again." in run(agent, "Hello").output
    assert refused == ["Hello"]


@every_kind
def test_tools_are_refused(kind: str, faults: FaultyServer) -> None:
    agent = Agent(CromicleModel())

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        return a + b

    with pytest.raises(UserError, match="no tools"):
        call(kind, agent)
    with pytest.raises(UserError):
        run(Agent(CromicleModel(), output_type=NativeOutput(City)))
    assert faults.requests == []


@every_kind
def test_what_is_not_text_is_refused(kind: str, faults: FaultyServer) -> None:
    agent = Agent(CromicleModel())
    call_part = ToolCallPart(tool_name="add", args={}, tool_call_id="1")
    return_part = ToolReturnPart(tool_name="add", content="4", tool_call_id="1")
    tools = [ModelResponse(parts=[call_part]), ModelRequest(parts=[return_part])]
    with pytest.raises(InvalidMessageError, match="ImageUrl"):
        call(kind, agent, ["Hello", ImageUrl(url="https://example.org/a.png")])
    with pytest.raises(InvalidMessageError, match="ToolCallPart"):
        call(kind, agent, message_history=tools)
    assert faults.requests == []


@every_kind
def test_errors_are_those_of_pydantic_ai(kind: str, faults: FaultyServer) -> None:
    faults.fail(401).cut(after="Hello, th").fail(401)
    client = AsyncClient(base_url=faults.base_url, token="s3cret")
    agent = Agent(CromicleModel(client=client))
    with pytest.raises(ModelHTTPError) as status:
        call(kind, agent)
    assert status.value.status_code == 401
    assert isinstance(status.value.__cause__, AuthenticationError)
    assert "s3cret" not in f"{status.value} {status.value!r}"
    with pytest.raises(ModelAPIError) as broken:
        call(kind, agent, model_settings={"timeout": 20})
    if kind == "stream":
        assert isinstance(broken.value.__cause__, IncompleteReplyError)
        assert broken.value.__cause__.partial_text == "Hello, th"


@every_kind
def test_another_model_stands_in(kind: str, faults: FaultyServer) -> None:
    faults.fail(401)
    other = TestModel(custom_output_text="from the other")
    agent = Agent(FallbackModel(CromicleModel(), other))
    assert call(kind, agent) == "from the other"


def test_cancelling_a_stream_closes_the_connection(faults: FaultyServer) -> None:
    faults.stall(after="Hello")

    async def main() -> None:
        model = CromicleModel()
        request = [ModelRequest(parts=[UserPromptPart(content="Hi")])]
        async with model.request_stream(request, None, ModelRequestParameters()) as response:
            async for _ in response:
                await response.cancel()
            assert response.cancelled
            assert response.provider_url is None
            assert response.get().parts == [TextPart(content="Hello")]

    asyncio.run(main())
    faults.wait_until_closed()


def test_a_request_without_an_agent(endpoint: Endpoint) -> None:
    model = CromicleModel()
    request = ModelRequest(parts=[UserPromptPart(content="Hi")], instructions="Be brief.")
    assert model_request_sync(model, [request]).parts == [TextPart(content="Hi")]
    assert get_messages(endpoint) == [("system", "Be brief."), ("user", "Hi")]
    response = ModelResponse(parts=[TextPart(content="Hi")])
    assert model_request_sync(model, [response]).parts == [TextPart(content="Hi")]
    assert model.model_name == model.system == "cromicle"


def test_feedback_of_older_versions_in_a_history(endpoint: Endpoint) -> None:
    with warnings.catch_warnings():
        # Pydantic AI has replaced it by another part.
        warnings.simplefilter("ignore")
        feedback = ModelRequest(parts=[RetryPromptPart(content="Too long.")])
    asyncio.run(CromicleModel().request([feedback], None, ModelRequestParameters()))
    ((role, content),) = get_messages(endpoint)
    assert role == "user"
    assert "Too long." in content


def test_a_model_is_used_on_one_event_loop_after_another(endpoint: Endpoint) -> None:
    agent = Agent(CromicleModel())
    for _ in range(3):
        assert call("run", agent) == call("stream", agent) == "Hello"


def test_the_token_is_sent_and_not_shown(faults: FaultyServer) -> None:
    model = CromicleModel(base_url=faults.base_url, token="s3cret")
    run(Agent(model))
    assert faults.requests[0].token == "s3cret"
    assert "s3cret" not in f"{model!r} {vars(model)}"


def test_invalid_options_are_named() -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        CromicleModel(base_url="nowhere", token="s3cret")
    with pytest.raises(ConfigurationError, match="token") as caught:
        CromicleModel(client=AsyncClient(), token="s3cret")
    assert "s3cret" not in str(caught.value)


def test_the_profile_may_be_changed() -> None:
    model = CromicleModel(profile={"supports_json_object_output": True})
    assert model.profile.get("supports_json_object_output") is True
    assert model.profile.get("supports_tools") is False
