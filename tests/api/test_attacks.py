"""The outcome of every route for each kind of caller.

The routes are those of the application's router. A new route fails here until the table contains it.
"""

from typing import NamedTuple

import pytest
from raw import raw
from test_access import BODIES, QUERIES, applications, config, now, routes_of, world  # noqa: F401 - fixtures
from tokens import signed

ANNA, BERT = "secret-anna", "secret-bert"


class Outcome(NamedTuple):
    """The status that each caller receives; `other` is a trader with another account than the requested one."""

    anonymous: int
    trader: int
    engine: int
    risk: int
    expired: int
    other: int


def for_all(status):
    return Outcome(*[status] * len(Outcome._fields))


PUBLIC = for_all(200)
MISSING = for_all(404)
"""Routes of files. The names in this test do not exist."""

CONNECTING = for_all(401)
"""A connection requires a connection token of a bullet route."""

PREVIEW = Outcome(anonymous=401, trader=200, engine=403, risk=200, expired=401, other=200)
OWN = Outcome(anonymous=401, trader=200, engine=403, risk=200, expired=401, other=403)
TRADERS = Outcome(anonymous=401, trader=200, engine=403, risk=403, expired=401, other=200)
ENGINES = Outcome(anonymous=401, trader=403, engine=200, risk=403, expired=401, other=403)
CONNECTORS = Outcome(anonymous=401, trader=200, engine=200, risk=403, expired=401, other=200)
ENGINES_AND_RISK = Outcome(anonymous=401, trader=403, engine=200, risk=200, expired=401, other=403)
RISK = Outcome(anonymous=401, trader=403, engine=403, risk=200, expired=401, other=403)

FUND, ADL, MUTUAL = "/api/v1/insurance-fund", "/api/v1/adl", "/api/v1/mutual"

TABLE = {
    "GET /healthz": PUBLIC,
    "GET /readyz": PUBLIC,
    "GET /metrics": PUBLIC,
    "GET /openapi.json": PUBLIC,
    "GET /asyncapi.json": PUBLIC,
    "GET /schemas": PUBLIC,
    "GET /schemas/{name}": MISSING,
    "GET /docs": PUBLIC,
    "GET /docs/{name}": MISSING,
    "GET /docs/producers/{name}": MISSING,
    "GET /docs/reference/": PUBLIC,
    "GET /docs/reference/{name}": MISSING,
    "GET /": PUBLIC,
    "GET /page/{digest}/{name}": MISSING,
    "GET /ws": CONNECTING,
    "GET /api/v1/timestamp": PUBLIC,
    "GET /api/v1/contracts/active": PUBLIC,
    "GET /api/v1/contracts/{symbol}": PUBLIC,
    "GET /api/v1/ingest/cursor": ENGINES_AND_RISK,
    "POST /api/v1/ingest/events": ENGINES,
    "POST /api/v1/bullet-public": PUBLIC,
    "POST /api/v1/bullet-private": CONNECTORS,
    f"GET {FUND}": PUBLIC,
    f"GET {FUND}/{{symbol}}": PUBLIC,
    f"GET {FUND}/summary": PUBLIC,
    f"GET {FUND}/{{symbol}}/at": PUBLIC,
    f"GET {FUND}/{{symbol}}/audit": PUBLIC,
    f"GET {FUND}/{{symbol}}/policies": PUBLIC,
    f"GET {FUND}/{{symbol}}/candles": PUBLIC,
    f"GET {FUND}/{{symbol}}/chart": PUBLIC,
    "GET /api/v1/policies": PUBLIC,
    "GET /api/v1/summary/candles": PUBLIC,
    "GET /api/v1/summary/hours": PUBLIC,
    f"GET {FUND}/{{symbol}}/history": PUBLIC,
    f"GET {FUND}/{{symbol}}/history.csv": PUBLIC,
    f"GET {FUND}/{{symbol}}/entries/{{entry}}": PUBLIC,
    f"GET {FUND}/{{symbol}}/inventory": PUBLIC,
    f"GET {FUND}/{{symbol}}/target": PUBLIC,
    f"GET {FUND}/{{symbol}}/target/what-if": RISK,
    f"GET {ADL}/positions": OWN,
    f"GET {ADL}/deleveraged": OWN,
    f"GET {ADL}/deleveraged.csv": OWN,
    f"GET {ADL}/activity": PUBLIC,
    f"GET {ADL}/{{symbol}}/orders": PUBLIC,
    f"GET {ADL}/{{symbol}}/orders/{{adl}}": ENGINES_AND_RISK,
    f"GET {ADL}/{{symbol}}/orders/{{adl}}/rounds/{{round}}": PUBLIC,
    f"GET {ADL}/{{symbol}}/queue": PUBLIC,
    f"POST {ADL}/{{symbol}}/preview": PREVIEW,
    f"GET {MUTUAL}/pools": PUBLIC,
    f"GET {MUTUAL}/pools/{{pool}}": PUBLIC,
    f"GET {MUTUAL}/pools/{{pool}}/cycles": PUBLIC,
    f"GET {MUTUAL}/pools/{{pool}}/cycles.csv": PUBLIC,
    f"GET {MUTUAL}/account": OWN,
    f"GET {MUTUAL}/account/policies": OWN,
    f"GET {MUTUAL}/account/statement": OWN,
    f"GET {MUTUAL}/account/statement.csv": OWN,
    "GET /fapi/v1/adlQuantile": TRADERS,
    "GET /fapi/v1/insuranceBalance": PUBLIC,
    "GET /fapi/v1/symbolAdlRisk": PUBLIC,
    "GET /api/v4/futures/{settle}/auto_deleverages": TRADERS,
    "GET /api/v4/futures/{settle}/insurance": PUBLIC,
    "GET /api/v4/futures/{settle}/adl_risk_states": PUBLIC,
    "GET /api/v3/currencies": PUBLIC,
    "GET /api/v5/public/insurance-fund": PUBLIC,
    "GET /v5/market/insurance": PUBLIC,
    "GET /v5/market/adlAlert": PUBLIC,
}
"""HEAD is as GET."""


