"""Measures the age of what readers read. A primary is always up to date; a replica is as old as its last replayed heartbeat.

Owners of partitions write a heartbeat each second, by the primary's clock. A replica that replayed a heartbeat has every commit
before it. An old heartbeat means that the replica is behind or that no engine runs; the primary shows which. If the primary is
unreachable, a replica that streams and has replayed everything it received counts as up to date.
"""

import asyncio
import time
from contextlib import suppress

from fundsvc.store.database import CellPool, StoreFault
from fundsvc.store.reader import fetch_in_cell

HEARTBEAT_SECONDS = 1.0
"""The interval of the owners' heartbeats. A heartbeat is a small commit compared with those of settlement."""


class Behind(StoreFault):
    """The read database is too far behind the ledger; the message contains its age."""


class Freshness:
    """Tracks how far the read database is behind the ledger. It queries `primary` only while heartbeats are old.

    The read database has every commit up to `as_of_ms`, by the database's clock; 0 until a time is known.
    """

    def __init__(self, reader: CellPool, primary: CellPool, seconds_max: float) -> None:
        self.as_of_ms = 0
        self._reader = reader
        self._primary = primary
        self._seconds_max = seconds_max
        self._behind_seconds = 0.0
        self._seen_at: float | None = None
        self._is_idle = False

    def observe(self, now_ms: int, as_of_ms: int | None) -> None:
        """Records the clock of the read database, and the time up to which that has every commit."""
        self.as_of_ms = as_of_ms or 0
        self._behind_seconds = max(0, now_ms - self.as_of_ms) / 1000
        self._seen_at = time.monotonic()

    @property
    def age_seconds(self) -> float:
        """How far the read database is known to be behind the ledger; 0 while nothing is missing."""
        return 0.0 if self._is_idle else self._age()

    def check(self) -> None:
        """Raises Behind if the read database is too old."""
        age = self.age_seconds
        if age > self._seconds_max:
            raise Behind(
                f"the database for reads is {age:.1f} s behind the ledger, more than http.stale_seconds_max ="
                f" {self._seconds_max:g}: retry later"
            )

    async def run(self) -> None:
        """Determines why heartbeats are old, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(min(HEARTBEAT_SECONDS, self._seconds_max / 4))

    async def refresh(self) -> None:
        """Determines whether no engine runs, if heartbeats are so old that it soon matters."""
        self._is_idle = self._age() > self._seconds_max / 2 and await self._nothing_is_newer()

    def _age(self) -> float:
        return 0.0 if self._seen_at is None else self._behind_seconds + time.monotonic() - self._seen_at

    async def _nothing_is_newer(self) -> bool:
        with suppress(StoreFault):
            (newest,) = await fetch_in_cell(self._primary, "newest_heartbeat")
            if not newest["is_replica"]:
                return newest["at_ms"] is None or newest["at_ms"] <= self.as_of_ms
        with suppress(StoreFault):
            ((is_at_end,),) = await fetch_in_cell(self._reader, "replica_at_end")
            return bool(is_at_end)
        return False
