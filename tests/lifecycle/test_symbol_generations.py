"""Generations of a symbol in a complete service: each has a fund and a chain of its own, also after a restart."""

import asyncio
import sys
from pathlib import Path

import pytest
from commands import fundsvc, program
from eventually import eventually
from live import BALANCE, ENTRY, Service
from served import contract, fill, now_ms, restarted, served

from fundsvc.api.websocket import entries
from fundsvc.metrics import Metrics

VERIFY_EXPORT = Path(__file__).parents[2] / "scripts" / "verify-export"
SYMBOL = "XBTMZ26"
FUND = f"/api/v1/insurance-fund/{SYMBOL}"
MARK = {"type": "mark", "symbol": SYMBOL, "price": "90", "ts": now_ms()}


def listing(**fields):
    return contract(SYMBOL, **({"status": "Open", "multiplier": 1} | fields))


def surplus(seq, amount):
    return fill(SYMBOL, seq, lots=amount, price="101", bankruptcyPrice="100")


def settle(seq):
    return {"type": "settle", "symbol": SYMBOL, "seq": seq, "price": "90", "ts": now_ms()}


BEGINNING = surplus(1, 10), surplus(2, 5), settle(4)
SECOND = surplus(5, 7)


@pytest.fixture
async def service(config):
    async with served(config) as service:
        await service.send(listing(), *BEGINNING)
        yield service


async def shown(service, name):
    fund = await service.get(f"/api/v1/insurance-fund/{name}")
    return fund["symbol"], fund["generation"], fund["balance"], fund["closed"], fund["entry"]


async def shows(service, name, *wanted):
    return await service.get_or_none(f"/api/v1/insurance-fund/{name}") and await shown(service, name) == wanted


async def reopened(service):
    """Opens the second generation, and waits until it is shown."""
    await service.send(listing(multiplier=2), SECOND)
    await eventually(lambda: shows(service, SYMBOL, SYMBOL, 2, "14", False, 1))


async def test_each_generation_has_a_fund_that_its_name_selects(service):
    await reopened(service)
    assert await shown(service, f"{SYMBOL}@1") == (SYMBOL, 1, "15", True, 2)
    assert await shown(service, f"{SYMBOL}@2") == await shown(service, SYMBOL)
    assert await shown(service, f"{SYMBOL}%401") == await shown(service, f"{SYMBOL}@1")
    for name in (f"{SYMBOL}@3", f"{SYMBOL}@0", f"{SYMBOL}@01", f"{SYMBOL}@"):
        assert await service.get_or_none(f"/api/v1/insurance-fund/{name}") is None
        assert await service.get_or_none(f"/api/v1/insurance-fund/{name}/history") is None
    for path in ("history", "inventory", "candles?granularity=60", "at?ts=1", "entries/1"):
        assert await service.get(f"{FUND}@1/{path}") != await service.get(f"{FUND}@2/{path}") or path in (
            "inventory",
            "at?ts=1",
        )
    terms = [(await service.get(f"/api/v1/contracts/{SYMBOL}@{number}"))["multiplier"] for number in (1, 2)]
    assert terms == [1, 2]


async def test_histories_and_proofs_of_generations_are_apart(service):
    await reopened(service)
    first = (await service.get(f"{FUND}@1/history"))["dataList"]
    second = (await service.get(f"{FUND}/history"))["dataList"]
    assert [(one["symbol"], one["generation"], one["entry"], one["change"]) for one in first + second] == [
        (SYMBOL, 1, 2, "5"),
        (SYMBOL, 1, 1, "10"),
        (SYMBOL, 2, 1, "14"),
    ]
    assert (await service.get(f"{FUND}/entries/1"))["previousHash"] == bytes(32).hex()
    csv = await service.text(f"{FUND}@1/history.csv")
    assert len(csv.splitlines()) == 3


async def test_lists_show_earlier_generations_only_with_closed_ones(service):
    await reopened(service)
    assert [one["generation"] for one in await service.get("/api/v1/insurance-fund")] == [2]
    assert [one["generation"] for one in await service.get("/api/v1/insurance-fund?closed=true")] == [1, 2]
    assert [one["generation"] for one in await service.get("/api/v1/contracts/active")] == [2]
    cursor = await service.get("/api/v1/ingest/cursor", "engine")
    assert cursor["contracts"] == [{"symbol": SYMBOL, "partition": 0, "seq": 5}]


