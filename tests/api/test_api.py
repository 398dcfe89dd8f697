import asyncio
import itertools
import time
from contextlib import asynccontextmanager

import aiohttp
import pytest
import redis
from eventually import eventually
from ledgers import fill, listing, owned
from tokens import bearer, with_secret
from yarl import URL

from fundsvc.api.contracts import ContractResources
from fundsvc.api.fund_cache import FundCache
from fundsvc.api.funds import FundResources
from fundsvc.api.health import DETAILS_HIDDEN, operations_endpoints
from fundsvc.api.http.access import AccessControl
from fundsvc.api.http.application import make_app
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.server import ServerError, serve
from fundsvc.api.http.shared_limits import local_windows
from fundsvc.api.stream_epochs import StreamEpochs
from fundsvc.api.valuation_inputs import appraising
from fundsvc.metrics import Metrics
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.readmodel.adl_books import open_adl_books
from fundsvc.readmodel.ledger_tail import open_tail
from fundsvc.store.adl import AdlReader
from fundsvc.store.database import open_pool
from fundsvc.store.reader import Reader
from fundsvc.store.statistics import Statistics
from fundsvc.store.stream_epochs import EpochStore
from fundsvc.streams.client import open_client, stream_key
from fundsvc.streams.producer import Producer

TS = 1_700_000_000_000
CONTRACTS = "/api/v1/contracts"
FUNDS = "/api/v1/insurance-fund"
HISTORY = "/api/v1/insurance-fund/XBTUSDTM/history"
PATHS = (
    "/api/v1/timestamp",
    f"{CONTRACTS}/active",
    f"{CONTRACTS}/XBTUSDTM",
    FUNDS,
    f"{FUNDS}/XBTUSDTM",
    f"{FUNDS}/summary",
    f"{FUNDS}/XBTUSDTM/at?ts=1700000000000",
    f"{FUNDS}/XBTUSDTM/candles",
    f"{FUNDS}/XBTUSDTM/chart",
    f"{FUNDS}/XBTUSDTM/history.csv",
    f"{FUNDS}/XBTUSDTM/entries/5",
    HISTORY,
    "/api/v1/ingest/cursor",
    "/healthz",
    "/readyz",
    "/metrics",
)


@pytest.fixture
async def ledger(config):
    """Five fills of XBTUSDTM: three surpluses, a flat one, and a shortfall that the fund pays in part."""
    async with owned(config) as owner:
        await owner.settle(
            [
                listing("XBTUSDTM", status="Open", maxPrice="1E+6", takerFeeRate=2.0e-4, expireDate=None),
                listing("ΔUSDTM"),
                listing("OLDUSDTM", status="Settled"),
                *(fill("XBTUSDTM", seq, points, TS + seq) for seq, points in ((1, 5), (2, 7), (3, 0), (5, 8), (9, -30))),
            ]
        )
        yield owner


@asynccontextmanager
async def serving(config, pings=None, key=stream_key):
    """Serves the API over the configured database; yields a client."""
    metrics = Metrics()
    async with (
        open_pool(config.database.dsn, 4) as pool,
        open_client(config.stream) as stream,
        open_adl_books(config, pool, stream, metrics) as books,
        appraising(pool, books, config.http.rate_seconds_max, Metrics()) as appraiser,
        open_tail(config, metrics) as tail,
    ):
        reader = Reader(pool)
        operations = operations_endpoints(reader, metrics, pings or {}, needed=pings or ())
        funds = FundResources(reader, tail, Statistics(pool), AdlReader(pool), appraiser, config.policy.of)
        epochs = StreamEpochs(EpochStore(pool), Producer(stream, config.stream.partitions), config.stream.partitions)
        middleware = Middleware(metrics, AccessControl(config.http, with_secret(config).token, *local_windows(config.http)))
        routes = (
            *ContractResources(reader, key, epochs, MutualReader(pool)).routes,
            *FundCache(tail, funds.answer).routes,
            *funds.routes,
        )
        app = make_app(middleware, (*operations, *routes))
        async with serve(app, "127.0.0.1", 0) as url, aiohttp.ClientSession(url, headers=bearer("engine")) as client:
            await eventually(lambda: shown(client))
            yield client


async def shown(client):
    """Returns whether the API answers with the funds."""
    return (await ask(client, FUNDS))[0] == 200


@pytest.fixture
async def client(config, ledger):
    async with serving(config) as client:
        yield client


