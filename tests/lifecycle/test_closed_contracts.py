"""Settlement and closing of contracts in a complete service, on a real database and across restarts."""

import sys
from pathlib import Path

import msgspec
import pytest
from commands import fundsvc, program
from eventually import eventually
from served import contract, fill, now_ms, restarted, served
from structlog.testing import capture_logs

VERIFY_EXPORT = Path(__file__).parents[2] / "scripts" / "verify-export"
SYMBOL = "XBTMZ26"
TERMS = {"multiplier": 1}
FILL = fill(SYMBOL, 1, lots=1, price="200", bankruptcyPrice="100")


@pytest.fixture
async def service(config):
    async with served(config) as service:
        await service.send(contract(SYMBOL, **TERMS), FILL)
        yield service


def takeover(seq, lots, price="100", side="sell"):
    return {
        "type": "takeover",
        "symbol": SYMBOL,
        "seq": seq,
        "side": side,
        "lots": lots,
        "bankruptcyPrice": price,
        "ts": now_ms(),
    }


def settle(seq, price="90", ts=0):
    return {"type": "settle", "symbol": SYMBOL, "seq": seq, "price": price, "ts": ts or now_ms()}


async def closed(service):
    """Returns whether the contract is closed according to the contracts route, the fund and the database."""
    return (
        (await service.get(f"/api/v1/contracts/{SYMBOL}"))["closed"],
        (await service.fund(SYMBOL))["closed"],
        await service.pool.fetchval("SELECT closed_at IS NOT NULL FROM contracts WHERE symbol = $1", SYMBOL),
    )


async def is_closed(service):
    return await closed(service) == (True, True, True)


async def test_a_settlement_closes_the_inventory_and_the_contract_and_survives_a_restart(service, config):
    end = settle(4)
    await service.send(takeover(2, 3), takeover(3, 2, "50", "buy"))
    answer = await service.send(end)
    assert answer["rejected"] == []
    await eventually(lambda: is_closed(service))
    entries = [(1, 100 * 10**8, 0), (2, 0, 0), (3, 0, 0), (4, -30 * 10**8, 0), (4, -70 * 10**8, 10 * 10**8)]
    assert await service.entries(SYMBOL) == entries
    assert await service.pool.fetch("SELECT FROM tranches") == []
    shown = await service.get(f"/api/v1/contracts/{SYMBOL}")
    assert (shown["closedAt"], shown["settlementPrice"]) == (end["ts"], "90")
    async with restarted(service, config) as again:
        assert await is_closed(again)
        await again.append(end, FILL)
        await again.append(fill(SYMBOL, 5), {"type": "mark", "symbol": SYMBOL, "price": "90", "ts": now_ms()}, settle(4, "91"))
        assert await again.reasons() == ["contract_closed", "contract_closed", "conflict"]
        assert await again.entries(SYMBOL) == entries
        history = await again.get(f"/api/v1/insurance-fund/{SYMBOL}/history?maxCount=100")
        assert len(history["dataList"]) == 5


async def test_posted_events_of_a_closed_contract_are_rejected_and_kept(service):
    end = settle(2)
    await service.send(end)
    await eventually(lambda: is_closed(service))
    other = contract(SYMBOL, status="Closed", multiplier=7)
    answer = await service.send(end, fill(SYMBOL, 3), takeover(3, 1), settle(5), other)
    assert [(one["index"], one["reason"]) for one in answer["rejected"]] == [(n, "contract_closed") for n in (1, 2, 3, 4)]
    assert await service.reasons() == ["contract_closed"] * 4


async def test_events_after_a_settlement_in_the_same_body_are_rejected(service):
    answer = await service.send(fill(SYMBOL, 2), settle(3), fill(SYMBOL, 4), settle(3, "91"))
    assert [(one["index"], one["reason"]) for one in answer["rejected"]] == [(2, "contract_closed"), (3, "conflict")]
    assert await service.reasons() == ["contract_closed", "conflict"]


async def test_a_listing_closes_a_contract_once_nothing_is_held(service):
    await service.send(takeover(2, 3), contract(SYMBOL, status="Settled", **TERMS))
    await eventually(lambda: has_status(service, "Settled"))
    assert await closed(service) == (False, False, False)
    unwind = {"type": "unwind", "symbol": SYMBOL, "seq": 3, "side": "sell", "lots": 3, "price": "100", "ts": now_ms()}
    await service.send(unwind, contract(SYMBOL, status="Closed", **TERMS))
    await eventually(lambda: is_closed(service))
    shown = await service.get(f"/api/v1/contracts/{SYMBOL}")
    assert (shown["status"], shown["settlementPrice"], shown["closedAt"] > 0) == ("Closed", None, True)


