import asyncio
import random
import time
from collections import Counter

import pytest
from commands import fundsvc
from eventually import eventually
from ledgers import charted_at, fill, listing, owned, restamp

from fundsvc.core.events import AdlEnd, AdlFill, Mark, Position
from fundsvc.core.policy import Policy
from fundsvc.store import rollups
from fundsvc.store.database import open_pool
from fundsvc.store.rollup_audit import rollup_differences
from fundsvc.store.rollups import condense, mark_unsound, rebuild

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000 // HOUR_MS * HOUR_MS
SYMBOLS = ("AAA", "BBB", "CCC")


@pytest.fixture
async def owner(config):
    async with owned(config) as owner:
        await owner.settle(listing(symbol) for symbol in SYMBOLS)
        yield owner


@pytest.fixture
async def pool(config):
    async with open_pool(config.database.dsn, 4) as pool:
        yield pool


def market(dice, seqs, lateness_ms=0):
    """Returns fills of several hours, in order of time except for a random lateness."""
    for seq in seqs:
        ts = START_MS + seq * 60_000 - dice.randint(0, lateness_ms)
        yield fill(dice.choice(SYMBOLS), seq, dice.randint(-12, 10), ts)


async def rolled_up(connection):
    rows = await connection.fetch("SELECT * FROM rollups ORDER BY symbol, hour")
    return [dict(row) for row in rows]


async def moved_by_orders(connection):
    """Returns by contract and entry what orders took from the outstanding amount, and what they returned when they ended."""
    moved = Counter()
    orders = {(order["symbol"], order["adl"]): order for order in await connection.fetch("SELECT * FROM adl_orders")}
    for (symbol, _), order in orders.items():
        moved[symbol, order["cause"]] -= order["uncovered"]
    for end in await connection.fetch("SELECT * FROM adl_records WHERE kind = 'end'"):
        order = orders[end["symbol"], end["adl"]]
        moved[end["symbol"], end["entry"]] += order["uncovered"] - order["recovered"]
    return moved


async def expected(connection):
    """Computes the rollups independently, in Python, from every entry in order."""
    hours, clocks, owed = {}, {}, Counter()
    moved = await moved_by_orders(connection)
    for entry in await connection.fetch("SELECT * FROM entries ORDER BY symbol, entry"):
        clock = clocks[entry["symbol"]] = max(clocks.get(entry["symbol"], 0), charted_at(entry))
        hour = clock - clock % HOUR_MS
        opening = entry["balance"] - entry["change"]
        line = hours.setdefault(
            (entry["symbol"], hour),
            {
                "symbol": entry["symbol"],
                "hour": hour,
                "first_entry": entry["entry"],
                "opening": opening,
                "highest": opening,
                "lowest": opening,
                "earliest": entry["ts"],
                "latest": entry["ts"],
                "outstanding": owed[entry["symbol"]],
                **dict.fromkeys(("credited", "paid", "uncovered", "repaid", "covered", "fills"), 0),
            },
        )
        line["last_entry"] = entry["entry"]
        line["closing"] = entry["balance"]
        line["highest"] = max(line["highest"], opening, entry["balance"])
        line["lowest"] = min(line["lowest"], opening, entry["balance"])
        line["credited" if entry["change"] > 0 else "paid"] += abs(entry["change"])
        line["uncovered"] += entry["uncovered"]
        line["repaid"] += entry["repaid"]
        line["covered"] += -entry["change"] if entry["kind"] == "cover" else 0
        line["fills"] += entry["kind"] in {"surplus", "flat", "shortfall"}
        line["earliest"], line["latest"] = min(line["earliest"], entry["ts"]), max(line["latest"], entry["ts"])
        owed[entry["symbol"]] += entry["uncovered"] - entry["repaid"] + moved[entry["symbol"], entry["entry"]]
    return [hours[key] for key in sorted(hours)]


