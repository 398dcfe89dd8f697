import itertools
import time
from contextlib import asynccontextmanager
from fractions import Fraction
from math import floor, inf

import aiohttp
import msgspec
import pytest
from commands import engine_process, fundsvc
from conftest import with_section
from escalations import BEGINNING, LISTING, SYMBOL, TS, crowd, ended, executed, mark, position, ranks, shortfall, undisturbed
from eventually import eventually
from ledgers import listing
from test_adl_books import settled
from test_engine import running
from tokens import bearer, with_secret

from fundsvc.app import http_side
from fundsvc.core.policy import DrawdownGuard, Policy
from fundsvc.metrics import Metrics
from fundsvc.store.database import open_pool
from fundsvc.streams.client import open_client, stream_key
from fundsvc.streams.producer import Producer

ADL = f"/api/v1/adl/{SYMBOL}"
FUND = f"/api/v1/insurance-fund/{SYMBOL}"
FILL = {"side": "sell", "lots": 100, "price": "38900", "bankruptcyPrice": "39000"}


@pytest.fixture
def config(config):
    return with_secret(with_section(with_section(config, "engine", lease_seconds=0.6), "http", port=0, book_seconds=0.05))


class World:
    """A producer of events, and a client of the API."""

    def __init__(self, config, pool, client, url, http):
        self.pool, self.url, self.http = pool, url, http
        self._client = client
        self._producer = Producer(client, config.stream.partitions)

    async def send(self, *events):
        """Appends events; returns after they are settled and the API shows them."""
        await self._producer.append(events)
        await settled(self._client, self.pool)
        newest = (await self._client.xrevrange(stream_key(0), count=1))[0][0].decode()
        await eventually(lambda: self._shows_books(newest))
        await eventually(self._shows_funds)

    async def _shows_books(self, last_id):
        status, body = await self.ask(f"{ADL}/queue")
        return status == 404 or (status == 200 and body["data"]["lastId"] == last_id)

    async def _shows_funds(self):
        status, body = await self.ask("/api/v1/insurance-fund")
        ledger = await self.pool.fetch("SELECT symbol, seq FROM funds")
        return status == 200 and {(fund["symbol"], fund["seq"]) for fund in body["data"]} == set(map(tuple, ledger))

    async def ask(self, path, json=None, **parameters):
        method = "GET" if json is None else "POST"
        async with self.http.request(method, path, params=parameters, json=json, headers=bearer("risk")) as answer:
            text = await answer.text()
            if "/positions" not in path and not path.endswith("/deleveraged"):
                assert "secret" not in text
            return answer.status, await answer.json()

    async def data(self, path, json=None, **parameters):
        status, body = await self.ask(path, json, **parameters)
        assert (status, body["code"]) == (200, "200000"), body
        return body["data"]

    async def orders(self, **parameters):
        return (await self.data(f"{ADL}/orders", **parameters))["dataList"]

    async def preview(self, **changes):
        return await self.data(f"{ADL}/preview", {**FILL, **changes})


@asynccontextmanager
async def world_of(config, tls=True):
    async with (
        open_pool(config.database.dsn, 4) as pool,
        open_client(config.stream) as client,
        running(config),
        http_side(config, Metrics(), pool, client, engine=None, public=True) as url,
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=tls)) as http,
    ):
        yield World(config, pool, client, url, http)


def with_policy(config, **keys):
    return with_section(config, "policy", default=Policy(**keys))


@pytest.fixture
async def world(config):
    async with world_of(config) as world:
        await world.send(*BEGINNING)
        yield world


