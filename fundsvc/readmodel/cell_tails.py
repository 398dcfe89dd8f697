"""Merges the ledger tails of several cells into one view of all funds.

A fund comes from the tail of the cell that holds its partition. When a partition moves, the tail of its new cell delivers the
funds again; from then on that tail delivers their entries too, after the last ones that the tail of the old cell delivered.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from fundsvc.config.cells import MAIN
from fundsvc.config.settings import Config
from fundsvc.core.contracts import Contract
from fundsvc.core.generations import generation_of, named_generation
from fundsvc.metrics import Metrics
from fundsvc.readmodel.inventories import HeldInventory
from fundsvc.readmodel.ledger_tail import Change, Listener, Tail, newest_generations, open_tail
from fundsvc.store.adl import OrderRow
from fundsvc.store.cells import CellMap
from fundsvc.store.database import CellAway, StoreFault
from fundsvc.store.freshness import Freshness
from fundsvc.store.reader import FundRow


class CellTails:
    """The tails of all cells, with the methods and attributes of `Tail`. Lists lack the funds of cells that are away."""

    def __init__(self, tails: Mapping[str, Tail], known: CellMap) -> None:
        self.funds: dict[str, FundRow] = {}
        self.contracts: dict[str, Contract] = {}
        self.held: dict[str, HeldInventory] = {}
        self.current: Mapping[str, str] = {}
        self.version = 0
        self.listeners: list[Listener] = []
        self._tails = tails
        self._known = known
        self._cells: dict[str, str] = {}  # the cell whose tail delivers each fund
        self._followed: dict[str, int] = {}  # the last delivered entry of each followed contract
        for cell, tail in tails.items():
            self._receive(cell, Change(list(tail.funds.values()), (), ()))
            tail.listeners.append(partial(self._receive, cell))

    @property
    def freshness(self) -> Freshness:
        """The freshness of the first cell, which has the pools of the mutual."""
        return self._tails[MAIN].freshness

    @property
    def away(self) -> tuple[str, ...]:
        """The names of the cells that are away."""
        return tuple(cell for cell, tail in self._tails.items() if not _is_live(tail))

    def shown(self) -> Iterable[FundRow]:
        """Returns the funds of lists, by ledger key."""
        away = self.away
        return [fund for key, fund in self.funds.items() if self._cells[key] not in away]

    def check(self, key: str | None = None) -> None:
        """Raises StoreFault if the funds of all cells may be outdated; with a ledger key, CellAway if its fund may be."""
        if key in self._cells:
            self._check_cell(self._cells[key])
        elif len(self.away) == len(self._tails):
            self._check_cell(MAIN)

    def check_name(self, name: str) -> None:
        """Raises CellAway if the contract with a public name may exist in a cell that is away."""
        self._check_cell(self._known.cell_of_symbol(name))

    def check_knows(self, moment_ms: int, key: str | None = None) -> None:
        """Raises Behind if a moment is later than the known state of a contract's cell, and that is too far behind.

        Lists and sums lack such cells.
        """
        if key in self._cells:
            self._tails[self._cells[key]].check_knows(moment_ms)

    @property
    def as_of_ms(self) -> int:
        """The moment (ms) up to which all commits of the live cells are included."""
        return min((tail.as_of_ms for tail in self._tails.values() if _is_live(tail)), default=0)

    def key_of(self, name: str) -> str | None:
        """Returns the ledger key of the contract with a public name; None if it is not listed."""
        generation = named_generation(name)
        key = generation.key if generation else self.current.get(name)
        return key if key in self.funds else None

    def names_of(self, key: str) -> tuple[str, ...]:
        """Returns the public names of a contract; that of the current generation, if it is that, is first."""
        symbol, number = generation_of(key)
        return (symbol, f"{symbol}@{number}") if self.current[symbol] == key else (f"{symbol}@{number}",)

    def follow(self, key: str, after: int | None = None) -> int:
        """Starts delivery of a contract's entries, if needed; returns the last delivered number. See `Tail.follow`."""
        delivered = self._followed.setdefault(key, self.funds[key].entry if after is None else after)
        if key in self._tail_of(key).funds:  # Else the partition moves: the tail of its new cell will follow it.
            self._tail_of(key).follow(key, delivered)
        return delivered

    def leave(self, key: str) -> None:
        """Stops delivery of a contract's entries."""
        self._followed.pop(key, None)
        self._tail_of(key).leave(key)

    def open_orders(self, key: str) -> list[OrderRow]:
        """Returns a contract's open orders."""
        return self._tail_of(key).open_orders(key)

    def contracts_with_orders(self) -> set[str]:
        """Returns the ledger keys of the contracts that have open orders."""
        return {key for cell, tail in self._tails.items() for key in tail.contracts_with_orders() if self._cells[key] == cell}

    def _tail_of(self, key: str) -> Tail:
        return self._tails[self._cells[key]]

    def _check_cell(self, cell: str) -> None:
        try:
            self._tails[cell].check()
        except StoreFault as fault:
            raise CellAway(cell, str(fault)) from fault

    def _receive(self, cell: str, change: Change) -> None:
        """Takes over the part of a change that concerns what a cell holds, and notifies the listeners."""
        tail = self._tails[cell]
        funds = [fund for fund in change.funds if self._known.cell_of(fund.partition) == cell]
        for fund in funds:
            self._take_over(fund.symbol, cell)
        if any(fund.symbol not in self.funds for fund in funds):
            found = self.funds | {fund.symbol: fund for fund in funds}
            self.funds = dict(sorted(found.items()))
            self.current = newest_generations(self.funds)
            found_contracts = self.contracts | {fund.symbol: tail.contracts[fund.symbol] for fund in funds}
            self.contracts = dict(sorted(found_contracts.items()))
        for fund in funds:
            self.funds[fund.symbol], self.contracts[fund.symbol] = fund, tail.contracts[fund.symbol]
            if fund.symbol in tail.held:
                self.held[fund.symbol] = tail.held[fund.symbol]
        self.version += 1
        entries = [entry for entry in change.entries if self._cells.get(entry.symbol) == cell]
        self._followed |= {entry.symbol: entry.entry for entry in entries if entry.symbol in self._followed}
        orders = [order for order in change.orders if self._cells.get(order.symbol) == cell]
        if funds or entries or orders:
            for listener in self.listeners:
                listener(Change(funds, entries, orders))

    def _take_over(self, key: str, cell: str) -> None:
        """Lets the tail of a cell deliver a fund, with the entries that the tail of another cell has not delivered."""
        before = self._cells.get(key, cell)
        self._cells[key] = cell
        if before != cell and key in self._followed:
            self._tails[before].leave(key)
            self._tails[cell].follow(key, self._followed[key])


def _is_live(tail: Tail) -> bool:
    try:
        tail.check()
    except StoreFault:
        return False
    return True


AnyTail = Tail | CellTails
"""The tail of the only database, or those of several cells."""


@asynccontextmanager
async def open_tails(
    config: Config, metrics: Metrics, mark_of: Callable[[str], int | None], known: CellMap
) -> AsyncIterator[AnyTail]:
    """Provides the tail of all cells; with one cell, its tail alone."""
    if len(config.cells) == 1:
        async with open_tail(config, metrics, mark_of) as tail:
            yield tail
        return
    async with AsyncExitStack() as stack:
        tails = {
            cell: await stack.enter_async_context(open_tail(config.in_cell(cell), metrics, mark_of, cell, known))
            for cell in config.cells
        }
        yield CellTails(tails, known)