@pytest.mark.parametrize("lateness_ms", [0, 5 * HOUR_MS])
@pytest.mark.parametrize("entries_per_statement", [7, 50_000])
async def test_stepwise_condensing_equals_a_rebuild_and_an_independent_computation(
    owner, pool, service_connection, monkeypatch, lateness_ms, entries_per_statement
):
    monkeypatch.setattr(rollups, "ENTRIES_PER_STATEMENT_MAX", entries_per_statement)
    dice = random.Random(lateness_ms)
    condensed = 0
    start = 1
    while start < 700:
        size = dice.randint(1, 120)
        await owner.settle(market(dice, range(start, start + size), lateness_ms))
        start += size
        condensed += await condense(pool, 0)
        assert await rolled_up(service_connection) == await expected(service_connection)
    assert condensed == await service_connection.fetchval("SELECT count(*) FROM entries")
    before = await rolled_up(service_connection)
    assert len(before) > 3 * 10
    await mark_unsound(pool)
    assert await rebuild(pool, 0) == condensed  # without the time limit of `condense`
    assert await rolled_up(service_connection) == before


async def test_second_condensing_changes_nothing(owner, pool, service_connection):
    await owner.settle(market(random.Random(1), range(1, 200)))
    assert await condense(pool, 0) == 199
    before = await rolled_up(service_connection)
    assert await condense(pool, 0) == 0
    assert await rolled_up(service_connection) == before


async def test_condense_leaves_other_partitions_alone(owner, pool, service_connection):
    await owner.settle(market(random.Random(1), range(1, 20)))
    assert await condense(pool, 1) == 0
    assert await rolled_up(service_connection) == []


async def test_concurrent_condensing_counts_nothing_twice(owner, pool, service_connection, monkeypatch):
    monkeypatch.setattr(rollups, "ENTRIES_PER_STATEMENT_MAX", 13)
    dice = random.Random(2)
    for start in range(1, 600, 200):
        await owner.settle(market(dice, range(start, start + 200), HOUR_MS))
        await asyncio.gather(*(condense(pool, 0) for _ in range(4)))
        assert await rolled_up(service_connection) == await expected(service_connection)


async def test_interrupted_condensing_leaves_complete_steps(owner, pool, service_connection, monkeypatch):
    monkeypatch.setattr(rollups, "ENTRIES_PER_STATEMENT_MAX", 50)
    dice = random.Random(3)
    await owner.settle(market(dice, range(1, 1000), HOUR_MS))
    for _ in range(20):
        task = asyncio.create_task(condense(pool, 0))
        await asyncio.wait([task], timeout=dice.uniform(0, 0.02))
        task.cancel()
        await asyncio.wait([task])
    await condense(pool, 0)
    assert await rolled_up(service_connection) == await expected(service_connection)


async def test_late_fill_belongs_to_the_hour_of_the_latest_entry_before_it(owner, pool, service_connection):
    hours = (START_MS, START_MS + HOUR_MS)
    await owner.settle([fill("AAA", 1, 5, hours[0]), fill("AAA", 2, 7, hours[1])])
    await condense(pool, 0)
    await owner.settle([fill("AAA", 3, -4, hours[0] + 5), fill("AAA", 4, 1, hours[0] - 1)])
    await condense(pool, 0)
    unit = 10**8
    first, second = await rolled_up(service_connection)
    assert (first["hour"], first["opening"], first["closing"], first["fills"]) == (hours[0], 0, 5 * unit, 1)
    assert (second["hour"], second["opening"], second["closing"], second["fills"]) == (hours[1], 5 * unit, 9 * unit, 3)
    assert (second["credited"], second["paid"], second["last_entry"]) == (8 * unit, 4 * unit, 4)
    assert (second["highest"], second["lowest"]) == (12 * unit, 5 * unit)


@pytest.mark.parametrize("condensed", [0, 1, 2, 3])
async def test_entry_with_a_future_time_counts_at_its_recording(owner, pool, service_connection, owner_connection, condensed):
    now = time.time_ns() // 1_000_000
    times = [now - 2 * HOUR_MS, now + 365 * 24 * HOUR_MS, now - HOUR_MS]
    for place, ts in enumerate(times):
        await owner.settle([fill("AAA", place + 1, 5, now - 2 * HOUR_MS)])
        await restamp(owner_connection, "AAA", place + 1, ts)
        if place < condensed:
            await condense(pool, 0)
    await condense(pool, 0)
    rows = await rolled_up(service_connection)
    assert rows == await expected(service_connection)
    assert [row["last_entry"] for row in rows] == [1, 3]
    assert abs(rows[1]["hour"] - now) <= HOUR_MS


