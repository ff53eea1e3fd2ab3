"""Every error: its base classes, its facts, equality, copies and pickles."""

from __future__ import annotations

import copy
import copyreg
import pickle
from typing import Any, get_args

import pytest

from cromicle_sdk import Headers
from cromicle_sdk._core import errors as _errors
from cromicle_sdk._core.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    CromicleError,
    IncompleteReplyError,
    InternalServerError,
    InvalidMessageError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RedirectError,
    ReplyDecodeError,
    ReplyError,
    ReplyTooLargeError,
    TimeoutPhase,
    UnexpectedContentError,
    UnprocessableEntityError,
    add_sentence,
    describe,
    shorten,
    status_error_class,
)

# Each error and its base classes.
TREE: dict[type[CromicleError], tuple[type[BaseException], ...]] = {
    CromicleError: (Exception,),
    ConfigurationError: (CromicleError, ValueError),
    InvalidMessageError: (CromicleError, ValueError),
    APIConnectionError: (CromicleError,),
    APITimeoutError: (APIConnectionError, TimeoutError),
    APIStatusError: (CromicleError,),
    BadRequestError: (APIStatusError,),
    AuthenticationError: (APIStatusError,),
    PermissionDeniedError: (APIStatusError,),
    NotFoundError: (APIStatusError,),
    ConflictError: (APIStatusError,),
    UnprocessableEntityError: (APIStatusError,),
    RateLimitError: (APIStatusError,),
    RedirectError: (APIStatusError,),
    InternalServerError: (APIStatusError,),
    ReplyError: (CromicleError,),
    IncompleteReplyError: (ReplyError,),
    ReplyTooLargeError: (ReplyError,),
    ReplyDecodeError: (ReplyError,),
    UnexpectedContentError: (ReplyError,),
}

STATUS_CLASSES = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}

PHASES = get_args(TimeoutPhase)

HEADERS = Headers([("X-Request-Id", "r-1"), ("Location", "/there")])


def build_error(kind: type[CromicleError]) -> CromicleError:
    """An error of this class, with a value for each of its facts."""
    facts: dict[str, Any] = {"hint": "do otherwise"}
    if issubclass(kind, ConfigurationError):
        facts |= {"option": "timeout.total"}
    elif issubclass(kind, InvalidMessageError):
        facts |= {"index": 3}
    elif issubclass(kind, APIStatusError):
        facts |= {"status_code": 418, "headers": HEADERS, "body": "no 😀"}
        facts |= {"retry_after": 1.5, "attempts": 2}
    elif issubclass(kind, UnexpectedContentError):
        facts |= {"body": "<html>", "attempts": 2}
    else:
        facts |= {"partial_text": "täxt", "attempts": 2}
    if issubclass(kind, APITimeoutError):
        facts |= {"phase": "stall"}
    elif issubclass(kind, APIConnectionError):
        facts |= {"detail": "reset by peer", "is_final": True}
    elif issubclass(kind, IncompleteReplyError):
        facts |= {"is_final": True}
    return kind("it failed", **facts)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_tree(kind: type[CromicleError]) -> None:
    assert kind.__bases__ == TREE[kind]


def test_the_tree_has_every_error_of_the_module() -> None:
    names = {name for name in _errors.__all__ if name.endswith("Error")}
    assert names == {kind.__name__ for kind in TREE}


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_has_what_all_errors_have(kind: type[CromicleError]) -> None:
    error = build_error(kind)
    if not issubclass(kind, (ConfigurationError, InvalidMessageError)):
        assert error.attempts == 2
    assert str(error) == f"{error.problem}; do otherwise"
    assert error.args == (error.problem,)


def test_an_error_has_the_option_that_its_hint_is_about() -> None:
    hint = "raise it"
    for kind in (CromicleError, APIConnectionError, UnexpectedContentError):
        assert kind("it failed", hint=hint, option="strict").option == "strict"
    assert APITimeoutError("it failed", phase="stall", hint=hint).option == "timeout.stall"


@pytest.mark.parametrize("problem", ["it failed", "it failed."])
def test_a_sentence_is_added_to_the_problem(problem: str) -> None:
    error = APIConnectionError(problem, hint="Try again.", is_final=True)
    longer = add_sentence(error, "The server is down.")
    assert str(longer) == "it failed. The server is down. Try again."
    assert isinstance(longer, APIConnectionError)
    assert longer.is_final
    assert error.problem == problem


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        (" no\r\n such\tpath ", "no such path"),
        ("a\x1b[1mb\u202e", "a\ufffd[1mb\ufffd"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 200 + "…"),
        ("", ""),
    ],
)
def test_a_text_of_a_server_becomes_a_part_of_a_line(text: str, shortened: str) -> None:
    assert shorten(text) == shortened


