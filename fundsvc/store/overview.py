"""Reads the state of the whole service for operators: partitions, engines, and what waits for an operator."""

from datetime import datetime
from typing import NamedTuple

from fundsvc.core.batch import Offset
from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch


class OwnedPartition(NamedTuple):
    """A partition, its offset, its last owner and whether that owner's lease is valid, and the reason of a halt or ""."""

    partition: int
    owner: str
    epoch: int
    live: bool
    halted: str
    offset: Offset


class KnownEngine(NamedTuple):
    """An engine of the last day: since when it runs, and how long ago the database last heard from it (seconds)."""

    engine: str
    since: datetime
    silent: float


class Waiting(NamedTuple):
    """What waits for an operator or for the matching engine.

    `rejected` counts rejected events by reason, `gaps` unacknowledged gaps in streams, `orders` open ADL orders, and
    `suspended` are the contracts whose terms are in doubt.
    """

    rejected: dict[str, int]
    gaps: int
    orders: int
    suspended: list[str]


class Overview:
    """Reads the state of the service. Every method raises StoreFault if the database is unreachable."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def partitions(self) -> list[OwnedPartition]:
        """Returns all partitions by number."""
        return [
            OwnedPartition(
                row["partition"],
                row["owner"] or "",
                row["epoch"],
                bool(row["live"]),
                row["halted"],
                Offset(row["last_id"], row["messages"], row["events"], row["partial_id"]),
            )
            for row in await fetch(self._pool, "partitions")
        ]

    async def engines(self) -> list[KnownEngine]:
        """Returns the engines of the last day, the longest running first."""
        return [KnownEngine(*row) for row in await fetch(self._pool, "engines")]

    async def waiting(self) -> Waiting:
        """Returns what waits."""
        rejected = {row["reason"]: row["events"] for row in await fetch(self._pool, "rejected_waiting")}
        (counts,) = await fetch(self._pool, "waiting")
        return Waiting(rejected, counts["gaps"], counts["orders"], counts["suspended"])
