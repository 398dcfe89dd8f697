"""Reads the inventories of funds: whole, the entries that change them, and pages of tranches."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.adl.valuation import SideName
from fundsvc.core.events import Side
from fundsvc.core.numbers import INT64_MAX
from fundsvc.store.database import SQL, Pool
from fundsvc.store.reader import fetch

Connection = asyncpg.Connection | PoolConnectionProxy


class LoadedInventory(NamedTuple):
    """The rows of the tranches of an inventory, as `TrancheState`, after an entry."""

    entry: int
    tranches: list[Any]


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


async def load_inventories(connection: Connection, symbols: Collection[str]) -> dict[str, LoadedInventory]:
    """Returns the inventories of some contracts."""
    found: dict[str, LoadedInventory] = {}
    for row in await connection.fetch(SQL["inventories"], symbols):
        symbol, as_of, side, *tranche = row
        inventory = found.setdefault(symbol, LoadedInventory(as_of, []))
        if side is not None:
            inventory.tranches.append((symbol, side, *tranche))
    return found


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