async def test_refunds_and_covers_do_not_count_as_fills(config, pool, service_connection):
    policies = {"AAA": Policy(), "BBB": Policy(waterfall="adl_then_fund", rounds_max=1)}
    market = [
        event
        for symbol in policies
        for event in (listing(symbol), Mark(symbol, "990", 0), Position(symbol, "secret-anna", -5, "1100", "500", 0))
    ]
    refunded = [fill("AAA", 1, 5), fill("AAA", 2, -10), AdlFill("AAA", 3, 1, "secret-anna", 1, 0)]
    covered = [fill("BBB", 1, 5), fill("BBB", 2, -3), AdlEnd("BBB", 3, 1, 0)]
    async with owned(config, policies.__getitem__) as owner:
        await owner.settle([*market, *refunded, *covered])
    await condense(pool, 0)
    rows = await rolled_up(service_connection)
    assert rows == await expected(service_connection)
    kinds = [row["kind"] for row in await service_connection.fetch("SELECT kind FROM entries ORDER BY symbol, entry")]
    assert kinds == ["surplus", "shortfall", "refund", "surplus", "shortfall", "cover"]
    assert [row["fills"] for row in rows] == [2, 2]


async def test_hours_are_contiguous_and_add_up(owner, pool, service_connection):
    await owner.settle(market(random.Random(4), range(1, 900)))
    await condense(pool, 0)
    rows = await rolled_up(service_connection)
    assert len(rows) > 20
    closing = {}
    for row in rows:
        assert row["opening"] == closing.get(row["symbol"], 0)
        assert row["opening"] + row["credited"] - row["paid"] == row["closing"]
        assert row["lowest"] <= min(row["opening"], row["closing"]) <= max(row["opening"], row["closing"]) <= row["highest"]
        closing[row["symbol"]] = row["closing"]
    for symbol, balance in closing.items():
        assert balance == await service_connection.fetchval("SELECT balance FROM funds WHERE symbol = $1", symbol)


HOURS_OF_BEFORE = """
INSERT INTO rollups (symbol, hour, first_entry, last_entry, opening, highest, lowest, closing, credited, paid, uncovered,
                     repaid, fills)
SELECT symbol, ts - ts % 3600000, min(entry), max(entry), (array_agg(balance - change ORDER BY entry))[1],
       max(greatest(balance, balance - change)), min(least(balance, balance - change)),
       (array_agg(balance ORDER BY entry DESC))[1], sum(greatest(change, 0)), sum(greatest(-change, 0)), sum(uncovered),
       sum(repaid), count(*)
FROM entries e WHERE entry > (SELECT coalesce(max(p.entry), 0) FROM rollup_progress p WHERE p.symbol = e.symbol) GROUP BY 1, 2
ON CONFLICT (symbol, hour) DO UPDATE SET last_entry = excluded.last_entry, closing = excluded.closing;
INSERT INTO rollup_progress (symbol, entry) SELECT symbol, entry FROM funds
ON CONFLICT (symbol) DO UPDATE SET entry = excluded.entry;
"""
"""Condenses as the version before the chart clock did: each entry belongs to the hour of its own time."""


async def test_hours_of_an_earlier_version_are_rebuilt(owner, pool, service_connection, monkeypatch):
    monkeypatch.setattr(rollups, "ENTRIES_PER_STATEMENT_MAX", 17)
    dice = random.Random(6)
    await owner.settle(market(dice, range(1, 300), 5 * HOUR_MS))
    await service_connection.execute(HOURS_OF_BEFORE)
    before = await rolled_up(service_connection)
    assert await condense(pool, 0) == 299
    assert await rolled_up(service_connection) == await expected(service_connection) != before
    assert await condense(pool, 0) == 0
    # An engine of the earlier version takes over for a while.
    await owner.settle(market(dice, range(300, 400), 5 * HOUR_MS))
    await service_connection.execute(HOURS_OF_BEFORE)
    assert await condense(pool, 0) == 399
    assert await rolled_up(service_connection) == await expected(service_connection)