@pytest.mark.parametrize("how", ["copy", "deepcopy", *range(2, pickle.HIGHEST_PROTOCOL + 1)])
@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_survives_copies_and_pickles(kind: type[CromicleError], how: str | int) -> None:
    error = build_error(kind)
    twin: Any
    if isinstance(how, int):
        twin = pickle.loads(pickle.dumps(error, how))
    else:
        twin = getattr(copy, how)(error)
    assert type(twin) is kind
    assert twin is not error
    assert twin == error
    assert (twin != error) is False
    assert hash(twin) == hash(error)
    assert str(twin) == str(error)
    assert repr(twin) == repr(error)
    assert twin.args == error.args
    assert vars(twin) == vars(error)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_errors_differ_by_each_fact(kind: type[CromicleError]) -> None:
    error = build_error(kind)
    for name in vars(error):
        other = build_error(kind)
        setattr(other, name, "something else")
        assert other != error, name
    reworded = build_error(kind)
    reworded.args = ("another message",)
    assert reworded != error


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('{"error": {"code": "upstream_denied", "message": "x"}}', "upstream_denied"),
        ('{"error": {"code": 400}}', None),
        ('{"error": {"message": "x"}}', None),
        ('{"error": "x"}', None),
        ('{"code": "x"}', None),
        ('["error"]', None),
        ("<html>", None),
        ("", None),
        ("[" * 100_000, None),
        ("9" * 5000, None),
    ],
)
def test_the_code_of_a_status_error_is_that_of_its_body(body: str, code: str | None) -> None:
    error = APIStatusError("x", status_code=502, headers=HEADERS, body=body)
    assert error.code == code


@pytest.mark.parametrize(
    ("problem", "hint", "text"),
    [
        ("it is empty", "", "it is empty"),
        ("it is empty", "leave it out", "it is empty; leave it out"),
        ("No answer.", "Check the URL.", "No answer. Check the URL."),
        ("", "", ""),
    ],
)
def test_the_text_of_an_error_is_the_problem_and_the_hint(
    problem: str, hint: str, text: str
) -> None:
    error = CromicleError(problem, hint=hint)
    assert str(error) == text
    assert (error.problem, error.hint) == (problem, hint)


@pytest.mark.parametrize("sent", ["täxt 😀".encode(), bytearray("täxt 😀".encode()), "täxt 😀"])
def test_partial_text_is_a_str_whatever_the_reply_was_kept_as(sent: Any) -> None:
    build: Any
    for build in (CromicleError, ReplyError, APIConnectionError, IncompleteReplyError):
        error = build("cut", partial_text=sent)
        text = build("cut", partial_text="täxt 😀")
        assert error == text
        assert pickle.loads(pickle.dumps(build("cut", partial_text=sent))) == text
        assert copy.copy(build("cut", partial_text=sent)).partial_text == "täxt 😀"
        assert error.partial_text == "täxt 😀"
        assert error.partial_text is error.partial_text
        assert repr(error) == repr(text)


def test_an_error_does_not_copy_the_reply_before_it_is_read() -> None:
    received = bytearray(b"a" * 1000)
    error = APITimeoutError("slow", phase="total", partial_text=received)
    assert vars(error)["_partial_text"] is received
    assert error.partial_text == "a" * 1000


def test_partial_text_of_invalid_utf_8_can_be_read() -> None:
    # Without `strict`, the reply has U+FFFD for such bytes.
    assert ReplyError("cut", partial_text=b"a\xffb").partial_text == "a\ufffdb"


def test_partial_text_can_be_assigned() -> None:
    error = ReplyError("cut")
    error.partial_text = "so far"
    assert error.partial_text == "so far"


def test_errors_of_two_classes_are_not_equal() -> None:
    errors = [build_error(kind) for kind in TREE]
    for place, error in enumerate(errors):
        assert [error == other for other in errors].count(True) == 1, place
    assert len(set(errors)) == len(errors)


def test_the_hashes_of_errors_differ_by_class_and_message() -> None:
    hashes = {hash(kind("cut")) for kind in (CromicleError, ReplyError, ReplyDecodeError)}
    hashes |= {hash(ReplyError("invalid")), hash(ReplyError("slow"))}
    assert len(hashes) == 5


