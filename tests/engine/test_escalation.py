"""ADL through a running engine: orders are written, announced and executed, and ranks survive a change of the owner."""

import asyncio
import random

import msgspec
import pytest
from alembic import command
from conftest import with_section
from escalations import TS, allocated, records_of, written_records
from eventually import eventually
from ledgers import listing
from sqlalchemy.ext.asyncio import create_async_engine
from test_engine import Running, ledger, producer, quick, running

from fundsvc.core.contracts import contract_of
from fundsvc.core.events import AdlEnd, AdlFill, Fill, Mark, Position
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.partition import Partition
from fundsvc.store.migrations import alembic_config, migrate
from fundsvc.streams.announcer import announcement_key
from fundsvc.streams.client import open_client

__all__ = ["ledger", "producer", "quick"]

UNIT = {"symbol": "UNITUSDTM", "settleCurrency": "USDT", "multiplier": 1, "isInverse": False, "status": "Open"}


def unit_listing():
    return msgspec.structs.replace(listing("UNITUSDTM"), contract=UNIT)


def positions(seed, accounts=40):
    """Positions on both sides, with marks between them; some are closed again."""
    dice = random.Random(seed)
    events = []
    for number in range(accounts * 4):
        account = f"account{dice.randrange(accounts)}"
        lots = dice.choice([0, -1, 1, -3, 5, -8, 13])
        events.append(
            Position("UNITUSDTM", account, lots, str(dice.randrange(60, 140)), str(dice.randrange(1, 500)), TS + number)
        )
        if number % 7 == 0:
            events.append(Mark("UNITUSDTM", str(dice.randrange(90, 110)), TS + number))
    return events


def shortfall(seq, side, lots=30):
    price, bankruptcy_price = ("90", "100") if side == "sell" else ("110", "100")
    return Fill("UNITUSDTM", seq, side, lots, price, bankruptcy_price, TS + 1000 + seq)


def undisturbed(events):
    """Computes all allocations of a partition that never stopped: (adl, round, account, rank, ranked, lots)."""
    partition = Partition(0, 1, [Fund(contract_of(UNIT, {"USDT": 8}, 10))], {}, 10)
    for event in events:
        partition.apply(event)
    return requested(records_of(partition.take()))


def requested(records):
    return sorted((each.adl, each.round, each.account, each.rank, each.ranked, each.requested) for each in allocated(records))


async def written(owner_connection):
    return requested(await written_records(owner_connection))


async def announced(config):
    """Returns the rounds in the partition's announcement stream."""
    async with open_client(config.stream) as client:
        entries = await client.execute_command("XRANGE", announcement_key(0), "-", "+")
    return [msgspec.json.decode(fields[b"json"]) for _, fields in entries]


async def state_of(owner_connection, adl=1):
    return await owner_connection.fetchval("SELECT state FROM adl_orders WHERE adl = $1", adl)


