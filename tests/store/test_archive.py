"""Archived entries are read from files as they were from the table, and only they may leave it."""

import asyncpg
import pytest
from archives import BEGINNING, HOUR_MS, POLICY, SECRETS, SYMBOLS, TS, history, mover, settle
from conftest import connected
from ledgers import owned

from fundsvc.cli.tools import archiving
from fundsvc.cli.tools.archiving import NotArchived
from fundsvc.cli.tools.audit import audit_contract
from fundsvc.cli.tools.export import export_rows
from fundsvc.core.sequences import Applied
from fundsvc.store import statistics
from fundsvc.store.adl import AdlReader
from fundsvc.store.archive import files as archive_files
from fundsvc.store.archive import moves as archive_moves
from fundsvc.store.archive.files import ArchiveFiles, ArchiveUnreachable
from fundsvc.store.audits import beginning, keep_verified, read_parts
from fundsvc.store.database import open_pool
from fundsvc.store.exports import open_ledger
from fundsvc.store.reader import Reader
from fundsvc.store.rollups import condense, mark_unsound, rebuild
from fundsvc.store.statistics import Statistics
from fundsvc.store.venue_histories import Histories

EVENTS = range(1, 120)
END = TS + 600_000 * EVENTS[-1]
CUT = TS + 600_000 * 100


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small files, row groups and transactions, and no wait, so that a short ledger has many of each."""
    monkeypatch.setattr(archiving, "ENTRIES_MAX", 20)
    monkeypatch.setattr(archiving, "PART_ENTRIES", 9)
    monkeypatch.setattr(archiving, "RESTORE_SECONDS", 0)
    monkeypatch.setattr(archive_moves, "REMOVED_ROWS", 7)
    for module in (archive_files, archiving):
        monkeypatch.setattr(module, "ROWS_PER_GROUP", 8)


@pytest.fixture
def files(tmp_path):
    return ArchiveFiles(str(tmp_path))


@pytest.fixture
async def pool(config):
    async with open_pool(config.database.dsn, 2) as pool:
        yield pool


@pytest.fixture
async def ledger(config, pool):
    """The owner of a condensed ledger of some days."""
    async with owned(config, lambda _: POLICY) as owner:
        await settle(owner, [*BEGINNING, *history(1, EVENTS)])
        await condense(pool, 0)
        yield owner


async def paged(reader, symbol, *, forward, **chosen):
    """Returns all entries of a history, page by page."""
    found, offset = [], None
    while page := await reader.history(symbol, count=31, offset=offset, forward=forward, **chosen):
        found += page
        offset = page[-1].entry
    return found


async def reads(pool, files):
    """Returns what clients read of the ledger."""
    reader, past, found = Reader(pool, files), Statistics(pool, files), {}
    spans = [(TS + step * 7 * HOUR_MS, TS + (step + 2) * 7 * HOUR_MS) for step in range(2)]
    for symbol in SYMBOLS:
        for forward in (True, False):
            found[symbol, forward] = await paged(reader, symbol, forward=forward)
            for kind in ("surplus", "flat", "takeover", "cover"):
                found[symbol, forward, kind] = await paged(reader, symbol, forward=forward, kind=kind)
            for begin, end in spans:
                found[symbol, forward, begin] = await paged(reader, symbol, forward=forward, start_ms=begin, end_ms=end)
        for begin, end in [(0, None), *spans]:
            found[symbol, "chart", begin] = await past.chart(symbol, begin, end)
            found[symbol, "candles", begin] = await past.buckets(symbol, begin, end or END, HOUR_MS)
        for moment in range(TS - HOUR_MS, END, 3 * HOUR_MS + 7):
            found[symbol, "at", moment] = await past.at(symbol, moment)
        exported = await open_ledger(pool, symbol, files)
        found[symbol, "export"] = [row async for row in export_rows(exported, SECRETS)]
        found[symbol, "turns"] = await Histories(pool).turns(symbol, 0, END + HOUR_MS, 1000)
        for entry in range(1, 60, 5):
            found[symbol, "account", entry] = await reader.account_of(symbol, entry)
            found[symbol, "caused", entry] = await AdlReader(pool).caused_by(symbol, entry)
    return found


def differing(one, two):
    return [key for key in one if one[key] != two[key]]


async def differences(pool, files=None):
    audits = [await audit_contract(pool, symbol, lambda _: None, POLICY, SECRETS, files) for symbol in SYMBOLS]
    return [difference for audit in audits for difference in audit.differences]


async def in_table(connection, symbol):
    return {row["entry"] for row in await connection.fetch("SELECT entry FROM entries WHERE symbol = $1", symbol)}


@pytest.mark.parametrize("chart_entries_max", [150_000, 25])
async def test_every_read_is_equal_before_and_after_archiving_and_restoring(
    ledger, config, pool, files, owner_connection, monkeypatch, chart_entries_max
):
    monkeypatch.setattr(statistics, "CHART_ENTRIES_MAX", chart_entries_max)
    before = await reads(pool, files)
    assert await differences(pool) == []
    async with mover(config, files) as moving:
        for cut in (CUT - 8 * HOUR_MS, CUT):
            archived = await moving.archive(cut)
            assert archived.keys() == set(SYMBOLS)
            assert differing(before, await reads(pool, files)) == []
            assert await differences(pool) == []
            assert await differences(pool, files) == []
        stubs = {symbol: await moving.stubs(symbol) for symbol in SYMBOLS}
        for symbol, ranges in stubs.items():
            left = await in_table(owner_connection, symbol)
            assert len(left) < ledger.entries(symbol) - 10
            assert set(range(ranges[-1].last_entry + 1, ledger.entries(symbol) + 1)) <= left
        assert await moving.archive(CUT) == {}
        for symbol in SYMBOLS:
            await moving.restore(symbol)
            assert await in_table(owner_connection, symbol) == set(range(1, ledger.entries(symbol) + 1))
        assert differing(before, await reads(pool, ArchiveFiles("/nowhere"))) == []
        assert await differences(pool, files) == []
        archived = await moving.archive(CUT)
        assert [one.files for one in archived.values()] == [0, 0]
        assert {symbol: await moving.stubs(symbol) for symbol in SYMBOLS} == stubs
    assert differing(before, await reads(pool, files)) == []