async def test_events_of_an_earlier_generation_are_duplicates_or_rejected_after_a_restart(service, config):
    await reopened(service)
    async with restarted(service, config) as again:
        answer = await again.send(*BEGINNING, SECOND, surplus(3, 1), surplus(1, 2))
        assert [(one["index"], one["reason"]) for one in answer["rejected"]] == [(4, "contract_closed"), (5, "conflict")]
        assert await again.reasons() == ["contract_closed", "conflict"]
        await again.append(*BEGINNING, SECOND, surplus(6, 1))
        await eventually(lambda: shows(again, SYMBOL, SYMBOL, 2, "16", False, 2))
        assert await shown(again, f"{SYMBOL}@1") == (SYMBOL, 1, "15", True, 2)


async def test_positions_of_a_closed_generation_do_not_return_after_a_restart(service, config):
    position = {"type": "position", "symbol": SYMBOL, "account": "a", "lots": 5, "entryPrice": "80", "margin": "1"}
    await reopened(service)
    await service.send(MARK, position | {"ts": now_ms()}, settle(6), listing(), MARK, position | {"lots": 3, "ts": now_ms()})
    await eventually(lambda: has_open_lots(service, 3))
    async with restarted(service, config) as again:
        await again.send(MARK)
        await eventually(lambda: has_open_lots(again, 3))
        saved = await again.pool.fetch("SELECT symbol FROM books ORDER BY symbol")
        assert [row["symbol"] for row in saved] == [SYMBOL, f"{SYMBOL}@2", f"{SYMBOL}@3"]


async def has_open_lots(service, lots):
    return (await service.get(FUND))["openInterest"] == lots


async def test_adl_orders_of_generations_are_apart(service):
    await reopened(service)
    owed = fill(SYMBOL, 6, lots=100, price="50", bankruptcyPrice="60", account="x")
    await service.send(MARK, owed)
    assert (await service.get(f"/api/v1/adl/{SYMBOL}@1/orders"))["dataList"] == []
    (order,) = (await service.get(f"/api/v1/adl/{SYMBOL}/orders"))["dataList"]
    assert (order["symbol"], order["generation"], order["adl"], order["state"]) == (SYMBOL, 2, 1, "uncovered")


async def test_rounds_are_announced_with_their_generation(service):
    await reopened(service)
    position = {"type": "position", "symbol": SYMBOL, "account": "a", "lots": -9, "entryPrice": "95", "margin": "99"}
    owed = fill(SYMBOL, 6, lots=9, price="50", bankruptcyPrice="92", account="x")
    await service.send(MARK, position | {"ts": now_ms()}, owed)
    (announced,) = await eventually(service.announced)
    assert (announced["symbol"], announced["generation"], announced["adl"]) == (SYMBOL, 2, 1)
    answer = {"type": "adlFill", "symbol": SYMBOL, "seq": 7, "adl": 1, "account": "a", "lots": 9, "ts": now_ms()}
    assert (await service.send(answer))["rejected"] == []
    (order,) = (await service.get(f"/api/v1/adl/{SYMBOL}/orders"))["dataList"]
    assert order["state"] == "done"
    reduced = await service.get("/api/v1/adl/deleveraged?account=a", "risk")
    assert [(one["symbol"], one["generation"]) for one in reduced["dataList"]] == [(SYMBOL, 2)]


async def test_audit_and_exports_cover_every_generation(service, config):
    await reopened(service)
    await service.send(settle(6), listing(), surplus(7, 3))
    done = await fundsvc(config, "audit", "--json")
    assert done.code == 0, done.error + done.output
    for name, key in ((f"{SYMBOL}@1", SYMBOL), (f"{SYMBOL}@2", f"{SYMBOL}@2"), (SYMBOL, f"{SYMBOL}@3")):
        exported = await fundsvc(config, "export", name)
        assert key in exported.output.splitlines()[1].split(",")
        verified = await program(sys.executable, VERIFY_EXPORT, given=exported.output)
        assert verified.code == 0, verified.error


