"""Takeovers over HTTP: ingest, funds with inventories, tranches, ADL orders and previews, with a running engine."""

import asyncio
import time

import msgspec
import pytest
from commands import fundsvc
from conftest import with_section
from eventually import eventually
from ledgers import listing, owned
from served import now_ms, served
from tokens import bearer, with_secret

from fundsvc.core.events import AdlEnd, AdlFill, Fill, Mark, Position, Takeover, Unwind
from fundsvc.core.policy import DrawdownGuard, Policy
from fundsvc.metrics import Metrics
from fundsvc.readmodel.inventories import BACKLOG_ENTRIES_MAX, Inventories
from fundsvc.readmodel.ledger_tail import open_tail
from fundsvc.store.database import open_pool
from fundsvc.store.inventories import inventory_entries, load_inventory
from fundsvc.store.reader import Reader
from fundsvc.streams.announcer import announcement_key
from fundsvc.wire.codec import encode

SYMBOL = "XBTUSDTM"
TS = 1_700_000_000_000
PATH = f"/api/v1/insurance-fund/{SYMBOL}"

ORDER = ["origin", "cause", "closes", "state", "reduce", "price", "lotsNeeded", "lotsTaken", "lotsUnwound", "needed", "taken"]
TRANCHE = ["entry", "side", "lots", "promised", "price", "ts", "forced", "unrealisedPnl"]
TAKEN = ["lots", "accepted", "expectedLoss", "capacity", "forced", "equity", "markPrice"]

TAKEOVER = {"type": "takeover", "symbol": SYMBOL, "seq": 2, "side": "sell", "lots": 1, "bankruptcyPrice": "50", "ts": TS}
UNWIND = {"type": "unwind", "symbol": SYMBOL, "seq": 2, "side": "sell", "lots": 1, "price": "50", "ts": TS}
ILLEGAL = [
    {"lots": 0},
    {"lots": -1},
    {"lots": 2**63},
    {"lots": 1.5},
    {"side": "long"},
    {"seq": 0},
    {"price": "50"},
    {"bankruptcyPrice": "-1"},
    {"bankruptcyPrice": "1.0000000000001"},
    {"symbol": "NONE"},
]
ILLEGAL_UNWINDS = [{"lots": 0}, {"price": "0"}, {"symbol": "NONE"}]

MANY_TRANCHES = (
    """INSERT INTO entries (symbol, entry, seq, kind, change, balance, uncovered, repaid, side, lots, price, bankruptcy_price,
                            trade_id, order_id, account, ts, hash)
       SELECT symbol, entry + n, seq + n, kind, change, balance, uncovered, repaid, side, 1, price, bankruptcy_price,
              trade_id, order_id, account, ts, hash
       FROM entries, generate_series(1, $1::integer) n WHERE kind = 'takeover'""",
    """INSERT INTO tranches
       SELECT symbol, entry + n, side, 1, price, ts, forced FROM tranches, generate_series(1, $1::integer) n""",
    "UPDATE funds SET entry = entry + $1",
)
"""Copies a tranche of ten lots as tranches of one lot."""


@pytest.fixture
def config(config):
    config = with_section(with_secret(config), "http", book_seconds=0.05, tail_seconds=0.005, requests_max=100_000)
    return with_section(config, "engine", lease_seconds=0.6)


@pytest.fixture
async def service(config):
    """A service whose fund has 100 USDT, at mark 45."""
    async with served(config) as service:
        await service.send(*BEGINNING)
        await eventually(lambda: is_shown(service))
        yield service


async def is_shown(service):
    return SYMBOL in {fund["symbol"] for fund in await service.get("/api/v1/insurance-fund")}


def mark(price, ts=TS):
    return Mark(SYMBOL, str(price), ts)


def takeover(seq, lots=10, price=50, side="sell"):
    return Takeover(SYMBOL, seq, side, lots, str(price), TS, account="secret-takeover")


def unwind(seq, lots, price, side="sell"):
    return Unwind(SYMBOL, seq, side, lots, str(price), TS)


def short(account, lots=100, price=60, margin=1000):
    return Position(SYMBOL, account, -lots, str(price), str(margin), TS)


