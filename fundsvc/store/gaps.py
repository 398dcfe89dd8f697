"""Messages that left a partition's stream before they were settled: found once, and acknowledged by an operator."""

from datetime import datetime
from typing import NamedTuple

import asyncpg

from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch


class KnownGap(NamedTuple):
    """So many messages are missing, all of them after one id and up to another one."""

    after_id: str
    until_id: str
    messages: int
    acknowledged_at: datetime | None


class Gaps:
    """The gaps of one partition; every method raises StoreFault when the database is away."""

    def __init__(self, pool: Pool, partition: int) -> None:
        self._pool = pool
        self._partition = partition

    async def known(self) -> list[KnownGap]:
        """Those found so far."""
        return [_gap(row) for row in await fetch(self._pool, "gaps", self._partition)]

    async def keep(self, gap: KnownGap) -> bool:
        """Keeps one; says whether it is new."""
        return bool(await fetch(self._pool, "gap_found", self._partition, gap.after_id, gap.until_id, gap.messages))

    async def acknowledge(self) -> list[KnownGap]:
        """Lets the partition go on past all that are not acknowledged yet; returns them."""
        return [_gap(row) for row in await fetch(self._pool, "gaps_acknowledge", self._partition)]


def _gap(row: asyncpg.Record) -> KnownGap:
    return KnownGap(*row)
