"""The page in a real browser: what it sends, what it shows, and what no reply can do to it."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest
from browsers import INSECURE_HOST, launch
from pictures_page import IMAGES, take_pictures
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from cromicle_sdk import Conversation
from cromicle_sdk._core.messages import format_prompt
from cromicle_sdk.server import BackendError, BackendRequest, LocalServer, create_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Request, Route

pytestmark = pytest.mark.timeout(120)

PATIENCE = 20.0
GATE = object()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch() as browser:
        yield browser


@dataclass
class Model:
    """A backend that replies as it is told, and waits at each `GATE` until it is opened."""

    replies: list[list[Any]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    requests: list[BackendRequest] = field(default_factory=list)
    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    closed: threading.Event = field(default_factory=threading.Event)

    def reply(self, *parts: Any) -> None:
        self.replies.append(list(parts))

    async def __call__(self, prompt: str, request: BackendRequest) -> AsyncIterator[str]:
        self.prompts.append(prompt)
        self.requests.append(request)
        parts = self.replies.pop(0) if self.replies else ["An answer."]
        try:
            for part in parts:
                if isinstance(part, Exception):
                    raise part
                if part is GATE:
                    await anyio.to_thread.run_sync(self._wait, abandon_on_cancel=True)
                else:
                    yield part
        finally:
            self.closed.set()

    def _wait(self) -> None:
        assert self.gate.acquire(timeout=PATIENCE)


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    yield model
    # A thread that still waits would keep the process.
    model.gate.release(100)


@pytest.fixture
def server(model: Model) -> Iterator[LocalServer]:
    with LocalServer(model, page=True) as server:
        yield server


@contextmanager
def open_page(
    browser: Browser, url: str, *, allowed: tuple[str, ...] = (), **options: Any
) -> Generator[Page]:
    """The page. Its errors, and its requests to anywhere but the server, fail the test."""
    problems: list[str] = []
    origin = "/".join(url.split("/")[:3])

    def note_request(request: Request) -> None:
        if not request.url.startswith((origin, "data:")):
            problems.append(f"request to {request.url}")

    def note_message(message: ConsoleMessage) -> None:
        expected = ("Failed to load resource", *allowed)
        if message.type in ("error", "warning") and not any(
            words in message.text for words in expected
        ):
            problems.append(message.text)

    def note_dialog(dialog: Dialog) -> None:
        problems.append(f"dialog {dialog.message}")
        dialog.dismiss()

    with browser.new_context(**{"viewport": {"width": 1000, "height": 800}, **options}) as context:
        context.set_default_timeout(PATIENCE * 1000)
        page = context.new_page()
        page.on("request", note_request)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", note_dialog)
        page.on("console", note_message)
        page.goto(url)
        yield page
    assert not problems


@pytest.fixture
def page(browser: Browser, server: LocalServer) -> Iterator[Page]:
    with open_page(browser, server.base_url) as page:
        yield page


def send(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def ask(page: Page, text: str) -> str:
    """Send a message; returns what is shown of the reply once it has ended."""
    count = page.locator(".reply").count()
    send(page, text)
    page.locator(".reply").nth(count).wait_for(state="attached")
    wait_until_over(page)
    return get_reply(page).inner_text()


def wait_until_over(page: Page) -> None:
    page.get_by_role("button", name="Send").wait_for()


def wait_until(condition: Callable[[], bool]) -> None:
    """Not `Page.wait_for_function`, which the page's Content-Security-Policy may block."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def get_reply(page: Page) -> Locator:
    return page.locator(".reply").last


def get_problem(page: Page) -> str:
    return page.locator(".problem").last.inner_text()


