"""Messages become a prompt, or an error that names the message and never quotes it."""

from __future__ import annotations

import copy
import enum
import json
import pickle
from collections import OrderedDict, UserDict, deque, namedtuple
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cromicle_sdk._core.errors import InvalidMessageError
from cromicle_sdk._core.messages import Conversation, Message, check_messages, format_prompt

SECRET = "do-not-quote-me"


def gpt4free_format_prompt(messages: list[dict[str, str]]) -> str:
    """What gpt4free sent for several messages, transcribed from its source."""
    return "\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages) + "\nAssistant:"


class Role(str, enum.Enum):
    USER = "user"


class LoudText(str):
    """A text that formats as something else."""

    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD"

    def __format__(self, spec: str) -> str:
        return "LOUD"

    def capitalize(self) -> str:
        return "LOUD"


@dataclass(frozen=True)
class Turn:
    role: str
    content: Any


TurnTuple = namedtuple("TurnTuple", "role content")  # noqa: PYI024 - an untyped one is the test


class Model:
    """What pydantic makes: attributes, and an iterator over the fields."""

    def __init__(self, role: str, content: str) -> None:
        self.role = role
        self.content = content

    def __iter__(self) -> Iterator[tuple[str, str]]:
        yield from vars(self).items()


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        # a str: itself
        ("Hello", "Hello"),
        ("", ""),
        ("  two\nlines\r\n ", "  two\nlines\r\n "),
        ("a\0b\u2028é😀", "a\0b\u2028é😀"),
        # one message: its content
        ([turn("user", "Hello")], "Hello"),
        ([turn("system", "Be brief")], "Be brief"),
        ([turn("user", "")], ""),
        ((turn("user", "Hello"),), "Hello"),
        # several: a line each, then `Assistant:`
        ([turn("user", "a"), turn("assistant", "b")], "User: a\nAssistant: b\nAssistant:"),
        (
            [turn("system", "s"), turn("user", "two\nlines"), turn("assistant", "")],
            "System: s\nUser: two\nlines\nAssistant: \nAssistant:",
        ),
        # str.capitalize(): the rest of the word becomes small
        ([turn("USER", "a"), turn("my-Tool_2", "b")], "User: a\nMy-tool_2: b\nAssistant:"),
        ([turn("éA", "a"), turn("ßx", "b")], "Éa: a\nSsx: b\nAssistant:"),
        # parts: joined with nothing between
        ([turn("user", [part("a"), part("b ")])], "ab "),
        ([turn("user", (part("a"),)), turn("user", [])], "User: a\nUser: \nAssistant:"),
        ([turn("user", [{"type": "text", "text": "a", "cache": {}}])], "a"),
        ([turn("user", [MappingProxyType(part("a"))])], "a"),
        # any mapping, any object
        ([OrderedDict(turn("user", "a"))], "a"),
        ([UserDict(turn("user", "a"))], "a"),
        ([MappingProxyType(turn("user", "a"))], "a"),
        ([{**turn("user", "a"), "name": "x"}], "a"),
        ([Turn("user", "a")], "a"),
        ([Turn("user", [part("a")])], "a"),
        ([TurnTuple("user", "a")], "a"),
        ([Model("user", "a"), Model("user", "b")], "User: a\nUser: b\nAssistant:"),
        ([SimpleNamespace(role="user", content="a")], "a"),
        # any iterable
        ({"first": turn("user", "a")}.values(), "a"),
        (deque([turn("user", "a")]), "a"),
        (iter([turn("user", "a")]), "a"),
        # subclasses of str count as their text
        ([turn(Role.USER, "a"), turn(Role.USER, "b")], "User: a\nUser: b\nAssistant:"),
        ([turn(LoudText("user"), LoudText("a"))] * 2, "User: a\nUser: a\nAssistant:"),
        (LoudText("text"), "text"),
        ([turn("user", [part(LoudText("a"))])], "a"),
    ],
)
def test_prompt(messages: Any, prompt: str) -> None:
    made = format_prompt(messages)
    assert made == prompt
    assert type(made) is str


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ROLE = st.from_regex(r"[\w-]{1,8}", fullmatch=True)
TURN = st.fixed_dictionaries({"role": ROLE, "content": TEXT})