async def ask(client, path, method="GET", **parameters):
    async with client.request(method, path, params=parameters) as answer:
        return answer.status, await answer.json()


async def data(client, path, **parameters):
    status, body = await ask(client, path, **parameters)
    assert (status, body["code"]) == (200, "200000"), body
    return body["data"]


async def test_timestamp_is_the_current_time_in_milliseconds(client):
    before = time.time_ns() // 1_000_000
    assert before <= await data(client, "/api/v1/timestamp") <= time.time_ns() // 1_000_000


async def test_contract_has_its_listed_fields_followed_by_ours(client):
    contract = await data(client, f"{CONTRACTS}/XBTUSDTM")
    assert list(contract.items()) == [
        ("symbol", "XBTUSDTM"),
        ("settleCurrency", "USDT"),
        ("multiplier", 1),
        ("isInverse", False),
        ("status", "Open"),
        ("maxPrice", "1E+6"),
        ("takerFeeRate", 0.0002),
        ("expireDate", None),
        ("generation", 1),
        ("partition", 0),
        ("settleDecimals", 8),
        ("priceDecimals", 12),
        ("suspended", False),
        ("closed", False),
        ("closedAt", None),
        ("settlementPrice", None),
    ]


async def test_active_contracts_have_status_open(client):
    assert [contract["symbol"] for contract in await data(client, f"{CONTRACTS}/active")] == ["XBTUSDTM", "ΔUSDTM"]
    assert (await data(client, f"{CONTRACTS}/OLDUSDTM"))["status"] == "Settled"


async def test_symbol_of_the_path_may_be_repeated_in_the_query(client):
    assert (await data(client, f"{CONTRACTS}/XBTUSDTM", symbol="XBTUSDTM"))["symbol"] == "XBTUSDTM"
    assert (await ask(client, f"{CONTRACTS}/XBTUSDTM", symbol="OLDUSDTM"))[0] == 400


async def with_open_interest(client):
    """Returns the fund once the books are loaded, which have its open interest."""
    fund = await data(client, f"{FUNDS}/XBTUSDTM")
    return fund if fund["openInterest"] is not None else None


async def test_fund_shows_balance_and_outstanding_amount(client):
    fund = await eventually(lambda: with_open_interest(client))
    (last,) = (await data(client, HISTORY, maxCount=1))["dataList"]
    assert abs(fund.pop("updatedAt") - time.time() * 1000) < 60_000
    assert abs(fund.pop("asOf") - time.time() * 1000) < 10_000
    assert fund == {
        "symbol": "XBTUSDTM",
        "generation": 1,
        "status": "Open",
        "closed": False,
        "settleCurrency": "USDT",
        "balance": "0",
        "outstanding": "10",
        "payable": "0",
        "guardLine": None,
        "equity": None,
        "unrealisedPnl": None,
        "inventory": [],
        "state": "uncovered",
        "suspended": False,
        "entry": 5,
        "seq": 9,
        "head": last["hash"],
        "balanceUsdt": "0",
        "balanceBase": None,
        "balanceBaseReason": "the listing of XBTUSDTM has no baseCurrency",
        "baseCurrency": None,
        "change24h": "0",
        "change7d": "0",
        "peak8h": "0",
        "drawdown8h": 0.0,
        "equityDrawdown": None,
        "openInterest": 0,
        "balanceToOpenInterest": None,
        "target": None,
        "fullness": None,
        "leverageCap": None,
    }


async def test_list_of_funds_includes_closed_contracts_on_request(client):
    assert [fund["symbol"] for fund in await data(client, FUNDS)] == ["XBTUSDTM", "ΔUSDTM"]
    funds = await data(client, FUNDS, closed="true")
    assert [(fund["symbol"], fund["state"]) for fund in funds] == [
        ("OLDUSDTM", "ok"),
        ("XBTUSDTM", "uncovered"),
        ("ΔUSDTM", "ok"),
    ]
    assert await data(client, f"{FUNDS}/ΔUSDTM") == funds[2]


async def test_entry_shows_amounts_and_fill(client):
    (entry,) = (await data(client, HISTORY, maxCount=1))["dataList"]
    assert abs(entry.pop("recordedAt") - time.time() * 1000) < 60_000
    assert len(bytes.fromhex(entry.pop("hash"))) == 32
    assert entry == {
        "symbol": "XBTUSDTM",
        "generation": 1,
        "entry": 5,
        "seq": 9,
        "kind": "shortfall",
        "change": "-20",
        "balance": "0",
        "uncovered": "10",
        "repaid": "0",
        "side": "sell",
        "lots": 1,
        "price": "970",
        "bankruptcyPrice": "1000",
        "tradeId": "trade-9",
        "orderId": "order-9",
        "ts": TS + 9,
        "keyId": "",
        "commitment": "",
        "closes": 0,
        "forced": False,
    }


