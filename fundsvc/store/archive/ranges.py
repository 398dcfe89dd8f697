"""Reads archived entries: the stubs of the database name the files.

A reader reads the table `entries` first and then the bound: entries up to the bound come from files, later ones from the table.
The bound rises before entries are removed, and falls after they are restored, so neither way an entry is missed.
"""

import asyncio
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import asyncpg

from fundsvc.store.archive.files import ALL, SECONDS_MAX, ArchiveFiles, ArchiveUnreachable, FileRange, Row, Wanted
from fundsvc.store.cell_routes import routed
from fundsvc.store.cells import Cells
from fundsvc.store.database import CellPool, Pool, acquired, faults, statements

ARCHIVE_SQL = statements("fundsvc.store.archive")
"""The statements of queries.sql of this package by name."""

AHEAD_MICROSECONDS = 300_000_000
"""A chart does not use a time that is further ahead of the clock; see the SQL function `charted_at`."""


class ChartRows(NamedTuple):
    """Consecutive entries as a chart sees them: their times without regard to earlier entries, and their columns."""

    times: list[int]
    columns: dict[str, list[Any]]

    def clocks(self, clock: int) -> list[int]:
        """Returns the chart clock at each entry; `clock` is that before the first one."""
        return list(accumulate(self.times, max, initial=clock))[1:]


class Archives:
    """The archived entries of all contracts. Methods raise StoreFault, or ArchiveUnreachable if files are."""

    def __init__(self, pool: Pool, files: ArchiveFiles) -> None:
        self._pool = pool
        self._files = files

    async def bound(self, symbol: str) -> int:
        """Returns the last archived entry of a contract; 0 without one. Call this after a read of the table `entries`."""
        rows = await self.fetch("bound", symbol)
        return rows[0]["entry"] if rows else 0

    async def rows(
        self, symbol: str, first: int, last: int, count: int, wanted: Wanted = ALL, *, descending: bool = False
    ) -> list[Row]:
        """Returns up to `count` of the archived entries `first` to `last`, ascending or descending."""
        ranges = await self._ranges(symbol, first, last)
        return await self._files.select(ranges, count, wanted, descending=descending) if ranges else []

    async def row(self, symbol: str, entry: int) -> Row:
        """Returns an archived entry."""
        (row,) = await self.rows(symbol, entry, entry, 1)
        return row

    async def after(self, symbol: str, entry: int, count: int) -> list[Row]:
        """Returns up to `count` archived entries after an entry, ascending."""
        return await self.rows(symbol, entry + 1, min(entry + count, await self.bound(symbol)), count)

    async def chart_rows(self, symbol: str, first: int, last: int, *names: str) -> ChartRows:
        """Returns archived entries with some columns."""
        columns = await self._files.columns(await self._ranges(symbol, first, last), ("ts", "recorded_at", *names))
        times = zip(columns["ts"], columns["recorded_at"], strict=True)
        return ChartRows([charted_ms(ts, recorded) for ts, recorded in times], columns)

    async def fetch(self, block: str, *parameters: Any) -> list[asyncpg.Record]:
        """Returns the rows of a statement of this package."""
        return await fetch_archives(self._pool, block, *parameters)

    async def _ranges(self, symbol: str, first: int, last: int) -> Sequence[FileRange]:
        """Returns the files of archived entries `first` to `last`; raises ArchiveUnreachable if one is not known."""
        rows = await self.fetch("files", symbol, first, last) if first <= last else []
        found = [
            FileRange(row["path"], row["first_entry"], max(first, row["first_entry"]), min(last, row["last_entry"]))
            for row in rows
        ]
        if sum(one.last - one.first + 1 for one in found) < last - first + 1:
            raise ArchiveUnreachable(f"the table archives lacks stubs of entries {first} to {last} of {symbol}")
        return found


async def fetch_archives(pool: Pool, block: str, *parameters: Any) -> list[asyncpg.Record]:
    """Returns the rows of a statement of this package; raises StoreFault, CellAway if the database is one of several."""
    if isinstance(pool, Cells):
        return await routed(pool, block, parameters, _fetch)
    return await _fetch(pool, block, *parameters)


async def _fetch(pool: CellPool, block: str, *parameters: Any) -> list[asyncpg.Record]:
    with faults():
        async with asyncio.timeout(SECONDS_MAX), acquired(pool) as connection:
            return await connection.fetch(ARCHIVE_SQL[block], *parameters)


def charted_ms(ts: int, recorded_microseconds: int) -> int:
    """Returns the time of an entry on a chart, without regard to earlier entries; like the SQL function `charted_at`."""
    return ts if ts * 1000 <= recorded_microseconds + AHEAD_MICROSECONDS else recorded_microseconds // 1000
