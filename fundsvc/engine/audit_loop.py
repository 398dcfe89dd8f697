"""The audit that never sleeps: the ledgers of the partitions that are owned here are recomputed all the time.

Two walks go through each ledger, both by the rules of `fundsvc audit`. The full one begins with entry 1, once in a while, and
compares the end with what is stored; what it has verified is where the newest one goes on as entries are added. A walk that
finds a difference stays before it, and looks there again, until the ledger is as it should be. So an altered entry after the
checkpoint is found at once, one before it by the full walk, and an altered checkpoint by either.

Both go in short stretches, and rest after each so long that together they take no more than their share of a core. Beside them
the hourly rollups are recomputed as often as the full walk begins, at a tenth of a walk's pace.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol, TypeVar

import structlog

from fundsvc.config.settings import AuditConfig
from fundsvc.core.commitment import NO_SECRETS, Secrets
from fundsvc.core.fund.verification import missing
from fundsvc.core.policy import Policy
from fundsvc.logs.faults import Outage
from fundsvc.store.audits import (
    WALKS,
    Followed,
    Held,
    Progress,
    Stretch,
    Walk,
    audit_progress,
    beginning,
    keep_differences,
    keep_held,
    read_stretches,
)
from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.exports import known_contracts
from fundsvc.store.policies import policies_of
from fundsvc.store.rollup_audit import rollup_differences

STRETCH_ENTRIES = 1000
"""One read of the database: a hundredth of a second's work, of which some milliseconds are the rules'."""

CHUNK_ENTRIES = 50
"""Recomputed between two looks at the loop: half a millisecond, which is what settling may wait for it."""

GROUP_CONTRACTS = 100
"""Ledgers that are read together at most: what a read costs besides its entries is then hardly more than an entry's each."""

GROWTH_ENTRIES = 10
"""A ledger grows between being looked at and being read; so many more entries still let a walk reach its end at once."""

STRETCHES_PER_VISIT = 20
"""After so many, the other contracts have their turn."""

RECHECK_SECONDS = 300.0
"""A fund without new entries is compared with its checkpoint as often as this: that alone may be altered, too."""

CHECK_SECONDS = 1.0
"""How often a walk looks for what there is to do, at most."""

OPEN_ORDERS_SIZE_MAX = 200_000
"""Open orders, and positions that they ask, that are kept between visits: some 30 MB. Beyond it records are read again."""

DIFFERENCES_MAX = 5
"""Of a stretch that are told: one altered entry may break all that follow."""

ROLLUPS_PACE = 0.1
"""Of a walk's: charts decide no money."""

Result = TypeVar("Result")

Part = Walk | Literal["rollups"]
"""What the audit goes through."""

log = structlog.get_logger()


class Metrics(Protocol):
    """Who shows what the audit found."""

    def audited(self, symbol: str, walk: Part, *, good: bool, verified_at: float | None) -> None:
        """Shows whether everything held when a walk last looked, and when it last reached an end where it did, if known."""

    def recomputed(self, entries: int) -> None:
        """Counts entries that were recomputed."""

    def conserved(self, symbol: str, error: int) -> None:
        """Shows how many atoms conservation lacks, of a contract."""


class DueLedger(NamedTuple):
    """A ledger that a walk has something to do in, and how many entries it is behind, as far as is known."""

    symbol: str
    behind: int


class PartResult(NamedTuple):
    """What a walk found in a stretch: how far it came, what differs, and the first entry that does."""

    followed: Followed
    differences: list[str]
    differs_at: int | None


class WalkPositions:
    """Where walks were left, with the orders that are open there: those of the latest, as far as memory is for."""

    def __init__(self) -> None:
        self._positions: OrderedDict[tuple[str, Walk], tuple[Followed, int]] = OrderedDict()
        self._size = 0

    def take(self, symbols: Iterable[str], walk: Walk) -> dict[str, Followed]:
        """Hands out where a walk through some ledgers was left, as far as that is known. What is taken may be changed."""
        return {symbol: found for symbol in symbols if (found := self._pop(symbol, walk))}

    def save(self, held: Iterable[Held], walk: Walk) -> None:
        """Notes where a walk was left. The end of a full one is where the newest one goes on."""
        for one in held:
            left: Walk = "newest" if one.ended else walk
            self._pop(one.symbol, left)
            size = one.followed.opened.size
            if 0 < size <= OPEN_ORDERS_SIZE_MAX:
                self._positions[one.symbol, left] = one.followed, size
                self._size += size
        while self._size > OPEN_ORDERS_SIZE_MAX:
            _, (_, size) = self._positions.popitem(last=False)
            self._size -= size

    def _pop(self, symbol: str, walk: Walk) -> Followed | None:
        followed, size = self._positions.pop((symbol, walk), (None, 0))
        self._size -= size
        return followed