async def test_order_shows_need_allocations_and_result(world):
    await world.send(shortfall(1))
    (order,) = await world.orders()
    assert abs(order.pop("updatedAt") - order["ts"]) > 0
    (round_,) = order.pop("rounds")
    assert order == {
        "symbol": SYMBOL,
        "generation": 1,
        "adl": 1,
        "origin": "shortfall",
        "cause": 1,
        "closes": 0,
        "state": "open",
        "reduce": "short",
        "price": "39000",
        "deficit": "10",
        "deficitLots": 100,
        "lotsNeeded": 100,
        "lotsTaken": 0,
        "lotsUnwound": 0,
        "needed": "10",
        "taken": "0",
        "uncovered": "10",
        "recovered": "0",
        "refund": "0",
        "rest": "10",
        "round": 1,
        "acknowledged": False,
        "policyVersion": 1,
        "ts": TS,
    }
    allocations = round_.pop("allocations")
    counts = {"positions": 4, "asked": 100, "executed": 0}
    assert round_ == {"round": 1, "markPrice": "39000", "isStale": False, "promised": [], **counts}
    # shorts entered at 41000, 40500, 39200 and 39500, closed at 39000, beside their margins
    assert [allocation["equityAtPrice"] for allocation in allocations] == ["110", "55", "2", "200"]
    assert [(allocation["rank"], allocation["asked"], allocation["lots"]) for allocation in allocations] == [
        (1, 50, 50),
        (2, 30, 30),
        (3, 5, 5),
        (4, 15, 200),
    ]
    assert {allocation["ranked"] for allocation in allocations} == {5}
    (entry,) = (await world.data(f"{FUND}/history"))["dataList"]
    assert entry["entry"] == order["cause"]
    assert entry["kind"] == "shortfall"


async def test_order_shows_its_rounds_and_executions(world):
    await world.send(shortfall(1))
    await world.send(executed(2, 1, "secret-anna", 20), ended(3, 1))
    (order,) = await world.orders()
    assert (order["lotsTaken"], order["taken"], order["recovered"], order["rest"], order["round"]) == (20, "2", "2", "8", 2)
    assert [(round_["round"], round_["asked"], round_["executed"]) for round_ in order["rounds"]] == [(1, 100, 20), (2, 80, 0)]
    await world.send(executed(4, 1, "secret-anna", 30), executed(5, 1, "secret-bert", 30))
    await world.send(executed(6, 1, "secret-emil", 5), executed(7, 1, "secret-carl", 15))
    (order,) = await world.orders(state="done")
    assert (order["lotsTaken"], order["taken"], order["recovered"], order["rest"]) == (100, "10", "10", "0")
    assert await world.orders(state="open") == []


async def test_order_with_too_few_candidates_shows_its_rest(config):
    async with world_of(with_policy(config, rounds_max=1)) as world:
        await world.send(LISTING, mark(39000), position("secret-anna", -10, 41000, 10), shortfall(1))
        await world.send(executed(2, 1, "secret-anna", 10), ended(3, 1))
        (order,) = await world.orders()
        assert (order["state"], order["recovered"], order["rest"]) == ("uncovered", "1", "9")
        assert (await world.data(FUND))["state"] == "uncovered"


async def test_completed_order_takes_less_than_one_lot_too_much(config):
    async with world_of(with_policy(config, escalate_min=0)) as world:
        await world.send(*BEGINNING, shortfall(1, 3, 39001), shortfall(2, 7, 38999))
        (order,) = await world.orders()
        assert (order["lotsNeeded"], order["needed"]) == (4, "0.004")
        await world.send(executed(3, 1, "secret-anna", 4))
        (order,) = await world.orders()
    over = Fraction(order["taken"]) - Fraction(order["needed"])
    assert 0 <= over < Fraction(order["deficit"]) / order["deficitLots"]
    assert over == Fraction(order["refund"])


async def test_orders_are_paged(world, subtests):
    await world.send(*(shortfall(seq, lots=50) for seq in range(1, 6)), executed(6, 1, "secret-anna", 50), shortfall(7, 200))
    await world.send(shortfall(8, 10))
    for number in (5, 6, 7):
        await world.send(*(ended(seq, number) for seq in range(10 * number, 10 * number + 3)))
    total = [order["adl"] for order in await world.orders(maxCount=500)]
    states = {order["adl"]: order["state"] for order in await world.orders()}
    assert total == sorted(states, reverse=True)
    for state in ("open", "done", "uncovered"):
        with subtests.test(state=state):
            assert [order["adl"] for order in await world.orders(state=state)] == [n for n in total if states[n] == state]
    for forward, offset, count in itertools.product((False, True), (None, *range(len(total) + 2)), (1, 3, 10)):
        with subtests.test(forward=forward, offset=offset, count=count):
            if forward:
                after = [number for number in reversed(total) if number > (offset or 0)]
            else:
                after = [number for number in total if offset is None or number < offset]
            given = {"forward": str(forward).lower(), "maxCount": count} | ({} if offset is None else {"offset": offset})
            page = await world.data(f"{ADL}/orders", **given)
            assert [order["adl"] for order in page["dataList"]] == after[:count]
            assert page["hasMore"] == (len(after) > count)


