"""Keeps the pools of the mutual in memory in a process that settles nothing, and notifies listeners of changes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import structlog

from fundsvc.concurrency.background import keep_running
from fundsvc.config.settings import Config
from fundsvc.logs.faults import Outage
from fundsvc.mutual.store.reader import MutualReader, PoolView
from fundsvc.store.database import StoreFault, open_pool
from fundsvc.store.freshness import Freshness

FOLLOW_SECONDS_MIN = 0.1
"""Pools are read at most ten times a second: each trade may change a balance, and people read no faster."""

RETRY_SECONDS = 0.2
"""The pause after a fault of the database."""

SILENCE_SECONDS_MAX = 3.0
"""After this time without an answer, the pools in memory may differ from those in the database, and `check` fails."""

log = structlog.get_logger()

Listener = Callable[[Mapping[str, PoolView], Mapping[str, PoolView]], None]
"""Called with all pools before a change, and with those that changed, by name, after `views` contains them."""


class Pools:
    """Follows the pools; `views` are those of the last read, by name, all of one snapshot.

    Every commit before `as_of_ms` by the database's clock is included.
    """

    def __init__(self, reader: MutualReader, freshness: Freshness, seconds: float) -> None:
        self.views: Mapping[str, PoolView] = {}
        self.as_of_ms = 0
        self.listeners: list[Listener] = []
        self._reader = reader
        self._freshness = freshness
        self._seconds = max(seconds, FOLLOW_SECONDS_MIN)
        self._read_at: float | None = None

    async def run(self) -> None:
        """Reads the pools until cancelled. Retries after faults."""
        outage = Outage(log, "pools")
        while True:
            try:
                await self.read()
                outage.over()
                await asyncio.sleep(self._seconds)
            except StoreFault as fault:
                outage.note(fault)
                await asyncio.sleep(RETRY_SECONDS)

    async def read(self) -> None:
        """Reads all pools once, and notifies the listeners of those that changed; raises StoreFault."""
        as_of, before = self._freshness.as_of_ms, self.views
        views = await self._reader.views(before)
        self._read_at = time.monotonic()
        self.as_of_ms = as_of
        changed = {name: view for name, view in views.items() if before.get(name) != view}
        if changed:
            self.views = views
            for listener in self.listeners:
                listener(before, changed)

    def check(self) -> None:
        """Raises StoreFault if the pools may be older than the last moments, or than `http.stale_seconds_max` on a replica."""
        if self._read_at is None or time.monotonic() > self._read_at + self._seconds + SILENCE_SECONDS_MAX:
            raise StoreFault("the database has not answered the follower of the pools for some seconds")
        self._freshness.check()


@asynccontextmanager
async def open_pools(config: Config, freshness: Freshness) -> AsyncIterator[Pools]:
    """Provides pools that follow the database over their own connection. They are filled, unless the database fails."""
    async with (
        open_pool(config.database.reader_dsn or config.database.dsn, 1) as pool,
        asyncio.TaskGroup() as tasks,
    ):
        pools = Pools(MutualReader(pool), freshness, config.http.tail_seconds)
        with suppress(StoreFault):
            await pools.read()
        running = tasks.create_task(keep_running("pools", pools.run, log))
        try:
            yield pools
        finally:
            running.cancel()
