"""`ChatCromicle` by the test suites of LangChain, and what they do not ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import LLMResult
from langchain_core.callbacks import BaseCallbackHandler
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import ValidationError

from cromicle_sdk import (
    AsyncClient,
    Client,
    ConfigurationError,
    IncompleteReplyError,
    InternalServerError,
    InvalidMessageError,
    Retry,
    Timeout,
)
from cromicle_sdk.integrations.langchain import ChatCromicle
from cromicle_sdk.server import LocalServer
from cromicle_sdk.testing import FaultyServer

pytestmark = pytest.mark.usefixtures("endpoint")


class TestUnit(ChatModelUnitTests):
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


class TestIntegration(ChatModelIntegrationTests):
    """What the protocol does not have is declared: tools and structured output, by not having them."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatCromicle

    @property
    def returns_usage_metadata(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "another"
