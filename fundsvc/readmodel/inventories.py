"""Keeps the inventories of funds in memory in a process that settles nothing, valued at the live marks.

The tail of the ledger loads an inventory once, and then applies the entries that change it. An inventory therefore always
belongs to the entry of the fund beside it. Marks change between entries: `revalue` values an inventory again at a new mark.
Work on an inventory of many tranches runs in a thread.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import groupby
from typing import NamedTuple

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.inventory import Holding, Inventory, Tranche
from fundsvc.core.fund.settlement import Fund
from fundsvc.store.inventories import InventoryEntry, LoadedInventory

BACKLOG_ENTRIES_MAX = 100_000
"""An inventory that is further behind is loaded again: to search more entries takes longer."""

TRANCHES_MANY = 2000
"""Valuing or loading more tranches takes milliseconds."""


class HeldSide(NamedTuple):
    """One side of an inventory. `average_price` is the price of its lots weighted by lots, in the contract's units, rounded
    down. `oldest_ts` is the time (ms) of its oldest tranche.
    """

    side: SideName
    lots: int
    average_price: int
    tranches: int
    oldest_ts: int


class HeldInventory(NamedTuple):
    """The inventory of a fund after an entry: its sides with lots, and its worth at a mark in atoms, 0 without one."""

    entry: int
    mark: int | None
    unrealised: int
    sides: tuple[HeldSide, ...]


class Valued(NamedTuple):
    """An inventory that is valued at another mark than `shown` was."""

    symbol: str
    shown: HeldInventory
    held: HeldInventory


class FollowedInventory:
    """The inventory of one contract, after `entry`. A caller accesses it through `exclusive`."""

    def __init__(self, contract: Contract, loaded: LoadedInventory, executor: Executor | None) -> None:
        self.contract = contract
        self.entry = loaded.entry
        self.exclusive = Exclusive(executor)
        self._inventory = Inventory(contract, Fund(contract).worth, loaded.decoded())
        self._values = {holding.name: _value(holding) for holding in self._inventory.sides()}

    @property
    def is_large(self) -> bool:
        """Whether work on all tranches takes long."""
        return sum(len(holding.tranches) for holding in self._inventory.sides()) > TRANCHES_MANY

    def apply(self, entries: Iterable[InventoryEntry], until: int) -> None:
        """Applies the entries up to number `until` that change the inventory; ignores those that it has applied before."""
        for entry in entries:
            if entry.entry <= self.entry:
                continue
            holding = self._inventory.closed_by(entry.side)
            if entry.closes:
                lots, price = -entry.lots, holding.close(entry.closes, entry.lots).price
            else:
                lots, price = entry.lots, entry.price
                holding.add(Tranche(entry=entry.entry, lots=lots, price=price, ts=entry.ts, forced=entry.forced))
            self._values[holding.name] += lots * price
        self.entry = max(self.entry, until)

    def held(self, mark: int | None) -> HeldInventory:
        """Returns the inventory valued at a mark. Values all tranches only if the mark has changed."""
        if mark is not None and mark != self._inventory.mark:
            self._inventory.reprice(mark)
        sides = (self._side(holding) for holding in self._inventory.sides() if holding.lots)
        return HeldInventory(self.entry, self._inventory.mark, self._inventory.unrealised, tuple(sides))

    def _side(self, holding: Holding) -> HeldSide:
        oldest = next(iter(holding.tranches.values()))
        average = self._values[holding.name] // holding.lots
        return HeldSide(holding.name, holding.lots, average, len(holding.tranches), oldest.ts)


class Inventories:
    """The inventories of all funds that ever had one. `mark_of` returns the live mark of a contract, None without one."""

    def __init__(self, mark_of: Callable[[str], int | None], executor: Executor | None = None) -> None:
        self._mark_of = mark_of
        self._executor = executor
        self._followed: dict[str, FollowedInventory] = {}

    def unknown(self, contracts: Mapping[str, Contract], entries: Mapping[str, int]) -> list[str]:
        """Returns which contracts must be loaded: unknown ones, those with other terms or an earlier entry, and those far
        behind.
        """
        return [symbol for symbol, contract in contracts.items() if self._is_outdated(symbol, contract, entries[symbol])]

    async def load(self, contract: Contract, loaded: LoadedInventory) -> None:
        """Replaces an inventory by a loaded one."""
        build = partial(FollowedInventory, contract, loaded, self._executor)
        is_long = len(loaded.tranches) > TRANCHES_MANY
        self._followed[contract.symbol] = await Exclusive(self._executor).run(build, is_long=is_long)

    def positions(self, symbols: Iterable[str]) -> dict[str, int]:
        """Returns the entry up to which each inventory is applied."""
        return {symbol: self._followed[symbol].entry for symbol in symbols}

    async def advance(self, until: Mapping[str, int], entries: Sequence[InventoryEntry]) -> dict[str, HeldInventory]:
        """Applies entries up to a number by contract; returns the inventories of these contracts."""
        changes = {symbol: list(rows) for symbol, rows in groupby(entries, lambda row: row.symbol)}
        return {symbol: await self._advanced(symbol, changes.get(symbol, []), last) for symbol, last in until.items()}

    async def _advanced(self, symbol: str, entries: Sequence[InventoryEntry], until: int) -> HeldInventory:
        followed, mark = self._followed[symbol], self._mark_of(symbol)

        def apply() -> HeldInventory:
            followed.apply(entries, until)
            return followed.held(mark)

        return await followed.exclusive.run(apply, is_long=followed.is_large)

    async def revalue(self, shown: Mapping[str, HeldInventory]) -> list[Valued]:
        """Returns the inventories whose mark is not the one of `shown`, valued at their present marks."""
        found = []
        for symbol, before in shown.items():
            mark = self._mark_of(symbol)
            if before.sides and mark is not None and mark != before.mark:
                followed = self._followed[symbol]
                held = await followed.exclusive.run(partial(followed.held, mark), is_long=followed.is_large)
                found.append(Valued(symbol, before, held))
        return found

    def _is_outdated(self, symbol: str, contract: Contract, entry: int) -> bool:
        followed = self._followed.get(symbol)
        if followed is None or followed.contract != contract:
            return True
        return not 0 <= entry - followed.entry <= BACKLOG_ENTRIES_MAX


def _value(holding: Holding) -> int:
    return sum(tranche.lots * tranche.price for tranche in holding.tranches.values())
