import re
import sys

import msgspec
import pytest
from alembic.script import ScriptDirectory
from commands import program
from ledgers import fill, listing, owned

from fundsvc.store.database import SQL, StoreFault, open_pool
from fundsvc.store.migrations import alembic_config
from fundsvc.store.reader import HOUR_MS, NotReady, Reader, fetch
from fundsvc.store.rollups import condense
from fundsvc.store.schema import check_schema, newest_revision

START_MS = 1_700_000_000_000
POINTS = {"surplus": 5, "flat": 0, "shortfall": -3}
KINDS = ("surplus", "flat", "surplus", "shortfall", "surplus", "surplus", "flat")


@pytest.fixture
async def owner(config):
    async with owned(config) as owner:
        await owner.settle([listing("AAA"), listing("BBB")])
        yield owner


@pytest.fixture
async def pool(config):
    async with open_pool(config.database.dsn, 4) as pool:
        yield pool


@pytest.fixture
def reader(pool):
    return Reader(pool)


def jumbled(symbol, numbers):
    """Returns fills of all kinds over nine hours, with times out of order."""
    for number in numbers:
        ts = START_MS + number * 61_000 + (number * 7919 % 11 - 5) * HOUR_MS // 3
        yield fill(symbol, number * 2, POINTS[KINDS[number % len(KINDS)]], ts)


async def pages(reader, symbol, size, **question):
    """Reads all pages of a query, each from the end of the previous one."""
    rows = []
    while page := await reader.history(symbol, count=size, **question):
        rows += page
        question["offset"] = page[-1].entry
        assert len(page) <= size
    return rows


async def test_history_without_offset_begins_at_the_newest_or_forward_at_the_first(owner, reader):
    await owner.settle(fill("AAA", seq, 1) for seq in range(1, 8))
    assert [row.entry for row in await reader.history("AAA", count=3)] == [7, 6, 5]
    assert [row.entry for row in await reader.history("AAA", count=3, forward=True)] == [1, 2, 3]


async def test_offset_is_exclusive_in_both_directions(owner, reader):
    await owner.settle(fill("AAA", seq, 1) for seq in range(1, 8))
    assert [row.entry for row in await reader.history("AAA", count=3, offset=4)] == [3, 2, 1]
    assert [row.entry for row in await reader.history("AAA", count=9, offset=4, forward=True)] == [5, 6, 7]
    assert await reader.history("AAA", count=3, offset=0) == []
    assert await reader.history("AAA", count=3, offset=7, forward=True) == []
    assert await reader.history("AAA", count=3, offset=2**63 - 1, forward=True) == []


async def test_entry_row_has_all_columns_but_the_account(owner, reader):
    await owner.settle([fill("AAA", 41, 5, ts=START_MS)])
    (row,) = await reader.history("AAA", count=1)
    (fund,) = await reader.funds("AAA")
    assert (row.kind, row.change, row.balance, row.seq, row.ts) == ("surplus", 5 * 10**8, 5 * 10**8, 41, START_MS)
    assert (row.trade_id, row.order_id, row.hash) == ("trade-41", "order-41", fund.head)
    assert "secret-41" not in row


@pytest.mark.parametrize("condensed", ["nothing", "half", "all"])
async def test_every_query_pages_to_the_end_without_gap_or_duplicate(owner, pool, reader, condensed):
    await owner.settle([*jumbled("AAA", range(1, 251)), *jumbled("BBB", range(1, 20))])
    if condensed != "nothing":
        await condense(pool, 0)
    await owner.settle(jumbled("AAA", range(251, 501)))
    if condensed == "all":
        await condense(pool, 0)
    ledger = await reader.history("AAA", count=1000, forward=True)
    assert [row.entry for row in ledger] == list(range(1, 501))
    assert {row.kind for row in ledger} == set(POINTS)

    middle = ledger[250].ts
    for kind in (None, "surplus", "flat", "shortfall", "refund"):
        for start, end in (
            (0, 2**63 - 1),
            (middle, 2**63 - 1),
            (0, middle),
            (middle - HOUR_MS, middle),
            (middle, middle),
            (1, 2),
        ):
            expected = [row for row in ledger if kind in (None, row.kind) and start <= row.ts <= end]
            question = {"kind": kind, "start_ms": start, "end_ms": end}
            for size in (7, 501):
                assert await pages(reader, "AAA", size, forward=True, **question) == expected
                assert await pages(reader, "AAA", size, **question) == expected[::-1]


