import random
import time

import msgspec
import pytest
from conftest import with_section
from escalations import BEGINNING, SYMBOL, TS, ended, executed, shortfall
from eventually import eventually
from ledgers import clocked, fill, listing, owned
from test_adl_api import world_of
from test_openapi import HISTORY, config  # noqa: F401 - a fixture
from tokens import bearer

from fundsvc.api import adl
from fundsvc.api.venues import okx
from fundsvc.core.events import TIMESTAMP_MAX
from fundsvc.store.database import SQL, open_pool
from fundsvc.store.rollups import condense
from fundsvc.store.venue_histories import DAY_MS, DayRow, Histories

VENUES = ("binance", "bybit", "gate", "okx")
OKX = "/api/v5/public/insurance-fund"
PATHS = {
    "binance": "/fapi/v1/insuranceBalance",
    "bybit": "/v5/market/insurance",
    "gate": "/api/v4/futures/usdt/insurance",
    "okx": f"{OKX}?instType=SWAP&uly={SYMBOL}",
}


def with_venues(config, *venues):  # noqa: F811
    return with_section(config, "http", venues=venues)


@pytest.fixture
async def world(config):  # noqa: F811
    async with world_of(with_venues(config, *VENUES)) as world:
        await world.send(*HISTORY)
        yield world


async def get(world, path, **parameters):
    async with world.http.get(path, params=parameters) as answer:
        return answer.status, await answer.json()


async def changes(world, **parameters):
    status, body = await get(world, OKX, instType="SWAP", instFamily=SYMBOL, **parameters)
    assert (status, body["code"]) == (200, "0"), body
    return body["data"][0]["details"]


@pytest.mark.parametrize("venues", [(), ("gate",), ("okx", "bybit")])
async def test_only_configured_venues_are_served(config, venues):  # noqa: F811
    async with world_of(with_venues(config, *venues)) as world:
        await world.send(*HISTORY)
        found = {venue: (await get(world, path))[0] for venue, path in PATHS.items()}
        assert found == {venue: 200 if venue in venues else 404 for venue in VENUES}


