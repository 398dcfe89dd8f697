"""Reads of a long ledger touch few rows, and scan no table that grows with the ledger."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from explaining import explained
from ledgers import fill, listing, owned

from fundsvc.core.adl.order import Reduced
from fundsvc.core.adl.records import reduced_body
from fundsvc.store.adl import FIRST_PLACE, LAST_PLACE, AdlReader
from fundsvc.store.database import open_pool
from fundsvc.store.reader import HOUR_MS, Reader
from fundsvc.store.rollups import condense
from fundsvc.store.statistics import DAY_MS, Statistics

ENTRIES, STEP_MS = 20_000, 60_000
"""Of each contract; an hour has 60 entries, so the ledger has 334 hours of each."""

ORDERS, RARE = 2_000, 10
GROWING = {"entries", "rollups", "adl_orders", "adl_records", "rejected"}
START_MS = 1_700_000_000_000 // DAY_MS * DAY_MS
END_MS = START_MS + ENTRIES * STEP_MS
MIDDLE_MS = START_MS + ENTRIES // 2 * STEP_MS

INSERTED_ORDERS = """
    INSERT INTO adl_orders (symbol, adl, cause, reduce, lots, price, deficit, deficit_lots, uncovered, recovered, executed,
                            state, round, ts, seq, account, acknowledged, round_ms, policy_version, origin, unwound)
    SELECT symbol, n, 10 * n, 'long', 1, 1, 1, 1, 1, (n > 2 * $2)::int, (n > 2 * $2)::int,
           CASE WHEN n <= $2 THEN 'uncovered' WHEN n <= 2 * $2 THEN 'open' ELSE 'done' END,
           1, n, 10 * n, '', true, 1, 1, 'shortfall', 0
    FROM contracts, generate_series(1, $1) n
"""
INSERTED_RECORDS = """
    INSERT INTO adl_records (symbol, record, entry, kind, adl, round, seq, ts, account, lots, body, hash)
    SELECT symbol, 2 * n - k, 10 * n, 'execution', n, 1, 10 * n, n, account, 1, $2::bytea, decode(repeat('00', 32), 'hex')
    FROM contracts, generate_series(1, $1) n, LATERAL (VALUES (1, 'account-' || n / 20), (0, 'busy')) a (k, account)
"""
"""Each order reduces two accounts: one of many, and a busy one."""


@pytest.fixture
async def ledger(config, owner_connection, monkeypatch):
    """A ledger of two contracts, all of whose entries but the newest are condensed."""
    async with owned(config) as owner, open_pool(config.database.dsn, 1) as pool:
        await owner.settle([listing("AAA"), listing("BBB")])
        for symbol in ("AAA", "BBB"):
            await owner.settle(
                fill(symbol, seq, -1 if seq % 1000 == 0 else 5, START_MS + seq * STEP_MS) for seq in range(1, ENTRIES + 1)
            )
        while await condense(pool, 0):
            pass
        await owner_connection.execute(INSERTED_ORDERS, ORDERS, RARE)
        await owner_connection.execute(INSERTED_RECORDS, ORDERS, reduced_body(Reduced(1, 1, 1, 1, 1, 1, 1)))
        await owner_connection.execute("ANALYZE")
        with explained(monkeypatch) as reads:
            yield SimpleNamespace(pool=pool, reads=reads, entries=Reader(pool), past=Statistics(pool), adl=AdlReader(pool))


async def test_reads_do_not_grow_with_the_ledger(ledger):
    """One test for all, because the ledger takes seconds. The bounds are independent of its size."""

    async def check(rows_max, reading):
        ledger.reads.clear()
        found = await reading
        read = {table: rows for table, rows in ledger.reads.rows.items() if table in GROWING}
        assert sum(read.values()) <= rows_max, read
        assert not ledger.reads.scanned & GROWING
        return found

    entries, past, adl = ledger.entries, ledger.past, ledger.adl
    assert len(await check(50, entries.history("AAA", count=50))) == 50
    assert len(await check(50, entries.history("AAA", count=50, offset=ENTRIES // 2))) == 50
    assert len(await check(10, entries.history("AAA", count=10, kind="shortfall"))) == 10
    day = await check(50 + 30, entries.history("AAA", count=50, start_ms=MIDDLE_MS, end_ms=MIDDLE_MS + DAY_MS))
    assert len(day) == 50
    assert await check(48 + 2, past.buckets("AAA", MIDDLE_MS - 48 * HOUR_MS, MIDDLE_MS, HOUR_MS))
    assert await check(1500 + 62 * 24, past.chart("AAA", END_MS - HOUR_MS, None))
    # Twice: the first look searches hours, later ones continue from it.
    assert await check(2 * 200, past.past(END_MS))
    assert await check(2 * 200, past.past(END_MS + 1))
    assert await check(2 * 60, past.currencies(range(END_MS - DAY_MS, END_MS, HOUR_MS), END_MS))
    assert await check(2 * 30, past.hours(END_MS - DAY_MS))
    for state in ("uncovered", "open", "done", None):
        assert await check(10, adl.orders("AAA", count=10, state=state))
        assert await check(10 + 2 * RARE, adl.orders("AAA", count=10, state=state, forward=True))
    for moment in (START_MS - 1, MIDDLE_MS, END_MS - HOUR_MS, END_MS + DAY_MS):
        # Twice the entries of an hour, for the balance and for the outstanding amount, and the orders that these caused.
        assert await check(2 * 60 + 60 // 10 + 10, past.at("AAA", moment))
    assert await check(10, condense(ledger.pool, 0)) == 0
    assert len(await check(10 * 20, adl.reductions_page("account-7", count=50))) == 40
    assert len(await check(10 * 20, adl.latest_reductions("account-7", 50))) == 40
    assert len(await check(5 * 50, adl.latest_reductions("busy", 50))) == 50
    (*_, tenth) = await check(5 * 10, adl.reductions_after("busy", FIRST_PLACE, 10))
    assert len(await check(5 * 50, adl.reductions_after("busy", tenth.place, 50))) == 50
    assert len(await check(5 * 50, adl.reductions_before("busy", LAST_PLACE, 50))) == 50
    # A number counts all earlier reductions, in an index.
    page = await check(2 * ORDERS + 5 * 50, adl.reductions_page("busy", count=50, offset=ORDERS, forward=True))
    assert [number for number, _ in page] == list(range(ORDERS + 1, ORDERS + 51))
    assert len(await check(10 * 20, adl.reductions_since("account-7", datetime.fromtimestamp(0, UTC)))) == 40