async def test_large_round_shows_first_allocations_and_totals(config):
    async with world_of(with_policy(config, allocation="pro_rata")) as world:
        await world.send(LISTING, mark(39000), *(position(f"secret-{n}", -10, 40000 + n, 100) for n in range(150)))
        await world.send(shortfall(1, lots=750))
        (order,) = await world.orders()
        (round_,) = order["rounds"]
        assert (round_["positions"], round_["asked"]) == (150, 750)
        assert [allocation["rank"] for allocation in round_["allocations"]] == list(range(1, 101))
        path = f"{ADL}/orders/1/rounds/1"
        assert await world.data(path, maxCount=100) == {"dataList": round_["allocations"], "hasMore": True}
        whole, more = [], True
        while more:
            page = await world.data(path, offset=whole[-1]["rank"] if whole else 0, maxCount=37)
            whole, more = whole + page["dataList"], page["hasMore"]
            assert len(page["dataList"]) == 37 or not more
        assert [allocation["rank"] for allocation in whole] == list(range(1, 151))
        assert sum(allocation["asked"] for allocation in whole) == 750
        assert whole[:100] == round_["allocations"]
        last = await world.data(path, offset=140)
        assert last == {"dataList": whole[140:], "hasMore": False}
        assert await world.data(path, offset=2**63 - 2) == {"dataList": [], "hasMore": False}


async def test_each_round_has_its_own_path(world, subtests):
    await world.send(shortfall(1, lots=20), shortfall(2, lots=60), executed(3, 2, "secret-anna", 5), ended(4, 2))
    first, second = await world.orders(forward="true")
    for order in (first, second):
        for shown in order["rounds"]:
            page = await world.data(f"{ADL}/orders/{order['adl']}/rounds/{shown['round']}", maxCount=500)
            assert page == {"dataList": shown["allocations"], "hasMore": False}
    assert [len(order["rounds"]) for order in (first, second)] == [1, 2]
    for missing in (
        "1/rounds/2",
        "3/rounds/1",
        "0/rounds/1",
        "1/rounds/0",
        "-1/rounds/1",
        "a/rounds/1",
        "1/rounds/1" + "0" * 9,
    ):
        with subtests.test(missing=missing):
            status, body = await world.ask(f"{ADL}/orders/{missing}")
            assert (status, body["code"]) == (404, "404000")


async def test_queue_shows_sections_by_lights(world):
    await world.send(*crowd(5), mark(39000))
    book = undisturbed([*BEGINNING, *crowd(5), mark(39000)]).book(SYMBOL)
    queue = await world.data(f"{ADL}/queue")
    assert (queue["symbol"], queue["markPrice"]) == (SYMBOL, "39000")
    for name, standings in ranks(book).items():
        assert [section["lights"] for section in queue[name]] == [5, 4, 3, 2, 1]
        gainers = [standing for standing in standings if standing.unrealised_pnl > 0]
        for section in queue[name]:
            lit = [
                standing for rank, standing in enumerate(gainers, 1) if 5 - (rank - 1) * 5 // len(gainers) == section["lights"]
            ]
            assert section["positions"] == len(lit) > 0
            assert section["lots"] == sum(standing.lots for standing in lit)
            assert (section["highestScore"], section["lowestScore"]) == (lit[0].score, lit[-1].score)
            exact = Fraction(sum(standing.unrealised_pnl for standing in lit), 10**8)
            assert abs(Fraction(section["unrealisedPnl"]) - exact) <= Fraction(len(lit), 10**8)


async def test_queue_of_one_position_has_empty_sections(world):
    await world.send(mark(39600))
    queue = await world.data(f"{ADL}/queue")
    (full, *others) = queue["long"]
    assert full["positions"] == 1
    assert [(section["positions"], section["lots"], section["highestScore"]) for section in others] == [(0, 0, None)] * 4


async def test_queue_without_a_mark_is_empty(world):
    await world.send(listing("OTHERUSDTM"), position("secret", 5, symbol="OTHERUSDTM"))
    (other,) = await eventually(lambda: positions_of(world, "secret"))
    queue = await world.data("/api/v1/adl/OTHERUSDTM/queue")
    assert (queue["markPrice"], queue["long"], queue["short"]) == (None, [], [])
    assert (other["lots"], other["rank"], other["unrealisedPnl"], other["score"]) == (5, None, None, None)