BEGINNING = [listing(SYMBOL, multiplier=1), Fill(SYMBOL, 1, "sell", 100, "51", "50", TS), mark(45)]


async def valued(service, **expected):
    """Waits until the fund has some fields, and returns it. Marks are shown once a second."""
    fund = None

    async def is_so():
        nonlocal fund
        fund = await service.fund(SYMBOL)
        return {name: fund[name] for name in expected} == expected

    try:
        await eventually(is_so, 20)
    except AssertionError:
        pytest.fail(f"the fund is {fund}, not {expected}")
    return fund


async def orders(service):
    return (await service.get(f"/api/v1/adl/{SYMBOL}/orders"))["dataList"]


async def knows_positions(service):
    """Returns whether the followed books have a position; then they also have the mark."""
    return (await service.get(f"/api/v1/adl/{SYMBOL}/queue"))["markPrice"] and (await service.fund(SYMBOL))["equity"]


async def connection(service):
    async with service.http.post("/api/v1/bullet-public") as answer:
        return {"token": (await answer.json())["data"]["token"]}


async def preview(service, body, role="risk", **claims):
    path = f"/api/v1/adl/{SYMBOL}/preview"
    async with service.http.post(path, json=body, headers=bearer(role, **claims)) as answer:
        return answer.status, await answer.json()


async def test_fund_shows_what_the_worked_case_comes_to(service):
    assert (await service.send(takeover(2)))["rejected"] == []
    held = {"side": "long", "lots": 10, "averagePrice": "50", "tranches": 1, "oldestTs": TS}
    fund = await valued(service, balance="100", equity="50", unrealisedPnl="-50", inventory=[held])
    assert fund["state"] == "ok"

    await service.send(short("secret-anna"), mark(38, TS + 1))
    await valued(service, equity="-20", unrealisedPnl="-120", state="adl")
    (order,) = await orders(service)
    assert [order[name] for name in ORDER] == ["inventory", 2, 2, "open", "short", "50", 3, 0, 0, "0", "0"]
    (tranche,) = (await service.get(f"{PATH}/inventory"))["dataList"]
    assert [tranche[name] for name in TRANCHE] == [2, "long", 10, 3, "50", TS, False, "-120"]

    await service.send(AdlFill(SYMBOL, 3, 1, "secret-anna", 3, TS))
    fund = await valued(service, balance="100", equity="16", unrealisedPnl="-84", state="ok")
    assert [side["lots"] for side in fund["inventory"]] == [7]
    await service.send(unwind(4, 5, 40))
    await valued(service, balance="50", equity="26", unrealisedPnl="-24")
    await service.send(unwind(5, 2, 55))
    await valued(service, balance="60", equity="60", unrealisedPnl="0", inventory=[])
    assert (await service.get(f"{PATH}/inventory"))["dataList"] == []

    history = (await service.get(f"{PATH}/history?forward=true"))["dataList"]
    assert [(row["kind"], row["change"], row["lots"], row["closes"], row["forced"]) for row in history] == [
        ("surplus", "100", 100, 0, False),
        ("takeover", "0", 10, 0, False),
        ("deleverage", "0", 3, 2, False),
        ("shortfall", "-50", 5, 2, False),
        ("surplus", "10", 2, 2, False),
    ]
    (order,) = await orders(service)
    assert [order[name] for name in ORDER] == ["inventory", 2, 2, "done", "short", "50", 3, 3, 0, "0", "0"]
    detail = await service.get(f"{PATH}/entries/2")
    assert (detail["adl"], detail["inventoryAdl"]) == (None, [order])
    assert [row["kind"] for row in (await service.get(f"{PATH}/history?kind=deleverage"))["dataList"]] == ["deleverage"]


