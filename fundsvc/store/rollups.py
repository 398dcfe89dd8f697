"""Hourly rollups: condenses entries in the background, so that charts read hours instead of entries.

The SQL function `chart_hours` defines the hours. It places an entry at the latest time of all entries up to it, so each hour is
a run of entries, and the next hour begins where it ends. Hours that an earlier definition computed are unsound. Charts use them
until they are rebuilt, one contract at a time: short reads, then one short transaction.

Each hour also has the outstanding amount before its first entry, which neither later entries nor later ends of orders change.
It is computed from the hour before as soon as both exist.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.store.archive.ranges import ARCHIVE_SQL
from fundsvc.store.database import SQL, acquired, faults, transaction

ENTRIES_PER_STATEMENT_MAX = 50_000
"""Bounds the duration of one statement, so that condensing never delays the server."""

HOURS_PER_STATEMENT_MAX = 5_000
"""Bounds the duration of one statement that computes outstanding amounts: 0.1 s."""

REBUILD_SECONDS = 1.0
"""No further contract is rebuilt in this turn after this time, because new entries of other contracts wait."""


class Part(NamedTuple):
    """The entries of a contract after `after` and up to `upto`; `clock` is the chart clock at `after`."""

    symbol: str
    after: int
    upto: int
    clock: int


async def condense(pool: asyncpg.Pool, partition: int) -> int:
    """Condenses the new entries of a partition's contracts, and rebuilds some unsound contracts.

    Returns the number of condensed entries. Each step is one transaction that also moves the contracts' progress, so the work
    may be interrupted or run twice.
    """
    started = time.monotonic()
    with faults():
        async with acquired(pool) as connection:
            due = await connection.fetch(SQL["rollup_due"], partition)
            total = sum([await _condense(connection, step) for step in _steps(filter(_is_sound, due))])
            for row in due:
                if not _is_sound(row) and time.monotonic() < started + REBUILD_SECONDS:
                    total += await _rebuild(connection, row["symbol"], row["entry"])
            await _add_outstanding(connection, partition)
    return total


async def mark_unsound(pool: asyncpg.Pool) -> None:
    """Marks all rollups as unsound, so that `condense` and `rebuild` rebuild them."""
    with faults():
        async with acquired(pool) as connection:
            await connection.execute(SQL["rollups_mark_unsound"])


async def rebuild(pool: asyncpg.Pool, partition: int) -> int:
    """Rebuilds each unsound contract of a partition once; returns the number of entries."""
    with faults():
        async with acquired(pool) as connection:
            due = await connection.fetch(SQL["rollup_due"], partition)
            unsound = [row for row in due if not _is_sound(row)]
            total = sum([await _rebuild(connection, row["symbol"], row["entry"]) for row in unsound])
            await _add_outstanding(connection, partition)
    return total


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
    """Rebuilds a contract's hours and replaces the old ones, unless other processes condensed or archived entries meanwhile."""
    built: list[list[asyncpg.Record]] = []
    begin = after, clock = await archive_end(connection, symbol)
    while after < upto:
        part = Part(symbol, after, min(upto, after + ENTRIES_PER_STATEMENT_MAX), clock)
        built.append(await _hours(connection, [part]))
        after, clock = part.upto, max((row["clock"] for row in built[-1]), default=clock)
    async with transaction(connection):
        (locked,) = await connection.fetch(SQL["rollup_lock"], [symbol])
        is_done = locked["entry"] > upto or locked["sound"] == locked["entry"]
        if is_done or await archive_end(connection, symbol) != begin:
            return 0
        await connection.execute(SQL["rollups_delete"], symbol, begin[0])
        for hours in built:
            await _keep(connection, hours)
    return upto


async def _add_outstanding(connection: PoolConnectionProxy, partition: int) -> None:
    """Computes the outstanding amounts of the hours that lack them. Each statement is a transaction of its own."""
    for symbol, *last in await connection.fetch(SQL["rollups_without_outstanding"], partition):
        await _add_outstanding_after(connection, symbol, *last)


async def _add_outstanding_after(connection: PoolConnectionProxy, symbol: str, first_entry: int, outstanding: int) -> None:
    """Computes the amounts of a contract from the hour that begins with `first_entry` on, before which it is `outstanding`."""
    while True:
        part = symbol, first_entry, outstanding, HOURS_PER_STATEMENT_MAX
        hours = await connection.fetch(SQL["rollup_outstanding"], *part)
        await connection.execute(SQL["rollup_outstanding_keep"], *_columns(hours, 3))
        if len(hours) < HOURS_PER_STATEMENT_MAX:
            return
        first_entry, outstanding = hours[-1]["first_entry"], hours[-1]["outstanding"]


async def archive_end(connection: PoolConnectionProxy, symbol: str) -> tuple[int, int]:
    """Returns the last archived entry of a contract and the chart clock there, 0 without one.

    The hours of archived entries are whole, and stay as they are.
    """
    rows = await connection.fetch(ARCHIVE_SQL["checkpoints"], [symbol])
    return (rows[0]["entry"], rows[0]["clock"]) if rows else (0, 0)


async def _hours(connection: PoolConnectionProxy, parts: Sequence[Part]) -> list[asyncpg.Record]:
    return await connection.fetch(SQL["rollup_hours"], *_columns(parts, len(Part._fields)))


async def _keep(connection: PoolConnectionProxy, hours: Sequence[asyncpg.Record]) -> None:
    if hours:
        await connection.execute(SQL["rollup_keep"], *_columns(hours, len(hours[0])))


def _columns(rows: Sequence[Part] | Sequence[asyncpg.Record], count: int) -> list[list[object]]:
    return [[row[column] for row in rows] for column in range(count)]


def _steps(due: Iterator[asyncpg.Record]) -> Iterator[dict[str, int]]:
    """Groups the due entries into steps of bounded size; a step maps symbols to the entry to condense up to."""
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
