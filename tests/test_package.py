"""The public names: they exist, are imported at their first use, and work as annotations."""

from __future__ import annotations

import subprocess
import sys
import typing
from collections.abc import Callable

import pydantic
import pytest

import cromicle_sdk
from cromicle_sdk import (
    AsyncClient,
    CallOptions,
    Client,
    Message,
    MessageLike,
    Messages,
    TextPart,
    ViewOptions,
)


@pytest.mark.parametrize("name", cromicle_sdk.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert name in dir(cromicle_sdk)
    value = getattr(cromicle_sdk, name)
    if isinstance(value, type):
        assert value.__name__ == name


def test_another_name_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(cromicle_sdk, "nothing")  # noqa: B009 - a type checker would reject the attribute


def test_the_import_loads_no_dependency() -> None:
    code = "import sys, cromicle_sdk; print({'httpx', 'httpcore', 'anyio'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert answer.stdout.strip() == b"set()"


@pytest.mark.parametrize(
    "method",
    [
        *(Client.chat, Client.stream, Client.with_options),
        *(AsyncClient.chat, AsyncClient.stream, AsyncClient.with_options),
    ],
    ids=lambda method: method.__qualname__,
)
def test_the_annotations_of_a_method_can_be_evaluated(method: Callable[..., object]) -> None:
    hints = typing.get_type_hints(method)
    assert "return" in hints
    options = ViewOptions if method.__name__ == "with_options" else CallOptions
    assert options in typing.get_args(hints["options"])


@pytest.mark.parametrize("kind", [CallOptions, ViewOptions, Message, TextPart])
def test_the_annotations_of_a_typed_dict_can_be_evaluated(kind: type) -> None:
    assert typing.get_type_hints(kind)


def test_a_message_can_be_a_field_of_a_pydantic_model() -> None:
    class Chat(pydantic.BaseModel):
        messages: list[Message]

    message = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    assert Chat.model_validate({"messages": [message]}).messages == [message]
    with pytest.raises(pydantic.ValidationError):
        Chat.model_validate({"messages": [{"role": "user"}]})


def test_a_wrapper_can_annotate_its_own_methods() -> None:
    def ask(messages: Messages, last: MessageLike) -> None: ...

    assert set(typing.get_type_hints(ask)) == {"messages", "last", "return"}