def callers():
    """The Authorization header of each kind of caller."""
    tokens = {
        "trader": signed("trader", account=ANNA),
        "engine": signed("engine"),
        "risk": signed("risk"),
        "expired": signed("risk", exp=now(-3600)),
        "other": signed("trader", account=BERT),
    }
    return {"anonymous": {}, **{name: {"Authorization": f"Bearer {token}"} for name, token in tokens.items()}}


async def test_every_caller_receives_the_status_in_the_table(world, applications, subtests):  # noqa: F811
    (application,) = applications
    seen = set()
    for method, template, path in routes_of(application):
        row = f"{'GET' if method == 'HEAD' else method} {template}"
        seen.add(row)
        for caller, headers in callers().items():
            with subtests.test(caller=caller, method=method, path=template):
                expected = getattr(TABLE[row], caller)
                options = {"params": QUERIES.get(template), "json": BODIES.get(template), "headers": headers}
                async with world.http.request(method, path, **options) as answer:
                    assert answer.status == expected
                    text = await answer.text()
                    if caller in {"anonymous", "expired", "other"}:
                        assert ANNA not in text + str(answer.headers)
    assert seen == TABLE.keys()


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW")


@pytest.mark.parametrize("caller", Outcome._fields)
async def test_other_methods_change_nothing(world, applications, caller, subtests):  # noqa: F811
    (application,) = applications
    headers = "".join(f"{name}: {value}\r\n" for name, value in callers()[caller].items())
    before = await ledger(world)
    for template, path in {template: path for _, template, path in routes_of(application)}.items():
        with subtests.test(path=template):
            for method in METHODS:
                if f"{method} {template}" in TABLE:
                    continue
                async with raw(world.url) as connection:
                    await connection.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 0\r\n\r\n")
                    status, _ = await connection.head()
                    assert status in {400, 404, 405}, method
    assert await ledger(world) == before


async def ledger(world):  # noqa: F811
    return [
        await world.pool.fetchval(f"SELECT count(*) FROM {table}")
        for table in ("entries", "contracts", "adl_orders", "rejected", "funds", "mutual_entries", "mutual_rejected")
    ]
