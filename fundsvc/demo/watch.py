"""Polls the ledger, and collects changes and notable events."""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from fundsvc.core.fund.inventory import Inventory, TrancheState
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.numbers import parse_price
from fundsvc.demo.ledger import Ledger, Order
from fundsvc.store.database import Pool
from fundsvc.store.reader import EntryRow, FundRow, Reader
from fundsvc.streams.source import Source

RATE_SECONDS = 5.0
"""Window of the average of fills per second."""

MERGE_SECONDS = 8.0
"""Equal events of a fund within this time share one line, because a cascade is dozens of shortfalls."""

NOTABLE_MAX = 50
"""Notable events kept: more than a terminal has lines for."""

ENTRIES_PER_LOOK_MAX = 500
"""Entries read per fund and poll; later polls read the rest."""


class Notable(StrEnum):
    """The kinds of notable events."""

    PAID = "paid"
    DRAINED = "drained"
    ORDERED = "ordered"
    ANOTHER_ROUND = "another round"
    DONE = "done"
    UNCOVERED = "uncovered"
    RETURNED = "returned"
    TAKEN = "taken"
    FORCED = "forced"
    UNWOUND = "unwound"
    REPAID = "repaid"


@dataclass
class Event:
    """A notable event of a fund, or of its ADL order in its state at that time.

    `count` is the number of equal events that share this line, `amount` their total in atoms, or in lots for takeovers and
    unwinds.
    """

    at: float
    fund: FundRow
    what: Notable
    amount: int = 0
    order: Order | None = None
    count: int = 1


class FundView(NamedTuple):
    """A fund, its last entry, its open ADL orders, and the inventory at the latest mark, None without lots."""

    fund: FundRow
    last: EntryRow | None
    orders: Sequence[Order]
    inventory: Inventory | None = None

    @property
    def equity(self) -> int:
        """The balance plus the worth of the inventory at the mark."""
        return self.fund.balance + (self.inventory.unrealised if self.inventory else 0)


class View(NamedTuple):
    """The content of the screen. `lag` is the number of unsettled messages; the newest event is the last."""

    funds: Sequence[FundView]
    fills_per_second: float
    lag: int
    events: Sequence[Event]


@dataclass
class _Followed:
    """The state of a fund at the last poll."""

    entry: int = 0
    outstanding: int = 0
    repaid: int = 0
    last: EntryRow | None = None
    orders: dict[int, Order] = field(default_factory=dict)


