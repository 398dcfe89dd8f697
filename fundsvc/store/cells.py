"""The pools of all cells of a ledger, and what this process knows of the cells: which one holds each partition, which are away.

Readers take one pool or `Cells`. `fundsvc.store.reader.fetch` routes each statement by `fundsvc.store.cell_routes`.
"""

import time
from collections.abc import Mapping, Sequence

import asyncpg

from fundsvc.config.cells import MAIN
from fundsvc.core.contracts import partition_of

AWAY_SECONDS = 5.0
"""How long after a fault a cell counts as away without another attempt, so that a server that hangs delays few reads."""


class CellMap:
    """Which cell holds each partition, and which cells are away. All pools of a process share one.

    `placement` is the configured cell of each partition, which holds until the cells themselves were read: a partition is in
    the cell that has it with the highest generation.
    """

    def __init__(self, placement: Sequence[str]) -> None:
        self._cells = list(placement)
        self._generations = [0] * len(placement)
        self._away: dict[str, float] = {}

    @property
    def partitions(self) -> int:
        """The number of partitions of the ledger."""
        return len(self._cells)

    def cell_of(self, partition: int) -> str:
        """Returns the cell that holds a partition."""
        return self._cells[partition]

    def cell_of_symbol(self, symbol: str) -> str:
        """Returns the cell that holds a contract, by its symbol or ledger key."""
        return self._cells[partition_of(symbol, len(self._cells))]

    def note(self, cell: str, generations: Mapping[int, int]) -> None:
        """Records the partitions that a cell has, with their generations."""
        self._away.pop(cell, None)
        for partition, generation in generations.items():
            if generation > self._generations[partition]:
                self._cells[partition], self._generations[partition] = cell, generation

    def note_fault(self, cell: str) -> None:
        """Records that a cell did not answer."""
        self._away[cell] = time.monotonic() + AWAY_SECONDS

    def is_away(self, cell: str) -> bool:
        """Whether a cell did not answer shortly before."""
        return time.monotonic() < self._away.get(cell, 0.0)


class Cells:
    """The pools of all cells by name. With `skips_away`, lists contain what the cells that answer have.

    Otherwise a list fails if a cell is away.
    """

    def __init__(self, pools: Mapping[str, asyncpg.Pool], known: CellMap, *, skips_away: bool = False) -> None:
        self.pools = pools
        self.known = known
        self.skips_away = skips_away

    @property
    def main(self) -> asyncpg.Pool:
        """The pool of the first cell."""
        return self.pools[MAIN]

    def of(self, partition: int) -> asyncpg.Pool:
        """Returns the pool of the cell that holds a partition."""
        return self.pools[self.known.cell_of(partition)]

    def of_symbol(self, symbol: str) -> asyncpg.Pool:
        """Returns the pool of the cell that holds a contract, by its symbol or ledger key."""
        return self.pools[self.known.cell_of_symbol(symbol)]
