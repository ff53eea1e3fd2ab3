"""A prompt becomes headers, hash and body; the token is in the body and nowhere else."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cromicle_sdk import __version__
from cromicle_sdk._core.errors import InvalidMessageError
from cromicle_sdk._core.fields import PROTOCOL_FIELDS
from cromicle_sdk._core.messages import Message, Messages, format_prompt
from cromicle_sdk._core.options import Options, Retry, Timeout
from cromicle_sdk._core.request import Request, add_headers, build_request, hash_prompt
from cromicle_sdk._core.secrets import Secret

CANARY = "sk-canary-123456"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
# Any character but at the beginning and at the end, where some are rejected.
TOKEN = TEXT.map(lambda inner: f"t{inner}t")
AGENT = f"cromicle-sdk/{__version__} (python/{platform.python_version()}; httpx/0.99)"


def build_options(
    *,
    base_url: str = "https://server.test/api",
    token: str = CANARY,
    headers: dict[str, str] | None = None,
    extra_body: dict[str, Any] | None = None,
    send_messages: bool = False,
) -> Options:
    return Options.build(
        base_url=base_url,
        token=Secret(token),
        timeout=Timeout(),
        retry=Retry(),
        max_reply_bytes=1000,
        strict=True,
        headers=headers,
        extra_body=extra_body,
        send_messages=send_messages,
    )


def build(messages: Any = "Hi", **changes: Any) -> Request:
    return build_request(messages, build_options(**changes), httpx_version="0.99")


@pytest.mark.parametrize(
    ("token", "prompt", "digest"),
    [
        # sha256("abc"), FIPS 180-2, appendix B.1
        ("abc", "", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        # that of "hello world"
        ("hello", " world", "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"),
    ],
)
def test_known_hashes(token: str, prompt: str, digest: str) -> None:
    assert hash_prompt(token, prompt) == digest


@settings(deadline=None, max_examples=200)
@given(TOKEN, TEXT.filter(str.strip))
def test_hash_and_body_for_any_token_and_prompt(token: str, prompt: str) -> None:
    digest = hashlib.sha256((token + prompt).encode("utf-8")).hexdigest()
    assert hash_prompt(token, prompt) == digest
    request = build(prompt, token=token)
    body = request.body.decode("utf-8")
    assert list(json.loads(body).items()) == [
        ("message", prompt),
        ("token", token),
        ("hash", digest),
    ]
    compact = json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":"))
    assert body == compact


def test_the_exact_bytes_of_a_body() -> None:
    digest = hashlib.sha256('tö"Grüße\n\\ 😀\x00\u2028/'.encode()).hexdigest()
    assert (
        build("Grüße\n\\ 😀\x00\u2028/", token='tö"').body
        == (
            '{"message":"Grüße\\n\\\\ 😀\\u0000\u2028/","token":"tö\\"","hash":"' + digest + '"}'
        ).encode()
    )


def test_extensions_follow_the_three_fields() -> None:
    conversation = [
        {"role": "system", "content": [{"type": "text", "text": 'An "a"'}]},
        {"role": "User", "content": "ü\n"},
    ]
    request = build(
        iter(conversation), extra_body={"seed": 1, 'ö"': [None, "ü"]}, send_messages=True
    )
    prompt = 'System: An "a"\nUser: ü\n\nAssistant:'
    assert (
        request.body
        == (
            '{"message":"System: An \\"a\\"\\nUser: ü\\n\\nAssistant:",'
            f'"token":"{CANARY}","hash":"{hash_prompt(CANARY, prompt)}",'
            '"messages":[{"role":"system","content":"An \\"a\\""},'
            '{"role":"User","content":"ü\\n"}],'
            '"seed":1,"ö\\"":[null,"ü"]}'
        ).encode()
    )


def test_a_text_is_sent_as_one_message_of_the_user() -> None:
    fields = json.loads(build("System: x", send_messages=True).body)
    assert fields["message"] == "System: x"
    assert fields["messages"] == [{"role": "user", "content": "System: x"}]


@given(
    st.lists(st.tuples(st.sampled_from(["system", "USER", "x_1"]), TEXT), min_size=1),
    st.dictionaries(TEXT, st.none() | TEXT | st.lists(st.integers())),
)
def test_what_is_sent_is_what_the_server_takes(
    messages: list[tuple[str, str]], extra_body: dict[str, Any]
) -> None:
    conversation: list[Message] = [{"role": role, "content": text} for role, text in messages]
    extra_body = {name: extra_body[name] for name in extra_body.keys() - PROTOCOL_FIELDS}
    try:
        body = build(conversation, extra_body=extra_body, send_messages=True).body
    except InvalidMessageError:
        assert not format_prompt(conversation).strip()
        return
    fields = json.loads(body)
    assert list(fields)[:4] == ["message", "token", "hash", "messages"]
    assert format_prompt(fields["messages"]) == fields["message"]
    assert fields["messages"] == conversation
    assert {name: fields[name] for name in list(fields)[4:]} == extra_body


def test_messages_become_the_prompt() -> None:
    request = build({"role": "user", "content": text} for text in "ab")
    assert json.loads(request.body)["message"] == "User: a\nUser: b\nAssistant:"


def test_a_request_without_a_body_has_no_length() -> None:
    request = build()
    assert (b"content-length", b"%d" % len(request.body)) in request.headers
    assert request._replace(method="GET").headers == request.fixed_headers


@pytest.mark.parametrize(
    "messages",
    [
        *("", " ", "\n\t\u3000", [{"role": "user", "content": ""}]),
        [{"role": "user", "content": [{"type": "text", "text": " "}]}],
    ],
    ids=ascii,
)
def test_a_prompt_without_text_is_rejected(messages: Messages) -> None:
    with pytest.raises(InvalidMessageError, match=r"^there is no text to send$"):
        build(messages)


def test_several_messages_are_a_prompt_even_if_they_are_empty() -> None:
    empty = {"role": "user", "content": ""}
    assert json.loads(build([empty, empty]).body)["message"] == "User: \nUser: \nAssistant:"


def test_invalid_messages_are_rejected() -> None:
    with pytest.raises(InvalidMessageError):
        build("\ud800")


def test_headers_and_their_order() -> None:
    request = build("é")
    assert request.headers == (
        (b"host", b"server.test"),
        (b"accept", b"*/*"),
        (b"content-type", b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", AGENT.encode()),
        (b"content-length", str(len(request.body)).encode()),
    )
    assert request.endpoint.url == "https://server.test/api/chat"


@pytest.mark.parametrize(
    ("base_url", "host"),
    [
        ("http://h", b"h"),
        ("http://h:80", b"h"),
        ("http://h:443", b"h:443"),
        ("https://h:443/x", b"h"),
        ("https://h:80", b"h:80"),
        ("http://[::1]:8000", b"[::1]:8000"),
        ("https://b\u00fccher.example", b"xn--bcher-kva.example"),
        ("https://user:pass@h", b"h"),
    ],
)
def test_host(base_url: str, host: bytes) -> None:
    assert build(base_url=base_url).headers[0] == (b"host", host)


def test_userinfo_becomes_authorization() -> None:
    names = dict(build(base_url="https://Aladdin:open%20sesame@h").headers)
    # RFC 7617, section 2
    assert names[b"authorization"] == b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert b"authorization" not in dict(build().headers)


def test_headers_of_the_caller_come_last_or_override() -> None:
    request = build(
        base_url="https://u:p@h",
        headers={"X-One": "1", "User-Agent": "mine", "AUTHORIZATION": "Bearer x", "Accept": "a/b"},
    )
    assert [name for name, _ in request.headers] == [
        b"host",
        b"accept",
        b"content-type",
        b"accept-encoding",
        b"user-agent",
        b"authorization",
        b"x-one",
        b"content-length",
    ]
    values = dict(request.headers)
    assert values[b"user-agent"] == b"mine"
    assert values[b"authorization"] == b"Bearer x"
    assert values[b"accept"] == b"a/b"


# The token and the hash


def test_the_repr_of_a_request_shows_neither_headers_nor_body() -> None:
    request = build("a private prompt", base_url="https://u:p@h", headers={"x-key": "a value"})
    for text in (repr(request), str(request)):
        for hidden in (CANARY, hash_prompt(CANARY, "a private prompt"), "private", "a value"):
            assert hidden not in text
        assert "u:p" not in text


def test_token_and_hash_are_not_in_the_headers() -> None:
    request = build()
    digest = hash_prompt(CANARY, "Hi").encode()
    assert all(CANARY.encode() not in value for _, value in request.headers)
    assert all(digest not in value for _, value in request.headers)
    assert CANARY.encode() in request.body
    assert digest in request.body


def test_redact() -> None:
    request = build("Hi")
    digest = hash_prompt(CANARY, "Hi")
    text = f"{CANARY}, {digest}{CANARY} and {digest} again"
    assert request.redact(text) == "[redacted], [redacted][redacted] and [redacted] again"
    assert request.redact("nothing") == "nothing"


def test_the_well_known_token_is_no_secret() -> None:
    request = build("Hi", token="abc")
    digest = hash_prompt("abc", "Hi")
    assert request.redact(f"abcdef {digest}") == "abcdef [redacted]"
    assert build(token="abd").redact("abd abc") == "[redacted] abc"


def test_an_interrupt_at_any_point_leaves_no_secret_in_a_frame() -> None:
    """No local of a frame that a traceback with locals would print."""
    options = build_options()
    digest = hash_prompt(CANARY, "Hi")
    leaks: set[str] = set()
    for moment in range(10_000):
        error = _interrupt(options, moment)
        if error is None:
            break
        step = error.__traceback__
        while step is not None:
            frame = step.tb_frame
            # A constructor that only stores its arguments has no other way to get them.
            is_constructor = frame.f_code.co_name == "__init__" or is_of_named_tuple(frame)
            if frame.f_code.co_filename != __file__ and not is_constructor:
                shown = "".join(map(_show, frame.f_locals.values()))
                if CANARY in shown or digest in shown:
                    leaks.add(f"{frame.f_globals['__name__']}.{frame.f_code.co_name}")
            step = step.tb_next
    else:
        pytest.fail("it never ended")
    assert moment > 10
    assert not leaks


def test_added_headers_replace_none() -> None:
    headers = ((b"Accept", b"*/*"), (b"traceparent", b"its own"))
    more = {"Traceparent": "another", "TraceState": "a=B", "ACCEPT": "text/html"}
    assert add_headers(headers, more) == (*headers, (b"tracestate", b"a=B"))


def is_of_named_tuple(frame: FrameType) -> bool:
    return str(frame.f_globals["__name__"]).startswith("namedtuple_")


def _show(value: object) -> str:
    try:
        return repr(value)
    except AttributeError:
        return ""  # an object whose constructor was interrupted


def _interrupt(options: Options, moment: int) -> KeyboardInterrupt | None:
    """Build a request, and be interrupted at the n-th call or return in it."""
    count = 0

    def watch(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        if frame.f_code.co_filename == __file__:
            return
        count += 1
        if count > moment:
            raise KeyboardInterrupt

    before = sys.getprofile()
    try:
        sys.setprofile(watch)
        build_request("Hi", options, httpx_version="0.99")
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.setprofile(before)
    return None