class TestRequest:
    def test_it_sends_the_conversation_as_the_sdk_does(self, page: Page, model: Model) -> None:
        model.reply("Blau, ", "natürlich 🎉")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt").fill("Answer briefly.\nIn German.")
        assert ask(page, "Why is the sky blue?") == "Blau, natürlich 🎉"
        ask(page, "And\nat night?")
        conversation = Conversation("Answer briefly.\nIn German.").user("Why is the sky blue?")
        assert model.prompts[0] == format_prompt(conversation)
        assert model.requests[0].messages == conversation.messages
        conversation.assistant("Blau, natürlich 🎉").user("And\nat night?")
        assert model.prompts[1] == format_prompt(conversation)
        assert model.requests[1].messages == conversation.messages

    def test_one_message_is_sent_as_it_is(self, page: Page, model: Model) -> None:
        ask(page, "  User: <b>Grüße</b>\n\n")
        assert model.prompts == ["  User: <b>Grüße</b>\n\n"]

    def test_a_lone_surrogate_is_replaced(self, page: Page, model: Model) -> None:
        page.get_by_label("Message").focus()
        page.evaluate("find('prompt').value = 'x\\ud83d y 🎉'")
        page.keyboard.press("Enter")
        wait_until_over(page)
        assert model.prompts == ["x\ufffd y 🎉"]

    def test_a_message_of_white_space_is_not_sent(self, page: Page, model: Model) -> None:
        send(page, " \n ")
        assert ask(page, "Hello") == "An answer."
        assert model.prompts == ["Hello"]

    def test_a_token_is_kept_in_the_tab_alone(self, browser: Browser, model: Model) -> None:
        token = "a tökén of mine"
        with LocalServer(model, token=token, page=True) as server:
            with open_page(browser, server.base_url) as page:
                ask(page, "Hello")
                assert "The token is not accepted" in get_problem(page)
                assert "401 wrong_token" in get_problem(page)
                # The settings are open, and the field has the focus.
                page.keyboard.type(f" {token} ")
                page.keyboard.press("Enter")
                page.get_by_role("button", name="Retry").click()
                wait_until_over(page)
                assert get_reply(page).inner_text() == "An answer."
                page.reload()
                assert ask(page, "Again") == "An answer."
                other = page.context.new_page()
                other.goto(server.base_url)
                assert other.get_by_label("Token").input_value() == ""
                stored = page.evaluate("JSON.stringify([localStorage, document.cookie])")
                assert "mine" not in stored + page.url
                page.get_by_role("button", name="Settings").click()
                assert page.get_by_label("Token").get_attribute("type") == "password"

    def test_a_page_without_storage_works(self, browser: Browser, server: LocalServer) -> None:
        with browser.new_context() as context:
            page = context.new_page()
            page.add_init_script(
                "Object.defineProperty(window, 'sessionStorage', {get() { throw new Error() }})"
            )
            page.goto(server.base_url)
            page.get_by_role("button", name="Settings").click()
            page.get_by_label("Token").fill("abc")
            assert ask(page, "Hello") == "An answer."