@pytest.mark.parametrize("candidates", [[], [short("secret-anna")]], ids=["nobody", "anna"])
async def test_lots_that_adl_does_not_close_are_forced(config, candidates):
    async with served(config) as service:
        await service.send(BEGINNING[0], Fill(SYMBOL, 1, "sell", 30, "51", "50", TS), mark(45), *candidates, takeover(2))
        (order,) = await orders(service)
        assert [order[name] for name in ORDER[:5]] == ["takeover", 2, 0, "open" if candidates else "returned", "short"]
        assert (order["lotsNeeded"], order["lotsTaken"]) == (4, 0)
        if candidates:
            await valued(service, equity="0", unrealisedPnl="-30")  # The other lots are not held.
            await service.send(AdlEnd(SYMBOL, 3, 1, TS))
            await service.send(AdlEnd(SYMBOL, 4, 1, TS))
            await service.send(AdlEnd(SYMBOL, 5, 1, TS))
        fund = await valued(service, equity="-20", unrealisedPnl="-50")
        assert fund["inventory"] == [{"side": "long", "lots": 10, "averagePrice": "50", "tranches": 2, "oldestTs": TS}]
        tranches = (await service.get(f"{PATH}/inventory?forward=true"))["dataList"]
        assert [(row["entry"], row["lots"], row["forced"]) for row in tranches] == [(2, 6, False), (3, 4, True)]
        assert (await orders(service))[0]["state"] == "returned"
        detail = await service.get(f"{PATH}/entries/2")
        assert (detail["adl"]["adl"], detail["adl"]["origin"], detail["inventoryAdl"]) == (1, "takeover", [])
        async with service.http.get(f"{PATH}/history.csv") as answer:
            lines = (await answer.text()).splitlines()
        assert lines[0].endswith("commitment,closes,forced")
        assert [line.rsplit(",", 2)[1:] for line in lines[1:]] == [["0", "false"], ["0", "false"], ["0", "true"]]


async def test_sides_are_shown_apart_and_average_prices_are_rounded_down(service):
    await service.send(takeover(2, 1, "50"), takeover(3, 2, "51"), takeover(4, 5, "40", "buy"), takeover(5, 2, "40.5", "buy"))
    fund = await valued(service, unrealisedPnl=str(-5 - 12 - 25 - 9))
    assert fund["inventory"] == [
        {"side": "long", "lots": 3, "averagePrice": "50.666666666666", "tranches": 2, "oldestTs": TS},
        {"side": "short", "lots": 7, "averagePrice": "40.142857142857", "tranches": 2, "oldestTs": TS},
    ]
    await service.send(unwind(6, 2, 45))
    fund = await valued(service, unrealisedPnl=str(-6 - 25 - 9))
    assert (fund["inventory"][0]["averagePrice"], fund["inventory"][0]["tranches"]) == ("51", 1)


async def test_inventory_is_shown_without_a_mark_but_not_valued(config):
    async with served(config) as service:
        await service.send(*BEGINNING[:2], takeover(2))
        fund = await service.fund(SYMBOL)
        assert (fund["equity"], fund["unrealisedPnl"], fund["equityDrawdown"]) == (None, None, None)
        assert [side["lots"] for side in fund["inventory"]] == [10]
        (tranche,) = (await service.get(f"{PATH}/inventory"))["dataList"]
        assert tranche["unrealisedPnl"] is None
        await service.send(mark(49))
        await valued(service, equity="90", unrealisedPnl="-10")


async def test_pages_of_tranches_join_without_gap(service):
    await service.send(*(takeover(seq, 1, 45, "buy" if seq % 3 == 0 else "sell") for seq in range(2, 12)))
    await valued(service, entry=11)
    for forward, expected in ((True, list(range(2, 12))), (False, list(range(11, 1, -1)))):
        found, offset = [], ""
        while True:
            page = await service.get(f"{PATH}/inventory?maxCount=3&forward={str(forward).lower()}{offset}")
            assert len(page["dataList"]) <= 3
            found += [row["entry"] for row in page["dataList"]]
            if not page["hasMore"]:
                break
            offset = f"&offset={found[-1]}"
        assert found == expected
    shorts = (await service.get(f"{PATH}/inventory?side=short"))["dataList"]
    assert [row["entry"] for row in shorts] == [9, 6, 3]
    for query, status in (("maxCount=501", 400), ("side=both", 400), ("offset=-1", 400)):
        async with service.http.get(f"{PATH}/inventory?{query}") as answer:
            assert answer.status == status, query
    async with service.http.get("/api/v1/insurance-fund/NONE/inventory") as answer:
        assert answer.status == 404


