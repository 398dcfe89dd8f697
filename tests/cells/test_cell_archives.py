"""Contracts with archived entries move between cells; their files stay."""

import pytest
from archives import BEGINNING, HOUR_MS, POLICY, SECRETS, SYMBOLS, TS, history, mover, settle
from ledgers import owned
from two_cells import cell_templates, cells, owners

from fundsvc.cli.tools import archiving
from fundsvc.cli.tools.export import export_rows
from fundsvc.store.archive.files import ArchiveFiles
from fundsvc.store.cell_moves import CannotMove, Move, as_owner
from fundsvc.store.database import open_pool
from fundsvc.store.exports import open_ledger
from fundsvc.store.reader import Reader
from fundsvc.store.rollups import condense

__all__ = ["cell_templates", "cells", "owners"]  # fixtures

EVENTS = range(1, 120)
CUT = TS + 600_000 * 100
LATER = TS + 600_000 * EVENTS[-1] + 24 * HOUR_MS
"""All entries lie before this time."""


class Killed(BaseException):
    """Ends a move as a kill does."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small files, and no wait."""
    monkeypatch.setattr(archiving, "ENTRIES_MAX", 20)
    monkeypatch.setattr(archiving, "RESTORE_SECONDS", 0)
    monkeypatch.setattr("fundsvc.store.cell_moves.LINGER_SECONDS", 0.0)


@pytest.fixture
def files(tmp_path):
    return ArchiveFiles(str(tmp_path))


@pytest.fixture
async def ledger(cells):
    """A condensed partition of some days in the first cell."""
    async with owned(cells, lambda _: POLICY) as owner, open_pool(cells.database.dsn, 1) as pool:
        await settle(owner, [*BEGINNING, *history(1, EVENTS)])
        await condense(pool, 0)


async def reads(cells, cell, files):
    """Returns what clients of a cell read of the ledger."""
    found = {}
    async with open_pool(cells.in_cell(cell).database.dsn, 2) as pool:
        for symbol in SYMBOLS:
            for forward in (True, False):
                found[symbol, forward] = await Reader(pool, files).history(symbol, count=500, forward=forward)
            found[symbol, "hour"] = await Reader(pool, files).history(symbol, count=500, start_ms=CUT, end_ms=CUT + HOUR_MS)
            exported = await open_ledger(pool, symbol, files)
            found[symbol, "export"] = [row async for row in export_rows(exported, SECRETS)]
    return found


async def in_partition_0(cells, act, step=None, *, source="main", target="b"):
    """Calls a method of a move of partition 0."""
    async with (
        as_owner(cells.in_cell(source).database.owner_dsn) as one,
        as_owner(cells.in_cell(target).database.owner_dsn) as other,
    ):
        return await act(Move(one, other, 0, *([step] if step else [])))


@pytest.mark.parametrize("before_ms", [CUT, LATER])
async def test_archived_entries_move_with_their_stubs_alone(cells, owners, ledger, files, before_ms):
    async with mover(cells, files) as moving:
        await moving.archive(before_ms)
    before = await reads(cells, "main", files)
    kept = await owners["main"].fetchval("SELECT count(*) FROM entries")
    assert kept < len(before["AAA", True] + before["HELD", True])
    await in_partition_0(cells, Move.run)
    assert await owners["b"].fetchval("SELECT count(*) FROM entries") == kept
    assert await reads(cells, "b", files) == before
    async with mover(cells.in_cell("b"), files) as moving:
        for symbol in SYMBOLS:
            await moving.restore(symbol)
    assert await reads(cells, "b", ArchiveFiles("")) == before
    await in_partition_0(cells, Move.run, source="b", target="main")
    assert await reads(cells, "main", files) == before


async def test_move_refuses_entries_that_were_restored_after_the_copy(cells, owners, ledger, files):
    async def killed(name):
        if name == "caught up":
            raise Killed

    async with mover(cells, files) as moving:
        await moving.archive(CUT)
    before = await reads(cells, "main", files)
    with pytest.raises(Killed):
        await in_partition_0(cells, Move.run, killed)
    async with mover(cells, files) as moving:
        await moving.restore("AAA")
    with pytest.raises(CannotMove, match="were restored after they were copied"):
        await in_partition_0(cells, Move.run)
    await in_partition_0(cells, Move.undo)
    assert await reads(cells, "main", files) == before
    await in_partition_0(cells, Move.run)
    assert await reads(cells, "b", files) == before


async def test_no_partition_moves_while_entries_are_archived(cells, ledger, files):
    async with mover(cells, files):
        with pytest.raises(CannotMove, match="another process archives"):
            await in_partition_0(cells, Move.run)
