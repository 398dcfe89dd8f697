"""Reads ADL data: stored books, offsets, open orders, and the history of orders, rounds and reductions."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

from fundsvc.core.adl.order import POSITIONS_PER_RECORD_MAX, AdlOrder, Origin, Reduced, RoundTerms, State
from fundsvc.core.adl.records import RecordKind, reduced_of, terms_of
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.batch import EventPlace, Offset, StoredBook
from fundsvc.core.fund.inventory import TrancheState
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import Policy
from fundsvc.store.cells import Cells
from fundsvc.store.database import SQL, Pool, pool_of, snapshot
from fundsvc.store.reader import fetch, reading
from fundsvc.store.writer import fund_from, holding_from, load_books, orders_from

ORDERS_OF_ENTRY_MAX = 100
"""A tranche that stays losing is relieved again and again, so its takeover entry may have any number of orders."""


class OrderRow(NamedTuple):
    """An ADL order: amounts in atoms, prices in the contract's units. `AdlOrder` describes the fields."""

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
    acknowledged: bool
    policy_version: int
    origin: Origin
    unwound: int


class AllocationRow(NamedTuple):
    """The allocation of one position in a round: the inputs of its rank, and its requested and executed lots."""

    rank: int
    ranked: int
    lots: int
    entry_price: int
    margin: int
    mark: int
    requested: int
    executed: int
    account: str


class Promised(NamedTuple):
    """The ranks that another order requested in its open round when a round began: the best and the worst."""

    adl: int
    first: int
    last: int


class RoundStep(NamedTuple):
    """The records of one kind in a round of an order: the time of the last one (ms), and the sum of their lots."""

    symbol: str
    adl: int
    round: int
    kind: RecordKind
    ts: int
    lots: int


class RoundRow(NamedTuple):
    """A round of an order: totals over all positions, the first allocations by rank, and what other orders requested.

    `promised` is empty if the round begins at rank 1.
    """

    adl: int
    round: int
    mark: int
    is_stale: bool
    positions: int
    requested: int
    executed: int
    allocations: list[AllocationRow]
    promised: list[Promised]


class ReductionRow(NamedTuple):
    """A reduction of an account's position: the `executed` lots of one round, and the position at the start of the round."""

    symbol: str
    adl: int
    cause: int
    round: int
    side: SideName
    price: int
    ts: int
    executed: int
    reduced: Reduced


class Reduction(NamedTuple):
    """The lots that a round of an order took from an account so far, and the time of the order's last change."""

    account: str
    updated_at: datetime
    row: ReductionRow


class ReductionPlace(NamedTuple):
    """The place of a reduction among those of its account: that of its first execution."""

    recorded_at: datetime
    symbol: str
    record: int


FIRST_PLACE = ReductionPlace(datetime.fromtimestamp(0, UTC), "", 0)
LAST_PLACE = ReductionPlace(datetime(9999, 1, 1, tzinfo=UTC), "", 0)
"""Places before and after all reductions."""


class PlacedReduction(NamedTuple):
    """A reduction and its place."""

    place: ReductionPlace
    row: ReductionRow


class OpenOrders(NamedTuple):
    """Rows of open orders and of the records of their current rounds. `decoded` takes long for a thousand orders."""

    orders: list[Any]
    records: list[Any]

    def decoded(self) -> list[AdlOrder]:
        """Returns the orders with their current rounds."""
        known = {(row["symbol"], row["adl"]) for row in self.orders}
        # The records were read after the orders. An order that was opened in between has records but no row.
        return orders_from(self.orders, [row for row in self.records if (row["symbol"], row["adl"]) in known])


class StoredFund(NamedTuple):
    """The rows of a fund and its inventory, and the last stored mark. `restored` takes long for many tranches."""

    mark: int | None
    fund: Any
    holdings: list[Any]
    tranches: list[Any]

    def restored(self, policy: Policy) -> Fund:
        """Returns the fund under a policy, with its inventory if it ever had one."""
        fund = fund_from(self.fund, policy)
        if self.holdings:
            fund.restore_inventory([TrancheState(*row) for row in self.tranches], [holding_from(row) for row in self.holdings])
        return fund


