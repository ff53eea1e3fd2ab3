"""`ChatCromicle` by the test suites of LangChain, and what they do not ask."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from cromicle_sdk.integrations.langchain import ChatCromicle

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
