"""Who may write a partition: leases in PostgreSQL, fenced by an epoch that rises with every new owner."""

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple

import asyncpg

from fundsvc.store.database import SQL, connect, faults, transaction
from fundsvc.store.writer import session_name


class Leases:
    """The partitions one engine holds. Time is the database's, so the clocks of hosts do not matter.

    Where that was set back, a lease whose owner died would last for as long: `seen` has the leases of others as they were seen,
    and since when (monotonic) each has been so. One that was not renewed for longer than it lasts is free as well.
    """

    def __init__(
        self, connection: asyncpg.Connection, engine: str, lease_seconds: float, seen: dict[int, tuple["Lease", float]]
    ) -> None:
        self._seen = seen
        self._connection = connection
        self._engine = engine
        self._seconds = lease_seconds

    async def keep(self, standing_still: Collection[int] = (), failing: Collection[int] = ()) -> dict[int, int]:
        """Renews what is held and takes what is free, up to a fair share; returns the epoch of each partition held.

        Partitions that stand still are neither renewed nor taken, nor those that fail while another engine could take them.
        What lies beyond the fair share is still returned; the caller finishes its batch and calls `release`.
        """
        with faults():
            others = await self._connection.fetchval(SQL["other_engines"], self._engine, self._seconds)
            left = list({*standing_still, *(failing if others else ())})
            await self._connection.execute(SQL["engine_seen"], self._engine, len(left))
            held = await self._connection.fetch(SQL["renew"], self._engine, self._seconds, left)
            share = await self.share()
            claimed = await self._claim(share - len(held), left) if share > len(held) else []
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

    async def _claim(self, count: int, left: list[int]) -> list[asyncpg.Record]:
        """Takes free partitions; in the same transaction, so that no claim goes without it, ends their owner's sessions."""
        dead = await self._not_renewed()
        async with transaction(self._connection):
            claimed = await self._connection.fetch(
                SQL["claim"],
                self._engine,
                count,
                self._seconds,
                left,
                [lease.partition for lease in dead],
                [lease.until for lease in dead],
            )
            for previous in {row["previous"] for row in claimed} - {None, self._engine}:
                await self._connection.execute(SQL["disconnect_engine"], session_name(previous))
        return claimed

    async def _not_renewed(self) -> list["Lease"]:
        """Leases of others that have been the same for longer than they last, by the clock of this host."""
        rows = await self._connection.fetch(SQL["leases_of_others"], self._engine, self._seconds)
        now = time.monotonic()
        leases = [Lease(row["partition"], row["lease_until"], row["seconds"]) for row in rows]
        before = dict(self._seen)
        self._seen.clear()
        for lease in leases:
            known, since = before.get(lease.partition, (lease, now))
            self._seen[lease.partition] = lease, since if known == lease else now
        return [lease for lease, since in self._seen.values() if now - since > lease.seconds]


class Lease(NamedTuple):
    """A lease as the database has it: until when by its clock, and how many seconds that was after it was renewed last."""

    partition: int
    until: datetime
    seconds: float


@asynccontextmanager
async def open_leases(
    dsn: str, engine: str, lease_seconds: float, seen: dict[int, tuple[Lease, float]] | None = None
) -> AsyncIterator[Leases]:
    """Leases on a connection of their own, because a long commit must not delay their renewal.

    `seen` is what connections before have seen of others' leases.
    """
    # An answer that takes longer than the lease is as good as none.
    async with connect(dsn, "fundsvc leases", lease_seconds) as connection:
        yield Leases(connection, engine, lease_seconds, {} if seen is None else seen)
