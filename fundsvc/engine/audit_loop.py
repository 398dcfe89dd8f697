"""The background audit: recomputes the ledgers of the owned partitions continuously.

Two walks go through each ledger, both by the rules of `fundsvc audit`. The full walk starts at entry 1, or after the archived
entries, once in `full_hours` and compares its end with the stored fund. The newest walk continues from the end of the last full
walk and follows new entries. A walk that finds a difference stays before it and checks it again until it is gone. So the newest
walk detects an altered entry after the checkpoint at once, the full walk one before it, and both an altered checkpoint.

Walks recompute short parts of a ledger. The newest walk does not pause while there are new entries. The full walk pauses after
each part, so that it uses no more than `audit.share` of a core. The hourly rollups are recomputed as often as the full walk
starts, at a tenth of its pace.
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
    LedgerPart,
    Progress,
    VerifiedPart,
    Walk,
    audit_progress,
    beginning,
    keep_differences,
    keep_verified,
    read_parts,
)
from fundsvc.store.database import CellPool, StoreFault
from fundsvc.store.exports import known_contracts
from fundsvc.store.policies import policies_of
from fundsvc.store.reader import fetch
from fundsvc.store.rollup_audit import rollup_differences

PART_ENTRIES = 1000
"""Entries that one query reads: about ten milliseconds of work, some of which run the rules."""

CHUNK_ENTRIES = 50
"""Entries between two yields to the loop: half a millisecond, the longest time that settling waits for the audit."""

GROUP_CONTRACTS = 100
"""Ledgers that one query reads at most. The fixed cost of a query is then small compared with that of its entries."""

GROWTH_ENTRIES = 10
"""Entries that may be added between the look at a ledger and its read, so that one read still reaches the end."""

STRETCHES_PER_VISIT = 20
"""The number of parts after which other contracts get their turn."""

RECHECK_SECONDS = 300.0
"""How often a fund without new entries is compared with its checkpoint, because either may be altered."""

CHECK_SECONDS = 1.0
"""The shortest interval at which a walk looks for work."""

POSITIONS_SIZE_MAX = 200_000
"""Bounds the open orders, with their positions, and tranches that are kept between visits: 50 MB. Others are read again."""

DIFFERENCES_MAX = 5
"""Differences of one part that are logged: one altered entry may break all that follow."""

ROLLUPS_PACE = 0.1
"""The pace of the rollup audit relative to a walk. Charts decide no money."""

Result = TypeVar("Result")

AuditKind = Walk | Literal["rollups"]
"""The kinds of audits: the two walks, and that of the rollups."""

log = structlog.get_logger()


class Metrics(Protocol):
    """The metrics that the audit sets."""

    def audited(self, symbol: str, walk: AuditKind, *, good: bool, verified_at: float | None) -> None:
        """Sets whether a walk found no difference, and when it last reached the end of a ledger without one, if known."""

    def recomputed(self, entries: int) -> None:
        """Counts recomputed entries."""

    def conserved(self, symbol: str, error: int, lots_error: int) -> None:
        """Sets the conservation errors of a contract: of its amounts, in atoms, and of its inventory, in lots."""

    def remaining(self, seconds: float) -> None:
        """Sets the expected time until the full walk has reached the ends of all ledgers."""


class DueLedger(NamedTuple):
    """A ledger that a walk must visit, and how many entries the walk is behind, as far as known."""

    symbol: str
    behind: int


class PartResult(NamedTuple):
    """The result of one part: the state at its end, the differences, and the first entry with a difference."""

    followed: Followed
    differences: list[str]
    differs_at: int | None


class WalkPositions:
    """The positions of walks with their open orders and inventories. Keeps the latest ones, up to POSITIONS_SIZE_MAX."""

    def __init__(self) -> None:
        self._positions: OrderedDict[tuple[str, Walk], tuple[Followed, int]] = OrderedDict()
        self._size = 0

    def take(self, symbols: Iterable[str], walk: Walk) -> dict[str, Followed]:
        """Removes and returns the known positions of a walk in some ledgers. The caller may modify them."""
        return {symbol: found for symbol in symbols if (found := self._pop(symbol, walk))}

    def save(self, held: Iterable[VerifiedPart], walk: Walk) -> None:
        """Saves the positions of a walk. The newest walk continues where a full walk ended."""
        for one in held:
            left: Walk = "newest" if one.ended else walk
            self._pop(one.symbol, left)
            size = one.followed.size
            if 0 < size <= POSITIONS_SIZE_MAX:
                self._positions[one.symbol, left] = one.followed, size
                self._size += size
        while self._size > POSITIONS_SIZE_MAX:
            _, (_, size) = self._positions.popitem(last=False)
            self._size -= size

    def _pop(self, symbol: str, walk: Walk) -> Followed | None:
        followed, size = self._positions.pop((symbol, walk), (None, 0))
        self._size -= size
        return followed


class Pace:
    """Runs the work of an audit one at a time, with pauses, so that a walk from entry 1 uses at most `share` of a core."""

    def __init__(self, share: float) -> None:
        self._share = share
        # One connection suffices, and two walks that end at the same time do not conflict.
        self._one_at_a_time = asyncio.Lock()

    async def follow(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Runs work that must not fall behind, without a pause."""
        return await self._with_pause(work, 1)

    async def walk(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Runs work of a walk, then pauses."""
        return await self._with_pause(work, 1 / self._share)

    async def rollups(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Runs work of the rollup audit, then pauses."""
        return await self._with_pause(work, 1 / self._share / ROLLUPS_PACE)

    async def _with_pause(self, work: Callable[[], Awaitable[Result]], times: float) -> Result:
        """Runs work, then pauses until `times` its duration has passed."""
        async with self._one_at_a_time:
            started = time.perf_counter()
            result = await work()
            seconds = time.perf_counter() - started
        await asyncio.sleep(seconds * (times - 1))
        return result


class Arrival:
    """Expects when a walk reaches all ends, from its speed since the present look at the ledgers."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, entries: int) -> None:
        """Begins with a number of entries that are left."""
        self._left, self._done, self._began = entries, 0, time.monotonic()

    def seconds(self, entries: int) -> float:
        """Returns the expected time until the end, after more entries."""
        self._done += entries
        left = max(0, self._left - self._done)
        return (time.monotonic() - self._began) * left / self._done if self._done else 0.0


class Auditor:
    """Audits the ledgers of the contracts for which `owns` is true, until cancelled. Retries after faults."""

    def __init__(
        self,
        pool: CellPool,
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
        self._pace = Pace(config.share)
        self._arrival = Arrival()
        self._reported: dict[tuple[str, AuditKind], list[str]] = {}
        self._steps = 0
        self._positions = WalkPositions()

    async def run(self) -> None:
        """Runs both walks and the rollup audit concurrently."""
        async with asyncio.TaskGroup() as tasks:
            for walk in WALKS:
                tasks.create_task(self._walk(walk))
            tasks.create_task(self._audit_rollups())

    async def _audit_rollups(self) -> None:
        outage = Outage(log, "audit", walk="rollups")
        while True:
            try:
                for symbol, _ in await self._pace.rollups(lambda: known_contracts(self._pool)):
                    if self._owns(symbol):
                        await self._compare_rollups(symbol)
                outage.over()
                await asyncio.sleep(max(CHECK_SECONDS, self._config.full_hours * 3600))
            except StoreFault as fault:
                outage.note(fault)
                await asyncio.sleep(CHECK_SECONDS)

    async def _compare_rollups(self, symbol: str) -> None:
        differences = await rollup_differences(self._pool, symbol, self._pace.rollups)
        if differences:
            self._report_differences(symbol, "rollups", PartResult(beginning(), differences, None))
        else:
            self._report_verified(symbol, "rollups", ended=False)

    async def _walk(self, walk: Walk) -> None:
        outage = Outage(log, "audit", walk=walk)
        while True:
            is_behind = False
            try:
                is_behind = await self._run_walk(walk, outage)
            except StoreFault as fault:
                outage.note(fault)
            await asyncio.sleep(0 if is_behind else CHECK_SECONDS)

    async def _run_walk(self, walk: Walk, outage: Outage) -> bool:
        """Visits the ledgers that are due; returns whether some of them had more entries than one visit recomputes.

        A fault in one ledger does not affect the others.
        """
        due = await self._paced(walk, lambda: self._due(walk))
        if walk == "full":
            self._arrival.begin(sum(ledger.behind for ledger in due))
        faults = 0
        for group in _groups(due):
            for fault in await self._visit_all(group, walk):
                outage.note(fault)
                faults += 1
            if not faults:
                outage.over()
        if not faults:
            outage.over()
        return not faults and any(ledger.behind > PART_ENTRIES * STRETCHES_PER_VISIT for ledger in due)

    async def _paced(self, walk: Walk, work: Callable[[], Awaitable[Result]]) -> Result:
        """Runs work of a walk: only the newest one must not fall behind."""
        return await (self._pace.walk if walk == "full" else self._pace.follow)(work)

    async def _visit_all(self, group: Sequence[DueLedger], walk: Walk) -> list[StoreFault]:
        """Visits some ledgers together; after a fault halves the group until faulty ledgers are alone. Returns the faults."""
        try:
            await self._visit(group, walk)
        except StoreFault as fault:
            half = len(group) // 2
            if not half:
                return [fault]
            return await self._visit_all(group[:half], walk) + await self._visit_all(group[half:], walk)
        return []

    async def _due(self, walk: Walk) -> list[DueLedger]:
        """Returns the ledgers that a walk must visit, the one verified longest ago first."""
        known = await known_contracts(self._pool)
        progress = {one.symbol: one for one in await audit_progress(self._pool, walk)}
        for one in progress.values():
            verified_at = None if one.age_seconds is None else time.time() - one.age_seconds
            self._set_metrics(one.symbol, walk, good=one.good, verified_at=verified_at)
        is_due = self._is_due_fully if walk == "full" else self._has_new_entries
        due = [symbol for symbol, entry in known if self._owns(symbol) and is_due(progress.get(symbol), entry)]
        due.sort(key=lambda symbol: _age(progress.get(symbol)), reverse=True)
        entries = dict(known)
        return [DueLedger(symbol, max(0, entries[symbol] - _entry(progress.get(symbol)))) for symbol in due]

    def _is_due_fully(self, progress: Progress | None, _entry: int) -> bool:
        """Whether a full walk is unfinished or overdue."""
        return progress is None or progress.entry > 0 or not progress.good or _age(progress) > self._config.full_hours * 3600

    def _has_new_entries(self, progress: Progress | None, entry: int) -> bool:
        """Whether there are entries after the checkpoint. The full walk makes the first checkpoint."""
        return progress is not None and (progress.entry != entry or not progress.good or _age(progress) > RECHECK_SECONDS)

    async def _visit(self, group: Sequence[DueLedger], walk: Walk) -> None:
        """Recomputes the next parts of some ledgers, STRETCHES_PER_VISIT at most."""
        counts = {symbol: min(PART_ENTRIES, behind + GROWTH_ENTRIES) for symbol, behind in group}
        for _ in range(STRETCHES_PER_VISIT):
            owned = {symbol: count for symbol, count in counts.items() if self._owns(symbol)}
            rest = await self._paced(walk, partial(self._follow_parts, owned, walk)) if owned else []
            if not rest:
                return
            counts = dict.fromkeys(rest, max(1, PART_ENTRIES // len(rest)))

    async def _follow_parts(self, counts: Mapping[str, int], walk: Walk) -> list[str]:
        """Recomputes the next entries of some contracts; returns those that have more."""
        held: list[VerifiedPart] = []
        differing: list[str] = []
        parts = await read_parts(self._pool, counts, walk, self._positions.take(counts, walk))
        policies = await policies_of(partial(fetch, self._pool), list(parts), self._policy_of)
        for symbol, part in parts.items():
            found = await self._follow(symbol, part, policies[symbol])
            if found.differences:
                self._report_differences(symbol, walk, found)
                differing.append(symbol)
            else:
                held.append(VerifiedPart(symbol, found.followed, part.ended))
        await self._keep(walk, held, differing)
        if walk == "full":
            self._metrics.remaining(self._arrival.seconds(sum(map(len, parts.values()))))
        return [one.symbol for one in held if not one.ended]

    async def _keep(self, walk: Walk, held: Sequence[VerifiedPart], differing: Sequence[str]) -> None:
        if held:
            await keep_verified(self._pool, walk, held)
        if differing:
            await keep_differences(self._pool, walk, differing)
        self._positions.save(held, walk)
        for one in held:
            self._report_verified(one.symbol, walk, ended=one.ended)

    async def _follow(self, symbol: str, part: LedgerPart, policies: Mapping[int, Policy]) -> PartResult:
        """Recomputes a part; compares the end of the last part with the stored fund."""
        ledger = part.ledger
        if ledger is None:
            return PartResult(part.since, [missing(symbol)], None)
        replay = part.replay(ledger, policies, self._secrets)
        await self._in_chunks(part.followed(replay))
        self._metrics.recomputed(len(part))
        part.compare(replay)
        await self._in_chunks(part.compared_lots(replay))
        if part.totals and self._owns(symbol):
            self._metrics.conserved(symbol, replay.conservation_error(ledger.fund, part.totals), part.lots_error())
        return PartResult(part.reached(replay), replay.differences, replay.differs_at)

    async def _in_chunks(self, steps: Iterable[None]) -> None:
        """Takes all steps; yields to the loop after each CHUNK_ENTRIES."""
        for _ in steps:
            self._steps += 1
            if self._steps % CHUNK_ENTRIES == 0:
                await asyncio.sleep(0)

    def _report_differences(self, symbol: str, walk: AuditKind, found: PartResult) -> None:
        """Logs the differences of a walk, unless they are logged already, and sets the metrics."""
        self._set_metrics(symbol, walk, good=False, verified_at=None)
        if self._reported.get((symbol, walk)) != found.differences:
            self._reported[symbol, walk] = found.differences
            for difference in found.differences[:DIFFERENCES_MAX]:
                log.error("audit difference", symbol=symbol, entry=found.differs_at, walk=walk, difference=difference)

    def _report_verified(self, symbol: str, walk: AuditKind, *, ended: bool) -> None:
        """Records that a walk found no difference. The end of a full walk also confirms the newest walk."""
        for held in WALKS if ended and walk == "full" else (walk,):
            self._set_metrics(symbol, held, good=True, verified_at=time.time() if ended else None)
            if self._reported.pop((symbol, held), None):
                log.info("audit difference gone", symbol=symbol, walk=held)

    def _set_metrics(self, symbol: str, walk: AuditKind, *, good: bool, verified_at: float | None) -> None:
        if self._owns(symbol):
            self._metrics.audited(symbol, walk, good=good, verified_at=verified_at)


def _groups(due: Iterable[DueLedger]) -> Iterator[list[DueLedger]]:
    """Groups ledgers for common reads, in the given order, up to the limits of one read."""
    group: list[DueLedger] = []
    entries = 0
    for one in due:
        if group and (entries + one.behind > PART_ENTRIES or len(group) == GROUP_CONTRACTS):
            yield group
            group, entries = [], 0
        group.append(one)
        entries += one.behind
    if group:
        yield group


def _entry(progress: Progress | None) -> int:
    """Returns the entry after which a walk continues."""
    return max(progress.entry, progress.archived) if progress else 0


def _age(progress: Progress | None) -> float:
    """Returns the seconds since a walk last reached the end without a difference, infinity if unknown."""
    return math.inf if progress is None or progress.age_seconds is None else progress.age_seconds