class AdlReader:
    """Reads ADL data. Every method raises StoreFault if the database is unreachable."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def offsets(self) -> dict[int, Offset]:
        """Returns the offset of each partition."""
        rows = await self._fetch("partitions")
        return {row["partition"]: Offset(row["last_id"], row["messages"], row["events"], row["partial_id"]) for row in rows}

    async def has_positions(self, partition: int) -> bool:
        """Returns whether any contract of the partition ever had a position, or its fund an inventory."""
        ((found,),) = await self._fetch("books_with_positions", partition)
        return bool(found)

    async def books(self, partition: int, symbols: Sequence[str] | None = None) -> list[StoredBook]:
        """Returns the last stored books of a partition's contracts, optionally only of `symbols`."""
        async with reading(pool_of(self._pool, partition)) as connection:
            return await load_books(connection, partition, symbols)

    async def rejected_places(self, partition: int, messages: Sequence[str]) -> Mapping[EventPlace, str | None]:
        """Returns the rejected events of these messages, each with the id of the message that settled it later, or None."""
        rows = await self._fetch("rejected_places", partition, messages)
        return {EventPlace(row["stream_id"], row["position"]): row["settled_by"] for row in rows}

    async def reduced_sides(self, orders: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], SideName]:
        """Returns the side that each order reduces. An order is a contract and a number; at least one is required."""
        rows = await self._fetch("reduced_sides", *zip(*orders, strict=True))
        return {(row["symbol"], row["adl"]): row["reduce"] for row in rows}

    async def funds(self, partition: int, policy_of: Callable[[str], Policy]) -> list[Fund]:
        """Returns the funds of a partition's contracts, without their inventories."""
        return [fund_from(row, policy_of(row["symbol"])) for row in await self._fetch("load_funds", partition, None)]

    async def stored_fund(self, partition: int, symbol: str) -> StoredFund:
        """Returns the rows of the fund of a listed contract."""
        async with reading(pool_of(self._pool, partition)) as connection, snapshot(connection):
            blocks = ("load_funds", "load_holdings", "load_tranches")
            mark = await connection.fetchval(SQL["stored_mark"], symbol)
            fund, holdings, tranches = [await connection.fetch(SQL[block], partition, symbol) for block in blocks]
        return StoredFund(mark, fund[0], holdings, tranches)

    async def open_orders(self, partition: int, symbol: str) -> OpenOrders:
        """Returns the open orders of a contract."""
        orders = await self._fetch("load_orders", partition, symbol)
        return OpenOrders(orders, await self._fetch("load_records", partition, symbol))

    async def orders(
        self, symbol: str, *, count: int, offset: int | None = None, forward: bool = False, state: State | None = None
    ) -> list[OrderRow]:
        """Returns up to `count` orders: with `forward` ascending after number `offset`, else descending before it or from the
        newest.
        """
        if forward:
            rows = await self._fetch("orders_ascending", symbol, (offset or 0) + 1, INT64_MAX, state, count)
        else:
            rows = await self._fetch("orders_descending", symbol, 1, INT64_MAX if offset is None else offset - 1, state, count)
        return [OrderRow(*row) for row in rows]

    async def latest(self, count: int) -> list[OrderRow]:
        """Returns the `count` orders of all contracts that changed last, of each contract's last `count`; the last first."""
        return [OrderRow(*row) for row in await self._fetch("orders_latest", count)]

    async def steps(self, orders: Sequence[OrderRow]) -> list[RoundStep]:
        """Returns the steps of some orders by order and round, in their order."""
        rows = await self._fetch("order_steps", [order.symbol for order in orders], [order.adl for order in orders])
        return [RoundStep(*row) for row in rows]

    async def rounds(self, symbol: str, orders: Sequence[int], allocations_max: int) -> list[RoundRow]:
        """Returns the rounds of these orders by order and number, each with its first `allocations_max` allocations."""
        rows = await self._fetch("rounds", symbol, orders)
        terms = {(row["adl"], row["round"]): terms_of(row["kind"], row["body"]) for row in rows}
        shown = {account for one in terms.values() for account in one.accounts[:allocations_max]}
        totals = {(row["adl"], row["round"]): row["executed"] for row in await self._fetch("executed_rounds", symbol, orders)}
        executed = await self._executed(symbol, orders, shown)
        promised = await self._promised(symbol, orders)
        return [
            RoundRow(
                *key,
                one.mark,
                one.is_stale,
                one.positions,
                one.lots_requested,
                totals.get(key, 0),
                list(islice(allocation_rows(one, executed.get(key, {})), allocations_max)),
                promised.get(key, []),
            )
            for key, one in terms.items()
        ]

    async def _promised(self, symbol: str, orders: Sequence[int]) -> dict[tuple[int, int], list[Promised]]:
        """Returns what other orders requested when the rounds of orders began, by order and round."""
        found: dict[tuple[int, int], list[Promised]] = {}
        for row in await self._fetch("rounds_promised", symbol, orders):
            ranks = terms_of(row["kind"], row["body"]).ranks
            if ranks:
                found.setdefault((row["adl"], row["round"]), []).append(Promised(row["other"], row["first_rank"], ranks[-1]))
        return found

    async def round_after(self, symbol: str, adl: int, number: int, rank: int, count: int) -> list[AllocationRow]:
        """Returns up to `count` allocations of a round of an order, by rank, after `rank`."""
        parts_max = count // POSITIONS_PER_RECORD_MAX + 2
        parts = await self._fetch("round_parts", symbol, adl, number, rank + 1, parts_max)
        terms = [terms_of(row["kind"], row["body"]) for row in parts]
        executed = await self._executed(symbol, [adl], {account for one in terms for account in one.accounts})
        found = [row for one in terms for row in allocation_rows(one, executed.get((adl, number), {})) if row.rank > rank]
        return found[:count]

    async def _executed(
        self, symbol: str, orders: Sequence[int], accounts: Collection[str]
    ) -> dict[tuple[int, int], dict[str, int]]:
        """Returns the lots that accounts executed, by order and round."""
        found: dict[tuple[int, int], dict[str, int]] = {}
        for row in await self._fetch("executed_accounts", symbol, orders, accounts) if accounts else ():
            found.setdefault((row["adl"], row["round"]), {})[row["account"]] = row["executed"]
        return found

    async def caused_by(self, symbol: str, entry: int) -> list[OrderRow]:
        """Returns the first ORDERS_OF_ENTRY_MAX orders whose cause is an entry of a contract, by number."""
        return [OrderRow(*row) for row in await self._fetch("orders_caused", symbol, entry, ORDERS_OF_ENTRY_MAX)]

    async def latest_reductions(self, account: str, count: int) -> list[ReductionRow]:
        """Returns the latest reductions of an account's positions, newest first."""
        return [reduction.row for reduction in await self.reductions_before(account, LAST_PLACE, count)]

    async def reductions_before(self, account: str, place: ReductionPlace, count: int) -> list[PlacedReduction]:
        """Returns up to `count` reductions of an account's positions before a place, newest first."""
        return [_placed(row) for row in await self._fetch("reductions_before", account, *place, count)]

    async def reductions_after(self, account: str, place: ReductionPlace, count: int) -> list[PlacedReduction]:
        """Returns up to `count` reductions of an account's positions after a place, in the order of their numbers."""
        return [_placed(row) for row in await self._fetch("reductions_after", account, *place, count)]

    async def reductions_page(
        self, account: str, *, count: int, offset: int | None = None, forward: bool = False
    ) -> list[tuple[int, ReductionRow]]:
        """Returns up to `count` reductions of an account's positions with their numbers. Numbers count an account's reductions
        from 1.

        With `forward` ascending after number `offset`, else descending before it or from the newest. All earlier reductions
        are counted, so a walk over all of them uses `reductions_after` or `reductions_before`.
        """
        first, last = ((offset or 0) + 1, INT64_MAX) if forward else (1, INT64_MAX if offset is None else offset - 1)
        if isinstance(self._pool, Cells):
            return await self._reductions_of_cells(account, first, last, count, forward=forward)
        rows = await self._fetch("reductions_page", account, first, last, forward, count)
        return [(row["number"], _reduction(row).row) for row in rows]

    async def _reductions_of_cells(
        self, account: str, first: int, last: int, count: int, *, forward: bool
    ) -> list[tuple[int, ReductionRow]]:
        """Returns a page of an account's reductions in all cells. Their numbers do not change when partitions move."""
        places = list(enumerate(await self._fetch("reduction_places", account), 1))[first - 1 : last]
        page = places[:count] if forward else places[::-1][:count]
        keys = [place["symbol"] for _, place in page], [place["record"] for _, place in page]
        found = {(row["symbol"], row["record"]): row for row in await self._fetch("reductions_at", *keys)}
        return [(number, _reduction(found[place["symbol"], place["record"]]).row) for number, place in page]

    async def reductions(self, orders: Collection[tuple[str, int]], accounts: Collection[str]) -> list[Reduction]:
        """Returns the reductions of some accounts by some orders (contract and number)."""
        symbols, numbers = [symbol for symbol, _ in orders], [number for _, number in orders]
        return [_reduction(row) for row in await self._fetch("reductions", symbols, numbers, accounts)]

    async def reductions_since(self, account: str, since: datetime) -> list[Reduction]:
        """Returns an account's reductions by orders that are open, or began or changed since a time, ordered by the last
        change.
        """
        return [_reduction(row) for row in await self._fetch("reductions_since", account, since)]

    async def _fetch(self, block: str, *parameters: Any) -> list[Any]:
        return await fetch(self._pool, block, *parameters)


def allocation_rows(terms: RoundTerms, executed: Mapping[str, int]) -> Iterator[AllocationRow]:
    """Yields the allocations of a round, one per position. `executed` contains lots by account."""
    columns = zip(terms.accounts, terms.ranks, terms.lots, terms.entry_prices, terms.margins, terms.requested, strict=True)
    for account, rank, lots, entry_price, margin, requested in columns:
        yield AllocationRow(
            rank, terms.ranked, lots, entry_price, margin, terms.mark, requested, executed.get(account, 0), account
        )


def _reduction(row: Mapping[str, Any]) -> Reduction:
    columns = {name: row[name] for name in ReductionRow._fields if name != "reduced"}
    return Reduction(row["account"], row["updated_at"], ReductionRow(**columns, reduced=reduced_of(row["body"])))


def _placed(row: Mapping[str, Any]) -> PlacedReduction:
    return PlacedReduction(ReductionPlace(row["recorded_at"], row["symbol"], row["record"]), _reduction(row).row)