class TestStreaming:
    def test_text_appears_while_it_arrives(self, page: Page, model: Model) -> None:
        model.reply("One **two", GATE, "** three", GATE, " four")
        send(page, "Count")
        get_reply(page).get_by_text("One **two").wait_for()
        assert page.locator("article").last.get_attribute("aria-busy") == "true"
        assert page.locator(".tools").get_by_role("button").count() == 0
        model.gate.release()
        get_reply(page).get_by_text("One two three").wait_for()
        model.gate.release()
        wait_until_over(page)
        assert get_reply(page).inner_text() == "One two three four"
        assert page.locator("article").last.get_attribute("aria-busy") == "false"
        assert page.get_by_role("status").inner_text() == "Reply: One two three four"
        assert re.fullmatch(
            r"\d+\.\d s to the first text, \d+\.\d s, 22 characters",
            page.locator(".state").inner_text(),
        )

    def test_nothing_jumps(self, page: Page, model: Model) -> None:
        def measure() -> list[Any]:
            places = [
                page.locator("#composer"),
                page.get_by_label("Message"),
                page.locator(".user"),
            ]
            return [place.bounding_box() for place in (*places, page.locator(".reply"))]

        page.evaluate(WATCH_VIEW)
        model.reply(GATE, "One", GATE, "\n\n- two", GATE, RuntimeError("cut"))
        send(page, "Hello")
        page.get_by_text("Waiting").last.wait_for()
        before = measure()
        for text in ("One", "two"):
            model.gate.release()
            get_reply(page).get_by_text(text).wait_for()
            *rest, reply = measure()
            assert rest == before[:-1]
            assert reply["y"] == before[-1]["y"]
        model.gate.release()
        wait_until_over(page)
        assert measure()[:-1] == before[:-1]
        # The line below the reply moves down, and out of view in no frame.
        assert page.evaluate("places").count(0) == 0
        assert page.evaluate("places") == sorted(page.evaluate("places"))

    @pytest.mark.parametrize("how", ["button", "Escape"])
    def test_a_reply_is_stopped(self, page: Page, model: Model, how: str) -> None:
        model.reply("Half a", GATE)
        send(page, "Hello")
        get_reply(page).get_by_text("Half a").wait_for()
        if how == "button":
            page.get_by_role("button", name="Stop").click()
        else:
            page.keyboard.press(how)
        wait_until_over(page)
        assert model.closed.wait(PATIENCE)
        assert page.locator(".state").inner_text().startswith("Stopped after")
        assert page.locator(".problem").is_hidden()
        # What has arrived is part of the conversation.
        page.keyboard.type("Go on")
        page.keyboard.press("Enter")
        get_reply(page).get_by_text("An answer.").wait_for()
        assert model.prompts[1] == "User: Hello\nAssistant: Half a\nUser: Go on\nAssistant:"

    def test_a_cut_is_not_an_end(self, page: Page, model: Model) -> None:
        model.reply("Half a", GATE, RuntimeError("broken"))
        model.reply("A whole reply.")
        send(page, "Hello")
        get_reply(page).get_by_text("Half a").wait_for()
        model.gate.release()
        wait_until_over(page)
        assert get_reply(page).inner_text() == "Half a"
        assert "The reply was cut off" in get_problem(page)
        assert "The reply was cut off" in page.get_by_role("status").inner_text()
        page.get_by_role("button", name="Retry").click()
        get_reply(page).get_by_text("A whole reply.").wait_for()
        wait_until_over(page)
        assert page.locator(".problem").is_hidden()
        assert model.prompts == ["Hello", "Hello"]

    def test_a_server_that_stops_is_named(
        self, page: Page, model: Model, server: LocalServer
    ) -> None:
        model.reply("Half a", GATE)
        send(page, "Hello")
        get_reply(page).get_by_text("Half a").wait_for()
        server.stop()
        wait_until_over(page)
        assert "The reply was cut off" in get_problem(page)
        page.get_by_role("button", name="Retry").click()
        page.locator(".problem").get_by_text("The server did not respond").wait_for()
        wait_until_over(page)
        assert get_reply(page).is_hidden()

    def test_a_failed_message_is_left_out_of_the_conversation(
        self, page: Page, model: Model
    ) -> None:
        model.reply(BackendError(503, "busy", "the model is loading", retry_after=7))
        ask(page, "One")
        problem = get_problem(page)
        assert "The server is busy" in problem
        assert "The model is loading." in problem
        assert "Retry in 7 seconds." in problem
        assert "503 busy" in problem
        ask(page, "Two")
        assert model.prompts == ["One", "Two"]
        assert page.locator(".left-out").count() == 2

    def test_a_new_chat_starts_over(self, page: Page, model: Model) -> None:
        model.reply("Half", GATE)
        send(page, "One")
        get_reply(page).get_by_text("Half").wait_for()
        page.get_by_role("button", name="New chat").click()
        wait_until_over(page)
        assert page.locator("article").count() == 0
        page.keyboard.type("Two")
        page.keyboard.press("Enter")
        get_reply(page).get_by_text("An answer.").wait_for()
        assert model.prompts == ["One", "Two"]

    def test_an_empty_reply_is_an_error(self, page: Page, model: Model) -> None:
        model.reply()
        ask(page, "Hello")
        assert "The reply is empty" in get_problem(page)

    def test_ten_thousand_chunks_leave_the_page_responsive(self, page: Page, model: Model) -> None:
        texts = [f"Word *{number}*{' 😀' * (number % 3)}\n\n" for number in range(10_000)]
        model.reply(*texts)
        page.evaluate(WATCH)
        ask(page, "Hello")
        assert page.evaluate("turns[0].reply") == "".join(texts)
        shown = page.evaluate("turns[0].body.textContent")
        assert shown.startswith("Word 0Word 1 😀")
        assert "Word *9999*" in shown or "Word 9999" in shown
        assert page.evaluate("document.getElementsByTagName('*').length") < 50_000
        # It is 0.1 s on an idle machine.
        assert page.evaluate("longest") < 2000

    def test_huge_replies_leave_it_responsive(self, page: Page, model: Model) -> None:
        page.evaluate(WATCH)
        for text in (
            "x" * 3_000_000,
            "a\u200b" * 100_000,
            "```\n" + "y" * 3_000_000,
            "p\n\n" * 300_000,
            "**a *b _c `d [e](" * 100_000,
            ">" * 500_000,
        ):
            model.reply(text)
            ask(page, "Hello")
            assert page.evaluate("turns[0].reply.length") == len(text)
            assert page.evaluate("longest") < 3000, text[:20]
            page.get_by_role("button", name="New chat").click()

    def test_a_reply_without_end_is_ended(self, page: Page, model: Model) -> None:
        model.reply(*["some words and " * 10_000] * 100)
        ask(page, "Hello")
        assert "The reply is too long to show" in get_problem(page)
        assert model.closed.wait(PATIENCE)

    def test_it_follows_the_end_until_somebody_scrolls_up(self, page: Page, model: Model) -> None:
        lines = "line\n\n" * 100
        model.reply(lines, GATE, lines + "MIDDLE\n\n", GATE, lines + "END")
        send(page, "Hello")
        get_reply(page).get_by_text("line").last.wait_for()
        model.gate.release()
        get_reply(page).get_by_text("MIDDLE").wait_for(state="attached")
        wait_until(lambda: page.evaluate(DISTANCE_TO_END) < 50)
        page.get_by_role("main").hover()
        page.mouse.wheel(0, -1500)
        wait_until(lambda: page.evaluate(DISTANCE_TO_END) > 1000)
        model.gate.release()
        get_reply(page).get_by_text("END").wait_for(state="attached")
        wait_until_over(page)
        assert page.evaluate(DISTANCE_TO_END) > 1000