async def test_integers_of_inventories_are_strings_on_request(service):
    large = 2**63 - 1
    await service.send(takeover(2, large, 45))
    await valued(service, entry=2)
    fund = await service.get(f"{PATH}?numbers=string")
    assert (fund["inventory"][0]["lots"], fund["inventory"][0]["tranches"]) == (str(large), "1")
    (tranche,) = (await service.get(f"{PATH}/inventory?numbers=string"))["dataList"]
    assert (tranche["lots"], tranche["entry"], tranche["forced"]) == (str(large), "2", False)
    assert (await service.get(f"{PATH}/inventory"))["dataList"][0]["lots"] == large


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_takeovers_and_unwinds_are_posted_in_both_codecs(service, codec):
    answer = await service.send(body=encode([takeover(2), unwind(3, 4, 50)], codec), kind=f"application/{codec}")
    assert (answer["accepted"], answer["rejected"]) == (2, [])
    fund = await valued(service, entry=3)
    assert [side["lots"] for side in fund["inventory"]] == [6]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_illegal_takeovers_and_unwinds_are_rejected_with_a_reason_and_kept(service, codec):
    encoder = msgspec.json if codec == "json" else msgspec.msgpack
    events = [
        *({**TAKEOVER, "seq": 2, **change} for change in ILLEGAL),
        {name: value for name, value in TAKEOVER.items() if name != "bankruptcyPrice"},
        *({**UNWIND, "seq": 2, **change} for change in [*ILLEGAL_UNWINDS, {"account": "x"}, {"bankruptcyPrice": "50"}]),
    ]
    reasons = [
        *("invalid_field",) * 7,
        *("invalid_number", "too_many_decimals", "unknown_symbol", "invalid_field"),
        *("invalid_field", "out_of_range", "unknown_symbol", "invalid_field", "invalid_field"),
    ]
    answer = await service.send(body=encoder.encode(events), kind=f"application/{codec}")
    assert answer["accepted"] == 0
    assert [rejected["reason"] for rejected in answer["rejected"]] == reasons
    assert await service.reasons() == reasons
    assert (await service.fund(SYMBOL))["entry"] == 1


async def test_more_lots_than_held_and_the_other_side_are_kept_as_inventory_short(service):
    answer = await service.send(takeover(2), unwind(3, 11, 50), unwind(4, 1, 50, "buy"))
    assert answer["accepted"] == 3  # Only the ledger knows what is held.
    assert await service.reasons() == ["inventory_short", "inventory_short"]
    assert [side["lots"] for side in (await valued(service, entry=2))["inventory"]] == [10]


@pytest.mark.parametrize("way", ["send", "append"])
async def test_terms_are_fixed_by_a_takeover_of_which_nothing_is_accepted(config, way):
    async with served(config) as service:
        await service.send(BEGINNING[0], mark(45), short("anna"))
        await getattr(service, way)(takeover(1))  # An ADL order, but no entry.
        assert (await service.fund(SYMBOL))["entry"] == 0
        answer = await service.send(listing(SYMBOL, multiplier=2))
        assert [rejected["reason"] for rejected in answer["rejected"]] == ["contract_fixed"]
        assert await service.reasons() == ["contract_fixed"]


async def test_no_public_answer_names_an_account(service):
    async with service.http.ws_connect("/ws", params=await connection(service)) as socket:
        for topic in (f"/insuranceFund/balance:{SYMBOL}", f"/insuranceFund/entry:{SYMBOL}", f"/adl/order:{SYMBOL}"):
            after = {"after": 0} if "entry" in topic else {}
            await socket.send_json({"id": topic, "type": "subscribe", "topic": topic, **after})
        await service.send(short("secret-anna"), takeover(2), mark(38, TS + 1), takeover(3, 30, 60))
        await valued(service, state="adl")
        answers = []
        for path in (PATH, f"{PATH}/inventory", f"{PATH}/history", f"{PATH}/entries/2", f"/api/v1/adl/{SYMBOL}/orders"):
            async with service.http.get(path) as answer:
                answers.append(await answer.text())
        pushes = []
        while sum('"order.change"' in push for push in pushes) < 2 or not any('"entry"' in push for push in pushes):
            pushes.append((await socket.receive(10)).data)
    assert any('"origin":"takeover"' in text for text in pushes)
    assert any('"origin":"inventory"' in text for text in pushes)
    assert [text for text in (*answers, *pushes) if "secret" in text] == []


