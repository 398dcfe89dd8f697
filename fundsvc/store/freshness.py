"""How old what is read may be: a primary is always up to date, a replica as far as the heartbeats that it has replayed.

Owners of partitions write a heartbeat each second, by the primary's clock. A replica that has replayed one holds every commit
before it. An old heartbeat means that the replica is behind, or that no engine runs; the primary tells which. Where it does not
answer, a replica that streams and has replayed all it received is taken for up to date.
"""

import asyncio
import time
from contextlib import suppress

from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.reader import fetch

HEARTBEAT_SECONDS = 1.0
"""How often owners write a heartbeat: a small commit beside those of settling."""


class Behind(StoreFault):
    """What is read is older than it may be; the message says by how much."""


class Freshness:
    """Follows how far what is read lies behind the ledger. The check queries `primary` only while heartbeats are old.

    `as_of_ms` is the moment up to which every commit is in what is read, by the database's clock; 0 until one is known.
    """

    def __init__(self, reader: Pool, primary: Pool, seconds_max: float) -> None:
        self.as_of_ms = 0
        self._reader = reader
        self._primary = primary
        self._seconds_max = seconds_max
        self._behind_seconds = 0.0
        self._seen_at: float | None = None
        self._is_idle = False

    def observe(self, now_ms: int, as_of_ms: int | None) -> None:
        """Notes the clock of the database that is read, and the moment that it is known to hold every commit up to."""
        self.as_of_ms = as_of_ms or 0
        self._behind_seconds = max(0, now_ms - self.as_of_ms) / 1000
        self._seen_at = time.monotonic()

    @property
    def age_seconds(self) -> float:
        """How far what is read lies behind the ledger, as far as is known; 0 while nothing is missing."""
        return 0.0 if self._is_idle else self._age()

    def check(self) -> None:
        """Raises Behind where what is read is older than it may be."""
        age = self.age_seconds
        if age > self._seconds_max:
            raise Behind(
                f"the database that is read is {age:.1f} s behind the ledger, which is more than"
                f" http.stale_seconds_max = {self._seconds_max:g}: ask again shortly"
            )

    async def run(self) -> None:
        """Finds out why heartbeats are old, whenever they are, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(min(HEARTBEAT_SECONDS, self._seconds_max / 4))

    async def refresh(self) -> None:
        """Finds out whether no engine runs, where heartbeats are so old that it matters soon."""
        self._is_idle = self._age() > self._seconds_max / 2 and await self._nothing_is_newer()

    def _age(self) -> float:
        return 0.0 if self._seen_at is None else self._behind_seconds + time.monotonic() - self._seen_at

    async def _nothing_is_newer(self) -> bool:
        with suppress(StoreFault):
            (newest,) = await fetch(self._primary, "newest_heartbeat")
            if not newest["is_replica"]:
                return newest["at_ms"] is None or newest["at_ms"] <= self.as_of_ms
        with suppress(StoreFault):
            ((is_at_end,),) = await fetch(self._reader, "replica_at_end")
            return bool(is_at_end)
        return False
