"""Hourly rollups: what charts read instead of the entries, condensed from the ledger in the background."""

from collections.abc import Iterator, Sequence

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.store.database import SQL, faults, lent, transaction

ENTRIES_PER_STATEMENT_MAX = 50_000
"""Bounds how long one statement runs, so that condensing never holds the server up."""


async def condense(pool: asyncpg.Pool, partition: int) -> int:
    """Brings the rollups of a partition's contracts up to their last entries; returns how many entries that were.

    Each step is one transaction that moves the contract's progress along, so it may be interrupted or run twice.
    """
    with faults():
        async with lent(pool) as connection:
            due = await connection.fetch(SQL["rollup_due"], partition)
            for step in _steps(due):
                await _condense(connection, step)
    return sum(row["entry"] - row["condensed"] for row in due)


async def forget(pool: asyncpg.Pool) -> None:
    """Drops all rollups; `condense` then builds them again from the entries."""
    with faults():
        async with lent(pool) as connection, transaction(connection):
            await connection.execute(SQL["rollups_alone"])
            await connection.execute(SQL["rollups_forget"])
            await connection.execute(SQL["rollup_progress_forget"])


async def _condense(connection: PoolConnectionProxy, upto: dict[str, int]) -> None:
    async with transaction(connection):
        locked = await connection.fetch(SQL["rollup_lock"], sorted(upto))
        done = {row["symbol"]: row["entry"] for row in locked}
        await connection.execute(
            SQL["rollup"], list(done), list(done.values()), [max(done[symbol], upto[symbol]) for symbol in done]
        )


def _steps(due: Sequence[asyncpg.Record]) -> Iterator[dict[str, int]]:
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