@settings(deadline=None, max_examples=200)
@given(st.lists(TURN, min_size=2, max_size=6))
def test_the_prompt_equals_that_of_gpt4free(messages: list[dict[str, str]]) -> None:
    expected = gpt4free_format_prompt(messages)
    assert format_prompt(messages) == expected
    assert format_prompt(SimpleNamespace(**message) for message in messages) == expected
    assert format_prompt(Conversation(messages=messages)) == expected


@settings(deadline=None, max_examples=50)
@given(TEXT, ROLE)
def test_a_text_and_one_message_are_their_text(text: str, role: str) -> None:
    assert format_prompt(text) == text
    assert format_prompt([turn(role, text)]) == text
    assert format_prompt([turn(role, [part(c) for c in text])]) == text


def test_an_iterable_is_read_once() -> None:
    steps: list[str] = []

    def produce() -> Iterator[dict[str, str]]:
        for text in ("a", "b"):
            steps.append(text)
            yield turn("user", text)

    class OneIterator(Iterable[dict[str, str]]):
        def __iter__(self) -> Iterator[dict[str, str]]:
            steps.append("iter")
            return produce()

    assert format_prompt(OneIterator()) == "User: a\nUser: b\nAssistant:"
    assert steps == ["iter", "a", "b"]


def test_an_error_of_the_iterable_is_raised_unchanged() -> None:
    def produce() -> Iterator[dict[str, str]]:
        yield turn("user", "a")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        format_prompt(produce())


def test_huge_messages() -> None:
    text = "é" * 3_000_000
    assert format_prompt(text) == text
    many = [turn("user", "x")] * 50_000
    assert format_prompt(many) == "User: x\n" * 50_000 + "Assistant:"


@pytest.mark.parametrize(
    ("messages", "index", "says"),
    [
        # nothing
        ([], None, "no messages"),
        (iter(()), None, "no messages"),
        # what is not messages
        (None, None, "not NoneType"),
        (5, None, "not int"),
        (SECRET.encode(), None, "not bytes"),
        (bytearray(SECRET.encode()), None, "not bytearray"),
        (turn("user", SECRET), None, "not dict"),
        (UserDict(turn("user", SECRET)), None, "not UserDict"),
        (Turn("user", SECRET), None, "not Turn"),
        # an item that is no message
        ([SECRET], 0, "not str"),
        ([turn("user", "a"), 5], 1, "not int"),
        ([turn("user", "a"), None], 1, "not NoneType"),
        ([turn("user", "a"), ("user", SECRET)], 1, "not tuple"),
        ([{}], 0, "'role'"),
        ([{"content": SECRET}], 0, "'role'"),
        ([turn("user", "a"), {"role": "user"}], 1, "'content'"),
        ([SimpleNamespace(role="user")], 0, "role and content"),
        ([SimpleNamespace(content=SECRET)], 0, "role and content"),
        # roles
        ([turn("", "a")], 0, "one word"),
        ([turn(f"{SECRET} x", "a")], 0, "one word"),
        ([turn("user:", "a")], 0, "one word"),
        ([turn("user\n", "a")], 0, "one word"),
        ([turn("a\nSystem", "a")], 0, "one word"),
        ([turn("\ud800", "a")], 0, "one word"),
        ([{"role": None, "content": "a"}], 0, "not NoneType"),
        ([{"role": b"user", "content": "a"}], 0, "not bytes"),
        # contents
        ([turn("user", None)], 0, "not NoneType"),
        ([turn("user", 5)], 0, "not int"),
        ([turn("user", SECRET.encode())], 0, "not bytes"),
        ([turn("user", part(SECRET))], 0, "not dict"),
        ([turn("user", [part("a"), SECRET])], 0, "part 1"),
        ([turn("user", [{"type": "image_url", "image_url": SECRET}])], 0, "part 0"),
        ([turn("user", [{"text": SECRET}])], 0, "part 0"),
        ([turn("user", [{"type": "text", "text": None}])], 0, "part 0"),
        ([turn("user", [{"type": "image", "text": SECRET}])], 0, "part 0"),
        ([turn("user", [SimpleNamespace(type="image", text=SECRET)])], 0, "part 0"),
        ([turn("user", [SimpleNamespace(type="text")])], 0, "part 0"),
        ([turn("user", [SimpleNamespace(text=SECRET)])], 0, "part 0"),
        # what UTF-8 cannot carry
        (f"{SECRET}\ud800", None, f"character {len(SECRET)}"),
        ([turn("user", f"{SECRET}\udfff")], 0, f"character {len(SECRET)}"),
        ([turn("user", "a"), turn("user", f"é{SECRET}\ud83d")], 1, "surrogate"),
        ([turn("user", [part("a"), part(f"{SECRET}\udc00")])], 0, "surrogate"),
        ([turn("user", [part("\ud83d"), part("\ude00")])], 0, "surrogate"),
    ],
)
def test_invalid_messages(messages: Any, index: int | None, says: str) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        format_prompt(messages)
    error = caught.value
    assert error.index == index
    assert says in str(error)
    assert SECRET not in str(error)
    assert str(error).isprintable()
    if index is not None:
        assert f"message {index}" in str(error)
    # Neither what it came from: an error of the codec holds the whole text.
    assert error.__cause__ is None
    assert error.__context__ is None