async def test_balance_topic_follows_marks_once_a_second_while_lots_are_held(service):
    async with service.http.ws_connect("/ws", params=await connection(service)) as socket:
        await socket.send_json({"id": 1, "type": "subscribe", "topic": f"/insuranceFund/balance:{SYMBOL}", "numbers": "string"})
        await service.send(takeover(2))

        async def pushed(**expected):
            while True:
                data = (await socket.receive_json(timeout=20)).get("data")
                if data and {name: data[name] for name in expected} == expected:
                    return data

        data = await pushed(equity="50")
        assert data["inventory"] == [{"side": "long", "lots": "10", "averagePrice": "50", "tranches": "1", "oldestTs": str(TS)}]
        started = time.monotonic()
        count, price = 0, 0
        while time.monotonic() < started + 3:
            price += 1
            await service.append(mark(45 + price % 4, TS + price))
        await service.append(mark(49, TS + price + 1))
        while True:
            count += 1
            if (await socket.receive_json(timeout=20))["data"]["equity"] == "90":
                break
        assert price > 8
        assert count <= time.monotonic() - started + 2
        await service.append(unwind(3, 10, 50))
        await pushed(equity="100", inventory=[])
        await service.append(mark(48, TS + price + 2))
        with pytest.raises(asyncio.TimeoutError):
            await socket.receive_json(timeout=2.5)


async def test_restarted_api_shows_the_same_inventory(config):
    async with served(config) as service:
        await service.send(*BEGINNING, takeover(2), takeover(3, 4, 46), unwind(4, 3, 45))
        before = await valued(service, unrealisedPnl=str(-35 - 4))
    async with served(config) as service:
        after = await valued(service, unrealisedPnl=before["unrealisedPnl"])
        assert after["inventory"] == before["inventory"]
        assert (await service.send(unwind(5, 7, 45)))["rejected"] == []
        assert [side["lots"] for side in (await valued(service, unrealisedPnl="-4"))["inventory"]] == [4]


async def test_preview_of_a_takeover_equals_its_settlement(service):
    await service.send(Fill(SYMBOL, 2, "sell", 70, "49", "50", TS), short("secret-anna"))  # The balance is 30.
    body = {"type": "takeover", "side": "sell", "lots": 10, "bankruptcyPrice": "50", "ts": TS}
    await eventually(lambda: knows_positions(service))
    status, answer = await preview(service, body)
    shown = answer["data"]
    assert status == 200
    assert [shown[name] for name in TAKEN] == [10, 6, "50", "30", 0, "0", "45"]
    assert (shown["order"]["lotsNeeded"], shown["order"]["reduce"], shown["order"]["price"]) == (4, "short", "50")
    assert [row["asked"] for row in shown["order"]["allocations"]] == [4]
    assert "secret" not in msgspec.json.encode(answer).decode()
    assert (await service.fund(SYMBOL))["entry"] == 2  # A preview changes nothing.

    await service.send(takeover(3))
    fund = await valued(service, equity=shown["equity"])
    (order,) = await orders(service)
    assert (fund["inventory"][0]["lots"], order["lotsNeeded"]) == (shown["accepted"], shown["order"]["lotsNeeded"])
    assert order["rounds"][0]["positions"] == shown["order"]["positions"]


async def test_preview_counts_the_inventory_and_replaces_the_policy(service):
    await service.send(takeover(2, 12, 50))  # 40 of 100 may still be lost.
    await valued(service, unrealisedPnl="-60")
    body = {"type": "takeover", "side": "sell", "lots": 10, "bankruptcyPrice": "50"}
    for policy, expected in (
        ({}, [10, 8, "50", "40", 2, "-10", "45"]),
        ({"takeover": {"mode": "fund"}}, [10, 10, "50", "40", 0, "-10", "45"]),
        ({"takeover": {"mode": "adl"}}, [10, 0, "50", "40", 10, "-10", "45"]),
        ({"takeover": {"valueMax": 120}}, [10, 2, "50", "40", 8, "-10", "45"]),
    ):
        status, answer = await preview(service, {**body, "policy": policy})
        assert status == 200, answer
        assert [answer["data"][name] for name in TAKEN] == expected, policy