@pytest.mark.parametrize("other", ["it failed", None, Exception("it failed"), 1])
def test_an_error_is_not_equal_to_another_object(other: object) -> None:
    assert build_error(CromicleError) != other


def test_notes_are_kept_but_do_not_count() -> None:
    error, noted = build_error(ReplyError), build_error(ReplyError)
    # `add_note` came with Python 3.11.
    vars(noted)["__notes__"] = ["seen by the caller"]
    assert noted == error
    twin = pickle.loads(pickle.dumps(noted))
    assert twin == error
    assert twin.__notes__ == ["seen by the caller"]


def test_a_raised_error_pickles_without_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "sk-canary-123456"
    # tblib, which Dask loads, has every exception pickled with its causes.
    monkeypatch.delitem(copyreg.dispatch_table, APIConnectionError, raising=False)
    try:
        try:
            raise OSError(token)
        except OSError as cause:
            raise build_error(APIConnectionError) from cause
    except APIConnectionError as error:
        pickled = pickle.dumps(error)
        twin = pickle.loads(pickled)
    assert token.encode() not in pickled
    assert twin == build_error(APIConnectionError)
    assert twin.__cause__ is None
    assert twin.__traceback__ is None


def test_defaults() -> None:
    for kind in (CromicleError, ConfigurationError, APIConnectionError, ReplyError):
        error = kind("what happened")
        assert (error.partial_text, error.attempts) == ("", 0)
    assert APIConnectionError("x").detail == ""
    assert APIConnectionError("x").is_final is False
    assert APITimeoutError("x", phase="total").is_final is False
    assert IncompleteReplyError("x").is_final is False
    assert UnexpectedContentError("x").body == ""
    assert APITimeoutError("x", phase="total").detail == ""


@pytest.mark.parametrize("phase", PHASES)
def test_timeouts_are_timeouts(phase: TimeoutPhase) -> None:
    with pytest.raises(TimeoutError) as caught:
        raise APITimeoutError("too slow", phase=phase)
    assert isinstance(caught.value, APITimeoutError)
    assert caught.value.phase == phase
    assert caught.value.option == f"timeout.{phase}"
    assert str(caught.value) == "too slow"


def test_the_phases() -> None:
    assert PHASES == ("connect", "first_byte", "stall", "total", "pool")


@pytest.mark.parametrize(
    ("index", "message"),
    [(None, "it is bad"), (0, "message 0: it is bad"), (12, "message 12: it is bad")],
)
def test_invalid_message_begins_with_its_index(index: int | None, message: str) -> None:
    error = InvalidMessageError("it is bad", index=index)
    assert str(error) == message
    assert error.index == index
    assert (error.partial_text, error.attempts) == ("", 0)


@pytest.mark.parametrize(
    ("option", "text"),
    [(None, "it is bad; fix it"), ("timeout.total", "timeout.total: it is bad; fix it")],
)
def test_a_configuration_error_begins_with_its_option(option: str | None, text: str) -> None:
    error = ConfigurationError("it is bad", option=option, hint="fix it")
    assert str(error) == text
    assert error.detail == "it is bad"
    assert error.option == option
    assert (error.partial_text, error.attempts) == ("", 0)
    assert ConfigurationError("it is bad").option is None


def test_properties_of_headers() -> None:
    error = RedirectError("moved", status_code=301, headers=HEADERS, body="")
    assert error.request_id == "r-1"
    assert error.location == "/there"
    assert error.retry_after is None
    bare = RedirectError("moved", status_code=301, headers=Headers(), body="")
    assert bare.request_id is None
    assert bare.location is None


def test_a_log_line_has_a_few_words_for_an_error() -> None:
    facts: Any = {"status_code": 503, "body": "private"}
    assert describe(APIStatusError("x", **facts, headers=Headers())) == "status 503"
    assert describe(APIStatusError("x", **facts, headers=HEADERS)) == "status 503, request id r-1"
    assert describe(APITimeoutError("private", phase="stall")) == "timeout (stall)"
    assert describe(ReplyDecodeError("private")) == "ReplyDecodeError"


def test_every_status_has_its_class() -> None:
    for status_code in range(100, 1000):
        if status_code // 100 == 3:
            expected: type[APIStatusError] = RedirectError
        elif status_code // 100 == 5:
            expected = InternalServerError
        else:
            expected = STATUS_CLASSES.get(status_code, APIStatusError)
        assert status_error_class(status_code) is expected, status_code