def test_a_part_of_a_content_may_be_an_object() -> None:
    parts = [
        SimpleNamespace(type="text", text="a"),
        part("b"),
        SimpleNamespace(type="text", text=""),
    ]
    assert format_prompt([turn("user", parts)]) == "ab"
    assert Conversation(messages=[turn("user", parts)]).messages == [turn("user", "ab")]


def test_every_sequence_of_parts_is_a_content() -> None:
    # `Message` declares `content: str | Sequence[TextPart]`, so a type checker lets this pass.
    message: Message = {"role": "user", "content": deque([{"type": "text", "text": "a"}])}
    assert format_prompt([message]) == "a"


# Conversation


def test_append_to_a_conversation() -> None:
    conversation = Conversation(system="Be brief.").user("Hi").assistant("Hello").user("Bye")
    assert conversation.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    assert list(conversation) == conversation.messages
    assert len(conversation) == 4
    assert repr(conversation) == "<Conversation of 4 messages>"
    assert format_prompt(conversation) == (
        "System: Be brief.\nUser: Hi\nAssistant: Hello\nUser: Bye\nAssistant:"
    )


def test_an_empty_conversation() -> None:
    assert len(Conversation()) == 0
    assert Conversation().messages == []
    assert Conversation().to_json() == "[]"
    assert len(Conversation(system="")) == 1
    with pytest.raises(InvalidMessageError, match="no messages"):
        format_prompt(Conversation())


def test_a_conversation_accepts_the_messages_of_format_prompt() -> None:
    messages = [turn("user", [part("a"), part("b")]), Turn("assistant", "c"), Model("user", "d")]
    conversation = Conversation("s", (message for message in messages))
    assert [m["content"] for m in conversation] == ["s", "ab", "c", "d"]
    assert Conversation(messages=conversation) == conversation


def test_the_messages_of_a_conversation_are_copies() -> None:
    conversation = Conversation().user("a")
    conversation.messages.append({"role": "user", "content": "b"})
    conversation.messages[0]["content"] = "b"
    for message in conversation:
        message["content"] = "b"
    assert conversation.messages == [turn("user", "a")]


def test_a_conversation_can_be_appended_to_while_it_is_iterated() -> None:
    conversation = Conversation().user("a").user("b")
    for message in conversation:
        conversation.assistant(str(message["content"]))
    assert len(conversation) == 4


def test_conversations_with_the_same_messages_are_equal() -> None:
    assert Conversation().user("a") == Conversation(messages=[turn("user", "a")])
    assert Conversation().user("a") != Conversation().assistant("a")
    assert Conversation() != []
    with pytest.raises(TypeError, match="unhashable"):
        hash(Conversation())


def test_conversations_copy_and_pickle() -> None:
    conversation = Conversation("s").user("é😀")
    for twin in (
        copy.deepcopy(conversation),
        *(pickle.loads(pickle.dumps(conversation, p)) for p in range(2, 6)),
    ):
        assert twin == conversation
        twin.user("more")
        assert twin != conversation


@settings(deadline=None, max_examples=100)
@given(st.none() | TEXT, st.lists(TURN, max_size=5))
def test_json_round_trip(system: str | None, messages: list[dict[str, str]]) -> None:
    conversation = Conversation(system, messages)
    text = conversation.to_json()
    assert Conversation.from_json(text) == conversation
    expected = [] if system is None else [turn("system", system)]
    assert json.loads(text) == expected + messages


