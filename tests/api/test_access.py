"""Every route of the application with every kind of token: accepted roles, and no accounts in public answers."""

import re
import time

import pytest
from conftest import with_section
from escalations import BEGINNING, SYMBOL, TS, executed, shortfall
from eventually import eventually
from ledgers import fill
from mutuals import POOL, STORY, settled_pool
from test_adl_api import world_of
from tokens import SECRET, bearer, signed, with_secret

from fundsvc.api.http import server
from fundsvc.core.events import Rate

OPERATIONS = {"/healthz", "/readyz", "/metrics"}
CONNECTING = "/ws"
"""Requires a connection token of a bullet route instead of an access token."""

PRIVATE = {
    ("GET", "/api/v1/adl/positions"): {"trader", "risk"},
    ("GET", "/api/v1/adl/deleveraged"): {"trader", "risk"},
    ("GET", "/api/v1/adl/deleveraged.csv"): {"trader", "risk"},
    ("GET", "/api/v1/adl/{symbol}/orders/{adl}"): {"engine", "risk"},
    ("POST", "/api/v1/adl/{symbol}/preview"): {"trader", "risk"},
    ("GET", "/api/v1/mutual/account"): {"trader", "risk"},
    ("GET", "/api/v1/mutual/account/policies"): {"trader", "risk"},
    ("GET", "/api/v1/mutual/account/statement"): {"trader", "risk"},
    ("GET", "/api/v1/mutual/account/statement.csv"): {"trader", "risk"},
    ("GET", "/fapi/v1/adlQuantile"): {"trader"},
    ("GET", "/api/v4/futures/{settle}/auto_deleverages"): {"trader"},
    ("POST", "/api/v1/bullet-private"): {"engine", "trader"},
    ("GET", "/api/v1/ingest/cursor"): {"engine", "risk"},
    ("POST", "/api/v1/ingest/events"): {"engine"},
    ("GET", "/api/v1/insurance-fund/{symbol}/target/what-if"): {"risk"},
}
"""The routes that require a role. All others are public. A new route with roles must be added here."""

VENUE_CODES = {
    "/fapi/v1/adlQuantile": ("-2014", "-2015"),
    "/api/v4/futures/{settle}/auto_deleverages": ("INVALID_KEY", "FORBIDDEN"),
}
"""The codes of other venues for an invalid token and for a forbidden request."""

IN_PATH = {"symbol": SYMBOL, "adl": "1", "round": "1", "entry": "1", "settle": "usdt", "pool": POOL}
QUERIES = {
    "/api/v1/adl/positions": {"account": "secret-anna"},
    "/api/v1/adl/deleveraged": {"account": "secret-anna"},
    "/api/v1/adl/deleveraged.csv": {"account": "secret-anna"},
    "/api/v1/mutual/account": {"account": "secret-anna"},
    "/api/v1/mutual/account/policies": {"account": "secret-anna"},
    "/api/v1/mutual/account/statement": {"account": "secret-anna"},
    "/api/v1/mutual/account/statement.csv": {"account": "secret-anna"},
    "/api/v5/public/insurance-fund": {"instType": "SWAP", "uly": SYMBOL},
    "/api/v1/insurance-fund/{symbol}/at": {"ts": str(TS)},
    "/api/v1/insurance-fund/{symbol}/candles": {"granularity": "60"},
    "/api/v1/insurance-fund/{symbol}/chart": {"from": str(TS)},
    "/api/v1/summary/candles": {"granularity": "60"},
}
BODIES = {
    "/api/v1/adl/{symbol}/preview": {"side": "sell", "lots": 100, "price": "38900", "bankruptcyPrice": "39000"},
    "/api/v1/ingest/events": [],
}
ACCOUNTS = ["secret-long", *(f"secret-{name}" for name in ("anna", "bert", "carl", "dora", "emil")), *("secret-2", "secret-3")]

ROLES = {
    "trader": {"role": "trader", "account": "secret-anna"},
    "engine": {"role": "engine"},
    "risk": {"role": "risk"},
}


def now(seconds=0):
    return int(time.time()) + seconds


def none_signed():
    """Returns a token with valid claims, the algorithm `none` and no signature."""
    _, claims, _ = signed("risk").split(".")
    return f"eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}."


def bad_tokens():
    """Returns values of Authorization and the expected error codes by kind."""
    return {
        "none": (None, "400001"),
        "no bearer": ("Basic YTpi", "400001"),
        "garbage": ("Bearer garbage", "400003"),
        "nothing": ("Bearer", "400003"),
        "wrong key": (f"Bearer {signed(key=SECRET[::-1])}", "400003"),
        "wrong audience": (f"Bearer {signed(aud='elsewhere')}", "400003"),
        "alg none": (f"Bearer {none_signed()}", "400003"),
        "other algorithm": (f"Bearer {signed(key=SECRET * 2, algorithm='HS512')}", "400003"),
        "without expiry": (f"Bearer {signed(exp=None)}", "400003"),
        "unknown role": (f"Bearer {signed('operator')}", "400003"),
        "trader without account": (f"Bearer {signed('trader')}", "400003"),
        "expired": (f"Bearer {signed(exp=now(-3600))}", "400004"),
        "not yet valid": (f"Bearer {signed(nbf=now(3600))}", "400004"),
    }


