"""Exports and audits of a growing ledger are complete, and hold no snapshot that slows commits down."""

import asyncio

import pytest
from ledgers import fill, listing, owned

from fundsvc.cli.tools.audit import audit_contract
from fundsvc.cli.tools.export import export_rows
from fundsvc.store import exports
from fundsvc.store.database import open_pool
from fundsvc.store.exports import known_contracts, open_ledger

ENTRIES = 300
HELD = """
SELECT count(*) FROM pg_stat_activity
WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()
"""
PAGES = "SELECT pg_relation_size('partitions') / current_setting('block_size')::int"


@pytest.fixture
async def owner(config):
    async with owned(config) as owner:
        await owner.settle([listing("AAA"), *(fill("AAA", seq, 5) for seq in range(1, ENTRIES + 1))])
        yield owner


@pytest.fixture
async def pool(config):
    async with open_pool(config.database.dsn, 2) as pool:
        yield pool


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    monkeypatch.setattr(exports, "ROWS_PER_PAGE", 20)


async def test_slow_export_does_not_prevent_cleanup_of_the_offset_row(owner, pool, service_connection):
    rows = export_rows(await open_ledger(pool, "AAA"))
    found = [await anext(rows) for _ in range(ENTRIES // 2)]
    for seq in range(ENTRIES + 1, ENTRIES + 1001):
        await owner.settle([fill("AAA", seq, 5)])
    assert await service_connection.fetchval(HELD) == 0
    assert await service_connection.fetchval(PAGES) <= 2
    found += [row async for row in rows]
    assert [row["entry"] for row in found if row["line"] == "entry"] == list(range(1, ENTRIES + 1))
    assert (found[-1]["line"], found[-1]["entry"]) == ("fund", ENTRIES)


async def test_audit_of_a_growing_ledger_reaches_its_end(owner, pool, service_connection):
    grown = []

    async def grow():
        for seq in range(ENTRIES + 1, ENTRIES + 101):
            await owner.settle([fill("AAA", seq, 5)])
            grown.append(seq)

    growing = asyncio.create_task(grow())
    audits = [await audit_contract(pool, "AAA", lambda _: None) for _ in range(10)]
    assert not any(audit.differences for audit in audits)
    await growing
    last = await audit_contract(pool, "AAA", lambda _: None)
    assert (last.entries, last.differences) == (ENTRIES + 100, [])
    assert last.head == (await service_connection.fetchval("SELECT head FROM funds")).hex()


@pytest.mark.parametrize("entries", [0, 19, 20, 40])
async def test_export_reads_the_whole_ledger_wherever_a_page_ends(config, pool, entries):
    async with owned(config) as owner:
        await owner.settle([listing("BBB"), *(fill("BBB", seq, 5) for seq in range(1, entries + 1))])
    assert (await audit_contract(pool, "BBB", lambda _: None)).entries == entries
    assert len([row async for row in export_rows(await open_ledger(pool, "BBB"))]) == entries + 1
    assert await known_contracts(pool) == [("BBB", entries)]