async def test_invalid_previews_of_takeovers_are_rejected(service):
    body = {"type": "takeover", "side": "sell", "lots": 10, "bankruptcyPrice": "50"}
    for change in ({"price": "50"}, {"type": "fill"}, {"type": "unwind"}, {"lots": 0}, {"bankruptcyPrice": "x"}):
        status, answer = await preview(service, {**body, **change})
        assert (status, answer["code"]) == (400, "400100"), change
    for role in ("engine", None):
        headers = bearer(role) if role else {}
        async with service.http.post(f"/api/v1/adl/{SYMBOL}/preview", json=body, headers=headers) as answer:
            assert answer.status == (403 if role else 401)
    status, answer = await preview(service, body, "trader", account="secret-anna")
    assert (status, answer["data"]["accepted"]) == (200, 10)


async def test_command_line_previews_a_takeover(config):
    async with served(config) as service:
        await service.send(*BEGINNING, takeover(2, 12, 50), short("secret-anna"))
        await valued(service, unrealisedPnl="-60")
        options = ("--side", "sell", "--lots", "10", "--bankruptcy-price", "50", "--takeover")
        shown = (await fundsvc(config, "adl", "preview", SYMBOL, *options, "--json")).result
        assert [shown[name] for name in TAKEN] == [10, 8, "50", "40", 0, "0", "45"]
        assert [row["account"] for row in shown["order"]["allocations"]] == ["secret-anna"]
        text = (await fundsvc(config, "adl", "preview", SYMBOL, *options, "--mode", "fund")).output
        assert "takes over 10 of 10 lots" in text
        assert "no ADL order" in text
        assert (await fundsvc(config, "adl", "preview", SYMBOL, *options, "--price", "50")).code == 2
        assert (await fundsvc(config, "adl", "preview", SYMBOL, *options[:-1])).code == 2


@pytest.mark.parametrize(("on", "ratio", "state"), [("balance", "0", "ok"), ("equity", "-0.5", "warning")])
async def test_bybit_shows_the_drawdown_of_what_the_guard_watches(config, on, ratio, state):
    guard = DrawdownGuard(start=0.6, stop=0.4, on=on)
    config = with_section(config, "policy", default=Policy(drawdown_guard=guard))
    config = with_section(config, "http", venues=["bybit"])
    async with served(config) as service:
        now = now_ms()
        await service.send(BEGINNING[0], Fill(SYMBOL, 1, "sell", 100, "51", "50", now), Mark(SYMBOL, "50", now))
        await service.send(msgspec.structs.replace(takeover(2), ts=now))
        await service.send(Mark(SYMBOL, "45", now))
        fund = await valued(service, equity="50")
        assert fund["equityDrawdown"] == (0.5 if on == "equity" else None)
        assert fund["state"] == state
        async with service.http.get("/v5/market/adlAlert", params={"symbol": SYMBOL}) as answer:
            (alert,) = (await answer.json())["result"]["list"]
        assert alert["pnlRatio"] == ratio


async def test_many_tranches_do_not_hold_the_loop(config):
    count = 100_000
    async with owned(config) as owner:
        await owner.settle([*BEGINNING, takeover(2)])
    async with open_pool(config.database.owner_dsn or config.database.dsn, 1) as pool:
        for statement in MANY_TRANCHES:
            await pool.execute(statement, count)
    marks = {SYMBOL: 45 * 10**12}
    slowest = 0.0

    async def measure():
        nonlocal slowest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            slowest = max(slowest, time.perf_counter() - before)

    measuring = asyncio.create_task(measure())
    started = time.perf_counter()
    async with open_tail(config, Metrics(), marks.get) as tail:
        loaded = time.perf_counter() - started
        held = tail.held[SYMBOL]
        assert [(side.lots, side.tranches) for side in held.sides] == [(count + 10, count + 1)]
        assert held.unrealised == -(5 * (count + 10)) * 10**8
        marks[SYMBOL] = 46 * 10**12
        await eventually(lambda: tail.held[SYMBOL].unrealised == -(4 * (count + 10)) * 10**8)
    measuring.cancel()
    print(f"{count} tranches loaded in {loaded:.2f} s; the loop waited at most {slowest * 1000:.0f} ms")
    assert loaded < 10
    assert slowest < 0.1


