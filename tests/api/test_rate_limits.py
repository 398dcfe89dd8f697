"""Rate limits, the clients that they count, and CORS: access control before the handlers of a test."""

import time
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from tokens import SECRET, bearer

from fundsvc.api.http import rate_limits
from fundsvc.api.http.access import AccessControl, with_caller
from fundsvc.api.http.client_address import client_address
from fundsvc.api.http.errors import BadParameter
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.rate_limits import Window
from fundsvc.api.http.server import serve
from fundsvc.api.http.shared_limits import local_windows
from fundsvc.config.settings import HttpConfig, TokenConfig
from fundsvc.metrics import Metrics

HOUR = 3600.0
EXPOSED = {"gw-ratelimit-limit", "gw-ratelimit-remaining", "gw-ratelimit-reset", "Retry-After"}


class Clock:
    """A clock that the test controls."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def took(window, client, amount=1):
    """Returns whether the window granted the amount, and the remaining units."""
    return window.take(client, amount), window.remaining(client)


def test_client_is_limited_within_each_window(clock):
    window = Window(3, 30, clock)
    assert [took(window, "a") for _ in range(4)] == [(True, 2), (True, 1), (True, 0), (False, 0)]
    assert window.reset_ms() == 30_001
    assert took(window, "b") == (True, 2)
    clock.now += 29.5
    assert took(window, "a") == (False, 0)
    assert window.reset_ms() == 501
    clock.now += 0.5
    assert took(window, "a") == (True, 2)
    assert window.reset_ms() == 30_001


def test_amount_is_counted_completely_or_not_at_all(clock):
    window = Window(10, 30, clock)
    assert [took(window, "a", amount) for amount in (7, 4, 3)] == [(True, 3), (False, 3), (True, 0)]
    assert [took(window, "b", amount) for amount in (11, 10)] == [(False, 10), (True, 0)]


def test_clients_beyond_the_maximum_share_a_count(clock, monkeypatch):
    monkeypatch.setattr(rate_limits, "CLIENTS_MAX", 3)
    window = Window(2, 30, clock)
    assert [took(window, name) for name in "abc"] == [(True, 1)] * 3
    assert [took(window, name) for name in "defab"] == [(True, 1), (True, 0), (False, 0), (True, 0), (True, 0)]
    assert [took(window, name) for name in "cdgc"] == [(True, 0), (False, 0), (False, 0), (False, 0)]
    clock.now += 30
    assert [took(window, name) for name in "ghi"] == [(True, 1)] * 3


async def answering(request, caller=None):
    return web.json_response({})


async def failing(request):
    raise BadParameter("wrong")


async def streaming(request):
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"a")
    return response


@asynccontextmanager
async def limited_client(token=None, clock=time.monotonic, **http):
    """Serves an application with access control; yields a client."""
    application = web.Application()
    for path, handler in {"/": answering, "/wrong": failing, "/stream": streaming, "/healthz": answering}.items():
        application.router.add_get(path, handler)
    application.router.add_get("/risk", with_caller(answering, frozenset({"risk"})))
    limits = HttpConfig(**{"requests_seconds": HOUR, **http})
    access_control = AccessControl(limits, token or TokenConfig(secret=SECRET), *local_windows(limits, clock), {"/healthz"})
    Middleware(Metrics(), access_control).install(application, {})
    async with serve(application, "127.0.0.1", 0) as url, aiohttp.ClientSession(url) as client:
        yield client


async def remaining(client, path="/", **headers):
    async with client.get(path, headers=headers) as answer:
        await answer.read()
        return int(answer.headers["gw-ratelimit-remaining"])


async def test_every_answer_shows_the_remaining_requests(clock):
    async with limited_client(clock=clock, requests_max=6) as client:
        for left, (path, status) in enumerate({"/": 200, "/wrong": 400, "/stream": 200, "/none": 404, "/risk": 401}.items()):
            async with client.get(path) as answer:
                assert answer.status == status
                assert answer.headers["gw-ratelimit-limit"] == "6"
                assert answer.headers["gw-ratelimit-remaining"] == str(5 - left)
                assert answer.headers["gw-ratelimit-reset"] == "3600001"
                assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_exceeded_limit_is_answered_with_retry_after(clock):
    async with limited_client(clock=clock, requests_max=2) as client:
        assert [await remaining(client) for _ in range(2)] == [1, 0]
        clock.now += HOUR - 0.5
        async with client.get("/") as answer:
            assert answer.status == 429
            assert (await answer.json())["code"] == "429000"
            assert answer.headers["Retry-After"] == "1"
            assert answer.headers["gw-ratelimit-remaining"] == "0"
            assert answer.headers["gw-ratelimit-reset"] == "501"
        for _ in range(5):
            async with client.get("/healthz") as answer:
                assert answer.status == 200
                assert "gw-ratelimit-limit" not in answer.headers
        clock.now += 1
        assert await remaining(client) == 1


async def test_account_is_one_client_with_any_token_and_address():
    async with limited_client(requests_max=10) as client:
        assert await remaining(client) == 9
        assert await remaining(client, **bearer("trader", account="anna")) == 9
        assert await remaining(client, **bearer("trader", account="anna", sub="phone")) == 8
        assert await remaining(client, **bearer("trader", account="bert")) == 9
        assert await remaining(client, **bearer("risk", sub="bert")) == 9
        assert await remaining(client, **bearer("risk", sub="carl")) == 9
        assert await remaining(client, Authorization="Bearer of nothing") == 8
        assert await remaining(client) == 7


async def test_engine_requests_count_against_its_event_limit():
    async with limited_client(requests_max=1, ingest_events_max=10_000) as client:
        assert [await remaining(client, **bearer("engine")) for _ in range(3)] == [9999, 9998, 9997]


async def test_client_behind_proxies_is_the_address_that_the_outermost_proxy_saw():
    async with limited_client(requests_max=10) as client:
        assert [await remaining(client, **{"X-Forwarded-For": forged}) for forged in ("1.1.1.1", "2.2.2.2")] == [9, 8]
    async with limited_client(requests_max=10, proxies=2) as client:
        for hops, left in (
            ("9.9.9.9, 1.1.1.1, 10.0.0.1", 9),
            ("8.8.8.8, 1.1.1.1, 10.0.0.2", 8),
            ("1.1.1.1,10.0.0.1", 7),
            ("2.2.2.2,10.0.0.1", 9),
            ("10.0.0.1", 9),
            ("", 8),
            ("x" * 4000 + ", 10.0.0.1", 9),
            ("x" * 45 + ", 10.0.0.1", 8),
        ):
            assert (await remaining(client, **{"X-Forwarded-For": hops}), hops) == (left, hops)


V6 = ("2001:db8:1:2::b", "2001:0DB8:0001:0002:0000:0000:0000:000b", "[2001:db8:1:2::b]", "2001:db8:1:2::0.0.0.11")
SPELLINGS = {
    "one IPv4 address with ports": [f"203.0.113.8:{port}" for port in range(40000, 40012)],
    "one IPv6 /64": [f"2001:db8:1:2::{part:x}" for part in range(12)],
    "one IPv6 /64, all bits": [f"2001:db8:1:2:{part:x}:ffff:{part:x}:1" for part in range(0, 12 * 4096, 4096)],
    "one IPv6 address with ports": [f"[2001:db8::1]:{port}" for port in range(40000, 40012)],
    "one IPv6 address in several spellings": [*V6, *(f'"{each}"' for each in V6), *(f" {each}\t" for each in V6)],
    "IPv4 plain, mapped, and with ports": [
        *("198.51.100.1", "::ffff:198.51.100.1", "::FFFF:c633:6401", "[::ffff:198.51.100.1]", "198.51.100.1:1"),
        *("[::ffff:198.51.100.1]:443", "::ffff:198.51.100.1:443", "0:0:0:0:0:ffff:c633:6401", "[0::ffff:c633:6401]:2"),
        *("198.51.100.1:2", '"198.51.100.1"', '"198.51.100.1:3"'),
    ],
    "a link-local address with zones and ports": [f"[fe80::1%eth{number}]:{number}" for number in range(12)],
    "text that is no address": [
        *("unknown", "_hidden", "1.2.3", "1.2.3.4.5", "999.1.1.1", "1.2.3.4:x", "[1.2.3.4", "[]", ":80", "\u00b2", "0x7f.1"),
        "x" * 4000,
    ],
}


@pytest.mark.parametrize("name", SPELLINGS)
async def test_spellings_of_one_address_are_one_client(name):
    async with limited_client(requests_max=5, proxies=1) as client:
        statuses = []
        for address in SPELLINGS[name]:
            async with client.get("/", headers={"X-Forwarded-For": f"forged, {address}"}) as answer:
                statuses.append(answer.status)
    assert statuses == [200] * 5 + [429] * 7


async def test_different_addresses_are_different_clients():
    others = ("203.0.113.8", "203.0.113.9", "2001:db8:1:2::1", "2001:db8:1:3::1", "::ffff:203.0.113.10", "unknown", "::1")
    async with limited_client(requests_max=2, proxies=1) as client:
        assert [await remaining(client, **{"X-Forwarded-For": other}) for other in others] == [1] * len(others)


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_direct_peer_address_is_normalized(peer, client):
    assert client_address(peer, (), 0) == client_address(peer, ("9.9.9.9",), 2) == client


async def preflight(client, origin, path="/risk"):
    headers = {"Origin": origin, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    async with client.options(path, headers=headers) as answer:
        return answer


async def test_configured_origins_may_send_tokens():
    async with limited_client(origins=("https://one.example", "https://two.example")) as client:
        for origin in ("https://one.example", "https://two.example"):
            answer = await preflight(client, origin)
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, origin)
            assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
            assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST"
            for path, status in {"/": 200, "/wrong": 400, "/stream": 200, "/risk": 401, "/none": 404}.items():
                async with client.get(path, headers={"Origin": origin}) as answer:
                    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (status, origin)
                    assert answer.headers["Vary"] == "Origin"
                    assert set(answer.headers["Access-Control-Expose-Headers"].split(", ")) >= EXPOSED
                    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["https://other.example", "https://one.example.evil", "null", "http://one.example", "*"])
async def test_other_origins_receive_no_cors_headers(origin):
    async with limited_client(origins=("https://one.example",)) as client:
        answer = await preflight(client, origin)
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
        async with client.get("/", headers={"Origin": origin}) as answer:
            assert not [name for name in answer.headers if name.startswith("Access-Control")]
            assert answer.headers["Vary"] == "Origin"


async def test_any_origin_is_accepted_if_configured():
    async with limited_client(origins=("*",)) as client:
        assert (await preflight(client, "https://any.example")).headers["Access-Control-Allow-Origin"] == "*"
        async with client.get("/", headers={"Origin": "https://any.example"}) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Vary" not in answer.headers


async def test_no_origin_is_accepted_without_configuration():
    async with limited_client() as client:
        assert (await preflight(client, "https://one.example")).status == 405
        async with client.get("/", headers={"Origin": "https://one.example"}) as answer:
            assert not [name for name in answer.headers if name.startswith("Access-Control")]


async def test_answers_to_tokens_are_not_cached():
    async with limited_client() as client:
        async with client.get("/risk", headers=bearer("risk")) as answer:
            assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
        async with client.get("/") as answer:
            assert "Cache-Control" not in answer.headers
