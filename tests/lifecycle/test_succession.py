"""The balance of a closed contract moves to its successor in a complete service: ledger, audit, exports, restarts."""

import sys
from pathlib import Path

import msgspec
import pytest
from commands import fundsvc, program
from conftest import with_section
from eventually import eventually
from served import contract, fill, now_ms, restarted, served
from structlog.testing import capture_logs

from fundsvc.core.contracts import partition_of
from fundsvc.core.policy import Policy

VERIFY_EXPORT = Path(__file__).parents[2] / "scripts" / "verify-export"
OLD, HEIR = "XBTMZ26", "XBTMH27"


@pytest.fixture
def config(config):
    return with_section(config, "policy", default=Policy(on_close="successor"))


@pytest.fixture
async def service(config):
    async with served(config) as service:
        await service.send(listing(OLD, successor=HEIR), listing(HEIR), surplus(OLD, 1, 10), surplus(HEIR, 4, 3))
        yield service


def listing(symbol, **fields):
    return contract(symbol, **({"status": "Open", "multiplier": 1} | fields))


def surplus(symbol, seq, amount):
    return fill(symbol, seq, lots=amount, price="101", bankruptcyPrice="100")


def settle(seq, symbol=OLD):
    return {"type": "settle", "symbol": symbol, "seq": seq, "price": "90", "ts": now_ms()}


async def moves(service, symbol):
    """Returns the entries of a contract that move a balance."""
    history = (await service.get(f"/api/v1/insurance-fund/{symbol}/history"))["dataList"]
    return [
        (one["kind"], one["change"], one["balance"], one["seq"], one["orderId"]) for one in history if "carry" in one["kind"]
    ]


OUT = ("carry_out", "-10", "0", 5, f"carry/{HEIR}@1")
IN = ("carry_in", "10", "13", 4, f"carry/{OLD}@1")


async def test_settlement_moves_the_balance_and_a_restart_moves_nothing_more(service, config):
    end = settle(5)
    await service.send(end)
    assert await moves(service, OLD) == [OUT]
    assert await moves(service, HEIR) == [IN]
    heads = await service.pool.fetch("SELECT symbol, head FROM funds ORDER BY symbol")
    async with restarted(service, config) as again:
        await again.append(end, listing(OLD, status="Closed", successor=HEIR), surplus(HEIR, 4, 3))
        assert await again.pool.fetch("SELECT symbol, head FROM funds ORDER BY symbol") == heads
        await again.append(surplus(HEIR, 5, 2))
        assert (await again.fund(HEIR))["balance"] == "15"
        assert (await again.get(f"/api/v1/insurance-fund/{HEIR}/history?kind=carry_in"))["dataList"][0]["entry"] == 2
        assert (await fundsvc(config, "audit")).code == 0


async def test_successor_without_events_accepts_its_first_event(config):
    async with served(config) as service:
        await service.send(listing(OLD, successor=HEIR), listing(HEIR), surplus(OLD, 1, 10), settle(5), surplus(HEIR, 1, 3))
        assert await service.reasons() == []
        assert [seq for seq, *_ in await service.entries(HEIR)] == [0, 1]
        async with restarted(service, config) as again:
            assert (await again.send(surplus(HEIR, 1, 3)))["rejected"][0]["reason"] == "conflict"
            assert [seq for seq, *_ in await again.entries(HEIR)] == [0, 1]


@pytest.mark.parametrize("form", [(), ("--public",)])
async def test_exports_and_audit_of_both_contracts_have_no_difference(service, config, form):
    await service.send(settle(5), surplus(HEIR, 5, 2))
    done = await fundsvc(config, "audit")
    assert done.code == 0, done.output
    for symbol in (OLD, HEIR):
        exported = await fundsvc(config, "export", symbol, *form)
        verified = await program(sys.executable, VERIFY_EXPORT, *form, given=exported.output)
        assert verified.code == 0, verified.error
        altered = exported.output.replace("carry/", "adl/")
        assert (await program(sys.executable, VERIFY_EXPORT, *form, given=altered)).code == 1


@pytest.mark.parametrize(
    ("statement", "symbol"),
    [
        ("DELETE FROM entries WHERE kind = 'carry_in'", OLD),
        ("DELETE FROM entries WHERE kind = 'carry_out'", HEIR),
        ("UPDATE entries SET change = change + 1 WHERE kind = 'carry_in'", OLD),
        ("UPDATE entries SET order_id = 'carry/OTHER@1' WHERE kind = 'carry_out'", HEIR),
        ("UPDATE entries SET kind = 'refund' WHERE kind = 'carry_in'", OLD),
    ],
)
async def test_audit_finds_a_move_without_its_counterpart(service, config, owner_connection, statement, symbol):
    await service.send(settle(5))
    for check in ("entries_add_up", "entries_lots_check"):
        await owner_connection.execute(f"ALTER TABLE entries DROP CONSTRAINT {check}")
    await owner_connection.execute("SET session_replication_role = replica")
    await owner_connection.execute(statement)
    done = await fundsvc(config, "audit", "--json")
    assert done.code == 1
    found = msgspec.json.decode(done.output)
    (audit,) = [one for one in found["contracts"] if one["symbol"] == symbol]
    assert "the entry of the other contract is missing" in " ".join(audit["differences"])


async def test_refused_move_is_logged_and_counted_and_happens_at_a_later_listing(config):
    async with served(config) as service:
        await service.send(listing(OLD, successor=HEIR), surplus(OLD, 1, 10))
        with capture_logs() as logs:
            await service.send(settle(5))
            await eventually(lambda: service.count("fundsvc_balances_not_carried_total", symbol=OLD) == 1)
        ((successor, detail),) = [
            (line["successor"], line["detail"]) for line in logs if line["event"] == "balance not carried"
        ]
        assert (successor, "is not listed" in detail) == (HEIR, True)
        await service.send(listing(HEIR), listing(OLD, status="Closed", successor=HEIR))
        assert await moves(service, OLD) == [OUT]
        assert [change for _, change, *_ in await moves(service, HEIR)] == ["10"]


@pytest.mark.parametrize("partitions", [2])
async def test_balance_does_not_move_to_another_partition(config):
    away = next(f"AWAY{n}" for n in range(99) if partition_of(f"AWAY{n}", 2) != partition_of(OLD, 2))
    async with served(config) as service:
        await service.post(listing(away), listing(OLD, successor=away), surplus(OLD, 1, 10), settle(5))
        await eventually(lambda: service.count("fundsvc_balances_not_carried_total", symbol=OLD) == 1)
        assert (await service.fund(OLD))["balance"] == "10"


async def test_charts_show_a_move_neither_as_a_fill_nor_as_a_deficit(service, config):
    await service.send(settle(5))
    await service.fund(OLD)
    (candle,) = await service.get(f"/api/v1/insurance-fund/{OLD}/candles?granularity=1440")
    assert candle[4:] == ["0", "10", "10", "0", 1]


async def test_policy_keeps_the_balance_by_default(config):
    async with served(with_section(config, "policy", default=Policy())) as service:
        await service.send(listing(OLD, successor=HEIR), listing(HEIR), surplus(OLD, 1, 10), settle(5))
        assert (await service.fund(OLD))["balance"] == "10"
        assert await moves(service, HEIR) == []


async def test_successor_must_be_text(service):
    answer = await service.send(listing(OLD, successor=5))
    assert [one["reason"] for one in answer["rejected"]] == ["contract_invalid"]