PAGES = [
    ({}, [5, 4, 3, 2, 1], False),
    ({"maxCount": 5}, [5, 4, 3, 2, 1], False),
    ({"maxCount": 4}, [5, 4, 3, 2], True),
    ({"maxCount": 500}, [5, 4, 3, 2, 1], False),
    ({"maxCount": 2, "offset": 3}, [2, 1], False),
    ({"maxCount": 2, "offset": 4}, [3, 2], True),
    ({"offset": 1}, [], False),
    ({"offset": 0}, [], False),
    ({"forward": "true"}, [1, 2, 3, 4, 5], False),
    ({"forward": "true", "maxCount": 3, "offset": 1}, [2, 3, 4], True),
    ({"forward": "true", "maxCount": 3, "offset": 2}, [3, 4, 5], False),
    ({"forward": "true", "offset": 2**63 - 2}, [], False),
    ({"kind": "surplus"}, [4, 2, 1], False),
    ({"kind": "surplus", "maxCount": 2}, [4, 2], True),
    ({"kind": "flat"}, [3], False),
    ({"kind": "shortfall"}, [5], False),
    ({"kind": "refund"}, [], False),
    ({"startAt": TS + 3}, [5, 4, 3], False),
    ({"endAt": TS + 3}, [3, 2, 1], False),
    ({"startAt": TS + 2, "endAt": TS + 5, "forward": "true"}, [2, 3, 4], False),
    ({"startAt": TS + 2, "endAt": TS + 5, "maxCount": 2}, [4, 3], True),
    ({"startAt": TS + 2, "endAt": TS + 5, "kind": "surplus"}, [4, 2], False),
    ({"startAt": 2**63 - 1}, [], False),
]


async def test_page_has_the_requested_entries_and_has_more(client, subtests):
    for parameters, entries, more in PAGES:
        with subtests.test(parameters=parameters):
            page = await data(client, HISTORY, **parameters)
            assert ([entry["entry"] for entry in page["dataList"]], page["hasMore"]) == (entries, more)


KINDS = "carry_in, carry_out, cover, deleverage, flat, refund, shortfall, surplus, takeover"
WRONG = [
    (HISTORY, {"maxCount": "0"}, "maxCount is '0': it must be an integer from 1 to 500"),
    (HISTORY, {"maxCount": "501"}, "maxCount is '501': it must be an integer from 1 to 500"),
    (HISTORY, {"maxCount": "-1"}, "maxCount is '-1': it must be an integer from 1 to 500"),
    (HISTORY, {"maxCount": "ten"}, "maxCount is 'ten': it must be an integer from 1 to 500"),
    (HISTORY, {"maxCount": ""}, "maxCount is '': it must be an integer from 1 to 500"),
    (HISTORY, {"maxCount": "9" * 70}, f"maxCount is '{'9' * 60}...': it must be an integer from 1 to 500"),
    (HISTORY, {"offset": "-1"}, "offset is '-1': it must be an integer from 0 to 9223372036854775806"),
    (HISTORY, {"offset": str(2**63)}, f"offset is '{2**63}': it must be an integer from 0 to 9223372036854775806"),
    (HISTORY, {"offset": "9" * 5000}, f"offset is '{'9' * 60}...': it must be an integer from 0 to 9223372036854775806"),
    (HISTORY, {"offset": "null"}, "offset is 'null': it must be an integer from 0 to 9223372036854775806"),
    (HISTORY, {"startAt": "x"}, "startAt is 'x': it must be an integer from 0 to 9223372036854775807"),
    (HISTORY, {"endAt": "1.5"}, "endAt is '1.5': it must be an integer from 0 to 9223372036854775807"),
    (HISTORY, {"startAt": "5", "endAt": "4"}, "startAt is 5: it must not be after endAt, 4"),
    (HISTORY, {"forward": "yes"}, "forward is 'yes': it must be true or false"),
    (
        HISTORY,
        {"kind": "deposit"},
        f"kind is 'deposit': it must be one of {KINDS}",
    ),
    (
        HISTORY,
        {"kind": "null"},
        f"kind is 'null': it must be one of {KINDS}",
    ),
    (
        HISTORY,
        {"max_count": "5"},
        "'max_count' is not a parameter of this path; allowed: offset, forward, maxCount, startAt, endAt, kind, numbers",
    ),
    (FUNDS, {"symbol": "XBTUSDTM"}, "'symbol' is not a parameter of this path; allowed: numbers, closed"),
    ("/api/v1/timestamp", {"\n": ""}, "'\\n' is not a parameter of this path; allowed: numbers"),
]