class Auditor:
    """Audits the ledgers of the contracts that `owns` names, until cancelled and through every fault."""

    def __init__(
        self,
        pool: Pool,
        config: AuditConfig,
        metrics: Metrics,
        owns: Callable[[str], bool],
        policy_of: Callable[[str], Policy] = lambda _: Policy(),
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        self._pool = pool
        self._config = config
        self._metrics = metrics
        self._owns = owns
        self._policy_of = policy_of
        self._secrets = secrets
        self._one_at_a_time = asyncio.Lock()  # One connection is enough, and two walks that end together do not collide.
        self._reported: dict[tuple[str, Part], list[str]] = {}
        self._followed = 0
        self._positions = WalkPositions()

    async def run(self) -> None:
        """Walks, both ways at the same time, and recomputes the rollups."""
        async with asyncio.TaskGroup() as tasks:
            for walk in WALKS:
                tasks.create_task(self._walk(walk))
            tasks.create_task(self._audit_rollups())

    async def _audit_rollups(self) -> None:
        outage = Outage(log, "audit", walk="rollups")
        while True:
            try:
                for symbol, _ in await self._at_rollup_pace(lambda: known_contracts(self._pool)):
                    if self._owns(symbol):
                        await self._compare_rollups(symbol)
                outage.over()
                await asyncio.sleep(max(CHECK_SECONDS, self._config.full_hours * 3600))
            except StoreFault as fault:
                outage.note(fault)
                await asyncio.sleep(CHECK_SECONDS)

    async def _compare_rollups(self, symbol: str) -> None:
        differences = await rollup_differences(self._pool, symbol, self._at_rollup_pace)
        if differences:
            self._report_differences(symbol, "rollups", PartResult(beginning(), differences, None))
        else:
            self._report_verified(symbol, "rollups", ended=False)

    async def _walk(self, walk: Walk) -> None:
        outage = Outage(log, "audit", walk=walk)
        while True:
            try:
                await self._run_walk(walk, outage)
            except StoreFault as fault:
                outage.note(fault)
            await asyncio.sleep(CHECK_SECONDS)

    async def _run_walk(self, walk: Walk, outage: Outage) -> None:
        """Visits the ledgers that a walk has something to do in; a fault in one keeps no other from its turn."""
        succeeded = True
        for group in _groups(await self._at_walk_pace(lambda: self._due(walk))):
            for fault in await self._visit_all(group, walk):
                outage.note(fault)
                succeeded = False
            if succeeded:
                outage.over()
        if succeeded:
            outage.over()

    async def _visit_all(self, group: Sequence[DueLedger], walk: Walk) -> list[StoreFault]:
        """Visits some ledgers together; after a fault each half alone, until the ledgers at fault are alone. Their faults."""
        try:
            await self._visit(group, walk)
        except StoreFault as fault:
            half = len(group) // 2
            if not half:
                return [fault]
            return await self._visit_all(group[:half], walk) + await self._visit_all(group[half:], walk)
        return []

    async def _at_walk_pace(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Does some work, and rests so long that both walks together take no more than their share."""
        return await self._with_pause(work, len(WALKS) / self._config.share)

    async def _at_rollup_pace(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Does some work at the pace of the rollups."""
        return await self._with_pause(work, len(WALKS) / self._config.share / ROLLUPS_PACE)

    async def _with_pause(self, work: Callable[[], Awaitable[Result]], times: float) -> Result:
        """Does some work, and rests until so many times as long as that took have passed."""
        async with self._one_at_a_time:
            started = time.perf_counter()
            result = await work()
            seconds = time.perf_counter() - started
        await asyncio.sleep(seconds * (times - 1))
        return result

    async def _due(self, walk: Walk) -> list[DueLedger]:
        """Whose ledger a walk has something to do in, the one that was verified longest ago first."""
        known = await known_contracts(self._pool)
        progress = {one.symbol: one for one in await audit_progress(self._pool, walk)}
        for one in progress.values():
            verified_at = None if one.age_seconds is None else time.time() - one.age_seconds
            self._set_metrics(one.symbol, walk, good=one.good, verified_at=verified_at)
        is_due = self._is_due_fully if walk == "full" else self._is_due_newly
        due = [symbol for symbol, entry in known if self._owns(symbol) and is_due(progress.get(symbol), entry)]
        due.sort(key=lambda symbol: _age(progress.get(symbol)), reverse=True)
        entries = dict(known)
        return [DueLedger(symbol, max(0, entries[symbol] - _entry(progress.get(symbol)))) for symbol in due]

    def _is_due_fully(self, progress: Progress | None, _entry: int) -> bool:
        """Where a full walk is under way, or the last one is too long ago."""
        return progress is None or progress.entry > 0 or not progress.good or _age(progress) > self._config.full_hours * 3600

    def _is_due_newly(self, progress: Progress | None, entry: int) -> bool:
        """Where there are entries beyond a checkpoint; without one, it is for a full walk to make it."""
        return progress is not None and (progress.entry != entry or not progress.good or _age(progress) > RECHECK_SECONDS)

    async def _visit(self, group: Sequence[DueLedger], walk: Walk) -> None:
        """Recomputes what lies before a walk in some ledgers: so many stretches at most, the rest in a later visit."""
        counts = {symbol: min(STRETCH_ENTRIES, behind + GROWTH_ENTRIES) for symbol, behind in group}
        for _ in range(STRETCHES_PER_VISIT):
            owned = {symbol: count for symbol, count in counts.items() if self._owns(symbol)}
            rest = await self._at_walk_pace(partial(self._stretch, owned, walk)) if owned else []
            if not rest:
                return
            counts = dict.fromkeys(rest, max(1, STRETCH_ENTRIES // len(rest)))

    async def _stretch(self, counts: Mapping[str, int], walk: Walk) -> list[str]:
        """Recomputes the next entries of some contracts, and answers of which of them there are more."""
        held: list[Held] = []
        differing: list[str] = []
        stretches = await read_stretches(self._pool, counts, walk, self._positions.take(counts, walk))
        policies = await policies_of(self._pool, list(stretches), self._policy_of)
        for symbol, stretch in stretches.items():
            found = await self._follow(symbol, stretch, policies[symbol])
            if found.differences:
                self._report_differences(symbol, walk, found)
                differing.append(symbol)
            else:
                held.append(Held(symbol, found.followed, stretch.ended))
        await self._keep(walk, held, differing)
        return [one.symbol for one in held if not one.ended]

    async def _keep(self, walk: Walk, held: Sequence[Held], differing: Sequence[str]) -> None:
        if held:
            await keep_held(self._pool, walk, held)
        if differing:
            await keep_differences(self._pool, walk, differing)
        self._positions.save(held, walk)
        for one in held:
            self._report_verified(one.symbol, walk, ended=one.ended)

    async def _follow(self, symbol: str, stretch: Stretch, policies: Mapping[int, Policy]) -> PartResult:
        """Recomputes a stretch; where it is the last one, its end is compared with what is stored."""
        ledger = stretch.ledger
        if ledger is None:
            return PartResult(stretch.since, [missing(symbol)], None)
        replay = stretch.replay(ledger, policies, self._secrets)
        for _ in stretch.followed(replay):
            self._followed += 1
            if self._followed % CHUNK_ENTRIES == 0:
                await asyncio.sleep(0)
        self._metrics.recomputed(len(stretch))
        stretch.compare(replay)
        if stretch.totals and self._owns(symbol):
            self._metrics.conserved(symbol, replay.conservation_error(ledger.fund, stretch.totals))
        return PartResult(Followed(replay.checkpoint, replay.orders.opened), replay.differences, replay.differs_at)

    def _report_differences(self, symbol: str, walk: Part, found: PartResult) -> None:
        """Tells what a walk found, once."""
        self._set_metrics(symbol, walk, good=False, verified_at=None)
        if self._reported.get((symbol, walk)) != found.differences:
            self._reported[symbol, walk] = found.differences
            for difference in found.differences[:DIFFERENCES_MAX]:
                log.error("audit difference", symbol=symbol, entry=found.differs_at, walk=walk, difference=difference)

    def _report_verified(self, symbol: str, walk: Part, *, ended: bool) -> None:
        """Notes that everything held as far as a walk has come; the end of a full one vouches for the newest one, too."""
        for held in WALKS if ended and walk == "full" else (walk,):
            self._set_metrics(symbol, held, good=True, verified_at=time.time() if ended else None)
            if self._reported.pop((symbol, held), None):
                log.info("audit difference gone", symbol=symbol, walk=held)

    def _set_metrics(self, symbol: str, walk: Part, *, good: bool, verified_at: float | None) -> None:
        if self._owns(symbol):
            self._metrics.audited(symbol, walk, good=good, verified_at=verified_at)


def _groups(due: Iterable[DueLedger]) -> Iterator[list[DueLedger]]:
    """Ledgers that are visited together, in the given order: as many as one read is for."""
    group: list[DueLedger] = []
    entries = 0
    for one in due:
        if group and (entries + one.behind > STRETCH_ENTRIES or len(group) == GROUP_CONTRACTS):
            yield group
            group, entries = [], 0
        group.append(one)
        entries += one.behind
    if group:
        yield group


def _entry(progress: Progress | None) -> int:
    return progress.entry if progress else 0


def _age(progress: Progress | None) -> float:
    """Seconds since a walk last reached an end where everything held."""
    return math.inf if progress is None or progress.age_seconds is None else progress.age_seconds