WATCH = """() => {
  globalThis.longest = 0;
  let last = performance.now();
  setInterval(() => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
  }, 20);
}"""

# Where the line below the reply was in each frame that has moved it; 0 where it was out of view.
WATCH_VIEW = """() => {
  globalThis.places = [];
  new PerformanceObserver((list) => {
    const sources = list.getEntries().flatMap((entry) => entry.sources);
    const moved = sources.filter((source) => source.node?.className === "tools");
    places.push(...moved.map((source) => source.currentRect.y));
  }).observe({ type: "layout-shift" });
}"""

DISTANCE_TO_END = """() => {
  const view = find("conversation");
  return view.scrollHeight - view.scrollTop - view.clientHeight;
}"""


# The answers to a request, and words of what the page then says.
ERRORS: list[tuple[dict[str, Any], list[str]]] = [
    (
        {
            "status": 403,
            "json": {"error": {"code": "wrong_origin", "message": "no <b> here"}},
        },
        ["does not accept requests from this address", "No <b> here.", "403 wrong_origin"],
    ),
    (
        {
            "status": 429,
            "json": {"error": {"code": "too_many_wrong_tokens", "message": "enough"}},
            "headers": {"retry-after": "1"},
        },
        ["Too many requests", "Enough.", "Retry in a second.", "429 too_many_wrong_tokens"],
    ),
    (
        {"status": 413, "json": {"error": {"code": "request_too_large", "message": "m"}}},
        ["The conversation is too long", "Start a new chat"],
    ),
    (
        {"status": 400, "json": {"error": {"code": "context_length_exceeded"}}},
        ["The server rejected the request", "Start a new chat"],
    ),
    (
        {"status": 502, "content_type": "text/html", "body": "<h1>Bad gateway</h1>"},
        ["The model server failed", "It may come from a proxy", "502"],
    ),
    ({"status": 418, "json": []}, ["The server responded with 418"]),
    (
        {"status": 500, "json": {"error": {"code": 5, "message": "\u202e" + "x" * 9999}}},
        ["The reply could not be generated", "U+202E", "500 5"],
    ),
    (
        {"status": 200, "content_type": "text/html", "body": "<h1>Log in</h1>"},
        ["The response is not a reply", "text/html"],
    ),
    (
        {"status": 200, "content_type": "text/plain", "body": b"caf\xe9"},
        ["The reply is not UTF-8"],
    ),
    (
        {"status": 200, "content_type": "text/plain", "body": b"caf\xc3"},
        ["The reply is not UTF-8"],
    ),
]


class TestErrors:
    def test_they_are_said_in_words(self, page: Page) -> None:
        answers = [answer for answer, _ in ERRORS]
        page.route("**/chat", lambda route: route.fulfill(**answers.pop(0)))
        for answer, words in ERRORS:
            ask(page, "Hello")
            problem = get_problem(page)
            for word in words:
                assert word in problem, answer
            assert len(problem) < 3000
            assert page.get_by_role("button", name="Retry").is_visible()

    def test_a_redirect_is_not_followed(self, page: Page) -> None:
        def redirect(route: Route) -> None:
            route.fulfill(status=307, headers={"location": "/elsewhere"})

        page.route("**/chat", redirect)
        page.route("**/elsewhere", lambda route: pytest.fail("it sent the token again"))
        ask(page, "Hello")
        assert "The server redirects the request" in get_problem(page)

    def test_one_byte_order_mark_is_dropped(self, page: Page, model: Model) -> None:
        model.reply("\ufeff", "Hello")
        ask(page, "Hi")
        assert page.evaluate("turns[0].reply") == "Hello"


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<img src='http://evil.example/?leak'>",
    "![leak](http://evil.example/leak.png)",
    "<svg/onload=alert(1)><iframe srcdoc='<script>alert(1)</script>'>",
    "<a href='javascript:alert(1)'>x</a><style>*{display:none}</style>",
    "[click](javascript:alert(1)) [click](JaVaScRiPt:alert(1)) [click](java\tscript:alert(1))",
    "[click](data:text/html,<script>alert(1)</script>) [click](vbscript:x) [click](file:///etc)",
    "[click]( javascript:alert(1)) [click](<javascript:alert(1)>) [click](//evil.example/)",
    "[click](https://good.example@evil.example/) [click](blob:http://x) [click](/chat)",
    "&lt;b&gt; &#60;script&#62;",
    "```<img src=x onerror=alert(1)>\n</code></pre><script>alert(1)</script>\n```",
    "# <h1 onclick=alert(1)>\n> <b>\n- <i>\n\n|<td>|<u>|\n|-|-|\n|</table>|<script>|",
    "`</code><script>alert(1)</script>` **<b>** ~~<s>~~",
    "__proto__ constructor {{7*7}} ${alert(1)} `${alert(1)}`",
]


