"""The conversions between httpcore and httpcore2."""

from __future__ import annotations

import httpcore
import httpcore2
import pytest

from cromicle_sdk._http import libraries


def test_the_library_of_a_request() -> None:
    for library in (httpcore, httpcore2):
        request = library.Request("POST", "https://h.test/chat")
        assert libraries.find_library(request) is library


@pytest.mark.parametrize("url", ["http://h.test:81/a/chat?x=1", "https://h.test/"])
def test_a_request_is_converted_with_all_its_parts(url: str) -> None:
    headers = [(b"a", b"b")]
    extensions = {"timeout": {"read": 1}}
    request = httpcore2.Request("POST", url, headers=headers, content=b"x", extensions=extensions)
    converted = libraries.convert_request(request)
    same = httpcore.Request("POST", url, headers=headers)
    assert type(converted) is httpcore.Request
    assert (converted.method, converted.url, converted.headers) == (b"POST", same.url, headers)
    assert converted.stream is request.stream
    assert libraries.find_extensions(converted) is extensions


def test_an_error_of_neither_library_is_not_converted() -> None:
    error = ValueError("mine")
    for library in (httpcore, httpcore2):
        assert libraries.convert_error(error, library) is error


def test_an_error_is_converted_to_that_of_the_other_library() -> None:
    error = httpcore.ReadError("no")
    assert libraries.convert_error(error, httpcore) is error
    converted = libraries.convert_error(error, httpcore2)
    assert type(converted) is httpcore2.ReadError
    assert str(converted) == "no"
    assert converted.__cause__ is error
