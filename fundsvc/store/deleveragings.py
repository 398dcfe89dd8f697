"""What is asked about deleveraging: kept books and how far they have been overtaken, open orders, and orders as a history."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from typing import Any, NamedTuple

from fundsvc.core.adl import AdlOrder, State
from fundsvc.core.batch import Offset, Place
from fundsvc.core.book import SideName
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import Policy
from fundsvc.core.settlement import Fund
from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch
from fundsvc.store.writer import KeptBook, fund_from, kept_book_from, orders_from

ROUND_COLUMNS = 5
"""In a row of `rounds`, what is the same of all allocations of a round comes first."""


class OrderRow(NamedTuple):
    """An order: amounts in atoms, prices in the contract's units; see `AdlOrder` for the meaning of the fields."""

    symbol: str
    adl: int
    cause: int
    reduce: SideName
    lots: int
    price: int
    deficit: int
    deficit_lots: int
    uncovered: int
    recovered: int
    executed: int
    state: State
    round: int
    ts: int
    updated_at: datetime


class AllocationRow(NamedTuple):
    """What a round asked of one position, which is not named, and why."""

    rank: int
    ranked: int
    lights: int
    lots: int
    entry_price: int
    margin: int
    mark_price: int
    unrealised_pnl: int
    return_on_entry: float
    leverage: float
    score: float
    asked: int
    executed: int


class RoundRow(NamedTuple):
    """A round of an order: its totals over all positions, and the first allocations by rank."""

    adl: int
    round: int
    positions: int
    asked: int
    executed: int
    allocations: list[AllocationRow]


class DeleveragedRow(NamedTuple):
    """A reduction of an account's position."""

    symbol: str
    adl: int
    cause: int
    round: int
    side: SideName
    lots: int
    asked: int
    executed: int
    price: int
    mark_price: int
    entry_price: int
    margin: int
    unrealised_pnl: int
    return_on_entry: float
    leverage: float
    score: float
    rank: int
    ranked: int
    lights: int
    ts: int


class Reduction(NamedTuple):
    """What a round of an order took from an account by now, and when that order moved last."""

    account: str
    updated_at: datetime
    row: DeleveragedRow


class Deleveragings:
    """Answers questions about deleveraging; every method raises StoreFault when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def offsets(self) -> dict[int, Offset]:
        """How far each partition is settled."""
        rows = await self._fetch("partitions")
        return {row["partition"]: Offset(row["last_id"], row["messages"], row["events"], row["partial_id"]) for row in rows}

    async def has_positions(self, partition: int) -> bool:
        """Whether any contract of the partition has ever had a position."""
        ((found,),) = await self._fetch("books_with_positions", partition)
        return bool(found)

    async def books(self, partition: int, symbols: Sequence[str] | None = None) -> list[KeptBook]:
        """The books of a partition's contracts, or of these among them, as they were last kept."""
        return [kept_book_from(row) for row in await self._fetch("load_books", partition, symbols)]

    async def rejected_places(self, partition: int, messages: Sequence[str]) -> Mapping[Place, str | None]:
        """Which events of these messages were rejected, and the message that had them settled since."""
        rows = await self._fetch("rejected_places", partition, messages)
        return {Place(row["stream_id"], row["position"]): row["settled_by"] for row in rows}

    async def reduced_sides(self, orders: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], SideName]:
        """Which side each of these orders (contract and number; at least one) reduces."""
        rows = await self._fetch("reduced_sides", *zip(*orders, strict=True))
        return {(row["symbol"], row["adl"]): row["reduce"] for row in rows}

    async def funds(self, partition: int, policy_of: Callable[[str], Policy], symbol: str | None = None) -> list[Fund]:
        """The funds of a partition's contracts, or of one, as they stand."""
        rows = await self._fetch("load_funds", partition, symbol)
        return [fund_from(row, policy_of(row["symbol"])) for row in rows]

    async def open_orders(self, partition: int, symbol: str) -> list[AdlOrder]:
        """The open orders of a contract, with what their present round asks."""
        orders = await self._fetch("load_orders", partition, symbol)
        return orders_from(orders, await self._fetch("load_allocations", partition, symbol))

    async def orders(
        self, symbol: str, *, count: int, offset: int | None = None, forward: bool = False, state: State | None = None
    ) -> list[OrderRow]:
        """Up to `count` orders: ascending after number `offset`, or (not forward) descending before it, from the newest."""
        if forward:
            rows = await self._fetch("orders_ascending", symbol, (offset or 0) + 1, INT64_MAX, state, count)
        else:
            rows = await self._fetch("orders_descending", symbol, 1, INT64_MAX if offset is None else offset - 1, state, count)
        return [OrderRow(*row) for row in rows]

    async def rounds(self, symbol: str, orders: Sequence[int], allocations_max: int) -> list[RoundRow]:
        """The rounds of these orders, by order and number, each with its first so many allocations."""
        rows = map(_exact, await self._fetch("rounds", symbol, orders, allocations_max))
        return [
            RoundRow._make([*totals, [AllocationRow(*row[ROUND_COLUMNS:]) for row in found]])
            for totals, found in groupby(rows, lambda row: row[:ROUND_COLUMNS])
        ]

    async def round_after(self, symbol: str, adl: int, number: int, rank: int, count: int) -> list[AllocationRow]:
        """Up to `count` of the allocations of a round of an order, by rank, after a rank."""
        return [AllocationRow(*_exact(row)) for row in await self._fetch("round_after", symbol, adl, number, rank, count)]

    async def caused_by(self, symbol: str, entry: int) -> list[OrderRow]:
        """The order that an entry of a contract caused, if it did."""
        return [OrderRow(*row) for row in await self._fetch("orders_caused", symbol, entry)]

    async def deleveraged(self, account: str, count: int) -> list[DeleveragedRow]:
        """The latest reductions of an account's positions, newest first."""
        return [DeleveragedRow(*_exact(row)) for row in await self._fetch("deleveraged", account, count)]

    async def reductions(self, orders: Collection[tuple[str, int]], accounts: Collection[str]) -> list[Reduction]:
        """What some orders (contract and number) took from some accounts by now."""
        symbols, numbers = [symbol for symbol, _ in orders], [number for _, number in orders]
        return [_reduction(row) for row in await self._fetch("reductions", symbols, numbers, accounts)]

    async def reductions_since(self, account: str, since: datetime) -> list[Reduction]:
        """What orders that are open, or moved since a time, took from an account; those that moved first come first."""
        return [_reduction(row) for row in await self._fetch("reductions_since", account, since)]

    async def _fetch(self, block: str, *parameters: Any) -> list[Any]:
        return await fetch(self._pool, block, *parameters)


def _reduction(row: Sequence[Any]) -> Reduction:
    account, updated_at, *rest = _exact(row)
    return Reduction(account, updated_at, DeleveragedRow(*rest))


def _exact(row: Sequence[Any]) -> list[Any]:
    """The row with its whole decimals, which is how the database sums and keeps what may not fit 64 bits, as integers."""
    return [int(value) if isinstance(value, Decimal) else value for value in row]
