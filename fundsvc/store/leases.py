"""Who may write a partition: leases in PostgreSQL, fenced by an epoch that rises with every new owner."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import asyncpg

from fundsvc.store.database import SQL, connect, faults, transaction
from fundsvc.store.writer import session_name


class Leases:
    """The partitions one engine holds. Time is the database's, so the clocks of hosts do not matter."""

    def __init__(self, connection: asyncpg.Connection, engine: str, lease_seconds: float) -> None:
        self._connection = connection
        self._engine = engine
        self._seconds = lease_seconds

    async def keep(self, standing_still: Collection[int] = ()) -> dict[int, int]:
        """Renews what is held and takes what is free, up to a fair share; returns the epoch of each partition held.

        Partitions that stand still are neither renewed nor taken. What lies beyond the fair share is still returned; the
        caller finishes its batch and calls `release`.
        """
        with faults():
            await self._connection.execute(SQL["engine_seen"], self._engine)
            held = await self._connection.fetch(SQL["renew"], self._engine, self._seconds, list(standing_still))
            share = await self.share()
            claimed = await self._claim(share - len(held), list(standing_still)) if share > len(held) else []
        return {row["partition"]: row["epoch"] for row in (*held, *claimed)}

    async def share(self) -> int:
        """How many partitions this engine should hold, among those that have been seen within a lease's time."""
        with faults():
            share: int = await self._connection.fetchval(SQL["share"], self._engine, self._seconds)
        return share

    async def release(self, partition: int, epoch: int) -> None:
        """Gives a partition up at once instead of letting its lease run out."""
        with faults():
            await self._connection.execute(SQL["release"], partition, epoch)

    async def leave(self) -> None:
        """Takes the engine off the list, so that the others share what it held."""
        with faults():
            await self._connection.execute(SQL["engine_gone"], self._engine)

    async def _claim(self, count: int, standing_still: list[int]) -> list[asyncpg.Record]:
        """Takes free partitions; in the same transaction, so that no claim goes without it, ends their owner's sessions."""
        async with transaction(self._connection):
            claimed = await self._connection.fetch(SQL["claim"], self._engine, count, self._seconds, standing_still)
            for previous in {row["previous"] for row in claimed} - {None, self._engine}:
                await self._connection.execute(SQL["disconnect_engine"], session_name(previous))
        return claimed


@asynccontextmanager
async def open_leases(dsn: str, engine: str, lease_seconds: float) -> AsyncIterator[Leases]:
    """Leases on a connection of their own, because a long commit must not delay their renewal."""
    # An answer that takes longer than the lease is as good as none.
    async with connect(dsn, "fundsvc leases", lease_seconds) as connection:
        yield Leases(connection, engine, lease_seconds)