async def positions_of(world, account):
    return (await world.data("/api/v1/adl/positions", account=account))["positions"]


INVERSE = listing("XBTUSDM", settleCurrency="XBT", multiplier=-1, isInverse=True)
INVERSE_EVENTS = [
    INVERSE,
    mark(39000, "XBTUSDM"),
    *(
        position(f"secret-{n}", n * 1000, 39000 + 137 * n, Fraction(n % 5 + 1, 100).__float__(), "XBTUSDM")
        for n in (-4, -3, 2, 5)
    ),
    position("secret-2", -4000, 39100, 0.02, "XBTUSDM"),
]


def worths(shown, price):
    """Returns the entry value of a shown position, its value at a price, and its gain there, as exact fractions."""
    entry, at = Fraction(shown["entryPrice"]), Fraction(price)
    size = shown["lots"] * Fraction(shown["multiplier"])
    worth, value = (size / entry, size / at) if shown["isInverse"] else (size * entry, size * at)
    return worth, value, value - worth if (shown["side"] == "long") != shown["isInverse"] else worth - value


def by_hand(shown):
    """Returns uPnL, return, leverage and score as exact fractions of the shown numbers."""
    worth, value, gain = worths(shown, shown["markPrice"])
    returned, leverage = gain / worth, value / (Fraction(shown["margin"]) + gain)
    return gain, returned, leverage, returned * leverage if gain > 0 else returned / leverage


def equity_at(shown, price):
    """Returns margin + uPnL of a shown position at a price, as an exact fraction."""
    return Fraction(shown["margin"]) + worths(shown, price)[2]


