"""`GET /`: the page for browsers and JSON for programs, with their headers."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import cromicle_sdk
from cromicle_sdk import ConfigurationError
from cromicle_sdk.server import LocalServer, create_app, serve
from cromicle_sdk.server.openapi import build_openapi
from cromicle_sdk.server.page import asks_for_html, build_policy

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.fixture(scope="module")
def base_url() -> Any:
    with LocalServer(page=True) as server:
        yield server.base_url


def get(base_url: str, accept: str = BROWSER, method: str = "GET") -> httpx.Response:
    return httpx.request(method, base_url + "/", headers={"accept": accept})


def test_a_browser_gets_the_page(base_url: str) -> None:
    answer = get(base_url)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["vary"] == "accept"
    assert answer.text.startswith("<!doctype html>")


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_a_program_gets_json_that_says_where_the_endpoint_is(base_url: str, accept: str) -> None:
    answer = get(base_url, accept)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "accept"
    assert answer.json() == {
        "name": "cromicle-sdk",
        "version": cromicle_sdk.__version__,
        "description": "A chat endpoint that speaks the Cromicle protocol.",
        "chat": "/chat",
        "openapi": "/openapi.json",
    }


@pytest.mark.parametrize(
    ("accept", "is_html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("Text/HTML ; charset=utf-8", True),
        ("application/json, text/html", True),
        ("application/json;q=0.5, text/html;q=0.8", True),
        ("text/html;Q = 1.000", True),
        ("application/json, text/html;q=0.9", False),
        ("text/html;q=0", False),
        ("text/html; q=0.000", False),
        ("*/*", False),
        ("text/*", False),
        ("text/htmlx", False),
        ("application/json", False),
        ("", False),
        (",;,q=1", False),
    ],
)
def test_which_requests_ask_for_html(accept: str, is_html: bool) -> None:
    assert asks_for_html(accept) is is_html


@pytest.mark.parametrize("accept", [BROWSER, "*/*"])
def test_head_has_the_headers_of_get(base_url: str, accept: str) -> None:
    answer, whole = get(base_url, accept, "HEAD"), get(base_url, accept)
    assert answer.status_code == 200
    assert not answer.content
    for name in ("content-type", "content-length"):
        assert answer.headers[name] == whole.headers[name]


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS"])
def test_another_method_is_a_405(base_url: str, method: str) -> None:
    answer = get(base_url, method=method)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}])
def test_other_hosts_and_origins_are_rejected(base_url: str, headers: dict[str, str]) -> None:
    answer = httpx.get(base_url + "/", headers={"accept": BROWSER, **headers})
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["//", "/index.html", "/%0A", "/page.html"])
def test_the_page_has_one_path(base_url: str, path: str) -> None:
    assert httpx.get(base_url + path).status_code == 404


def test_an_app_has_no_page_by_default() -> None:
    with LocalServer(app=create_app()) as server:
        assert get(server.base_url).status_code == 404
        assert "/" not in httpx.get(server.base_url + "/openapi.json").json()["paths"]


def test_a_mounted_app_says_its_own_paths() -> None:
    outer = Starlette(routes=[Mount("/models/llama", create_app(page=True))])
    with LocalServer(app=outer) as server:
        base_url = server.base_url + "/models/llama"
        assert get(base_url, "*/*").json()["chat"] == "/models/llama/chat"
        assert get(base_url, "*/*").json()["openapi"] == "/models/llama/openapi.json"
        assert get(base_url).text.startswith("<!doctype html>")


def test_the_log_and_the_metrics_name_the_path(
    base_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cromicle_sdk.server.access")
    get(base_url)
    metrics = httpx.get(base_url + "/metrics").text
    assert " path=/ status=200 " in caplog.text
    assert 'cromicle_requests_total{end="complete",path="/",status="200"}' in metrics


def test_the_api_description_has_it(base_url: str) -> None:
    description = httpx.get(base_url + "/openapi.json").json()
    assert description == {**build_openapi(metrics=True, page=True), "servers": [{"url": "/"}]}
    content = description["paths"]["/"]["get"]["responses"]["200"]["content"]
    assert set(content) == {"text/html", "application/json"}
    assert set(content["application/json"]["schema"]["required"]) == set(get(base_url, "").json())


class TestPolicy:
    def test_it_allows_the_scripts_and_styles_of_the_page_alone(self, base_url: str) -> None:
        answer = get(base_url)
        policy = answer.headers["content-security-policy"]
        assert policy == build_policy(answer.text)
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'; ")
        for name in ("script", "style"):
            blocks = re.findall(f"<{name}.*?>(.*?)</{name}>", answer.text, re.DOTALL)
            assert len(blocks) == 1
            digest = hashlib.sha256(blocks[0].encode()).digest()
            assert f"{name}-src 'sha256-{base64.b64encode(digest).decode()}'; " in policy

    def test_it_loads_and_sends_nothing_elsewhere(self, base_url: str) -> None:
        answer = get(base_url)
        directives = dict(
            each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; ")
        )
        assert directives["connect-src"] == "'self'"
        assert directives["img-src"] == "data:"
        for name in ("base-uri", "form-action", "frame-ancestors"):
            assert directives[name] == "'none'"
        # What the page would load, or write as HTML.
        assert not re.findall(r"""(?:src|href|action)=["'](?!data:|openapi\.json)""", answer.text)
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in answer.text
        assert not re.findall(r"""\son\w+=["']|\sstyle=["']|@import|\burl\(""", answer.text)

    def test_each_block_has_its_hash(self) -> None:
        policy = build_policy("<style>a</style><script>b</script>\n<script>c\nd</script>")
        assert len(re.findall(r"'sha256-[\w+/]{43}='", policy)) == 3


class TestOptions:
    @pytest.mark.parametrize("value", [None, 1, "yes"])
    def test_page_is_a_flag(self, value: Any) -> None:
        with pytest.raises(ConfigurationError, match="page"):
            create_app(page=value)

    def test_an_app_has_its_own(self) -> None:
        with pytest.raises(ConfigurationError, match="page"):
            serve(create_app(), page=False)
        with pytest.raises(ConfigurationError, match="page"):
            LocalServer(app=create_app(), page=True)