@pytest.mark.parametrize("seed", range(4))
async def test_ranks_after_a_kill_equal_those_of_an_owner_that_never_stopped(seed, quick, client, producer, owner_connection):
    """Books are saved at arbitrary moments; recovery reads the rest from the stream."""
    config = with_section(quick, "engine", book_seconds=0.05)
    events = positions(seed)
    first, second = events[: len(events) // 2], events[len(events) // 2 :]
    await producer.append([unit_listing()], per_message=1)
    engine = Running(config)
    await producer.append(first, per_message=3)
    await eventually(lambda: _reaches(client, owner_connection))
    await producer.append(second, per_message=3)
    await eventually(lambda: _reaches(client, owner_connection))
    engine.task.cancel()
    await asyncio.wait([engine.task])
    fills = [shortfall(1, "sell"), shortfall(2, "buy"), shortfall(3, "sell", 200)]
    async with running(quick):
        await producer.append(fills, per_message=1)
        await eventually(lambda: _orders(owner_connection, 3), seconds=15)
    assert await written(owner_connection) == undisturbed([*events, *fills])


async def _reaches(client, owner_connection):
    info = await client.xinfo_stream("fundsvc:{0}:in")
    newest = info["last-generated-id"]
    return await owner_connection.fetchval("SELECT last_id FROM partitions") == newest.decode()


async def _orders(owner_connection, number):
    return await owner_connection.fetchval("SELECT count(*) FROM adl_orders") == number


async def test_lots_executed_before_a_restart_are_not_requested_again(quick, producer, owner_connection, config):
    await producer.append(
        [
            unit_listing(),
            Mark("UNITUSDTM", "50", TS),
            Position("UNITUSDTM", "w", -8, "100", "100", TS),
            Position("UNITUSDTM", "v", -30, "90", "500", TS),
        ]
    )
    async with running(quick):
        await producer.append([Fill("UNITUSDTM", 1, "sell", 10, "50", "60", TS + 5)])
        await eventually(lambda: _orders(owner_connection, 1))
        await producer.append([AdlFill("UNITUSDTM", 2, 1, "w", 5, TS + 6)])
        await eventually(lambda: owner_connection.fetchval("SELECT executed = 5 FROM adl_orders"))
    async with running(quick):
        (first,) = await announced(config)  # an execution acknowledged it
        assert first["allocations"] == [{"account": "w", "lots": 8}, {"account": "v", "lots": 2}]
        await producer.append([AdlFill("UNITUSDTM", 3, 1, "w", 4, TS + 7)])  # one more than requested: rejected
        await producer.append([AdlFill("UNITUSDTM", 4, 1, "w", 3, TS + 7), AdlEnd("UNITUSDTM", 5, 1, TS + 8)])
        await eventually(lambda: _announcements(config, 2))
        _, last = await announced(config)
        assert (last["round"], last["allocations"]) == (2, [{"account": "v", "lots": 2}])
        await producer.append([AdlFill("UNITUSDTM", 6, 1, "v", 2, TS + 9), AdlEnd("UNITUSDTM", 7, 1, TS + 10)])
        await eventually(lambda: _is(owner_connection, "done"))
    assert await owner_connection.fetch("SELECT reason FROM rejected") == [("adl_too_many_lots",)]
    assert await owner_connection.fetchrow("SELECT balance, outstanding, seq FROM funds") == (0, 0, 6)
    assert await owner_connection.fetchrow("SELECT recovered, executed, round FROM adl_orders") == (100 * 10**8, 10, 2)


async def _announcements(config, number):
    return len(await announced(config)) >= number


async def _is(owner_connection, state):
    return await state_of(owner_connection) == state


async def test_guard_keeps_its_peak_across_a_restart(quick, producer, owner_connection):
    policy = msgspec.convert({"contracts": {"UNITUSDTM": {"drawdown_guard": {}}}}, type(quick.policy))
    guarded = msgspec.structs.replace(quick, policy=policy)
    await producer.append([unit_listing(), Fill("UNITUSDTM", 1, "sell", 1000, "1100", "100", TS)])
    async with running(guarded):
        await eventually(lambda: owner_connection.fetchval("SELECT balance > 0 FROM funds"))
    async with running(guarded):
        await producer.append([Fill("UNITUSDTM", 2, "buy", 350, "1100", "100", TS + 60_000)])
        await eventually(lambda: owner_connection.fetchval("SELECT entry = 2 FROM funds"))
    unit = 10**8
    change, uncovered = await owner_connection.fetchrow("SELECT change, uncovered FROM entries WHERE entry = 2")
    assert (change, uncovered) == (-300_000 * unit, 50_000 * unit)


async def test_ledger_from_before_adl_is_upgraded(config, owner_connection):
    """Its orders had one round without candidates."""
    dsn = config.database.owner_dsn
    await owner_connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO public")
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://", 1))
    async with engine.begin() as connection:
        await connection.run_sync(_to_first_revision)
    await engine.dispose()
    await owner_connection.execute(
        "INSERT INTO entries VALUES ('A', 1, 1, -100, 0, 50, 0, 1000, 38, 39, 7, now(), 'shortfall', 'sell', '', '', '', $1);",
        bytes(32),
    )
    await owner_connection.execute("INSERT INTO adl_orders VALUES ('A', 1, 1, 'short', 334, 39, 50, 0, 'uncovered', '[[]]')")
    await migrate(dsn, 1)
    order = await owner_connection.fetchrow("SELECT deficit, deficit_lots, executed, round, ts, state FROM adl_orders")
    assert tuple(order) == (150, 1000, 0, 1, 7, "uncovered")


def _to_first_revision(connection):
    alembic = alembic_config()
    alembic.attributes["connection"] = connection
    command.upgrade(alembic, "0001")


async def test_books_are_saved_while_replays_are_looked_up(quick, producer, owner_connection):
    """Both use the owner's connection. If one failed because of the other, the partition would be reloaded repeatedly."""
    config = with_section(quick, "engine", book_seconds=0.001)
    fills = [Fill("UNITUSDTM", seq, "sell", 1, "11", "10", TS + seq) for seq in range(1, 31)]
    await producer.append(fills, per_message=1)
    async with running(config) as engine:
        await eventually(lambda: owner_connection.fetchval("SELECT count(*) = 30 FROM rejected"))
        await producer.append([unit_listing()])
        for row in await owner_connection.fetch("SELECT stream_id, body FROM rejected"):
            await producer.append_replay(0, "json", row["body"], f"{row['stream_id']}/0")
        await eventually(lambda: owner_connection.fetchval("SELECT count(*) = 30 FROM entries"))
        assert engine.count("fundsvc_faults_total") == 0
