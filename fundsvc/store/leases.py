"""Leases in PostgreSQL decide which engine may write a partition. An epoch that rises with every new owner fences writes."""

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple

import asyncpg

from fundsvc.store.database import SQL, connect, faults, transaction
from fundsvc.store.writer import session_name


class Leases:
    """The leases of one engine. They use the database's clock, so the clocks of hosts do not matter.

    If the database's clock is set back, the lease of a dead owner would last longer. So `seen` contains the leases of other
    engines and the time (monotonic) since which each is unchanged. A lease that was not renewed for longer than its duration is
    free too.
    """

    def __init__(
        self, connection: asyncpg.Connection, engine: str, lease_seconds: float, seen: dict[int, tuple["Lease", float]]
    ) -> None:
        self._seen = seen
        self._connection = connection
        self._engine = engine
        self._seconds = lease_seconds

    async def keep(self, stalled: Collection[int] = (), failing: Collection[int] = ()) -> dict[int, int]:
        """Renews held leases and claims free partitions up to a fair share; returns the epoch of each held partition.

        Does not renew or claim partitions of `stalled`, nor those of `failing` while another engine could claim them.
        The result includes partitions above the fair share; the caller finishes its batch and calls `release`.
        """
        with faults():
            others = await self._connection.fetchval(SQL["other_engines"], self._engine, self._seconds)
            skipped = list({*stalled, *(failing if others else ())})
            await self._connection.execute(SQL["engine_seen"], self._engine, len(skipped))
            held = await self._connection.fetch(SQL["renew"], self._engine, self._seconds, skipped)
            share = await self.share()
            claimed = await self._claim(share - len(held), skipped) if share > len(held) else []
        return {row["partition"]: row["epoch"] for row in (*held, *claimed)}

    async def share(self) -> int:
        """Returns this engine's share of the partitions, among the engines seen within a lease's duration."""
        with faults():
            share: int = await self._connection.fetchval(SQL["share"], self._engine, self._seconds)
        return share

    async def release(self, partition: int, epoch: int) -> None:
        """Releases a partition at once, before its lease expires."""
        with faults():
            await self._connection.execute(SQL["release"], partition, epoch)

    async def leave(self) -> None:
        """Removes the engine from the list, so that the other engines share its partitions."""
        with faults():
            await self._connection.execute(SQL["engine_gone"], self._engine)

    async def _claim(self, count: int, skipped: list[int]) -> list[asyncpg.Record]:
        """Claims free partitions and ends their previous owners' sessions, in one transaction."""
        dead = await self._not_renewed()
        async with transaction(self._connection):
            claimed = await self._connection.fetch(
                SQL["claim"],
                self._engine,
                count,
                self._seconds,
                skipped,
                [lease.partition for lease in dead],
                [lease.until for lease in dead],
            )
            for previous in {row["previous"] for row in claimed} - {None, self._engine}:
                await self._connection.execute(SQL["disconnect_engine"], session_name(previous))
        return claimed

    async def _not_renewed(self) -> list["Lease"]:
        """Returns leases of other engines that are unchanged for longer than their duration, by this host's clock."""
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
    """A lease in the database: its end by the database's clock, and its duration in seconds."""

    partition: int
    until: datetime
    seconds: float


@asynccontextmanager
async def open_leases(
    dsn: str, engine: str, lease_seconds: float, seen: dict[int, tuple[Lease, float]] | None = None
) -> AsyncIterator[Leases]:
    """Opens leases on a separate connection, because a long commit must not delay their renewal.

    `seen` contains the leases of other engines that earlier connections saw.
    """
    # A reply that takes longer than the lease is useless.
    async with connect(dsn, "fundsvc leases", lease_seconds) as connection:
        yield Leases(connection, engine, lease_seconds, {} if seen is None else seen)