@dataclass
class Watch:
    """Watches the funds of some contracts and their streams. `marks` are the latest mark prices."""

    pool: Pool
    sources: Sequence[Source]
    symbols: Sequence[str]
    marks: Mapping[str, str]
    _reader: Reader = field(init=False)
    _ledger: Ledger = field(init=False)
    _followed: dict[str, _Followed] = field(default_factory=dict)
    _events: deque[Event] = field(default_factory=lambda: deque(maxlen=NOTABLE_MAX))
    _totals: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._reader = Reader(self.pool)
        self._ledger = Ledger(self.pool)

    async def look(self) -> View:
        """Polls once; raises StoreFault or StreamFault."""
        orders = _by_contract(await self._ledger.latest_orders())
        listed = {fund.symbol: fund for fund in await self._reader.funds()}
        if not self._followed:
            await self._begin(listed, orders)
        tranches: defaultdict[str, list[TrancheState]] = defaultdict(list)
        for tranche in await self._ledger.tranches():
            tranches[tranche.symbol].append(tranche)
        views = [
            (await self._follow(listed[symbol], orders[symbol]))._replace(
                inventory=_inventory(listed[symbol], tranches[symbol], self.marks.get(symbol))
            )
            for symbol in self.symbols
            if symbol in listed
        ]
        lag = await self._ledger.lag(self.sources)
        return View(views, self._rate(sum(view.fund.entry for view in views)), lag, list(self._events))

    async def _begin(self, listed: dict[str, FundRow], orders: "_Orders") -> None:
        """Starts from the current funds; contracts that are not listed yet start at entry 0."""
        for symbol in self.symbols:
            fund = listed.get(symbol)
            followed = _Followed(fund.entry, fund.outstanding) if fund else _Followed()
            for entry in await self._reader.history(symbol, count=1):
                followed.last = entry
            followed.orders = orders[symbol]
            self._followed[symbol] = followed

    async def _follow(self, fund: FundRow, orders: dict[int, Order]) -> FundView:
        followed = self._followed[fund.symbol]
        if fund.entry > followed.entry:
            entries = await self._reader.history(fund.symbol, count=ENTRIES_PER_LOOK_MAX, offset=followed.entry, forward=True)
            self._note_entries(fund, entries)
            followed.repaid += sum(entry.repaid for entry in entries)
            followed.last = entries[-1]
            followed.entry = followed.last.entry
        self._note_orders(fund, followed.orders, orders)
        followed.orders = orders
        if followed.outstanding and not fund.outstanding:
            self._note(Event(time.time(), fund, Notable.REPAID, followed.repaid))
            followed.repaid = 0
        followed.outstanding = fund.outstanding
        still_open = [order for order in orders.values() if order.state == "open"]
        return FundView(fund, followed.last, still_open)

    def _note_entries(self, fund: FundRow, entries: Iterable[EntryRow]) -> None:
        for entry in entries:
            if entry.kind == "shortfall" and entry.change:
                self._merge(Event(time.time(), fund, Notable.PAID, -entry.change))
                if not entry.balance:
                    self._merge(Event(time.time(), fund, Notable.DRAINED))
            if entry.kind == "takeover":
                self._merge(Event(time.time(), fund, Notable.FORCED if entry.forced else Notable.TAKEN, entry.lots))
            elif entry.closes and entry.kind != "deleverage":
                self._merge(Event(time.time(), fund, Notable.UNWOUND, entry.lots))

    def _note_orders(self, fund: FundRow, before: dict[int, Order], now: dict[int, Order]) -> None:
        for adl, order in now.items():
            was = before.get(adl)
            if was is None and order.accounts:
                self._note(Event(time.time(), fund, Notable.ORDERED, order=order))
            elif was and order.round > was.round and order.accounts:
                self._note(Event(time.time(), fund, Notable.ANOTHER_ROUND, order=order))
            if order.state != "open" and (was is None or was.state == "open"):
                self._note(Event(time.time(), fund, Notable(order.state), order=order))

    def _note(self, event: Event) -> None:
        self._events.append(event)

    def _merge(self, event: Event) -> None:
        """Adds an event to a recent equal one, or notes it."""
        alike = (each for each in reversed(self._events) if (each.fund.symbol, each.what) == (event.fund.symbol, event.what))
        before = next(alike, None)
        if before and event.at - before.at < MERGE_SECONDS:
            before.count += 1
            before.amount += event.amount
        else:
            self._note(event)

    def _rate(self, total: int) -> float:
        now = time.monotonic()
        self._totals.append((now, total))
        while now - self._totals[0][0] > RATE_SECONDS:
            self._totals.popleft()
        since, before = self._totals[0]
        return (total - before) / (now - since) if now > since else 0.0


def _inventory(fund: FundRow, tranches: Sequence[TrancheState], mark: str | None) -> Inventory | None:
    """The inventory of a fund at a mark; None without lots."""
    if not tranches:
        return None
    inventory = Inventory(fund.contract, Fund(fund.contract).worth, tranches)
    if mark:
        inventory.reprice(parse_price(mark, fund.contract.price_decimals))
    return inventory


_Orders = Mapping[str, dict[int, Order]]


def _by_contract(orders: Iterable[Order]) -> _Orders:
    """The orders by their numbers, for each contract."""
    found: defaultdict[str, dict[int, Order]] = defaultdict(dict)
    for order in orders:
        found[order.symbol][order.adl] = order
    return found