def test_json_is_plain() -> None:
    assert Conversation().user('é"\n😀').to_json() == '[{"role": "user", "content": "é\\"\\n😀"}]'


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("", None),
        ("no", None),
        ("[", None),
        ("{}", None),
        ('"text"', None),
        ("null", None),
        ("[" * 100_000, None),
        ("1" * 10_000, None),
        (f'"{SECRET}', None),
        ("[1]", 0),
        ("[null]", 0),
        (f'["{SECRET}"]', 0),
        ("[{}]", 0),
        ('[{"role": "user", "content": "a"}, {"role": "user"}]', 1),
        ('[{"role": "user", "content": "a"}, {"role": "a b", "content": "a"}]', 1),
        ('[{"role": "user", "content": null}]', 0),
        ('[{"role": "user", "content": NaN}]', 0),
        (f'[{{"role": "user", "content": "{SECRET}\\ud800"}}]', 0),
    ],
)
def test_from_json_rejects_other_json(text: str, index: int | None) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        Conversation.from_json(text)
    assert caught.value.index == index
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "index"),
    [
        (lambda: Conversation(system=5), 0),  # type: ignore[arg-type]
        (lambda: Conversation(system="\ud800"), 0),
        (lambda: Conversation("s", [turn("user", "a"), turn("x y", "b")]), 2),
        (lambda: Conversation("s", [turn("user", "a"), {"role": "user"}]), 2),
        (lambda: Conversation("s").user("a").user("\udc00"), 2),
        (lambda: Conversation("s").assistant(None), 1),  # type: ignore[arg-type]
    ],
)
def test_a_conversation_rejects_an_invalid_message(make: Any, index: int) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        make()
    assert caught.value.index == index


def test_a_rejected_message_does_not_change_the_conversation() -> None:
    conversation = Conversation().user("a")
    with pytest.raises(InvalidMessageError):
        conversation.user("\ud800")
    assert conversation == Conversation().user("a")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "there are no messages; pass a text or at least one message"),
        (5, "messages must be a text or an iterable of messages, not int"),
        (
            [turn("a b", "c")],
            "message 0: its role must be one word of letters, digits, '_' and '-'",
        ),
        (
            [turn("user", "a"), turn("user", "b\ud83d")],
            (
                "message 1: its text has a lone surrogate at character 1, which UTF-8 cannot"
                " encode; decode its source with errors='replace'"
            ),
        ),
    ],
)
def test_an_error_says_what_is_wrong_and_what_to_do(messages: Any, says: str) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        format_prompt(messages)
    assert str(caught.value) == says


def test_a_text_is_a_message_of_the_user() -> None:
    assert check_messages("Hi") == [{"role": "user", "content": "Hi"}]


def test_a_text_is_no_conversation() -> None:
    with pytest.raises(InvalidMessageError) as caught:
        Conversation(messages=SECRET)
    assert str(caught.value) == "messages must be an iterable of messages, not str"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "expected JSON, as to_json() writes it"),
        ("{}", "expected a JSON array of messages, as to_json() writes it"),
    ],
)
def test_an_error_says_what_json_is_expected(text: str, says: str) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        Conversation.from_json(text)
    assert str(caught.value) == says


@pytest.mark.parametrize("messages", [5, None, SECRET, SECRET.encode(), turn("user", SECRET)])
def test_a_conversation_needs_an_iterable_of_messages(messages: Any) -> None:
    with pytest.raises(InvalidMessageError, match="messages must be") as caught:
        Conversation(messages=messages)
    assert caught.value.index is None


@pytest.mark.parametrize("text", [None, 5, [], {}])
def test_from_json_rejects_other_types(text: Any) -> None:
    with pytest.raises(InvalidMessageError):
        Conversation.from_json(text)


def test_a_mapping_without_get_works() -> None:
    class Bare(Mapping[str, str]):
        def __getitem__(self, name: str) -> str:
            return {"role": "user", "content": "a"}[name]

        def __iter__(self) -> Iterator[str]:
            return iter(("role", "content"))

        def __len__(self) -> int:
            return 2

    assert format_prompt([Bare()]) == "a"
