"""Hourly rollups: what charts read instead of the entries, condensed from the ledger in the background.

The hours are those of the SQL function `chart_hours`, where an entry stands at the latest time of all entries up to it: so each
hour is a run of entries, and the next hour begins where it ends. Hours that an earlier definition made are not sound. They are
read as they are until they are built anew, one contract at a time: in short reads, then in one short transaction.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.store.database import SQL, acquired, faults, transaction

ENTRIES_PER_STATEMENT_MAX = 50_000
"""Bounds how long one statement runs, so that condensing never holds the server up."""

REBUILD_SECONDS = 1.0
"""After so long, no further contract is built anew in this turn: the others' new entries wait meanwhile."""


class Part(NamedTuple):
    """The entries of a contract after one, at which its chart clock stood at `clock`, and up to another."""

    symbol: str
    after: int
    upto: int
    clock: int


async def condense(pool: asyncpg.Pool, partition: int) -> int:
    """Brings the rollups of a partition's contracts up to their last entries, and builds anew some of those that are not sound.

    Returns how many entries were condensed. Each step is one transaction that moves the contracts' progress
    along, so it may be interrupted or run twice.
    """
    started = time.monotonic()
    with faults():
        async with acquired(pool) as connection:
            due = await connection.fetch(SQL["rollup_due"], partition)
            total = sum([await _condense(connection, step) for step in _steps(filter(_is_sound, due))])
            for row in due:
                if not _is_sound(row) and time.monotonic() < started + REBUILD_SECONDS:
                    total += await _rebuild(connection, row["symbol"], row["entry"])
    return total


async def mark_unsound(pool: asyncpg.Pool) -> None:
    """Has `condense` and `rebuild` build all rollups anew."""
    with faults():
        async with acquired(pool) as connection:
            await connection.execute(SQL["rollups_mark_unsound"])


async def rebuild(pool: asyncpg.Pool, partition: int) -> int:
    """Builds anew the rollups of a partition's contracts that are not sound, each once; returns how many entries that were."""
    with faults():
        async with acquired(pool) as connection:
            due = await connection.fetch(SQL["rollup_due"], partition)
            unsound = [row for row in due if not _is_sound(row)]
            return sum([await _rebuild(connection, row["symbol"], row["entry"]) for row in unsound])


def _is_sound(row: asyncpg.Record) -> bool:
    return bool(row["sound"] == row["condensed"])


async def _condense(connection: PoolConnectionProxy, upto: dict[str, int]) -> int:
    async with transaction(connection):
        locked = await connection.fetch(SQL["rollup_lock"], sorted(upto))
        parts = [
            Part(row["symbol"], row["entry"], upto[row["symbol"]], row["clock"])
            for row in locked
            if row["sound"] == row["entry"] < upto[row["symbol"]]
        ]
        await _keep(connection, await _hours(connection, parts))
    return sum(part.upto - part.after for part in parts)


async def _rebuild(connection: PoolConnectionProxy, symbol: str, upto: int) -> int:
    """Builds a contract's hours anew and puts them in the place of the others, unless somebody has condensed beyond them."""
    built: list[list[asyncpg.Record]] = []
    after = clock = 0
    while after < upto:
        part = Part(symbol, after, min(upto, after + ENTRIES_PER_STATEMENT_MAX), clock)
        built.append(await _hours(connection, [part]))
        after, clock = part.upto, max((row["clock"] for row in built[-1]), default=clock)
    async with transaction(connection):
        (locked,) = await connection.fetch(SQL["rollup_lock"], [symbol])
        if locked["entry"] > upto or locked["sound"] == locked["entry"]:
            return 0
        await connection.execute(SQL["rollups_delete"], symbol)
        for hours in built:
            await _keep(connection, hours)
    return upto


async def _hours(connection: PoolConnectionProxy, parts: Sequence[Part]) -> list[asyncpg.Record]:
    return await connection.fetch(SQL["rollup_hours"], *_columns(parts, len(Part._fields)))


async def _keep(connection: PoolConnectionProxy, hours: Sequence[asyncpg.Record]) -> None:
    if hours:
        await connection.execute(SQL["rollup_keep"], *_columns(hours, len(hours[0])))


def _columns(rows: Sequence[Part] | Sequence[asyncpg.Record], count: int) -> list[list[object]]:
    return [[row[column] for row in rows] for column in range(count)]


def _steps(due: Iterator[asyncpg.Record]) -> Iterator[dict[str, int]]:
    """Groups of contracts, and of parts of contracts, with a bounded number of entries: last entry by symbol."""
    step: dict[str, int] = {}
    room = ENTRIES_PER_STATEMENT_MAX
    for row in due:
        start = row["condensed"]
        while start < row["entry"]:
            end = min(row["entry"], start + room)
            step[row["symbol"]] = end
            room -= end - start
            start = end
            if not room:
                yield step
                step, room = {}, ENTRIES_PER_STATEMENT_MAX
    if step:
        yield step