async def test_audit_finds_a_sequence_of_the_generation_before(service, config, owner_connection):
    await reopened(service)
    await owner_connection.execute("SET session_replication_role = replica")
    await owner_connection.execute("UPDATE funds SET seq = 9 WHERE symbol = $1", f"{SYMBOL}@2")
    done = await fundsvc(config, "audit")
    assert done.code == 1
    assert "sequence is 9" in done.output + done.error


async def entries_after(service, part, **place):
    """Returns generation and entry of what a subscription sends until the second generation's entry 2, which is live."""
    async with Service(service.url, service.http, Metrics()).connected() as client:
        await client.subscribe(f"{ENTRY}:{part}", **place)
        await asyncio.sleep(0.1)
        await service.send(surplus(6, 1))
        found = []
        while (2, 2) not in found:
            entry = await client.data(f"{ENTRY}:{part}", "entry")
            found.append((entry["generation"], entry["entry"]))
        return found


@pytest.mark.parametrize(
    ("place", "missed"),
    [
        ({"after": 0, "generation": 1}, [(1, 1), (1, 2), (2, 1)]),
        ({"after": 1, "generation": 1}, [(1, 2), (2, 1)]),
        ({"after": 2, "generation": 1}, [(2, 1)]),
        ({"after": "0", "generation": 2}, [(2, 1)]),
        ({"after": 1, "generation": 2}, []),
        ({"after": 0}, [(2, 1)]),
        ({}, []),
    ],
)
async def test_subscription_continues_after_an_entry_of_an_earlier_generation(service, place, missed):
    await reopened(service)
    assert await entries_after(service, SYMBOL, **place) == [*missed, (2, 2)]


async def test_subscription_after_an_entry_that_its_generation_lacks_is_refused(service, monkeypatch):
    monkeypatch.setattr(entries, "AHEAD_RETRIES_MAX", 1)
    await reopened(service)
    for place, shown in (((3, 1), "@1 is 2"), ((2, 2), " is 1"), ((0, 3), "@3 is 0")):
        async with Service(service.url, service.http, Metrics()).connected() as client:
            await client.subscribe(f"{ENTRY}:{SYMBOL}", after=place[0], generation=place[1])
            assert await client.closed() == (1008, f"after is {place[0]}: the last entry of {SYMBOL}{shown}")
    async with Service(service.url, service.http, Metrics()).connected() as client:
        for topic, place in ((f"{ENTRY}:{SYMBOL}@1", {"after": 0, "generation": 2}), (f"{ENTRY}:{SYMBOL}", {"generation": 2})):
            answer = await client.request(id="mine", type="subscribe", topic=topic, response=True, **place)
            assert (answer["type"], answer["code"]) == ("error", 400)
            assert "generation is 2" in answer["data"]


async def test_topics_continue_with_the_current_generation(service):
    await eventually(lambda: shows(service, SYMBOL, SYMBOL, 1, "15", True, 2))
    async with Service(service.url, service.http, Metrics()).connected() as client:
        await client.subscribe(f"{ENTRY}:{SYMBOL}")
        await client.subscribe(f"{BALANCE}:{SYMBOL}")
        assert (await client.data(f"{BALANCE}:{SYMBOL}", "balance.change"))["generation"] == 1
        await client.subscribe(f"{ENTRY}:{SYMBOL}@1", after=0)
        assert [(await client.data(f"{ENTRY}:{SYMBOL}@1", "entry"))["entry"] for _ in range(2)] == [1, 2]
        await service.send(listing(multiplier=2), SECOND)
        pushed = {}
        while len(pushed) < 2:
            message = await client.next()
            pushed |= {message["topic"]: message["data"]} if message["data"]["entry"] else {}
        assert set(pushed) == {f"{BALANCE}:{SYMBOL}", f"{ENTRY}:{SYMBOL}"}
        assert [(one["generation"], one["entry"]) for one in pushed.values()] == [(2, 1), (2, 1)]
