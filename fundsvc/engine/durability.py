"""Whether what was answered survives a crash of the servers: settings with which they may lose it are found and shown.

Sessions set `synchronous_commit` themselves. The other settings are the servers' own, and an operator's to change.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from fundsvc.concurrency.background import PeriodicTask
from fundsvc.metrics import Metrics
from fundsvc.store.database import Pool
from fundsvc.store.server_checks import weak_settings
from fundsvc.streams.client import Client, is_append_only

CHECK_SECONDS = 60.0
"""How often the settings are looked at: they can be changed without a restart."""

APPEND_ONLY = "appendonly"
"""Without this file, or with one that is off, the stream's server comes back without what was appended."""

log = structlog.get_logger()


class NotDurable(Exception):
    """The servers may lose what they confirmed; the message names the settings."""


class Durability:
    """The settings of the primary and of the stream's server as they were found last."""

    def __init__(self, primary: Pool, client: Client, metrics: Metrics) -> None:
        self._primary = primary
        self._client = client
        self._metrics = metrics
        self._weak: dict[str, frozenset[str]] = {}

    async def check(self) -> None:
        """Returns if no setting is weak, as far as is known; raises NotDurable."""
        if weak := sorted(self._all()):
            raise NotDurable(f"{', '.join(weak)} off: a crash of the server may lose what it confirmed")

    async def check_database(self) -> None:
        """Looks at the primary's settings; raises StoreFault."""
        self._note("database", frozenset(await weak_settings(self._primary)))

    async def check_stream(self) -> None:
        """Looks at the settings of the stream's server; raises StreamFault."""
        self._note("stream", frozenset() if await is_append_only(self._client) else frozenset({APPEND_ONLY}))

    def _note(self, part: str, weak: frozenset[str]) -> None:
        known = self._weak.get(part, frozenset())
        if weak and weak != known:
            log.error("commits not durable", part=part, off=sorted(weak))
        elif known and not weak:
            log.info("commits durable again", part=part)
        self._weak[part] = weak
        self._metrics.weak(self._all())

    def _all(self) -> frozenset[str]:
        return frozenset[str]().union(*self._weak.values())


@asynccontextmanager
async def durability(primary: Pool, client: Client, metrics: Metrics) -> AsyncIterator[Durability]:
    """Durability that is looked at from now on."""
    found = Durability(primary, client, metrics)
    looks = (("database", found.check_database), ("stream", found.check_stream))
    async with asyncio.TaskGroup() as tasks:
        chores = [PeriodicTask(f"durability of the {part}", CHECK_SECONDS, look, log) for part, look in looks]
        running = [tasks.create_task(chore.run()) for chore in chores]
        try:
            yield found
        finally:
            for task in running:
                task.cancel()