@pytest.fixture
def config(config):
    config = with_section(config, "engine", lease_seconds=0.6, rollup_seconds=0.1, target_seconds=0.1)
    venues = ("binance", "bybit", "gate", "okx")
    return with_secret(with_section(config, "http", port=0, book_seconds=0.05, requests_max=10**9, venues=venues))


@pytest.fixture
def applications(monkeypatch):
    """The applications that the service serves."""
    served = []

    def serve(application, *arguments):
        served.append(application)
        return server.serve(application, *arguments)

    monkeypatch.setattr("fundsvc.app.serve", serve)
    return served


@pytest.fixture
async def world(config, applications):
    """A contract with fills, a shortfall, a partly executed order, and positions; all accounts have names."""
    async with world_of(config) as world:
        await world.send(*BEGINNING, Rate("USDC", "1", TS), fill(SYMBOL, 2, 5, TS), fill(SYMBOL, 3, -1, TS))
        await world.send(shortfall(4), executed(5, 1, "secret-anna", 20))
        await eventually(lambda: world.pool.fetchval("SELECT target > 0 FROM targets"))
        await settled_pool(config, STORY, world)
        yield world


def routes_of(application):
    """Yields method, template and path of every route; the path has values for all parameters."""
    for route in application.router.routes():
        template = route.resource.canonical
        path = re.sub(r"{(\w+)}", lambda found: IN_PATH.get(found[1], "none"), template)
        yield route.method, template, path


async def ask(world, method, template, path, authorization):
    headers = {"Authorization": authorization} if authorization is not None else {}
    body = BODIES.get(template)
    async with world.http.request(method, path, params=QUERIES.get(template), json=body, headers=headers) as answer:
        return answer, await answer.text()


async def test_every_route_accepts_exactly_its_roles(world, applications, subtests):
    (application,) = applications
    seen = set()
    for method, template, path in routes_of(application):
        if template == CONNECTING:
            continue
        roles = PRIVATE.get(("GET" if method == "HEAD" else method, template))
        seen.add((method, template))
        unknown, forbidden = VENUE_CODES.get(template, (None, "400007"))
        with subtests.test(method=method, path=template):
            for role, claims in ROLES.items():
                answer, text = await ask(world, method, template, path, f"Bearer {signed(**claims)}")
                assert (answer.status in {401, 403}) == bool(roles and role not in roles), (role, text)
                if answer.status == 403 and text:
                    assert forbidden in text
            for kind, (authorization, code) in bad_tokens().items():
                answer, text = await ask(world, method, template, path, authorization)
                assert (answer.status == 401) == bool(roles), (kind, text)
                assert answer.headers.get("WWW-Authenticate") == ("Bearer" if roles else None)
                if roles and text:
                    assert (unknown or f'"{code}"') in text, (kind, text)
    assert PRIVATE.keys() <= seen
    assert len(seen) > 40


async def test_no_public_route_shows_an_account(world, applications, subtests):
    (application,) = applications
    for method, template, path in routes_of(application):
        if method == "HEAD" or template == CONNECTING or (method, template) in PRIVATE:
            continue
        for authorization in (None, f"Bearer {signed('trader', account='secret-anna')}", f"Bearer {signed('risk')}"):
            with subtests.test(path=template):
                answer, text = await ask(world, method, template, path, authorization)
                assert answer.status == 200 or "none" in path, text
                assert not [account for account in ACCOUNTS if account in text + str(answer.headers)]


async def test_ledger_contains_the_accounts_of_these_tests(world):
    """The test above depends on it."""
    entries = await world.pool.fetch("SELECT account FROM entries WHERE account <> ''")
    positions = [await world.data("/api/v1/adl/positions", account=account) for account in ACCOUNTS]
    named = {row["account"] for row in entries} | {answer["account"] for answer in positions if answer["positions"]}
    assert named == set(ACCOUNTS)


async def test_trader_reads_only_its_own_account(world):
    async def positions(headers, **parameters):
        async with world.http.get("/api/v1/adl/positions", params=parameters, headers=headers) as answer:
            return answer, await answer.json()

    anna = bearer("trader", account="secret-anna")
    answer, body = await positions(anna)
    assert (answer.status, body["data"]["account"]) == (200, "secret-anna")
    assert [position["lots"] for position in body["data"]["positions"]] == [30]
    assert answer.headers["Cache-Control"] == "no-store"
    _, again = await positions(anna, account="secret-anna")
    assert again["data"]["deleveraged"] == body["data"]["deleveraged"]
    answer, body = await positions(anna, account="secret-bert")
    assert (answer.status, body["code"]) == (403, "400007")
    assert "omit `account`" in body["msg"]
    answer, body = await positions(bearer("risk"))
    assert (answer.status, body["code"]) == (400, "400100")
    assert (await positions(bearer("risk"), account="secret-bert"))[1]["data"]["account"] == "secret-bert"


async def test_service_without_keys_names_the_missing_setting(config):
    async with world_of(with_section(config, "token", secret="")) as world:
        for headers in ({}, bearer("risk")):
            async with world.http.get("/api/v1/ingest/cursor", headers=headers) as answer:
                assert answer.status == 401
                assert "token.secret" in (await answer.json())["msg"]
        async with world.http.get("/api/v1/contracts/active", headers=bearer("risk")) as answer:
            assert answer.status == 200