# Texts, and what is shown of them; None for the text itself.
INVISIBLE: list[tuple[str, str | None]] = [
    ("a\u202eb\u202c", "aU+202EbU+202C"),
    ("a\u200bb\u2066c\u2069", "aU+200BbU+2066cU+2069"),
    ("\x1b[31mred\x07\x9b\x7f", "U+001B[31mredU+0007 and 2 more"),
    ("a\x00\x00\x00b", "aU+0000 and 2 moreb"),
    ("soft\xadhyphen\ufeff", "softU+00ADhyphenU+FEFF"),
    ("hi\U000e0041\U000e0042", "hiU+E0041 and 1 more"),
    ("line\u2028sep", "lineU+2028sep"),
    ("filler\u3164\u115f.", "fillerU+3164 and 1 more."),
    ("a\u061cb", "aU+061Cb"),
    ("`x\u202ey` **\u200b**", "xU+202Ey U+200B"),
    ("x\ufe0f", "xU+FE0F"),
    # What belongs to the writing stays.
    ("👨‍👩‍👧 ❤️ 1️⃣ 👍🏽", "👨‍👩‍👧 ❤️ 1️⃣ 👍🏽"),
    ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", None),
    ("می‌خواهم क्‍ष", "می‌خواهم क्‍ष"),
    ("مرحبا שלום 日本", "مرحبا שלום 日本"),
    ("one\r\ntwo", "one\ntwo"),
]


class TestHostileReplies:
    def test_nothing_of_a_reply_is_html(self, page: Page, model: Model) -> None:
        model.reply(*"\n\n".join(HOSTILE))
        ask(page, "<script>alert(1)</script>")
        page.wait_for_timeout(100)
        made = page.evaluate(
            "Array.from(turns[0].body.querySelectorAll('*'), (element) => element.localName)"
        )
        safe = {
            "a",
            "blockquote",
            "button",
            "code",
            "div",
            "figcaption",
            "figure",
            "h3",
            "p",
            "pre",
        }
        safe |= {"s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul", "li"}
        assert set(made) <= safe
        attributes = page.evaluate(
            "Array.from(turns[0].body.querySelectorAll('*'), (e) => e.getAttributeNames()).flat()"
        )
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert "<script>alert(1)</script>" in page.locator(".user").inner_text()
        # An image is a link, and the addresses that are written out are.
        links = page.evaluate("Array.from(turns[0].body.querySelectorAll('a'), (e) => e.href)")
        assert links == [
            *("http://evil.example/?leak", "http://evil.example/leak.png", "http://x/"),
        ]
        for link in page.locator(".reply a").all():
            assert set((link.get_attribute("rel") or "").split()) >= {"noopener", "noreferrer"}
            assert link.get_attribute("target") == "_blank"

    def test_the_host_of_a_link_is_shown(self, page: Page, model: Model) -> None:
        model.reply("[https://bank.example](https://evil.example/x) [mail](mailto:a@b.example)\n")
        assert ask(page, "Hi") == "https://bank.example (evil.example) mail (a@b.example)"

    def test_invisible_characters_are_named(self, page: Page) -> None:
        for text, shown in INVISIBLE:
            got = page.evaluate(
                "(text) => { const e = make('p', ''); const m = new Markdown(e); m.push(text);"
                " m.step(true); return e.textContent; }",
                text,
            )
            assert got == (text if shown is None else shown)

    def test_the_page_may_not_write_html(self, browser: Browser, server: LocalServer) -> None:
        with open_page(browser, server.base_url, allowed=("requires 'TrustedHTML'",)) as page:
            for code in (
                "find('turns').innerHTML = '<b>x</b>'",
                "document.write('<b>x</b>')",
                "find('turns').insertAdjacentHTML('beforeend', '<b>x</b>')",
            ):
                tried = f"() => {{ try {{ {code} }} catch (error) {{ return error.name }} }}"
                assert page.evaluate(tried) == "TypeError"

    def test_an_added_script_or_request_elsewhere_is_blocked(
        self, browser: Browser, server: LocalServer
    ) -> None:
        allowed = ("Content Security Policy", "Fetch API cannot load")
        with open_page(browser, server.base_url, allowed=allowed) as page:
            page.evaluate(
                "() => { const s = document.createElement('script');"
                " s.type = 'text/plain'; document.body.append(s);"
                " const i = new Image(); i.src = location.origin + '/health'; }"
            )
            blocked = page.evaluate(
                "() => fetch('http://127.0.0.2:9/').then(() => 'sent', (e) => e.name)"
            )
            assert blocked == "TypeError"


