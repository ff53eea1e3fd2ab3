"""A missing package is named together with the extra that has it."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from cromicle_sdk.testing import FaultyServer


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Hides a package, and the module here that needs it."""

    def hide(module: str, package: str) -> str:
        name = f"cromicle_sdk.integrations.{module}"
        for each in list(sys.modules):
            if each == name or each.partition(".")[0] == package:
                monkeypatch.delitem(sys.modules, each)
        monkeypatch.setitem(sys.modules, package, None)
        # The attribute of the package `integrations` that the import sets.
        monkeypatch.setattr("cromicle_sdk.integrations." + module, None, raising=False)
        return name

    return hide


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("llm", "llm", "llm"),
        ("pydantic_ai", "pydantic_ai", "pydantic-ai"),
    ],
)
def test_the_import_error_has_the_install_command(
    module: str, package: str, extra: str, hidden: Callable[[str, str], str]
) -> None:
    name = hidden(module, package)
    with pytest.raises(ImportError, match=rf'pip install "cromicle-sdk\[{extra}\]"') as caught:
        importlib.import_module(name)
    assert isinstance(caught.value.__cause__, ImportError)


def test_the_provider_of_gpt4free_works_without_gpt4free(
    hidden: Callable[[str, str], str], faults: FaultyServer
) -> None:
    module: ModuleType = importlib.import_module(hidden("gpt4free", "g4f"))
    assert module.Cromicle.__mro__ == (module.Cromicle, object)

    async def read() -> list[str]:
        return [text async for text in module.Cromicle.create_async_generator("any", "Hi")]

    for finish_reason in ("stop", "length"):
        faults.reply("Hello", finish_reason=finish_reason)
        assert list(module.Cromicle.create_completion("any", "Hi")) == ["Hello"]
        assert asyncio.run(read())
