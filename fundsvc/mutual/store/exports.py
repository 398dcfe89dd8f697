"""Streams the whole ledger of a pool: terms, entries and cut-offs."""

from collections.abc import AsyncIterator, Sequence

from fundsvc.mutual.core.rows import CycleRow
from fundsvc.mutual.store.reader import EntryRow, MutualReader, PoolState
from fundsvc.mutual.store.rows import TermsRow
from fundsvc.store.database import CellPool

ROWS_PER_PAGE = 2000
"""Bounds memory for a ledger of any length, and keeps each read short."""


class UnknownPool(LookupError):
    """No pool has that name."""


class PoolLedger:
    """The ledger of a pool, read from entry 1 in short reads up to the state at the start. Its rows never change."""

    def __init__(self, reader: MutualReader, state: PoolState, terms: Sequence[TermsRow]) -> None:
        self._reader = reader
        self._terms = [one for one in terms if one.version <= state.row.terms]
        self.state = state

    async def lines(self) -> AsyncIterator[TermsRow | EntryRow | CycleRow]:
        """Yields versions of the terms, each before its first entry, entries, and each cut-off after its entry of kind `cycle`.

        Raises StoreFault.
        """
        terms, cycles = iter(self._terms), self._cycles()
        version, cycle = next(terms, None), await anext(cycles, None)
        async for row in self._entries():
            while version and version.entry <= row.entry.entry:
                yield version
                version = next(terms, None)
            yield row
            while cycle and cycle.entry <= row.entry.entry:
                yield cycle
                cycle = await anext(cycles, None)
        while version:
            yield version
            version = next(terms, None)

    async def _entries(self) -> AsyncIterator[EntryRow]:
        after, last = 0, self.state.row.entry
        while rows := await self._reader.entries_after(self.state.row.pool, after, ROWS_PER_PAGE):
            for row in rows:
                if row.entry.entry > last:
                    return
                yield row
            after = rows[-1].entry.entry

    async def _cycles(self) -> AsyncIterator[CycleRow]:
        after = 0
        while rows := await self._reader.cycles(self.state.row.pool, count=ROWS_PER_PAGE, offset=after, forward=True):
            for row in rows:
                yield row
            after = rows[-1].cycle


async def open_pool_ledger(pool: CellPool, name: str) -> PoolLedger:
    """Opens the ledger of a pool; raises UnknownPool or StoreFault."""
    reader = MutualReader(pool)
    state = await reader.pool(name)
    if state is None:
        raise UnknownPool(f"there is no pool {name!r}")
    return PoolLedger(reader, state, await reader.terms(name))
