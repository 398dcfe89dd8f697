"""The inventories at the checkpoints of the audit's walks, and the stored rows that they are compared with.

A fund may hold 100,000 tranches. So rows are read in pages, a checkpoint stores only the tranches that changed since the one
before, and the newest walk compares only the tranches that its entries name.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.adl.valuation import SideName
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.inventory import HoldingState, Inventory, Tranche, TrancheState
from fundsvc.core.fund.settlement import Fund
from fundsvc.store.archive.ranges import ARCHIVE_SQL
from fundsvc.store.database import SQL
from fundsvc.store.writer import holding_from

PAGE_TRANCHES = 1000
"""Tranches of one read: the driver parses an answer without yielding to the event loop, about a millisecond for a page."""

Sums = Sequence[str]
"""Lots taken over, unwound and deleveraged, of the long and of the short side. They may exceed 64 bits, so they are text."""


Lots = list[tuple[int, int]]
"""The tranches of an inventory: the takeover entry and the lots of each."""


class HeldLots:
    """The inventory of a contract at a point of its ledger.

    `changed` are the entries of the tranches that changed since the stored checkpoint. `unchecked` are those of the tranches
    whose rows were not compared since they changed; None stands for all tranches.
    """

    def __init__(self, inventory: Inventory, *, restored: bool = False) -> None:
        self.inventory = inventory
        self.changed: set[int] = set()
        self.unchecked: set[int] | None = None if restored else set()

    @property
    def size(self) -> int:
        """The number of tranches."""
        return sum(len(side.tranches) for side in self.inventory.sides())

    @property
    def has_begun(self) -> bool:
        """Whether the fund has ever taken lots over, or requested positions for them."""
        return any(side.taken for side in self.inventory.sides())

    def note(self, entry: Entry) -> None:
        """Records the tranche that an entry adds or reduces, if it does."""
        if entry.closes or entry.kind == "takeover":
            tranche = entry.closes or entry.entry
            self.changed.add(tranche)
            if self.unchecked is not None:
                self.unchecked.add(tranche)

    def tranche(self, entry: int) -> Tranche | None:
        """Returns the tranche of a takeover entry; None if it has no lots."""
        long, short = self.inventory.sides()
        return long.tranches.get(entry) or short.tranches.get(entry)

    def lots(self) -> Lots:
        """Returns all tranches."""
        return [(entry, tranche.lots) for side in self.inventory.sides() for entry, tranche in side.tranches.items()]

    def sums(self) -> Sums:
        """Returns the sums to store with a checkpoint; none before the first takeover."""
        sides = self.inventory.sides() if self.has_begun else ()
        return [str(lots) for side in sides for lots in (side.taken, side.unwound, side.deleveraged)]

    def changes(self, symbol: str, walk: str) -> Iterator[tuple[str, str, int, int]]:
        """Yields the tranches that changed since the stored checkpoint: contract, walk, entry and lots, 0 if it is closed."""
        for entry in self.changed:
            tranche = self.tranche(entry)
            yield symbol, walk, entry, tranche.lots if tranche else 0


def empty_lots(contract: Contract) -> HeldLots:
    """Returns the inventory of a contract before entry 1."""
    return HeldLots(Inventory(contract, Fund(contract).worth))


class HeldRows(NamedTuple):
    """The stored rows of a contract's inventory: tranches by entry, and sides. `is_whole` is whether all tranches were read."""

    tranches: Mapping[int, TrancheState]
    holdings: Sequence[HoldingState]
    is_whole: bool

    def differences(self, symbol: str, held: HeldLots) -> Iterator[str | None]:
        """Compares rows with the recomputed inventory, and notes tranches as checked; yields a difference or None for each."""
        unchecked = held.unchecked
        held.unchecked = set()
        for entry, row in self.tranches.items():
            yield self._difference(symbol, held, entry, row)
        for entry in _entries(held) if self.is_whole or unchecked is None else unchecked:
            if entry not in self.tranches:
                yield self._difference(symbol, held, entry, None)
        yield from self._of_sides(symbol, held)

    def _difference(self, symbol: str, held: HeldLots, entry: int, row: TrancheState | None) -> str | None:
        tranche = held.tranche(entry)
        side = "long" if entry in held.inventory.long.tranches else "short"
        wanted = (side, tranche.lots, tranche.price, tranche.ts, tranche.forced) if tranche else None
        found = (row.side, row.lots, row.price, row.ts, row.forced) if row else None
        if found == wanted:
            return None
        return f"{symbol}: the tranche of entry {entry} has (side, lots, price, ts, forced) {found}, its entries give {wanted}"

    def _of_sides(self, symbol: str, held: HeldLots) -> Iterator[str]:
        rows = {row.side: row for row in self.holdings}
        for side in held.inventory.sides():
            row, wanted = rows.get(side.name), side.state(symbol)
            found = row and row._replace(returned_ts=None)
            if found != wanted._replace(returned_ts=None) and (row or held.has_begun):
                yield f"{symbol}: its {side.name} side is {found}, its entries and records give {wanted}"

    def conservation_error(self, held: HeldLots) -> int:
        """Returns the lots taken over that are neither unwound, deleveraged, held nor in takeover orders, of both sides: 0."""
        recomputed = {side.name: side for side in held.inventory.sides()}
        return sum(
            abs(
                recomputed[row.side].taken
                - recomputed[row.side].unwound
                - recomputed[row.side].deleveraged
                - row.held
                - row.in_orders
            )
            for row in self.holdings
        )