async def test_ranks_can_be_recomputed_from_positions(world):
    await world.send(*crowd(6), mark(39000), *INVERSE_EVENTS)
    partition = undisturbed([*BEGINNING, *crowd(6), mark(39000), *INVERSE_EVENTS])
    shown = {}
    for contract, book in partition.books():
        for name, standings in ranks(book).items():
            gainers = sum(standing.unrealised_pnl > 0 for standing in standings)
            for rank, standing in enumerate(standings, 1):
                answer = await world.data("/api/v1/adl/positions", account=standing.account)
                assert answer["account"] == standing.account
                (position_,) = (found for found in answer["positions"] if found["symbol"] == contract.symbol)
                shown[contract.symbol, standing.account] = position_
                assert position_["side"] == name
                place = [position_[field] for field in ("rank", "ranked", "percentile", "lights", "notEligible")]
                if rank <= gainers:
                    assert place == [rank, gainers, rank / gainers, 5 - (rank - 1) * 5 // gainers, None]
                else:
                    assert place == [None, None, None, None, "no profit"]
                last = Fraction(position_["bankruptcyPrice"] or 10**30)
                beyond = last + Fraction(-1 if name == "long" else 1, 10**contract.price_decimals)
                assert equity_at(position_, last) >= 0
                assert not position_["bankruptcyPrice"] or beyond <= 0 or equity_at(position_, beyond) < 0
                gain, returned, leverage, score = by_hand(position_)
                decimals = 10 if position_["isInverse"] else 8
                assert Fraction(position_["unrealisedPnl"]) == Fraction(floor(gain * 10**decimals), 10**decimals)
                assert position_["return"] == pytest.approx(float(returned), rel=1e-12, abs=1e-15)
                assert position_["leverage"] == pytest.approx(float(leverage), rel=1e-12)
                assert position_["score"] == pytest.approx(float(score), rel=1e-12, abs=1e-15)
    for (symbol, _), one in shown.items():
        for (other_symbol, _), other in shown.items():
            if symbol == other_symbol and one["side"] == other["side"] and (one["rank"] or inf) < (other["rank"] or inf):
                assert by_hand(one)[3] >= by_hand(other)[3] * (1 - Fraction(1, 10**7)) or by_hand(other)[3] < 0
    assert len(shown) > 40


def leg(account, side, lots, entry):
    return msgspec.structs.replace(position(account, lots, entry, 0.1), position_side=side)


async def test_both_legs_of_an_account_are_ranked(config):
    async with world_of(with_section(config, "http", venues=("binance", "gate"))) as world:
        await world.send(*BEGINNING, leg("secret-h", "LONG", 10, 38900), leg("secret-h", "SHORT", -4, 41500))
        account = {"headers": bearer("trader", account="secret-h")}

        async def data_of(path):
            async with world.http.get(path, **account) as answer:
                return await answer.json()

        shown = (await world.data("/api/v1/adl/positions", account="secret-h"))["positions"]
        legs = {(each["positionSide"], each["side"], each["lots"], each["lights"]) for each in shown}
        assert len(legs) == 2
        assert {each[:3] for each in legs} == {("LONG", "long", 10), ("SHORT", "short", 4)}
        quantiles = {each[0]: each[3] - 1 for each in legs}
        assert await data_of("/fapi/v1/adlQuantile") == [{"symbol": SYMBOL, "adlQuantile": {**quantiles, "HEDGE": 0}}]
        await world.send(shortfall(1), executed(2, 1, "secret-h", 4))
        (sold,) = await data_of("/api/v4/futures/usdt/auto_deleverages")
        assert (sold["trade_size"], sold["position_size"]) == ("4", "0")
        (left,) = (await world.data("/api/v1/adl/positions", account="secret-h"))["positions"]
        assert (left["positionSide"], left["side"], left["lots"]) == ("LONG", "long", 10)
        expected = {"LONG": left["lights"] - 1, "SHORT": 0, "HEDGE": 0}
        assert await data_of("/fapi/v1/adlQuantile") == [{"symbol": SYMBOL, "adlQuantile": expected}]


@pytest.mark.parametrize(
    ("side", "lots", "marker"), [("LONG", 10, "HEDGE"), ("SHORT", -10, "HEDGE"), ("BOTH", 10, "BOTH"), ("BOTH", -10, "BOTH")]
)
async def test_single_position_keeps_the_side_that_the_engine_reported(config, side, lots, marker):
    async with world_of(with_section(config, "http", venues=("binance",))) as world:
        await world.send(*BEGINNING, leg("secret-h", side, lots, 38000 if lots > 0 else 40000))
        (shown,) = (await world.data("/api/v1/adl/positions", account="secret-h"))["positions"]
        assert shown["positionSide"] == side
        async with world.http.get("/fapi/v1/adlQuantile", headers=bearer("trader", account="secret-h")) as answer:
            (quantile,) = await answer.json()
        lights = shown["lights"] - 1
        held, other = ("LONG", "SHORT") if lots > 0 else ("SHORT", "LONG")
        assert quantile["adlQuantile"] == {held: lights, other: 0, marker: lights if marker == "BOTH" else 0}


async def test_account_sees_its_reductions(world):
    await world.send(shortfall(1), executed(2, 1, "secret-anna", 20))
    answer = await world.data("/api/v1/adl/positions", account="secret-anna")
    (position_,) = answer["positions"]
    assert (position_["lots"], position_["margin"]) == (30, "6")
    (reduction,) = answer["deleveraged"]
    assert {name: reduction[name] for name in ("symbol", "adl", "cause", "round", "side", "lots", "asked", "executed")} == {
        "symbol": SYMBOL,
        "adl": 1,
        "cause": 1,
        "round": 1,
        "side": "short",
        "lots": 50,
        "asked": 50,
        "executed": 20,
    }
    assert (reduction["price"], reduction["markPrice"], reduction["entryPrice"], reduction["lights"]) == (
        "39000",
        "39000",
        "41000",
        5,
    )
    for account in ("unknown", "\0", "\n"):
        unknown = await world.data("/api/v1/adl/positions", account=account)
        assert unknown == {"account": account, "positions": [], "deleveraged": []}


async def test_reductions_of_an_account_are_paged(world):
    other = "OTHERUSDTM"
    await world.send(
        listing(other, multiplier=0.001),
        mark(39000, other),
        *(position("secret-anna", -1000, 41000, 1, symbol) for symbol in (SYMBOL, other)),
    )
    moves = []
    for order in range(1, 15):
        for symbol in (SYMBOL, other):
            moves.append(msgspec.structs.replace(shortfall(10 * order, lots=10), symbol=symbol))
            for step in (1, 2):
                fill = executed(10 * order + step, order, "secret-anna", 1)
                moves.append(msgspec.structs.replace(fill, symbol=symbol))
    await world.send(*moves[:-6])
    path, count = "/api/v1/adl/deleveraged", 2 * 13
    whole = await world.data(path, account="secret-anna", forward="true", maxCount=500)
    assert [row["number"] for row in whole["dataList"]] == list(range(1, count + 1))
    assert {(row["symbol"], row["adl"], row["executed"]) for row in whole["dataList"]} == {
        (symbol, order, 2) for symbol in (SYMBOL, other) for order in range(1, 14)
    }
    assert (whole["hasMore"], abs(whole["asOf"] - time.time() * 1000) < 10_000) == (False, True)
    latest = (await world.data("/api/v1/adl/positions", account="secret-anna"))["deleveraged"]
    assert {msgspec.json.encode(row) for row in latest} == {
        msgspec.json.encode({name: row[name] for name in latest[0]}) for row in whole["dataList"]
    }
    for forward in ("true", "false"):
        first = await world.data(path, account="secret-anna", forward=forward, maxCount=7)
        found, page = first["dataList"], first
        if forward == "false":
            await world.send(*moves[-6:])  # Rows that arrive meanwhile do not shift the pages.
        while page["hasMore"]:
            last = found[-1]["number"]
            page = await world.data(path, account="secret-anna", forward=forward, maxCount=7, offset=last)
            found = found + page["dataList"]
        assert found == (whole["dataList"] if forward == "true" else whole["dataList"][::-1])
    for account in ("unknown", "\0"):
        assert (await world.data(path, account=account))["dataList"] == []
    async with world.http.get(path, params={"maxCount": 500}, headers=bearer("trader", account="secret-anna")) as answer:
        assert len((await answer.json())["data"]["dataList"]) == 28
    for headers, status in (({}, 401), (bearer("trader", account="secret-bert"), 403), (bearer("engine"), 403)):
        async with world.http.get(path, params={"account": "secret-anna"}, headers=headers) as answer:
            assert answer.status == status


async def test_position_without_equity_has_no_rank(world):
    await world.send(position("secret-poor", -10, 30000, 1))
    (poor,) = (await world.data("/api/v1/adl/positions", account="secret-poor"))["positions"]
    assert (poor["rank"], poor["lights"], poor["percentile"], poor["leverage"], poor["score"]) == (None,) * 5
    assert poor["unrealisedPnl"] == "-90"


POLICIES = [
    {},
    {"allocation": "pro_rata"},
    {"allocation": "capped", "cap_share": 0.25},
    {"eligible": "all"},
    {"waterfall": "adl_then_fund"},
    {"drawdown_guard": DrawdownGuard(start=0.3, stop=0.25)},
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
async def test_preview_equals_later_settlement(config, policy):
    """Another order is open, whose lots are promised, and the balance pays a part."""
    async with world_of(with_policy(config, **policy)) as world:
        await world.send(*BEGINNING, *crowd(7), mark(39000), shortfall(1, 500), shortfall(2, 20, 39100))
        shown = await world.preview(lots=300, ts=TS + 5)
        assert len((await world.data(f"{FUND}/history"))["dataList"]) == 2
        await world.send(replaced(shortfall(3, 300), TS + 5))
        (entry,) = (await world.data(f"{FUND}/history", maxCount=1))["dataList"]
        (order,) = await world.orders(maxCount=1)
        assert (shown["kind"], shown["uncovered"], shown["balance"]) == (entry["kind"], entry["uncovered"], entry["balance"])
        assert Fraction(shown["covered"]) == -Fraction(entry["change"])
        assert Fraction(shown["worth"]) == -Fraction(order["deficit"])
        (round_,) = order["rounds"]
        previewed = shown["order"]
        assert (previewed["lotsNeeded"], previewed["price"], previewed["reduce"]) == (
            order["lotsNeeded"],
            order["price"],
            order["reduce"],
        )
        assert (previewed["positions"], previewed["lotsAsked"]) == (round_["positions"], round_["asked"])
        assert previewed["allocations"] == round_["allocations"]


def replaced(fill, ts):
    return msgspec.structs.replace(fill, ts=ts)


async def test_preview_applies_policy_changes(config):
    async with world_of(with_policy(config, allocation="pro_rata")) as world:
        await world.send(*BEGINNING, *crowd(7), mark(39000))
        other = {"allocation": "capped", "capShare": 0.1, "eligible": "all", "waterfall": "adl_then_fund"}
        shown = await world.preview(policy=other)
        assert all(row["asked"] <= max(1, row["lots"] // 10) for row in shown["order"]["allocations"])
        # Compares the orders only: the time of the books differs between two requests.
        own, same = [await world.preview(policy=policy) for policy in ({}, {"allocation": "pro_rata"})]
        assert own["order"] == same["order"] != shown["order"]


async def test_preview_shows_surplus_and_lack_of_candidates(world):
    surplus = await world.preview(price="39100")
    assert (surplus["kind"], surplus["worth"], surplus["uncovered"], surplus["order"]) == ("surplus", "10", "0", None)
    more = (await world.preview(lots=10_000))["order"]
    assert more["lotsNeeded"] == 10_000 > more["lotsAsked"] == 285
    empty = (await world.preview(side="buy", price="39012", bankruptcyPrice="38999.5"))["order"]
    assert (empty["reduce"], empty["lotsAsked"], empty["allocations"]) == ("long", 0, [])


WRONG = [
    ({"side": "up"}, "Invalid enum value 'up'"),
    ({"lots": 0}, "Expected `int` >= 1"),
    ({"lots": "5"}, "Expected `int`, got `str`"),
    ({"price": 38900}, "Expected `str`, got `int`"),
    ({"price": "-5"}, "not a plain decimal number"),
    ({"price": "0"}, "not above 0"),
    ({"price": "1.0000000000001"}, "more than 12 decimals"),
    ({"lots": 2**62}, "does not fit"),
    ({"extra": 1}, "unknown field `extra`"),
    ({"policy": {"cap_share": 0.5}}, "unknown field `cap_share`"),
    ({"policy": {"capShare": 0}}, "Expected `float` > 0"),
    ({"policy": {"allocation": "random"}}, "Invalid enum value 'random'"),
]


async def test_invalid_preview_is_rejected_with_a_reason(world, subtests):
    for changes, message in WRONG:
        with subtests.test(changes=changes):
            status, body = await world.ask(f"{ADL}/preview", {**FILL, **changes})
            assert (status, body["code"]) == (400, "400100")
            assert message in body["msg"]
    for body_text in (b"", b"{", b"[]", b"\xff", b'{"side":"sell"}'):
        with subtests.test(body=body_text):
            async with world.http.post(f"{ADL}/preview", data=body_text, headers=bearer("risk")) as answer:
                assert (answer.status, (await answer.json())["code"]) == (400, "400100")


INVALID = [
    ("/api/v1/adl/NONE/orders", None, 404),
    ("/api/v1/adl/NONE/queue", None, 404),
    ("/api/v1/adl/NONE/preview", FILL, 404),
    (f"{ADL}/preview", None, 405),
    (f"{ADL}/queue", FILL, 405),
    (f"{ADL}/orders?state=lost", None, 400),
    (f"{ADL}/orders?maxCount=501", None, 400),
    ("/api/v1/adl/positions", None, 400),
    ("/api/v1/adl/positions?account=", None, 400),
    ("/api/v1/adl/positions?account=a&symbol=b", None, 400),
]


async def test_invalid_requests_are_rejected(world, subtests):
    for path, body, expected in INVALID:
        with subtests.test(path=path):
            status, answer = await world.ask(path, body)
            assert status == expected
            assert answer["code"] in {"400100", "404000", "405000"}


async def test_fund_state_shows_an_open_order(world):
    assert (await world.data(FUND))["state"] == "ok"
    await world.send(shortfall(1))
    assert (await world.data(FUND))["state"] == "adl"
    await world.send(executed(2, 1, "secret-anna", 50), executed(3, 1, "secret-bert", 30))
    await world.send(executed(4, 1, "secret-emil", 5), executed(5, 1, "secret-carl", 15))
    assert (await world.data(FUND))["state"] == "ok"


async def test_fund_state_is_warning_below_the_guards_stop(config):
    async with world_of(with_policy(config, drawdown_guard=DrawdownGuard(hours=168))) as world:
        now = time.time_ns() // 1_000_000
        await world.send(LISTING, mark(39000))
        for seq, price, state in ((1, 39100, "ok"), (2, 38980, "ok"), (3, 38990, "warning"), (4, 39010, "ok")):
            await world.send(replaced(shortfall(seq, 100, price), now + seq))
            assert ((await world.data(FUND))["state"], seq) == (state, seq)


async def test_another_process_shows_the_same_queue(config):
    async with engine_process(config), open_pool(config.database.dsn, 2) as pool, open_client(config.stream) as client:
        sides = [http_side(config, Metrics(), pool, client, engine=None, public=True) for _ in range(2)]
        async with sides[0] as one, sides[1] as other, aiohttp.ClientSession(one) as http:
            world = World(config, pool, client, one, http)
            await world.send(*BEGINNING, *crowd(8), mark(39000))
            queue = await world.data(f"{ADL}/queue")

            async def agrees():
                async with aiohttp.ClientSession(other) as second:
                    seen = await World(config, pool, client, other, second).data(f"{ADL}/queue")
                return seen | {"ts": 0} == queue | {"ts": 0}

            await eventually(agrees)
            assert queue["long"][0]["positions"] > 1


async def test_queue_is_unavailable_until_books_are_loaded(config, servers):
    async with world_of(config) as world:
        await world.send(LISTING)
    servers.valkey.stop()
    try:
        async with open_pool(config.database.dsn, 2) as pool, open_client(config.stream) as client:
            await pool.execute(
                "INSERT INTO books (symbol, last_id, seq, body) VALUES ($1, '0-0', 0, '') ON CONFLICT (symbol)"
                " DO UPDATE SET body = '', last_id = '0-0'",
                SYMBOL,
            )
            async with (
                http_side(config, Metrics(), pool, client, engine=None, public=True) as url,
                aiohttp.ClientSession(url) as http,
            ):
                status, body = await World(config, pool, client, url, http).ask(f"{ADL}/queue")
                assert (status, body["code"]) == (503, "503000")
    finally:
        servers.start()


async def test_metrics_count_orders_and_positions(config):
    config = with_policy(config, escalate_min=0)
    async with open_pool(config.database.dsn, 2) as pool, open_client(config.stream) as client, running(config) as engine:
        producer = Producer(client, 1)

        async def send(*events):
            await producer.append(events)
            await settled(client, pool)

        await send(*BEGINNING, shortfall(1, 3, 39001), shortfall(2, 7, 38999), shortfall(3))
        await eventually(lambda: engine.count("fundsvc_adl_open_orders", symbol=SYMBOL) == 2)
        assert engine.count("fundsvc_adl_lots_needed_total") == 104
        assert engine.count("fundsvc_uncovered_total", currency="USDT") == pytest.approx(10.004)
        await eventually(lambda: engine.count("fundsvc_adl_positions", side="short") == 5)
        await send(executed(4, 1, "secret-anna", 4), executed(5, 2, "secret-anna", 6))
        await eventually(lambda: engine.count("fundsvc_adl_lots_taken_total") == 10)
        assert engine.count("fundsvc_adl_open_orders") == 1
        assert engine.count("fundsvc_adl_seconds_count") == 1
        assert engine.count("fundsvc_recovered_total") == pytest.approx(0.604)
        assert engine.count("fundsvc_adl_orders_total", state="done") == 1
        assert engine.count("fundsvc_adl_overshoot_total") == 0
        await send(*(ended(seq, 2) for seq in range(6, 30)))
        await eventually(lambda: engine.count("fundsvc_adl_orders_total", state="uncovered") == 1)
        assert engine.count("fundsvc_adl_rounds_total") == 4
        assert engine.count("fundsvc_adl_open_orders") == 0
        assert engine.count("fundsvc_outstanding") == pytest.approx(9.4)


async def test_command_line_preview_shows_accounts(config, world):
    options = ("--side", "sell", "--lots", "100", "--price", "38900", "--bankruptcy-price", "39000")
    done = await fundsvc(config, "adl", "preview", SYMBOL, *options, "--json")
    assert done.code == 0, done.error
    shown = done.result
    accounts = [row.pop("account") for row in shown["order"]["allocations"]]
    assert accounts == ["secret-anna", "secret-bert", "secret-emil", "secret-carl"]
    preview = await world.preview()
    assert shown | {"ts": 0} == preview | {"ts": 0}
    table = await fundsvc(config, "adl", "preview", SYMBOL, *options, "--allocation", "pro_rata", COLUMNS="200")
    assert table.code == 0
    assert "secret-carl" in table.output
    assert (await fundsvc(config, "adl", "preview", "NONE", *options)).code == 2
    assert (await fundsvc(config, "adl", "preview", SYMBOL, *options[:-1], "-1")).code == 2
    await world.send(shortfall(1))
    listed = await fundsvc(config, "adl", "orders", SYMBOL, "--json")
    assert listed.result == await world.orders()
    assert "secret" not in listed.output
    shown_orders = await fundsvc(config, "adl", "orders", SYMBOL, COLUMNS="200")
    assert (shown_orders.code, "open" in shown_orders.output) == (0, True)
