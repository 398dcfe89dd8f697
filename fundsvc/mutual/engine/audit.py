"""The background audit of a pool: recomputes its ledger continuously, by the rules of `fundsvc mutual audit`.

Two walks go through the ledger. The full walk starts at entry 1 once in `full_hours`. At its end the newest walk continues from
its state, follows new entries, and compares all rows again. A difference ends the newest walk, and the full walk starts again,
until the difference is gone. The walks are in memory: after a restart or under another owner the full walk starts at entry 1.
"""

import asyncio
import time

import structlog

from fundsvc.concurrency.background import keep_running
from fundsvc.config.settings import Config
from fundsvc.engine.audit_loop import CHECK_SECONDS, RECHECK_SECONDS, Pace
from fundsvc.engine.ownership import Ownership
from fundsvc.logs.faults import Outage
from fundsvc.metrics.mutual import MutualMetrics
from fundsvc.mutual.store.audits import PoolWalk, last_entry
from fundsvc.store.audits import Walk
from fundsvc.store.database import StoreFault

DIFFERENCES_LOGGED_MAX = 5
"""One altered entry may break all that follow."""

log = structlog.get_logger()


class PoolAuditor:
    """Audits a pool while its home partition has this owner. All pools of a process share one `pace`."""

    def __init__(self, config: Config, metrics: MutualMetrics, ownership: Ownership, name: str, pace: Pace) -> None:
        self._database = ownership.pool
        self._secrets = config.ledger.secrets
        self._full_seconds = config.audit.full_hours * 3600
        self._metrics = metrics
        self._name = name
        self._pace = pace
        self._log = log.bind(pool=name)
        self._newest: PoolWalk | None = None
        self._differs = asyncio.Event()
        self._reported: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Runs both walks until `stop` is set."""
        walks = [asyncio.create_task(keep_running("audit", walk, self._log)) for walk in (self._walk_fully, self._walk_newest)]
        try:
            await stop.wait()
        finally:
            for walk in walks:
                walk.cancel()
            await asyncio.wait(walks)
            self._metrics.release_audit(self._name)

    async def _walk_fully(self) -> None:
        while True:
            if not await self._is_known():
                await asyncio.sleep(CHECK_SECONDS)
                continue
            walk = PoolWalk(self._database, self._name, self._secrets)
            await self._to_end(walk, "full")
            self._newest = None if walk.differences else walk
            self._differs.clear()
            try:
                pause = RECHECK_SECONDS if walk.differences else max(CHECK_SECONDS, self._full_seconds)
                await asyncio.wait_for(self._differs.wait(), pause)
            except TimeoutError:
                continue

    async def _walk_newest(self) -> None:
        ended_at = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            walk = self._newest
            if walk is None or not await self._is_due(walk, ended_at):
                continue
            await self._to_end(walk, "newest")
            ended_at = time.monotonic()
            if walk.differences and walk is self._newest:
                self._newest = None
                self._differs.set()

    async def _is_known(self) -> bool:
        """Whether the ledger has the pool, which its session opens."""
        try:
            return await last_entry(self._database, self._name) is not None
        except StoreFault:
            return False

    async def _is_due(self, walk: PoolWalk, ended_at: float) -> bool:
        """Whether a pool has new entries, or its rows were compared long ago."""
        try:
            return time.monotonic() - ended_at > RECHECK_SECONDS or await last_entry(self._database, self._name) != walk.entry
        except StoreFault:
            return True  # The walk reports the fault.

    async def _to_end(self, walk: PoolWalk, kind: Walk) -> None:
        """Takes the parts of a walk until it has compared all rows, or found a difference."""
        outage, is_at_end = Outage(self._log, "audit", walk=kind), False
        while not is_at_end:
            try:
                self._metrics.recomputed(await self._pace.walk(walk.step))
                outage.over()
                is_at_end = walk.ended or bool(walk.differences)
            except StoreFault as fault:
                outage.note(fault)
                await asyncio.sleep(CHECK_SECONDS)
        self._report(walk, kind)

    def _report(self, walk: PoolWalk, kind: Walk) -> None:
        """Shows the result of a walk; logs differences that are not logged already."""
        found = walk.differences[:DIFFERENCES_LOGGED_MAX]
        self._metrics.audited(self._name, good=not found)
        if found and found != self._reported:
            for difference in found:
                log.error("audit difference", pool=self._name, entry=walk.differs_at, walk=kind, difference=difference)
        elif self._reported and not found:
            log.info("audit difference gone", pool=self._name, walk=kind)
        self._reported = found
