"""The limit of wrong tokens from one address."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from signatures import sign

from cromicle_sdk.server import create_app
from cromicle_sdk.server import guesses as _guesses
from cromicle_sdk.server.guesses import GuessLimit


class TestGuessLimit:
    def test_ten_in_a_minute_are_free(self) -> None:
        now = 0.0
        limit = GuessLimit(clock=lambda: now)
        for _ in range(10):
            assert limit.record("192.0.2.1") is None
            now += 1.0
        assert limit.record("192.0.2.1") == 50.0
        now = 59.0
        assert limit.record("192.0.2.1") == 1.0
        now = 60.0
        assert limit.record("192.0.2.1") is None

    def test_each_address_has_its_own(self) -> None:
        limit = GuessLimit(clock=lambda: 0.0)
        for _ in range(10):
            limit.record("2001:db8::1")
        assert limit.record("192.0.2.1") is None
        assert limit.record("") is None
        assert limit.record("2001:db8:0:1::1") is None
        assert limit.record("2001:db8::2:1") == 60.0

    def test_the_number_of_addresses_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_guesses, "MAX_ADDRESSES", 3)
        now = 0.0
        limit = GuessLimit(clock=lambda: now)
        for last in range(4):
            for _ in range(11):
                limit.record(f"192.0.2.{last}")
            now += 1.0
        assert len(limit._periods) == 3
        assert limit.record("192.0.2.0") is None
        assert limit.record("192.0.2.3") is not None


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.anyio
@pytest.mark.parametrize("client", [("192.0.2.1", 5000), None])
async def test_wrong_tokens_are_limited_and_right_ones_never(client: Any) -> None:
    app = create_app(tokens=["right-token"])

    async def post(token: str, client: Any = client) -> httpx.Response:
        transport = httpx.ASGITransport(app, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            return await http.post("/chat", json=sign("hi", token))

    for number in range(10):
        assert (await post(f"guess-{number}")).status_code == 401
        assert (await post("right-token")).status_code == 200
    for _ in range(3):
        answer = await post("guess")
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "too_many_wrong_tokens"
        assert 50 < int(answer.headers["retry-after"]) <= 60
        assert (await post("right-token")).text == "hi"
    assert (await post("guess", ("192.0.2.2", 5000))).status_code == 401
