"""Warns of pools that the ledger has and the configuration does not name. No engine settles them."""

import asyncio

import structlog

from fundsvc.concurrency.background import PeriodicTask
from fundsvc.config.settings import Config
from fundsvc.core.contracts import partition_of
from fundsvc.engine.ownership import Ownership
from fundsvc.metrics.mutual import MutualMetrics
from fundsvc.mutual.store.reader import MutualReader

CHECK_SECONDS = 60.0
"""How often the pools of the ledger are read: another engine may create one."""

FIRST_SECONDS = 3.0
"""When they are read first: the configured pools exist then."""

log = structlog.get_logger()


class UnconfiguredPools:
    """Compares the pools of a partition with the configuration while the partition has this owner."""

    def __init__(self, config: Config, metrics: MutualMetrics, ownership: Ownership) -> None:
        self._mutual = config.mutual
        self._partitions = config.stream.partitions
        self._metrics = metrics
        self._partition = ownership.partition
        self._reader = MutualReader(ownership.pool)
        self._shown: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Checks until `stop` is set."""
        checking = asyncio.create_task(self._check_regularly())
        try:
            await stop.wait()
        finally:
            checking.cancel()
            await asyncio.wait([checking])
            for name in self._shown:
                self._metrics.not_configured.remove(name)

    async def _check_regularly(self) -> None:
        await asyncio.sleep(FIRST_SECONDS)
        await PeriodicTask("unconfigured pools", CHECK_SECONDS, self._check, log).run()

    async def _check(self) -> None:
        """Logs each pool once, and shows it; raises StoreFault."""
        names = [state.row.pool for state in await self._reader.pools()]
        missing = self._mutual.missing(names)
        for name in names:
            if partition_of(name, self._partitions) == self._partition:
                self._metrics.not_configured.labels(name).set(name in missing)
                if name in missing and name not in self._shown:
                    log.warning("pool not configured", pool=name, detail=missing[name])
                self._shown.add(name)
