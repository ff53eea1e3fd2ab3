"""The public names: they exist, are imported at their first use, and work as annotations."""

from __future__ import annotations

import inspect
import pydoc
import re
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
from cromicle_sdk._core.options import USE_CLIENT_DEFAULT, UseClientDefault


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


FLAGS = re.MULTILINE | re.DOTALL

METHODS = [
    *(Client.chat, Client.stream, Client.with_options),
    *(AsyncClient.chat, AsyncClient.stream, AsyncClient.with_options),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__qualname__)
def test_the_annotations_of_a_method_can_be_evaluated(method: Callable[..., object]) -> None:
    hints = typing.get_type_hints(method)
    assert {"return", "timeout", "headers"} <= hints.keys()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__qualname__)
def test_the_options_of_a_method_are_those_of_its_typed_dict(method: Callable[..., object]) -> None:
    kind = ViewOptions if method.__name__ == "with_options" else CallOptions
    options = {
        parameter.name: parameter.default
        for parameter in inspect.signature(method).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    hints = typing.get_type_hints(method)
    for name, hint in typing.get_type_hints(kind).items():
        # None adds nothing to a mapping of the client's; as another option it is a value.
        default, expected = (
            (None, hint)
            if name in ("headers", "extra_body")
            else (USE_CLIENT_DEFAULT, hint | UseClientDefault)
        )
        assert options.pop(name) is default
        assert hints[name] == expected
    assert options == {}


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_help_shows_each_option_of_a_call_with_its_default(
    kind: type[Client | AsyncClient],
) -> None:
    shown = pydoc.plain(pydoc.render_doc(kind.chat))
    # Before Python 3.14 annotations are in quotes.
    assert "strict: bool | UseClientDefault = USE_CLIENT_DEFAULT" in shown.replace("'", "")
    assert " at 0x" not in shown
    for name in CallOptions.__annotations__:
        (described,) = re.findall(rf"^ +- `{name}`: (.*?)(?=\n +- |\n *\n)", shown, FLAGS)
        assert re.search(r"[Dd]efaults\s+to", described), name
        assert re.search(r"\b(seconds|bytes|Retry|True|names?)\b", described), name


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
