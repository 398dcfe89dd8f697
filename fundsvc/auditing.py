"""The audit that never sleeps: the ledgers of the partitions that are owned here are recomputed all the time.

Two walks go through each ledger, both by the rules of `fundsvc audit`. The full one begins with entry 1, once in a while, and
compares the end with what is stored; what it has verified is where the newest one goes on as entries are added. A walk that
finds a difference stays before it, and looks there again, until the ledger is as it should be. So an altered entry after the
checkpoint is found at once, one before it by the full walk, and an altered checkpoint by either.

Both go in short stretches, and rest after each so long that together they take no more than their share of a core.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import structlog

from fundsvc.config import AuditConfig
from fundsvc.core.replay import Replay, missing
from fundsvc.logs.faults import Outage
from fundsvc.store.audits import WALKS, Progress, Stretch, Walk, audit_progress, keep_difference, keep_held, read_stretch
from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.exports import UnknownContract, known_contracts

STRETCH_ENTRIES = 1000
"""One read of the database: a hundredth of a second's work, of which some milliseconds are the rules'."""

CHUNK_ENTRIES = 50
"""Recomputed between two looks at the loop: half a millisecond, which is what settling may wait for it."""

STRETCHES_PER_VISIT = 20
"""After so many, the other contracts have their turn."""

RECHECK_SECONDS = 300.0
"""A fund without new entries is compared with its checkpoint as often as this: that alone may be altered, too."""

LOOK_SECONDS = 1.0
"""How often a walk looks for what there is to do, at most."""

DIFFERENCES_MAX = 5
"""Of a stretch that are told: one altered entry may break all that follow."""

Result = TypeVar("Result")

log = structlog.get_logger()


class Metrics(Protocol):
    """Who shows what the audit found."""

    def audited(self, symbol: str, walk: Walk, *, good: bool, verified_at: float | None) -> None:
        """Shows whether everything held when a walk last looked, and when it last reached an end where it did, if known."""

    def recomputed(self, entries: int) -> None:
        """Counts entries that were recomputed."""

    def conserved(self, symbol: str, error: int) -> None:
        """Shows how many atoms conservation lacks, of a contract."""


class Auditor:
    """Audits the ledgers of the contracts that `owns` names, until cancelled and through every fault."""

    def __init__(self, pool: Pool, config: AuditConfig, metrics: Metrics, owns: Callable[[str], bool]) -> None:
        self._pool = pool
        self._config = config
        self._metrics = metrics
        self._owns = owns
        self._one_at_a_time = asyncio.Lock()  # One connection is enough, and two walks that end together do not collide.
        self._told: dict[tuple[str, Walk], list[str]] = {}

    async def run(self) -> None:
        """Walks, both ways at the same time."""
        async with asyncio.TaskGroup() as tasks:
            for walk in WALKS:
                tasks.create_task(self._walk(walk))

    async def _walk(self, walk: Walk) -> None:
        outage = Outage(log, "audit", walk=walk)
        while True:
            try:
                await self._look(walk, outage)
            except StoreFault as fault:
                outage.note(fault)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, walk: Walk, outage: Outage) -> None:
        """Visits the ledgers that a walk has something to do in; a fault in one keeps no other from its turn."""
        works = True
        for symbol in await self._paced(lambda: self._due(walk)):
            try:
                await self._visit(symbol, walk)
            except StoreFault as fault:
                outage.note(fault)
                works = False
            if works:
                outage.over()
        if works:
            outage.over()

    async def _paced(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Does some work, and rests so long that both walks together take no more than their share."""
        async with self._one_at_a_time:
            started = time.perf_counter()
            result = await work()
            seconds = time.perf_counter() - started
        await asyncio.sleep(seconds * (len(WALKS) / self._config.share - 1))
        return result

    async def _due(self, walk: Walk) -> list[str]:
        """Whose ledger a walk has something to do in, the one that was verified longest ago first."""
        known = await known_contracts(self._pool)
        progress = {one.symbol: one for one in await audit_progress(self._pool, walk)}
        for one in progress.values():
            verified_at = None if one.age_seconds is None else time.time() - one.age_seconds
            self._show(one.symbol, walk, good=one.good, verified_at=verified_at)
        is_due = self._is_due_fully if walk == "full" else self._is_due_newly
        due = [symbol for symbol, entry in known if self._owns(symbol) and is_due(progress.get(symbol), entry)]
        return sorted(due, key=lambda symbol: _age(progress.get(symbol)), reverse=True)

    def _is_due_fully(self, progress: Progress | None, _entry: int) -> bool:
        """Where a full walk is under way, or the last one is too long ago."""
        return progress is None or progress.entry > 0 or not progress.good or _age(progress) > self._config.full_hours * 3600

    def _is_due_newly(self, progress: Progress | None, entry: int) -> bool:
        """Where there are entries beyond a checkpoint; without one, it is for a full walk to make it."""
        return progress is not None and (progress.entry != entry or not progress.good or _age(progress) > RECHECK_SECONDS)

    async def _visit(self, symbol: str, walk: Walk) -> None:
        for _ in range(STRETCHES_PER_VISIT):
            if not self._owns(symbol) or not await self._paced(lambda: self._stretch(symbol, walk)):
                return

    async def _stretch(self, symbol: str, walk: Walk) -> bool:
        """Recomputes what lies before a walk; says whether there is more."""
        try:
            stretch = await read_stretch(self._pool, symbol, walk, STRETCH_ENTRIES)
        except UnknownContract:
            await self._differ(symbol, walk, None, [missing(symbol)])
            return False
        replay, ended = await self._follow(stretch)
        if replay.differences:
            await self._differ(symbol, walk, replay.differs_at, replay.differences)
            return False
        await keep_held(self._pool, symbol, walk, replay.checkpoint, ended=ended)
        self._hold(symbol, walk, ended=ended)
        return not ended

    async def _follow(self, stretch: Stretch) -> tuple[Replay, bool]:
        """Recomputes entries, and says whether they were the last ones: then their end is compared with what is stored."""
        ledger = stretch.ledger
        replay = Replay(ledger.contract, ledger.late, stretch.since)
        for place, line in enumerate(stretch, 1):
            replay.follow(line.entry, line.hash)
            if place % CHUNK_ENTRIES == 0:
                await asyncio.sleep(0)
        self._metrics.recomputed(len(stretch))
        ended = len(stretch) < STRETCH_ENTRIES
        if ended:
            replay.finish(ledger.fund, ledger.orders)
            if self._owns(ledger.contract.symbol):
                self._metrics.conserved(ledger.contract.symbol, replay.conservation_error(ledger.fund, ledger.orders))
        return replay, ended

    async def _differ(self, symbol: str, walk: Walk, entry: int | None, differences: list[str]) -> None:
        """Tells what a walk found, once."""
        self._show(symbol, walk, good=False, verified_at=None)
        if self._told.get((symbol, walk)) != differences:
            self._told[symbol, walk] = differences
            for difference in differences[:DIFFERENCES_MAX]:
                log.error("audit difference", symbol=symbol, entry=entry, walk=walk, difference=difference)
        await keep_difference(self._pool, symbol, walk)

    def _hold(self, symbol: str, walk: Walk, *, ended: bool) -> None:
        """Notes that everything held as far as a walk has come; the end of a full one vouches for the newest one, too."""
        for held in WALKS if ended and walk == "full" else (walk,):
            self._show(symbol, held, good=True, verified_at=time.time() if ended else None)
            if self._told.pop((symbol, held), None):
                log.info("audit difference gone", symbol=symbol, walk=held)

    def _show(self, symbol: str, walk: Walk, *, good: bool, verified_at: float | None) -> None:
        if self._owns(symbol):
            self._metrics.audited(symbol, walk, good=good, verified_at=verified_at)


def _age(progress: Progress | None) -> float:
    """Seconds since a walk last reached an end where everything held."""
    return math.inf if progress is None or progress.age_seconds is None else progress.age_seconds
