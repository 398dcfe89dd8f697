"""Looks at the ledger again and again, and notes what changed and what was notable."""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from fundsvc.store.database import SQL, Pool, faults
from fundsvc.store.reader import EntryRow, FundRow, Reader
from fundsvc.streams.source import Source

RATE_SECONDS = 5.0
"""Fills per second are an average over this long: shorter ones flicker."""

MERGE_SECONDS = 8.0
"""What happens to a fund again within this time is told in one line: a cascade is dozens of shortfalls."""

NOTABLE_MAX = 50
"""More than any terminal has lines for."""

ENTRIES_PER_LOOK_MAX = 500
"""Bounds what one look reads of a fund that has gained much; the rest is read by the next looks."""


class Notable(StrEnum):
    """What is worth telling about a fund."""

    PAID = "paid"
    DRAINED = "drained"
    ESCALATED = "escalated"
    REPAID = "repaid"


@dataclass
class Event:
    """Something notable, or several of the same in a row: how many, and how much they make in atoms."""

    at: float
    fund: FundRow
    what: Notable
    amount: int
    count: int = 1


class FundView(NamedTuple):
    """A fund now, what its balance has changed by since the watch began, and its last entry."""

    fund: FundRow
    change: int
    last: EntryRow | None


class View(NamedTuple):
    """All that is shown: funds, the pace, the messages not settled yet, and notable events, newest last."""

    funds: Sequence[FundView]
    fills_per_second: float
    lag: int
    events: Sequence[Event]


@dataclass
class _Followed:
    """A fund as of the last look."""

    balance_at_start: int
    entry: int
    outstanding: int = 0
    last: EntryRow | None = None


@dataclass
class Watch:
    """Watches the funds of some contracts, and the streams that feed them."""

    pool: Pool
    sources: Sequence[Source]
    symbols: Sequence[str]
    _reader: Reader = field(init=False)
    _followed: dict[str, _Followed] = field(default_factory=dict)
    _events: deque[Event] = field(default_factory=lambda: deque(maxlen=NOTABLE_MAX))
    _totals: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._reader = Reader(self.pool)

    async def look(self) -> View:
        """The present; raises StoreFault or StreamFault when it cannot be seen."""
        listed = {fund.symbol: fund for fund in await self._reader.funds()}
        if not self._followed:
            await self._begin(listed)
        views = [await self._follow(listed[symbol]) for symbol in self.symbols if symbol in listed]
        return View(views, self._rate(sum(view.fund.entry for view in views)), await self._lag(), list(self._events))

    async def _begin(self, listed: dict[str, FundRow]) -> None:
        """Takes the funds as they are for the start; those not listed yet start from nothing."""
        for symbol in self.symbols:
            fund = listed.get(symbol)
            followed = _Followed(fund.balance, fund.entry, fund.outstanding) if fund else _Followed(0, 0)
            for entry in await self._reader.history(symbol, count=1):
                followed.last = entry
            self._followed[symbol] = followed

    async def _follow(self, fund: FundRow) -> FundView:
        followed = self._followed[fund.symbol]
        if fund.entry > followed.entry:
            entries = await self._reader.history(fund.symbol, count=ENTRIES_PER_LOOK_MAX, offset=followed.entry, forward=True)
            self._note_all(fund, entries)
            followed.last = entries[-1]
            followed.entry = followed.last.entry
        if followed.outstanding and not fund.outstanding:
            self._note(fund, Notable.REPAID, 0)
        followed.outstanding = fund.outstanding
        return FundView(fund, fund.balance - followed.balance_at_start, followed.last)

    def _note_all(self, fund: FundRow, entries: Iterable[EntryRow]) -> None:
        for entry in entries:
            if entry.kind == "shortfall" and entry.change:
                self._note(fund, Notable.PAID, -entry.change)
                if not entry.balance:
                    self._note(fund, Notable.DRAINED, 0)
            if entry.uncovered:
                self._note(fund, Notable.ESCALATED, entry.uncovered)

    def _note(self, fund: FundRow, what: Notable, amount: int) -> None:
        now = time.time()
        before = next((event for event in reversed(self._events) if event.fund.symbol == fund.symbol), None)
        if before and before.what == what and now - before.at < MERGE_SECONDS:
            before.count += 1
            before.amount += amount
        else:
            self._events.append(Event(now, fund, what, amount))

    def _rate(self, total: int) -> float:
        now = time.monotonic()
        self._totals.append((now, total))
        while now - self._totals[0][0] > RATE_SECONDS:
            self._totals.popleft()
        since, before = self._totals[0]
        return (total - before) / (now - since) if now > since else 0.0

    async def _lag(self) -> int:
        """How many messages the ledger is behind the streams."""
        sent = [(await source.state()).added for source in self.sources]
        with faults():
            partitions = await self.pool.fetch(SQL["partitions"])
        settled: int = sum(row["messages"] for row in partitions)
        return max(0, sum(sent) - settled)
