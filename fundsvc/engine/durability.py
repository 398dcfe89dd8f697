"""Checks whether confirmed data survives a crash of the servers, and reports settings with which it may not.

Sessions set `synchronous_commit` themselves. The other settings belong to the servers; an operator changes them. What ends
durability later is measured too: a write-ahead log that PostgreSQL cannot archive, and a stream server without memory.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from fundsvc.concurrency.background import PeriodicTask
from fundsvc.metrics import Metrics
from fundsvc.store.database import Pool
from fundsvc.store.server_checks import archiving, weak_settings
from fundsvc.streams.client import StreamClient, is_append_only, memory

CHECK_SECONDS = 60.0
"""How often the settings are checked; they can change without a restart."""

APPEND_ONLY = "appendonly"
"""With this setting off, the stream server loses appended messages when it restarts."""

log = structlog.get_logger()


class NotDurable(Exception):
    """The servers may lose confirmed data; the message names the settings."""


class Durability:
    """The durability settings of the primary and of the stream server at the last check."""

    def __init__(self, primary: Pool, client: StreamClient, metrics: Metrics) -> None:
        self._primary = primary
        self._client = client
        self._metrics = metrics
        self._weak: dict[str, frozenset[str]] = {}

    async def check(self) -> None:
        """Returns if no known setting is weak; raises NotDurable otherwise."""
        if weak := sorted(self._all()):
            raise NotDurable(f"{', '.join(weak)} off: a crash of the server may lose what it confirmed")

    async def check_database(self) -> None:
        """Reads the primary's settings and the state of its archiving; raises StoreFault."""
        self._note("database", frozenset(await weak_settings(self._primary)))
        found = await archiving(self._primary)
        self._metrics.servers.archive_failing.set(found.failing)
        self._metrics.servers.archived.set(found.archived)

    async def check_stream(self) -> None:
        """Reads the stream server's settings and memory; raises StreamFault."""
        self._note("stream", frozenset() if await is_append_only(self._client) else frozenset({APPEND_ONLY}))
        found = await memory(self._client)
        self._metrics.servers.memory.set(found.used)
        self._metrics.servers.memory_max.set(found.limit)

    def _note(self, part: str, weak: frozenset[str]) -> None:
        known = self._weak.get(part, frozenset())
        if weak and weak != known:
            log.error("commits not durable", part=part, off=sorted(weak))
        elif known and not weak:
            log.info("commits durable again", part=part)
        self._weak[part] = weak
        self._metrics.set_weak_settings(self._all())

    def _all(self) -> frozenset[str]:
        return frozenset[str]().union(*self._weak.values())


@asynccontextmanager
async def durability(primary: Pool, client: StreamClient, metrics: Metrics) -> AsyncIterator[Durability]:
    """Provides a Durability whose settings are checked periodically."""
    found = Durability(primary, client, metrics)
    checks = (("database", found.check_database), ("stream", found.check_stream))
    async with asyncio.TaskGroup() as tasks:
        periodic = [PeriodicTask(f"durability of the {part}", CHECK_SECONDS, check, log) for part, check in checks]
        running = [tasks.create_task(task.run()) for task in periodic]
        try:
            yield found
        finally:
            for task in running:
                task.cancel()
