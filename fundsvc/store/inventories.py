"""Reads the inventories of funds: whole, the entries that change them, and pages of tranches."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.adl.valuation import SideName
from fundsvc.core.events import Side
from fundsvc.core.fund.inventory import TrancheState
from fundsvc.core.numbers import INT64_MAX
from fundsvc.store.database import SQL, Pool
from fundsvc.store.reader import fetch

Connection = asyncpg.Connection | PoolConnectionProxy


class LoadedInventory(NamedTuple):
    """The rows of the tranches of an inventory after an entry. `decoded` takes long for many tranches."""

    entry: int
    tranches: list[Any]

    def decoded(self) -> Iterator[TrancheState]:
        """Yields the tranches."""
        return (TrancheState(*row[:-1]) for row in self.tranches)


class InventoryEntry(NamedTuple):
    """An entry that takes lots over or, with `closes`, closes lots of the tranche of that takeover entry."""

    symbol: str
    entry: int
    side: Side
    lots: int
    price: int
    ts: int
    closes: int
    forced: bool


class TrancheRow(NamedTuple):
    """A tranche: its takeover entry, its lots, those of them that open ADL orders still need, price and time (ms)."""

    entry: int
    side: SideName
    lots: int
    promised: int
    price: int
    ts: int
    forced: bool


async def load_inventory(connection: Connection, symbol: str) -> LoadedInventory:
    """Returns the inventory of a listed contract."""
    rows = await connection.fetch(SQL["inventory"], symbol)
    return LoadedInventory(rows[0]["as_of"], rows if rows[0]["entry"] else [])


async def inventory_entries(connection: Connection, after: Mapping[str, int], until: Mapping[str, int]) -> list[InventoryEntry]:
    """Returns the entries that changed inventories, by contract and number: after one entry and up to another."""
    symbols = list(until)
    numbers = [after[symbol] for symbol in symbols], [until[symbol] for symbol in symbols]
    return [InventoryEntry(*row) for row in await connection.fetch(SQL["inventory_entries"], symbols, *numbers)]


class InventoryReader:
    """Reads tranches through a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def tranches(
        self, symbol: str, *, count: int, offset: int | None = None, forward: bool = False, side: SideName | None = None
    ) -> list[TrancheRow]:
        """Returns up to `count` tranches by entry: with `forward` ascending after entry `offset`, else descending before it or
        from the newest. Raises StoreFault.
        """
        first, last = ((offset or 0) + 1, INT64_MAX) if forward else (1, INT64_MAX if offset is None else offset - 1)
        block = "tranches_ascending" if forward else "tranches_descending"
        return [TrancheRow(*row) for row in await fetch(self._pool, block, symbol, first, last, side, count)]
