"""The fast path answers as the router does: the same bytes, headers, limits, counts and errors."""

import aiohttp
import pytest
from aiohttp import web
from conftest import with_section
from ledgers import fill, listing, owned
from live import serving
from raw import exchange

from fundsvc.api.http.application import Encoded
from fundsvc.api.http.fast_path import FastPath
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.server import serve
from fundsvc.metrics import Metrics

FUND = "/api/v1/insurance-fund/AAA"
ROUTED = f"{FUND}?symbol=AAA"
"""The same request with a repeated path parameter, which only the router accepts."""


@pytest.fixture
def config(config):
    return with_section(config, "http", port=0, tail_seconds=0.005, requests_max=100_000, origins=("https://page.test",))


@pytest.fixture
async def service(config):
    async with owned(config) as owner:
        await owner.settle([listing("AAA"), listing("ΔΔΔ"), listing("*"), fill("AAA", 1, 7)])
        async with serving(config) as service:
            await service.until("AAA", 1)
            yield service


async def ask(service, path, method="GET", **headers):
    async with service.http.request(method, path, headers=headers) as answer:
        return answer.status, await answer.read(), {name.lower(): value for name, value in answer.headers.items()}


async def test_fast_path_answers_only_get_requests_for_known_paths():
    async def routed(_request):
        return web.Response(body=b"routed")

    application = web.Application()
    application.router.add_route("*", "/{symbol}", routed)
    fast_path = FastPath(
        Middleware(Metrics()), "/{symbol}", {"/AAA": "AAA"}.get, lambda symbol: Encoded(f"fast {symbol}".encode())
    )
    async with serve(application, "127.0.0.1", 0, fast_path=fast_path) as url, aiohttp.ClientSession(url) as client:
        for method, path, wanted in (("GET", "/AAA", b"fast AAA"), ("GET", "/BBB", b"routed"), ("POST", "/AAA", b"routed")):
            async with client.request(method, path) as answer:
                assert await answer.read() == wanted


async def test_fast_path_and_router_answer_the_same(service):
    request_headers = {"Origin": "https://page.test", "X-Request-Id": "mine"}
    fast, routed = [await ask(service, path, **request_headers) for path in (FUND, ROUTED)]
    for _, _, headers in (fast, routed):
        for name in ("gw-ratelimit-remaining", "gw-ratelimit-reset", "date"):
            assert headers.pop(name)
    assert fast == routed
    assert fast[2]["x-request-id"] == "mine"
    assert fast[2]["access-control-allow-origin"] == "https://page.test"


async def test_fast_path_and_router_are_counted_alike(service):
    def counted():
        return service.count("fundsvc_http_requests_total", route="/api/v1/insurance-fund/{symbol}", status="200")

    before = counted()
    left = [int((await ask(service, path))[2]["gw-ratelimit-remaining"]) for path in (FUND, ROUTED, FUND)]
    assert left == [left[0], left[0] - 1, left[0] - 2]
    assert counted() == before + 3


async def test_fast_path_and_router_share_the_rate_limit(config):
    limited = with_section(config, "http", requests_max=5)
    async with owned(config) as owner:
        await owner.settle([listing("AAA")])
        async with serving(limited) as service:
            statuses = [(await ask(service, path))[0] for path in (FUND, ROUTED, FUND, ROUTED, FUND, FUND, ROUTED)]
    assert statuses[-2:] == [429, 429]
    assert 429 not in statuses[:5]


@pytest.mark.parametrize("path", [FUND, ROUTED])
async def test_fast_path_and_router_reject_an_outdated_tail(service, monkeypatch, path):
    monkeypatch.setattr("fundsvc.readmodel.ledger_tail.SILENCE_SECONDS_MAX", -1.0)
    status, body, headers = await ask(service, path)
    assert (status, headers["retry-after"]) == (503, "1")
    assert b"503000" in body


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        (FUND, "HEAD", 200),
        (FUND, "POST", 405),
        (f"{FUND}/", "GET", 404),
        (f"{FUND}?x=1", "GET", 400),
        ("/api/v1/insurance-fund/NONE", "GET", 404),
        ("/api/v1/insurance-fund/", "GET", 404),
        ("/api/v1/insurance-fund/summary", "GET", 200),
        ("/api/v1/insurance-fund/%CE%94%CE%94%CE%94", "GET", 200),
        ("/AAA", "GET", 404),
    ],
)
async def test_other_requests_use_the_router(service, path, method, status):
    assert (await ask(service, path, method))[0] == status


@pytest.mark.parametrize("target", ["AAA", "*"])
async def test_request_target_without_a_path_is_not_a_fund(service, target):
    """Both are listed symbols, but neither is the path of a fund."""
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"
    status, body = await exchange(service.url, request.encode())
    assert (status, b"balance" in body) == (400, False), body