# Markdown, and the elements that it becomes.
FORMATTED = [
    ("plain", "<p>plain</p>"),
    ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
    ("a **b** *c* __d__ _e_ ~~f~~ `g`", None),
    (
        "**bold *both* bold**",
        "<p><strong>bold <em>both</em> bold</strong></p>",
    ),
    ("snake_case_name 2 * 3 * 4 **open", "<p>snake_case_name 2 * 3 * 4 **open</p>"),
    ("\\*not\\* `a\\*b` C:\\dir \\(x\\)", "<p>*not* <code>a\\*b</code> C:\\dir \\(x\\)</p>"),
    ("`` a`b `` and `open", "<p><code>a`b</code> and `open</p>"),
    ("# One\n### Three ###\n####### no", "<h3>One</h3><h5>Three</h5><p>####### no</p>"),
    ("a\n---\nb\n* * *", "<p>a</p><hr><p>b</p><hr>"),
    (
        "- a\n- b\n  more\n  - c\n    - d\n- e",
        "<div><ul><li>a</li><li>b\nmore<ul><li>c<ul><li>d</li></ul></li></ul></li><li>e</li></ul></div>",
    ),
    (
        "3. a\n4. b\n- c",
        '<div><ol start="3"><li>a</li><li>b</li></ol><ul><li>c</li></ul></div>',
    ),
    (
        "1. a\n\n2. b",
        '<div><ol start="1"><li>a</li></ol></div><div><ol start="2"><li>b</li></ol></div>',
    ),
    (
        "- a\n  1. b\n  - c",
        '<div><ul><li>a<ol start="1"><li>b</li></ol><ul><li>c</li></ul></li></ul></div>',
    ),
    ("- a\n# b", "<div><ul><li>a</li></ul></div><h3>b</h3>"),
    (
        "> a\n> - b\n>\n>> c\nd",
        (
            "<blockquote><p>a</p><div><ul><li>b</li></ul></div>"
            "<blockquote><p>c</p></blockquote></blockquote><p>d</p>"
        ),
    ),
    (
        "| a | b |\n|---|:-:|\n| 1 | **2** |",
        (
            "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
            "<tbody><tr><td>1</td><td><strong>2</strong></td></tr></tbody></table></div>"
        ),
    ),
    ("a | b\nno table", "<p>a | b\nno table</p>"),
    ("[a *b*](https://x.example/(1)) c", None),
    ("see https://x.example/a_b_c. And [no](x) [", None),
    ("text\n```js\na < b\n\n  c\n```\nafter", "<p>text</p>[js|a < b\n\n  c\n]<p>after</p>"),
    ("  ```\n  a\n    b\n  ```", "[text|a\n  b\n]"),
    ("~~~~\n```\n~~~\n~~~~", "[text|```\n~~~\n]"),
    ("```\nopen\n``", "[text|open\n``]"),
    ("```a``` b", "<p><code>a</code> b</p>"),
    ("```\r\na\r\nb\r\n```\r\nc", "[text|a\nb\n]<p>c</p>"),
    ("\n\n  \n", ""),
    ("", ""),
]

FORMAT = """(parts) => {
  const root = make("div", "");
  const markdown = new Markdown(root);
  const show = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.data;
    const inner = Array.from(node.childNodes, show).join("");
    if (node.localName === "figure") {
      const [caption, pre] = node.children;
      return `[${caption.firstChild.data}|${pre.textContent}]`;
    }
    if (node.className === "group") return inner;
    const start = node.localName === "ol" ? ` start="${node.start}"` : "";
    if (node.localName === "hr") return "<hr>";
    return `<${node.localName}${start}>${inner}</${node.localName}>`;
  };
  for (const part of parts) {
    markdown.push(part);
    markdown.step(false);
  }
  do markdown.step(true); while (markdown.hasMore);
  return show(root).slice("<div>".length, -"</div>".length);
}"""


