"""Gaps: messages that left a partition's stream before the engine settled them. An operator acknowledges them."""

from datetime import datetime
from typing import NamedTuple

import asyncpg

from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch
from fundsvc.store.writer import STREAM_START


class KnownGap(NamedTuple):
    """A gap: `messages` are missing after `after_id` and up to `until_id`."""

    after_id: str
    until_id: str
    messages: int
    acknowledged_at: datetime | None


class Gaps:
    """The gaps of one partition. Every method raises StoreFault if the database is unreachable."""

    def __init__(self, pool: Pool, partition: int) -> None:
        self._pool = pool
        self._partition = partition

    async def known(self) -> list[KnownGap]:
        """Returns all gaps found so far."""
        return [_gap(row) for row in await fetch(self._pool, "gaps", self._partition)]

    async def keep(self, gap: KnownGap) -> bool:
        """Stores a gap; returns whether it is new."""
        return bool(await fetch(self._pool, "gap_found", self._partition, gap.after_id, gap.until_id, gap.messages))

    async def pass_over(self, until_id: str) -> None:
        """Acknowledges all deletions up to an id, so that no later load takes them for a gap."""
        await fetch(self._pool, "gap_found", self._partition, STREAM_START, until_id, 0)
        await fetch(self._pool, "gap_acknowledge", self._partition, until_id)

    async def acknowledge(self) -> list[KnownGap]:
        """Acknowledges all open gaps, so that the partition continues; returns them."""
        return [_gap(row) for row in await fetch(self._pool, "gaps_acknowledge", self._partition)]


def _gap(row: asyncpg.Record) -> KnownGap:
    return KnownGap(*row)