HOLD_REBUILD = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END$$;
CREATE TRIGGER hold BEFORE INSERT ON rollups FOR EACH STATEMENT EXECUTE FUNCTION hold();
"""
"""A rebuild waits for an advisory lock after it deletes the previous hours and before it inserts their replacements."""


async def test_rebuild_keeps_old_hours_until_it_replaces_them(owner, pool, service_connection, owner_connection):
    await owner.settle(market(random.Random(7), range(1, 300), 5 * HOUR_MS))
    await condense(pool, 0)
    hours = await rolled_up(service_connection)
    await mark_unsound(pool)
    await owner_connection.execute(HOLD_REBUILD)
    await owner_connection.execute("SELECT pg_advisory_lock(1)")
    rebuilding = asyncio.create_task(condense(pool, 0))
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    await eventually(lambda: service_connection.fetchval(waits))
    assert await rolled_up(service_connection) == hours
    await owner_connection.execute("SELECT pg_advisory_unlock(1)")
    await rebuilding
    assert await rolled_up(service_connection) == hours == await expected(service_connection)


async def test_one_turn_rebuilds_few_contracts_and_the_next_continues(owner, pool, service_connection, monkeypatch):
    monkeypatch.setattr(rollups, "REBUILD_SECONDS", 0.0)
    await owner.settle(market(random.Random(8), range(1, 100), 5 * HOUR_MS))
    await condense(pool, 0)
    await mark_unsound(pool)
    assert await condense(pool, 0) == 0
    monkeypatch.setattr(rollups, "REBUILD_SECONDS", 1.0)
    assert await condense(pool, 0) == 99
    assert await rolled_up(service_connection) == await expected(service_connection)


async def test_rebuild_command_rebuilds_all_contracts(owner, pool, service_connection, owner_connection, monkeypatch):
    monkeypatch.setattr(rollups, "REBUILD_SECONDS", 0.0)
    await owner.settle(market(random.Random(9), range(1, 100), 5 * HOUR_MS))
    await condense(pool, 0)
    await owner_connection.execute("UPDATE rollups SET closing = closing + 1, hour = hour - 3600000")
    await mark_unsound(pool)
    assert (await rebuild(pool, 1), await rebuild(pool, 0), await rebuild(pool, 0)) == (0, 99, 0)
    assert await rolled_up(service_connection) == await expected(service_connection)


async def test_rebuild_rollups_replaces_hours_of_an_earlier_version(config, owner, service_connection):
    await owner.settle(market(random.Random(10), range(1, 100), 5 * HOUR_MS))
    await service_connection.execute(HOURS_OF_BEFORE)
    done = await fundsvc(config, "rebuild-rollups")
    assert (done.code, "condensed 99 entries" in done.error) == (0, True)
    assert await rolled_up(service_connection) == await expected(service_connection)


FORGED = {
    "an amount": ("UPDATE rollups SET paid = paid + 1 WHERE hour = $1", "its rollup has paid"),
    "a high": ("UPDATE rollups SET highest = highest + 1 WHERE hour = $1", "its rollup has highest"),
    "an outstanding amount": ("UPDATE rollups SET outstanding = outstanding + 1 WHERE hour = $1", "its rollup has outstanding"),
    "a missing hour": ("DELETE FROM rollups WHERE hour = $1", "its rollup is missing"),
    "an hour too many": (
        (
            "INSERT INTO rollups SELECT symbol, hour + 7200000000, first_entry, last_entry, opening, highest, lowest, closing,"
            " credited, paid, uncovered, repaid, fills FROM rollups WHERE hour = $1"
        ),
        "it has a rollup, and no entries",
    ),
    "a clock": ("UPDATE rollup_progress SET clock = clock + $1 + 1", "the chart clock is"),
}


async def test_audit_accepts_rollups_of_any_history_and_condensing(owner, pool, monkeypatch):
    dice = random.Random(5)
    for start in range(1, 1200, 300):
        await owner.settle(market(dice, range(start, start + 300), HOUR_MS))
        await condense(pool, 0)
    symbols = [row["symbol"] for row in await pool.fetch("SELECT symbol FROM funds")]
    for size in (17, 1_000_000):
        monkeypatch.setattr("fundsvc.store.rollup_audit.ENTRIES_PER_STATEMENT_MAX", size)
        assert [await rollup_differences(pool, symbol) for symbol in symbols] == [[]] * len(symbols)


@pytest.mark.parametrize("what", FORGED)
async def test_audit_finds_a_forged_rollup(owner, pool, owner_connection, what):
    await owner.settle(market(random.Random(6), range(1, 300), HOUR_MS))
    await condense(pool, 0)
    statement, message = FORGED[what]
    (row,) = await owner_connection.fetch("SELECT symbol, hour FROM rollups ORDER BY hour DESC LIMIT 1")
    await owner_connection.execute(statement, row["hour"])
    assert message in " ".join(await rollup_differences(pool, row["symbol"]))