class TestMarkdown:
    def test_it_becomes_elements_however_it_arrives(self, page: Page) -> None:
        for text, expected in FORMATTED:
            whole = page.evaluate(FORMAT, [text])
            assert expected is None or whole == expected
            assert page.evaluate(FORMAT, list(text)) == whole
            halves = [text[: len(text) // 2], text[len(text) // 2 :]]
            assert page.evaluate(FORMAT, halves) == whole

    def test_links_and_emphasis(self, page: Page) -> None:
        def show(text: str) -> str:
            shown: str = page.evaluate(FORMAT, [text])
            return shown

        assert show("a **b** *c* __d__ _e_ ~~f~~ `g`") == (
            "<p>a <strong>b</strong> <em>c</em> <strong>d</strong> <em>e</em> <s>f</s> "
            "<code>g</code></p>"
        )
        assert show("[a](https://x.example/(1)) c") == "<p><a>a</a><span> (x.example)</span> c</p>"
        assert show("see https://x.example/a_b_c. And [no](x) [") == (
            "<p>see <a>https://x.example/a_b_c</a>. And [no](x) [</p>"
        )

    def test_a_long_paragraph_loses_nothing(self, page: Page) -> None:
        text = "".join(f"word{number} 🎉" for number in range(10_000))
        shown: str = page.evaluate(FORMAT, [text])
        assert shown.count("<p>") > 1
        assert shown.replace("<p>", "").replace("</p>", "") == text

    def test_past_so_many_elements_text_is_not_formatted(self, page: Page) -> None:
        text = "*a*\n\n" * 15_000
        shown: str = page.evaluate(FORMAT, [text])
        assert 10_000 < shown.count("<em>a</em>") < 15_000
        assert shown.endswith("*a*\n\n</span></div>")
        assert shown.count(">a<") + shown.count("*a*") == 15_000


class TestControls:
    def test_it_is_used_by_keyboard(self, page: Page, model: Model) -> None:
        # The field gets the focus as the page opens, which takes the browser a moment.
        page.locator("#prompt:focus").wait_for()
        page.keyboard.type("One")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.keyboard.press("Enter")
        get_reply(page).get_by_text("An answer.").wait_for()
        wait_until_over(page)
        assert model.prompts == ["One\ntwo"]
        seen = []
        page.get_by_role("button", name="New chat").focus()
        for _ in range(9):
            seen.append(page.evaluate(NAME_OF_FOCUS))
            page.keyboard.press("Tab")
        assert seen == [
            *("New chat", "Settings", "Dark", "Conversation", "Copy the reply", "Retry"),
            *("Message", "Send", "The request as a curl command"),
        ]

    def test_a_screen_reader_finds_its_parts(self, page: Page) -> None:
        ask(page, "Hello")
        page.get_by_role("button", name="Settings").click()
        assert page.get_by_role("main", name="Conversation").count() == 1
        assert page.get_by_role("log").count() == 1
        assert page.get_by_role("article").count() == 2
        assert page.get_by_role("heading", level=2).all_inner_texts() == ["You", "Reply"]
        assert page.get_by_role("textbox", name="Token").is_visible()
        assert page.get_by_role("textbox", name="System prompt").is_visible()
        toggle = page.get_by_role("button", name="Settings")
        assert toggle.get_attribute("aria-expanded") == "true"
        unnamed = page.evaluate(
            "Array.from(document.querySelectorAll('button, input, textarea, [tabindex]'),"
            " (e) => (e.getAttribute('aria-label') ?? e.labels?.[0]?.innerText ?? '')"
            " || e.textContent).filter((name) => !name.trim()).length"
        )
        assert unnamed == 0

    def test_replies_and_code_are_copied_as_they_are(
        self, browser: Browser, server: LocalServer, model: Model
    ) -> None:
        text = "**a**\u200b\n```sh\nls | wc\n```\n"
        model.reply(text)
        with open_page(
            browser, server.base_url, permissions=["clipboard-read", "clipboard-write"]
        ) as page:
            ask(page, "Hello")
            for name, copied in (("Copy the reply", text), ("Copy the code", "ls | wc\n")):
                button = page.get_by_role("button", name=name)
                button.click()
                button.get_by_text("Copied").wait_for()
                assert page.evaluate("navigator.clipboard.readText()") == copied

    def test_a_browser_without_a_clipboard_shows_an_error(self, page: Page) -> None:
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error()) }")
        page.get_by_role("button", name="Copy the curl command").click()
        page.get_by_text("Not allowed").wait_for()

    @pytest.mark.parametrize("width", [320, 375])
    def test_a_phone_shows_it_whole(
        self, browser: Browser, server: LocalServer, model: Model, width: int
    ) -> None:
        model.reply(f"{'long' * 100}\n\n| {'wide |' * 60}\n|{'-|' * 60}\n\n```\n{'x' * 999}\n```\n")
        options: dict[str, Any] = {"viewport": {"width": width, "height": 600}, "has_touch": True}
        with open_page(browser, server.base_url, is_mobile=True, **options) as page:
            page.get_by_label("Message").fill("w" * 300)
            # It breaks the line there.
            page.get_by_label("Message").press("Enter")
            page.get_by_role("button", name="Send").tap()
            page.locator(".state").get_by_text("characters").wait_for()
            assert model.prompts == ["w" * 300 + "\n"]
            page.get_by_role("button", name="Settings").tap()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("find('conversation').scrollWidth") <= width
            for button in page.get_by_role("button").all():
                box = button.bounding_box()
                assert box is None or box["height"] >= 24

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_its_colours_have_the_contrast_of_wcag_aa(
        self, browser: Browser, server: LocalServer, model: Model, scheme: Any
    ) -> None:
        model.reply("[a](https://b.example) `c`\n> q\n\n```\nd\u200b\n```\n", GATE, ValueError())
        with open_page(browser, server.base_url, color_scheme=scheme) as page:
            page.get_by_role("button", name="Settings").click()
            send(page, "Hello")
            get_reply(page).get_by_text("U+200B").wait_for()
            low = page.evaluate(LOW_CONTRAST)
            model.gate.release()
            wait_until_over(page)
            page.evaluate("find('notice').hidden = false")
            assert low + page.evaluate(LOW_CONTRAST) == []
            edges = page.evaluate("Array.from(document.querySelectorAll('input'), getEdge)")
            assert all(ratio >= 3 for ratio in edges)
            page.get_by_role("button", name={"light": "Dark", "dark": "Light"}[scheme]).click()
            other = {"light": "dark", "dark": "light"}[scheme]
            assert page.evaluate("document.documentElement.dataset.theme") == other
            assert page.evaluate(LOW_CONTRAST) == []