@pytest.mark.parametrize("end", [settle(2), contract(SYMBOL, status="Closed", **TERMS)], ids=["settle", "listing"])
async def test_readers_see_no_positions_of_a_closed_contract(service, end):
    mark = {"type": "mark", "symbol": SYMBOL, "price": "90", "ts": now_ms()}
    position = {"type": "position", "symbol": SYMBOL, "account": "a", "lots": 5, "entryPrice": "80", "margin": "1"}
    await service.send(mark, position | {"ts": now_ms()})
    await eventually(lambda: has_open_lots(service, 5))
    await service.send(end)
    await eventually(lambda: has_open_lots(service, 0))


async def has_open_lots(service, lots):
    return (await service.fund(SYMBOL))["openInterest"] == lots


async def has_status(service, status):
    return (await service.fund(SYMBOL))["status"] == status


async def test_lists_tell_closed_contracts_apart(service):
    await service.send(contract("OTHERUSDTM"), settle(2))
    await eventually(lambda: is_closed(service))
    assert [one["symbol"] for one in await service.get("/api/v1/contracts/active")] == ["OTHERUSDTM"]
    assert [one["symbol"] for one in await service.get("/api/v1/insurance-fund")] == ["OTHERUSDTM"]
    everything = await service.get("/api/v1/insurance-fund?closed=true")
    assert {one["symbol"]: one["closed"] for one in everything} == {"OTHERUSDTM": False, SYMBOL: True}


async def test_a_settlement_is_accepted_in_both_codecs_and_logged(service):
    with capture_logs() as logs:
        await service.send(body=msgspec.msgpack.encode([settle(2)]), kind="application/msgpack")
        await eventually(lambda: is_closed(service))
    ((seq, symbol),) = [(line["seq"], line["symbol"]) for line in logs if line["event"] == "contract closed"]
    assert (seq, symbol) == (2, SYMBOL)


@pytest.mark.parametrize("form", [(), ("--public",)])
async def test_audit_and_export_of_a_settled_contract_have_no_difference(service, config, form):
    await service.send(takeover(2, 3), takeover(3, 2, "50", "buy"), takeover(4, 8, "95"), settle(6))
    done = await fundsvc(config, "audit")
    assert done.code == 0, done.error + done.output
    exported = await fundsvc(config, "export", SYMBOL, *form)
    verified = await program(sys.executable, VERIFY_EXPORT, *form, given=exported.output)
    assert verified.code == 0, verified.error


@pytest.mark.parametrize(
    "change",
    [
        "closed_seq = closed_seq + 1",
        "closed_price = closed_price + 1",
        "closed_at = closed_at + 1",
        "closed_seq = 0",
        "closed_at = NULL",
        "closed_at = NULL, closed_seq = 0, closed_price = 0",
    ],
)
async def test_audit_finds_an_altered_end(service, config, owner_connection, change):
    await service.send(takeover(2, 3), settle(6))
    await owner_connection.execute("ALTER TABLE contracts DROP CONSTRAINT contracts_closed_by_settlement")
    await owner_connection.execute(f"UPDATE contracts SET {change}")
    done = await fundsvc(config, "audit")
    assert done.code == 1
    assert "settled by" in done.output or "its end has" in done.output


async def test_audit_finds_an_open_inventory_of_a_closed_contract(service, config, owner_connection):
    await service.send(takeover(2, 3))
    await owner_connection.execute("UPDATE contracts SET closed_at = 1")
    done = await fundsvc(config, "audit")
    assert (done.code, "the contract is closed" in done.output) == (1, True)


async def test_order_id_of_settlements_is_reserved(service):
    unwind = {"type": "unwind", "symbol": SYMBOL, "seq": 3, "side": "sell", "lots": 3, "price": "100", "ts": now_ms()}
    answer = await service.send(takeover(2, 3), unwind | {"orderId": "settlement"})
    assert [(one["index"], one["reason"]) for one in answer["rejected"]] == [(1, "invalid_field")]


@pytest.mark.parametrize("symbol", ["XBTMZ26@1", "XBTMZ26@12", "A@0"])
async def test_names_of_generations_are_reserved(service, symbol):
    answer = await service.send(contract(symbol))
    assert [one["reason"] for one in answer["rejected"]] == ["contract_invalid"]