async def test_invalid_parameter_is_named_with_value_and_permitted_values(client, subtests):
    for path, parameters, message in WRONG:
        with subtests.test(path=path, parameters=parameters):
            assert await ask(client, path, **parameters) == (400, {"code": "400100", "msg": message})


async def test_repeated_parameter_is_rejected(client):
    async with client.get(f"{HISTORY}?kind=flat&kind=surplus") as answer:
        assert (answer.status, await answer.json()) == (400, {"code": "400100", "msg": "kind is given more than once"})


UNLISTED = ("NOPE", "xbtusdtm", "ΔX", "%CE", "%00", "%FF", "a%2Fb", "..%2Factive", "%F0%9F%92%A9", "A" * 3000)


async def test_unlisted_contract_is_not_found(client, subtests):
    for symbol in UNLISTED:
        for path in (f"{CONTRACTS}/{symbol}", f"{FUNDS}/{symbol}", f"{FUNDS}/{symbol}/history"):
            with subtests.test(path=path):
                status, body = await ask(client, URL(path, encoded=symbol.isascii()))
                assert (status, body["code"]) == (404, "404000")
                assert body["msg"].endswith("is listed")


async def test_unknown_path_is_not_found(client):
    for path in ("/", "/api/v1/nope", f"{FUNDS}/", f"{HISTORY}/1"):
        assert await ask(client, path) == (404, {"code": "404000", "msg": f"{path} does not exist"})


async def test_read_only_paths_reject_other_methods(client):
    for method, path in itertools.product(("POST", "PUT", "DELETE", "PATCH"), PATHS):
        async with client.request(method, path) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
            assert (await answer.json())["code"] == "405000"


async def test_internal_error_hides_its_details(config, ledger):
    async with serving(config, key={}.__getitem__) as client:
        assert await ask(client, "/api/v1/ingest/cursor") == (500, {"code": "500000", "msg": "internal error"})


async def test_cursor_shows_settled_messages_and_sequences(config, client, ledger):
    with redis.Redis.from_url(config.stream.url) as stream:
        run_id = stream.info("server")["run_id"]
    assert await data(client, "/api/v1/ingest/cursor") == {
        "streamEpoch": 1,
        "partitions": [{"partition": 0, "stream": "fundsvc:{0}:in", "lastId": ledger.offset.last_id, "runId": run_id}],
        "contracts": [
            {"symbol": "OLDUSDTM", "partition": 0, "seq": 0},
            {"symbol": "XBTUSDTM", "partition": 0, "seq": 9},
            {"symbol": "ΔUSDTM", "partition": 0, "seq": 0},
        ],
    }


async def test_public_paths_show_no_accounts(client):
    for path in PATHS:
        async with client.get(path) as answer:
            text = await answer.text()
            assert answer.status == 200
            assert "secret" not in text
            assert "account" not in text.replace("fundsvc_mutual_unfunded_accounts", "a number")


async def test_process_is_ready_when_all_parts_answer(config, ledger):
    async def healthy():
        pass

    async with serving(config, {"stream": healthy}) as client:
        status, body = await ask(client, "/readyz")
    assert (status, body["status"]) == (200, "ok")
    assert [check["name"] for check in body["checks"]] == ["database", "schema", "owners", "halted", "stream"]
    assert all(check["ok"] and check["error"] == "" and check["durationMs"] >= 0 for check in body["checks"])


async def test_readiness_names_failing_parts_with_error_and_duration(config):
    async def unreachable():
        raise ConnectionError("the stream is unreachable")

    async def stuck():
        await asyncio.Event().wait()

    async with serving(config, {"stream": unreachable, "silent": stuck}) as client:
        status, body = await ask(client, "/readyz")
        assert await ask(client, "/healthz") == (200, {"status": "ok"})
    checks = {check["name"]: check for check in body["checks"]}
    assert (status, body["status"]) == (503, "unavailable")
    assert {name for name, check in checks.items() if check["needed"]} == {"database", "schema", "stream", "silent"}
    assert checks["database"]["ok"]
    assert checks["schema"]["ok"]
    assert (checks["owners"]["ok"], checks["owners"]["error"]) == (False, "no engine owns partition 0")
    assert (checks["stream"]["ok"], checks["stream"]["error"]) == (False, DETAILS_HIDDEN)
    assert (checks["silent"]["ok"], checks["silent"]["error"]) == (False, "no answer within 2 s")
    assert 1900 < checks["silent"]["durationMs"] < 4000