NAME_OF_FOCUS = """() => {
  const element = document.activeElement;
  return element.getAttribute("aria-label") ?? element.textContent;
}"""

# Texts whose ratio to what is behind them is below 4.5.
LOW_CONTRAST = """() => {
  const parse = (color) => color.match(/[0-9.]+/g).map(Number);
  const weigh = (color) => {
    const [r, g, b] = parse(color).map((value) => {
      value /= 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      const alpha = parse(color)[3] ?? 1;
      if (alpha > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const compare = (one, two) => {
    const [low, high] = [weigh(one), weigh(two)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  globalThis.getEdge = (element) => compare(getComputedStyle(element).borderColor, behind(element));
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = Array.from(element.childNodes).some((n) => n.nodeType === 3 && n.data.trim());
    if (!hasText || !element.checkVisibility()) continue;
    const ratio = compare(getComputedStyle(element).color, behind(element));
    if (ratio < 4.5) found.push(`${element.localName}.${element.className}: ${ratio}`);
  }
  return found;
}"""


class TestPlaces:
    def test_it_works_below_a_path(self, browser: Browser, model: Model) -> None:
        outer = Starlette(routes=[Mount("/models/llama", create_app(model, page=True))])
        with LocalServer(app=outer) as server:
            # Starlette adds the slash.
            with open_page(browser, server.base_url + "/models/llama") as page:
                assert ask(page, "Hello") == "An answer."
                assert f"{server.base_url}/models/llama/chat" in page.locator("#curl").inner_text()

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_it_works_behind_a_proxy_that_removes_a_path(
        self, browser: Browser, model: Model, slash: str
    ) -> None:
        with LocalServer(app=StripPrefix(create_app(model, page=True), "/llm")) as server:
            with open_page(browser, f"{server.base_url}/llm{slash}") as page:
                assert ask(page, "Hello") == "An answer."

    def test_without_sha_256_it_says_why(self, browser: Browser, model: Model) -> None:
        with LocalServer(app=create_app(model, page=True, allowed_hosts=["*"])) as server:
            url = server.base_url.replace("127.0.0.1", INSECURE_HOST)
            with open_page(browser, url) as page:
                assert "crypto.subtle" in page.get_by_role("alert").inner_text()
                assert page.get_by_role("button", name="Send").is_disabled()
                page.get_by_label("Message").fill("Hello")
                page.get_by_label("Message").press("Enter")
                assert page.locator("article").count() == 0
        assert model.prompts == []

    @pytest.mark.skipif(
        not all(map(shutil.which, ("bash", "curl", "sha256sum"))), reason="they are not installed"
    )
    @pytest.mark.parametrize("token", [None, "mine $HOME 'n \\o"])
    def test_its_curl_line_works_as_pasted(
        self, browser: Browser, model: Model, token: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if token is not None:
            monkeypatch.setenv("CROMICLE_TOKEN", token.replace("\\", ""))
        model.reply("It works.")
        own = None if token is None else token.replace("\\", "")
        with LocalServer(model, token=own, page=True) as server:
            with open_page(browser, server.base_url) as page:
                line = page.locator("#curl").inner_text()
            answer = subprocess.run(
                ["bash", "-c", line], capture_output=True, text=True, timeout=PATIENCE, check=True
            )
        assert answer.stdout == "It works."
        assert model.prompts == ["Hello, how are you?"]


def test_the_pictures_of_the_readme_are_made(browser: Browser, tmp_path: Path) -> None:
    made = take_pictures(browser, tmp_path)
    assert {path.name for path in made} == {path.name for path in IMAGES.glob("page-*.png")}
    for path in (*made, *IMAGES.glob("page-*.png")):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size <= 80_000


class StripPrefix:
    """As a proxy does that passes on what is below a path, and does not say so."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["path"].removeprefix(self._prefix) or "/"}
        await self._app(scope, receive, send)