def _entries(held: HeldLots) -> Iterator[int]:
    for side in held.inventory.sides():
        yield from side.tranches


async def read_held(
    connection: PoolConnectionProxy, whole: Sequence[str], named: Mapping[str, Iterable[int]]
) -> dict[str, HeldRows]:
    """Reads the inventory rows of some contracts: all tranches of those in `whole`, of others those of the `named` entries."""
    symbols = [*whole, *named]
    if not symbols:
        return {}
    holdings: dict[str, list[HoldingState]] = defaultdict(list)
    for row in await connection.fetch(SQL["audit_holdings"], symbols):
        holdings[row["symbol"]].append(holding_from(row))
    tranches: dict[str, dict[int, TrancheState]] = defaultdict(dict)
    async for page in _tranches(connection, whole, named):
        for row in page:
            tranches[row["symbol"]][row["entry"]] = TrancheState(*row)
    return {symbol: HeldRows(tranches[symbol], holdings[symbol], symbol in whole) for symbol in symbols}


async def _tranches(
    connection: PoolConnectionProxy, whole: Sequence[str], named: Mapping[str, Iterable[int]]
) -> AsyncIterator[list[asyncpg.Record]]:
    """Yields pages of the rows that `read_held` reads."""
    last: tuple[str, int] | None = ("", 0) if whole else None
    while last:
        page = await connection.fetch(SQL["audit_tranches_all"], whole, *last, PAGE_TRANCHES)
        yield page
        last = (page[-1]["symbol"], page[-1]["entry"]) if len(page) == PAGE_TRANCHES else None
    yield await _named_tranches(connection, named)


async def _named_tranches(connection: PoolConnectionProxy, named: Mapping[str, Iterable[int]]) -> list[asyncpg.Record]:
    keys = [(symbol, entry) for symbol, entries in named.items() for entry in entries]
    return await connection.fetch(SQL["audit_tranches_named"], *map(list, zip(*keys, strict=True))) if keys else []


async def restored_lots(connection: PoolConnectionProxy, contract: Contract, walk: str, entry: int, sums: Sums) -> HeldLots:
    """Restores the inventory of a walk's stored checkpoint after an entry."""
    if not sums:
        return empty_lots(contract)
    rows: list[asyncpg.Record] = []
    after: int | None = 0
    while after is not None:
        page = await connection.fetch(SQL["audit_tranches_kept"], contract.symbol, walk, after, entry, PAGE_TRANCHES)
        rows += page
        after = page[-1]["entry"] if len(page) == PAGE_TRANCHES else None
    return await asyncio.to_thread(_lots_from, contract, rows, sums)  # 100,000 tranches take a third of a second


async def archived_lots(connection: PoolConnectionProxy, contract: Contract, walk: str, tranches: Lots, sums: Sums) -> HeldLots:
    """Restores the inventory of the checkpoint of an archive, at which a walk continues.

    All its tranches, and all that the walk has stored, count as changed, so that the walk's next checkpoint replaces them.
    """
    columns = [entry for entry, _ in tranches], [lots for _, lots in tranches]
    rows = await connection.fetch(ARCHIVE_SQL["tranches"], contract.symbol, *columns)
    held = await asyncio.to_thread(_lots_from, contract, rows, sums)
    outdated = await connection.fetch(ARCHIVE_SQL["tranches_of_walk"], contract.symbol, walk)
    held.changed.update(columns[0], (row["entry"] for row in outdated))
    return held


def _lots_from(contract: Contract, rows: Iterable[asyncpg.Record], sums: Sums) -> HeldLots:
    long, short = _side(contract.symbol, "long", *map(int, sums[:3])), _side(contract.symbol, "short", *map(int, sums[3:]))
    tranches = [TrancheState(*row) for row in rows]
    return HeldLots(Inventory(contract, Fund(contract).worth, tranches, [long, short]), restored=True)


def _side(symbol: str, side: SideName, taken: int, unwound: int, deleveraged: int) -> HoldingState:
    """Returns the state of a side with these sums. Its tranches determine the held lots, its orders those in orders."""
    return HoldingState(symbol, side, taken, unwound, deleveraged, 0, 0, None)


async def keep_lots(
    connection: PoolConnectionProxy, walk: str, verified: Iterable[tuple[str, HeldLots]], ended: Sequence[str]
) -> None:
    """Stores the tranches that changed since a walk's checkpoints. At the end of a full walk they become the newest walk's."""
    verified = list(verified)
    changes = [change for symbol, held in verified for change in held.changes(symbol, walk)]
    if changes:
        await connection.execute(SQL["audit_tranches_changed"], *map(list, zip(*changes, strict=True)))
    if walk == "full" and ended:
        await connection.execute(SQL["audit_tranches_outdated"], ended)
        await connection.execute(SQL["audit_tranches_ended"], ended)
    for _, held in verified:
        held.changed.clear()