async def test_reading_process_is_ready_without_engines_and_stream(config):
    async def unreachable():
        raise ConnectionError("the stream is unreachable")

    async with open_pool(config.database.dsn, 1) as pool:
        metrics = Metrics()
        app = make_app(Middleware(metrics), operations_endpoints(Reader(pool), metrics, {"stream": unreachable}))
        async with serve(app, "127.0.0.1", 0) as url, aiohttp.ClientSession(url) as client:
            status, body = await ask(client, "/readyz")
    assert (status, body["status"]) == (200, "ok")
    assert {check["name"] for check in body["checks"] if not check["ok"]} == {"owners", "stream"}


async def test_requests_are_counted_by_route_template(client):
    await data(client, f"{FUNDS}/XBTUSDTM")
    await data(client, f"{FUNDS}/ΔUSDTM")
    await ask(client, f"{FUNDS}/NOPE")
    await ask(client, "/made/up")
    async with client.get("/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = await answer.text()
    assert f'fundsvc_http_requests_total{{route="{FUNDS}/{{symbol}}",status="200"}} 2.0' in text
    assert f'fundsvc_http_requests_total{{route="{FUNDS}/{{symbol}}",status="404"}} 1.0' in text
    assert 'fundsvc_http_requests_total{route="unmatched",status="404"} 1.0' in text
    assert f'fundsvc_http_seconds_count{{route="{FUNDS}/{{symbol}}"}} 3.0' in text
    assert "NOPE" not in text
    assert "made" not in text


async def test_engine_without_api_serves_only_operations(config):
    async with open_pool(config.database.dsn, 1) as pool:
        metrics = Metrics()
        app = make_app(Middleware(metrics), operations_endpoints(Reader(pool), metrics, {}))
        async with serve(app, "127.0.0.1", 0) as url, aiohttp.ClientSession(url) as client:
            assert await ask(client, "/healthz") == (200, {"status": "ok"})
            assert (await ask(client, FUNDS))[0] == 404


async def test_unreachable_database_is_answered_with_503_until_it_returns(client, servers):
    assert (await ask(client, FUNDS))[0] == 200
    servers.postgres.stop()
    try:
        for path in PATHS[1:12]:
            # The API answers from memory for a short time.
            status, body = await eventually(lambda path=path: failed(client, path))
            assert (status, body["code"]) == (503, "503000"), path
            assert body["msg"] == "the database is unreachable: retry shortly"
        assert (await ask(client, "/api/v1/timestamp"))[0] == 200
        assert (await ask(client, "/readyz"))[0] == 503
        assert (await ask(client, "/healthz"))[0] == 200
    finally:
        servers.postgres.start()

    await eventually(lambda: shown(client))


async def failed(client, path):
    status, body = await ask(client, path)
    return (status, body) if status != 200 else None


async def test_shutdown_is_quick_with_idle_connections_and_a_running_request(config):
    begun = asyncio.Event()

    async def stuck():
        begun.set()
        await asyncio.Event().wait()

    async with open_pool(config.database.dsn, 1) as pool, aiohttp.ClientSession() as client:
        metrics = Metrics()
        operations = operations_endpoints(Reader(pool), metrics, {"stuck": stuck})
        async with serve(make_app(Middleware(metrics), operations), "127.0.0.1", 0) as url:
            async with client.get(f"{url}/healthz") as idle:
                assert idle.status == 200
            running = asyncio.create_task(client.get(f"{url}/readyz"))
            await begun.wait()
            stopping = time.monotonic()
        assert time.monotonic() - stopping < 1
        with pytest.raises(aiohttp.ClientError):
            await running


async def test_occupied_port_raises_server_error():
    async with serve(aiohttp.web.Application(), "127.0.0.1", 0) as url:
        port = URL(url).port
        with pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
            async with serve(aiohttp.web.Application(), "127.0.0.1", port):
                pass


async def test_ipv6_address_is_bracketed_in_the_url():
    async with serve(aiohttp.web.Application(), "::1", 0) as url, aiohttp.ClientSession(url) as client:
        assert (await client.get("/")).status == 404