async def test_okx_pages_do_not_split_changes_of_the_same_time(world):
    dice = random.Random(7)
    await world.send(*(shortfall(seq, 1, 39000 + dice.randrange(-9, 9)) for seq in range(5, 9)))
    events = [shortfall(seq, 1, 39000 + dice.randrange(-90, 90)) for seq in range(9, 60)]
    seconds = sorted(dice.randrange(20) for _ in events)
    await world.send(*(replaced(event, TS + 10_000 * second) for event, second in zip(events, seconds, strict=True)))
    every = await changes(world)
    assert len(every) > 50
    for limit in (8, 13, 30):
        found = page = await changes(world, limit=limit)
        while page:
            assert len(page) <= limit
            page = await changes(world, limit=limit, after=page[-1]["ts"])
            found = found + page
        assert found == every
    middle = int(every[len(every) // 2]["ts"])
    newer = [change for change in every if int(change["ts"]) > middle]
    assert await changes(world, before=middle) == newer
    assert await changes(world, before=TIMESTAMP_MAX) == await changes(world, after=0) == []
    assert await changes(world, after=TIMESTAMP_MAX) == await changes(world, before=0) == every


async def every_change(world, limit, **parameters):
    """Returns all changes, read page by page as OKX's clients do."""
    found = page = await changes(world, limit=limit, **parameters)
    while page:
        page = await changes(world, limit=limit, after=page[-1]["ts"], **parameters)
        found = found + page
    return found


@pytest.mark.parametrize("limit", [1, 100])
async def test_okx_page_contains_all_changes_of_one_time(config, limit):  # noqa: F811
    async with world_of(with_venues(config, "okx")) as world:
        await world.send(listing(SYMBOL), *(fill(SYMBOL, seq, seq, TS) for seq in range(1, 151)), fill(SYMBOL, 151, -7, TS + 1))
        found = await every_change(world, limit)
        assert len(found) == 151
        assert {change["balance"] for change in found} == {str(n * (n + 1) // 2) for n in range(1, 151)} | {"11318"}
        deposits = await every_change(world, limit, type="liquidation_balance_deposit")
        assert deposits == [change for change in found if change["type"] == "liquidation_balance_deposit"]
        assert await changes(world, limit=limit, before=TS) == found[:1]


@pytest.mark.parametrize("ahead", [-3_600_000, 90_000])
@pytest.mark.parametrize("limit", [7, 100])
async def test_okx_pages_contain_entries_whose_times_are_out_of_order(config, limit, ahead):  # noqa: F811
    async with world_of(with_venues(config, "okx")) as world:
        odd = {seq: TS + ahead - seq for seq in (1, 40, 41, 120, 149, 150)}
        await world.send(listing(SYMBOL), *(fill(SYMBOL, seq, 1, odd.get(seq, TS + seq // 50)) for seq in range(1, 151)))
        found = await every_change(world, limit)
        assert sorted(int(change["balance"]) for change in found) == list(range(1, 151))
        assert [int(change["ts"]) for change in found] == sorted((int(change["ts"]) for change in found), reverse=True)


async def test_okx_reports_too_many_changes_of_one_time(config, monkeypatch):  # noqa: F811
    monkeypatch.setattr(okx, "CHANGES_MAX", 20)
    async with world_of(with_venues(config, "okx")) as world:
        await world.send(listing(SYMBOL), *(fill(SYMBOL, seq, 1, TS) for seq in range(1, 21)))
        assert len(await changes(world, limit=5)) == 20
        await world.send(fill(SYMBOL, 21, 1, TS))
        status, body = await get(world, OKX, instType="SWAP", instFamily=SYMBOL, limit=5)
        assert (status, body["code"]) == (400, "51000")
        assert f"over 20 changes have the time {TS}" in body["msg"]


def replaced(event, ts):
    return msgspec.structs.replace(event, ts=ts)


async def test_okx_reports_begin_and_end_of_adl(world):
    now = time.time_ns() // 1_000_000
    await world.send(executed(5, 1, "secret-bert", 30), *(ended(seq, 1) for seq in range(6, 16)))
    turns = await changes(world, type="adl")
    assert [turn["adlType"] for turn in turns] == ["adl_end", "bal_adl_start"]
    assert abs(int(turns[0]["ts"]) - now) < 60_000
    assert int(turns[1]["ts"]) == TS + 1000
    assert await changes(world, type="adl", after=turns[0]["ts"]) == turns[1:]
    assert await changes(world, type="platform_revenue") == []
    assert (await get(world, OKX, instType="FUTURES", uly=SYMBOL))[1]["data"] == []
    assert (await get(world, OKX, instType="SWAP", uly=SYMBOL, ccy="XBT"))[1]["data"] == []


async def test_each_venue_reports_errors_in_its_own_format(world):
    wrong = {
        ("/v5/market/insurance", "coin", "x" * 17): (200, {"retCode": 10001}),
        ("/v5/market/adlAlert", "symbol", "NONE"): (200, {"retCode": 10001}),
        ("/fapi/v1/insuranceBalance", "symbol", "NONE"): (400, {"code": -1121}),
        ("/fapi/v1/symbolAdlRisk", "pair", "NONE"): (400, {"code": -1130}),
        ("/api/v4/futures/usdt/insurance", "limit", "0"): (400, {"label": "INVALID_PARAM_VALUE"}),
        ("/api/v4/futures/USDT/adl_risk_states", None, None): (404, {"label": "CONTRACT_NOT_FOUND"}),
        (OKX, "type", "adl"): (400, {"code": "50014"}),
        (OKX, "instType", "SPOT"): (400, {"code": "51000"}),
        (f"{OKX}?instType=SWAP&uly={SYMBOL}", "before", str(2**63 - 1)): (400, {"code": "51000"}),
    }
    for (path, name, value), (expected, part) in wrong.items():
        status, body = await get(world, path, **({name: value} if name else {}))
        assert (status, body | part) == (expected, body), (path, body)
    status, body = await get(world, OKX, instType="SWAP", uly="NONE")
    assert (status, body["code"]) == (400, "51001")


async def test_each_venue_reports_the_rate_limit_in_its_own_format(config):  # noqa: F811
    limited = with_section(with_venues(config, *VENUES), "http", requests_max=1, requests_seconds=3600.0)
    errors = {
        "binance": (429, {"code": -1003}),
        "bybit": (200, {"retCode": 10006}),
        "gate": (429, {"label": "TOO_MANY_REQUESTS"}),
        "okx": (429, {"code": "50011"}),
    }
    async with world_of(limited) as world:
        await get(world, "/api/v1/timestamp")
        for venue, (expected, part) in errors.items():
            async with world.http.get(PATHS[venue]) as answer:
                body = await answer.json()
                assert (answer.status, body | part) == (expected, body), (venue, body)
                assert 0 < int(answer.headers["Retry-After"]) <= 3600
                assert answer.headers["gw-ratelimit-remaining"] == "0"
                ends = answer.headers.get("X-Bapi-Limit-Reset-Timestamp")
                assert (ends is not None) == (venue == "bybit")
                assert not ends or abs(int(ends) - 3_600_000 - time.time() * 1000) < 60_000


async def test_positions_of_an_account_require_its_token(world):
    paths = {"/fapi/v1/adlQuantile": "symbol", "/api/v4/futures/usdt/auto_deleverages": "contract"}
    for path, name in paths.items():
        assert (await get(world, path))[0] == 401
        async with world.http.get(path, headers=bearer("risk")) as answer:
            assert answer.status == 403
        for account, symbol, count in (("secret-anna", SYMBOL, 1), ("secret-anna", "NONE", 0), ("nobody", SYMBOL, 0)):
            headers = bearer("trader", account=account)
            async with world.http.get(path, params={name: symbol}, headers=headers) as answer:
                assert (answer.status, len(await answer.json())) == (200, count)


async def test_gate_answers_all_reductions_of_an_account(config, monkeypatch):  # noqa: F811
    monkeypatch.setattr(adl, "STREAMED_ROWS", 1)
    async with world_of(with_venues(config, "gate")) as world:
        await world.send(*BEGINNING, shortfall(1, 20), executed(2, 1, "secret-anna", 20))
        await world.send(shortfall(3, 20), executed(4, 2, "secret-anna", 20))

        async def orders(**parameters):
            path, headers = "/api/v4/futures/usdt/auto_deleverages", bearer("trader", account="secret-anna")
            async with world.http.get(path, params=parameters, headers=headers) as answer:
                return [row["order_id"] for row in await answer.json()]

        assert await orders() == [2, 1]
        assert [await orders(limit=1, offset=offset) for offset in (0, 1, 2)] == [[2], [1], []]
        assert await orders(contract="NONE") == []


async def test_each_venue_reports_an_unreachable_database(world, servers):
    servers.postgres.stop()
    try:
        for path, status, code in (
            (f"{OKX}?instType=SWAP&uly={SYMBOL}", 503, "50001"),
            ("/api/v4/futures/usdt/insurance", 503, "SERVER_ERROR"),
            ("/fapi/v1/symbolAdlRisk", 503, -1001),
            ("/v5/market/insurance", 200, 10016),
        ):

            async def reports_outage(path=path, status=status, code=code):
                found, body = await get(world, path)
                return found == status and code in body.values()

            await eventually(reports_outage)
    finally:
        servers.postgres.start()


@pytest.mark.parametrize("condensed", [0, 40, 200])
async def test_daily_balances_of_a_currency_are_sums_over_its_contracts(config, condensed):  # noqa: F811
    dice = random.Random(condensed)
    today = 1_700_000_000_000 // DAY_MS * DAY_MS
    fills = []
    for seq in range(1, 201):
        ts = today - (200 - seq) * DAY_MS // 20 - dice.randrange(2 * DAY_MS)
        fills.append(fill(dice.choice(("AAA", "BBB", "CCC")), seq, dice.randrange(-20, 60), ts))
    async with owned(config) as owner, open_pool(config.database.dsn, 2) as pool:
        await owner.settle([listing("AAA"), listing("BBB"), listing("CCC", settleCurrency="XBT")])
        await owner.settle(fills[:condensed])
        await condense(pool, 0)
        await owner.settle(fills[condensed:])
        found = [
            await pool.fetch("SELECT * FROM entries WHERE symbol = $1 ORDER BY entry", symbol) for symbol in ("AAA", "BBB")
        ]
        moved = [(clock, row["change"]) for rows in found for clock, row in clocked(rows)]
        for count in (1, 4, 30):
            days = [today - back * DAY_MS for back in reversed(range(count))]
            held = [sum(change for clock, change in moved if min(clock, today) < day + DAY_MS) for day in days]
            expected = [DayRow(day, balance, 8) for day, balance in zip(days, held, strict=True)]
            while expected and not expected[0].balance:
                expected.pop(0)
            assert await Histories(pool).days("USDT", count, today + 1) == expected


async def test_sums_of_a_currency_are_exact_across_contracts_with_different_decimals(config):  # noqa: F811
    decimals = {"AAA": 10, "BBB": 8, "CCC": 0, "DDD": 18}
    for symbol, number in decimals.items():
        async with owned(with_section(config, "currency", decimals={"USDT": number})) as owner:
            await owner.settle([listing(symbol), fill(symbol, 1, 7), fill(symbol, 2, -2), fill(symbol, 3, -6)])
            await owner.settle([fill(symbol, 4, 1 if symbol == "DDD" else 5)])
    async with open_pool(config.database.dsn, 2) as pool:
        for condensed in (False, True):
            if condensed:
                await condense(pool, 0)
            day = (await Histories(pool).days("USDT", 3, time.time_ns() // 1_000_000))[-1]
            assert (day.balance, day.decimals) == (12 * 10**18, 18)
        gains = {row["kind"]: row for row in await pool.fetch(SQL["totals_since"], ["AAA"], [2])}
        assert {row["decimals"] for row in gains.values()} == {18}
        assert (gains["surplus"]["entries"], gains["surplus"]["credited"]) == (7, 33 * 10**18)
        assert (gains["shortfall"]["entries"], gains["shortfall"]["paid"]) == (7, 26 * 10**18)
    async with world_of(with_venues(config, *VENUES)) as world:
        summary = await world.data("/api/v1/insurance-fund/summary")
        (currency,) = summary["currencies"]
        assert (currency["balance"], currency["outstanding"], summary["totalUsdt"]) == ("12", "0", "12")
        _, body = await get(world, OKX, instType="SWAP", uly="AAA")
        assert body["data"][0]["total"] == "12"
        _, body = await get(world, "/v5/market/insurance")
        assert sorted(pool["balance"] for pool in body["result"]["list"]) == ["0", "4", "4", "4"]