class Explaining:
    """Counts the ledger rows that queries visit."""

    def __init__(self):
        self.visited = 0

    async def fetch(self, pool, block, *parameters):
        if block.startswith("entries"):
            text = SQL[block].replace("SELECT", "EXPLAIN (ANALYZE, FORMAT JSON) SELECT", 1)
            self.visited += _rows_visited(await pool.fetchval(text, *parameters))
        return await fetch(pool, block, *parameters)


def _rows_visited(plan):
    def walk(node):
        if "Plans" in node:
            return sum(map(walk, node["Plans"]))
        return node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))

    return walk(msgspec.json.decode(plan)[0]["Plan"])


async def test_page_of_a_large_ledger_reads_few_rows(owner, pool, reader, monkeypatch):
    entries = 200_000
    step_ms = 100
    await owner.settle(
        fill("AAA", seq, -1 if seq % 1000 == 0 else 5, START_MS + seq * step_ms) for seq in range(1, entries + 1)
    )
    await condense(pool, 0)
    await owner.settle(fill("AAA", seq, 5, START_MS + seq * step_ms) for seq in range(entries + 1, entries + 101))
    hour = HOUR_MS // step_ms + 1
    middle = START_MS + entries // 2 * step_ms

    async def visited(**question):
        explaining = Explaining()
        monkeypatch.setattr("fundsvc.store.reader.fetch", explaining.fetch)
        return len(await reader.history("AAA", count=11, **question)), explaining.visited

    for forward in (False, True):
        assert await visited(forward=forward) == (11, 11)
        assert await visited(forward=forward, offset=entries // 2) == (11, 11)
        assert await visited(forward=forward, kind="shortfall") == (11, 11)
        assert await visited(forward=forward, kind="refund") == (0, 0)
        rows, read = await visited(forward=forward, start_ms=middle, end_ms=middle + 4 * step_ms)
        assert rows == 5
        assert read <= hour + 100
        rows, read = await visited(forward=forward, start_ms=middle, end_ms=middle + 2 * HOUR_MS)
        assert rows == 11
        assert read <= hour + 100


async def test_contracts_and_funds_return_all_or_one(owner, reader):
    assert [listed.contract.symbol for listed in await reader.contracts()] == ["AAA", "BBB"]
    assert [fund.symbol for fund in await reader.funds()] == ["AAA", "BBB"]
    assert [listed.contract.symbol for listed in await reader.contracts("BBB")] == ["BBB"]
    assert [fund.symbol for fund in await reader.funds("BBB")] == ["BBB"]
    assert await reader.contracts("CCC") == await reader.funds("CCC") == await reader.history("CCC", count=9) == []


async def test_partition_is_owned_while_its_lease_lasts(config, reader):
    with pytest.raises(NotReady, match="no engine owns partition 0"):
        await reader.check_owners()
    async with owned(config) as owner:
        await owner.settle([listing("AAA")])
        await reader.check_owners()
        (partition,) = await reader.partitions()
    assert (partition.partition, partition.last_id, partition.live) == (0, owner.offset.last_id, True)


async def test_older_schema_is_an_error_and_a_newer_one_is_served(config, owner_connection, reader):
    await owner_connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await reader.check_schema()
    await check_schema(config.database.dsn, 1)
    await owner_connection.execute("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(NotReady, match=r"the schema is 0001, this version needs .*: run fundsvc migrate"):
        await reader.check_schema()
    with pytest.raises(ValueError, match=r"the database has schema 0001, this version needs .*: run fundsvc migrate"):
        await check_schema(config.database.dsn, 1)
    await owner_connection.execute("DELETE FROM alembic_version")
    with pytest.raises(ValueError, match="the database has schema None"):
        await check_schema(config.database.dsn, 1)


def test_revisions_compare_as_text():
    assert re.fullmatch(r"\d{4}", newest_revision())


def test_newest_revision_is_the_head_of_the_migrations():
    assert newest_revision() == ScriptDirectory.from_config(alembic_config()).get_current_head()


async def test_command_that_does_not_migrate_loads_no_migrations():
    done = await program(sys.executable, "-c", "import sys, fundsvc.__main__; print(*sys.modules)")
    assert {"sqlalchemy", "alembic", "fundsvc.store.migrations"}.isdisjoint(done.output.split()), done.error


async def test_missing_database_is_a_fault(tmp_path):
    async with open_pool(f"postgresql://nobody@/nothing?host={tmp_path}", 1) as pool:
        with pytest.raises(StoreFault):
            await Reader(pool).check_database()