async def test_okx_shows_takeovers_as_updates_and_the_orders_for_their_lots(config):
    config = with_section(config, "http", venues=["okx"])
    async with served(config) as service:
        await service.send(BEGINNING[0], mark(45), short("anna"), takeover(1))  # An order without an entry.
        await service.send(Fill(SYMBOL, 2, "sell", 100, "51", "50", TS + 1), msgspec.structs.replace(takeover(3), ts=TS + 2))
        parameters = {"instType": "SWAP", "instFamily": SYMBOL}
        async with service.http.get("/api/v5/public/insurance-fund", params=parameters) as answer:
            assert answer.status == 200
            details = (await answer.json())["data"][0]["details"]
        assert [(row["type"], row["adlType"], row["amt"], row["balance"]) for row in details] == [
            ("regular_update", "", "", "100"),
            ("liquidation_balance_deposit", "", "100", "100"),
            ("adl", "bal_adl_start", "", "0"),
        ]


async def test_announcements_of_rounds_name_the_origin_of_their_order(service):
    await service.send(short("anna"), takeover(2), mark(38, TS + 1), takeover(3, 30, 60))

    async def announced():
        messages = await service.client.xrange(announcement_key(0))
        found = [msgspec.json.decode(fields[b"json"]) for _, fields in messages]
        return {(each["origin"], each["cause"], each["lots"]) for each in found}

    await eventually(lambda: announced_all(announced))


async def announced_all(announced):
    return await announced() >= {("inventory", 2, 3), ("takeover", 0, 30)}


async def test_preview_uses_the_stored_mark_without_positions(config):
    async with served(with_section(config, "engine", lease_seconds=0.6, book_seconds=0.1)) as service:
        await service.send(*BEGINNING)
        await eventually(lambda: service.pool.fetchval("SELECT mark FROM books WHERE symbol = $1", SYMBOL))
        status, answer = await preview(service, {"type": "takeover", "side": "sell", "lots": 100, "bankruptcyPrice": "50"})
        assert (status, [answer["data"][name] for name in TAKEN]) == (200, [100, 20, "500", "100", 80, "-400", "45"])


async def test_inventory_that_is_far_behind_is_loaded_again(service):
    await service.send(takeover(2), takeover(3), unwind(4, 12, 50))
    contract = (await Reader(service.pool).contracts(SYMBOL))[0].contract
    followed = Inventories(lambda _: 45 * 10**12)
    async with service.pool.acquire() as connection:
        loaded = await load_inventory(connection, SYMBOL)
        assert followed.unknown({SYMBOL: contract}, {SYMBOL: 3}) == [SYMBOL]
        await followed.load(contract, loaded)
        entries = await inventory_entries(connection, {SYMBOL: 0}, {SYMBOL: 100})
    ahead = loaded.entry + BACKLOG_ENTRIES_MAX
    for entry, expected in ((loaded.entry, []), (loaded.entry - 1, [SYMBOL]), (ahead, []), (ahead + 1, [SYMBOL])):
        assert followed.unknown({SYMBOL: contract}, {SYMBOL: entry}) == expected
    other = msgspec.structs.replace(contract, price_decimals=11)
    assert followed.unknown({SYMBOL: other}, {SYMBOL: loaded.entry}) == [SYMBOL]
    # A step that was interrupted reads entries again that are applied already.
    held = (await followed.advance({SYMBOL: loaded.entry}, entries))[SYMBOL]
    assert [(side.lots, side.tranches) for side in held.sides] == [(8, 1)]


async def test_takeover_fixes_the_terms_for_later_events_of_its_body(config):
    async with served(config) as service:
        await service.send(BEGINNING[0], mark(45))
        answer = await service.send(takeover(1), listing(SYMBOL, multiplier=2))
        assert [(rejected["index"], rejected["reason"]) for rejected in answer["rejected"]] == [(1, "contract_fixed")]
        assert await service.reasons() == ["contract_fixed"]
