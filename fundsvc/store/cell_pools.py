"""Opens the pools of all cells, and finds out which cell holds each partition."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from fundsvc.store.cells import CellMap, Cells
from fundsvc.store.database import CellPool, Pool, StoreFault, open_pool
from fundsvc.store.reader import fetch_in_cell


@asynccontextmanager
async def open_cells(dsns: Mapping[str, str], connections_max: int, known: CellMap) -> AsyncIterator[Pool]:
    """Opens a pool for reads of each cell by name; the only one is opened alone."""
    async with AsyncExitStack() as stack:
        pools = {cell: await stack.enter_async_context(open_pool(dsn, connections_max)) for cell, dsn in dsns.items()}
        yield Cells(pools, known) if len(pools) > 1 else next(iter(pools.values()))


async def locate(pool: Pool) -> None:
    """Reads which cell holds each partition. The partitions of a cell that does not answer stay where they were."""
    if isinstance(pool, Cells):
        await asyncio.gather(*(_locate(pool, cell) for cell in pool.pools))


async def _locate(cells: Cells, cell: str) -> None:
    try:
        rows = await fetch_in_cell(cells.pools[cell], "held_partitions")
    except StoreFault:
        cells.known.note_fault(cell)
    else:
        cells.known.note(cell, {row["partition"]: row["generation"] for row in rows})


def pools_by_cell(pool: Pool) -> Mapping[str, CellPool]:
    """Returns the pool of each cell by name; "" names the only database of a ledger without further cells."""
    return pool.pools if isinstance(pool, Cells) else {"": pool}


def lenient(pool: Pool) -> Pool:
    """Returns the pools for lists that may lack what a cell that is away has."""
    return Cells(pool.pools, pool.known, skips_away=True) if isinstance(pool, Cells) else pool


def strict(pool: Pool) -> Pool:
    """Returns the pools for lists that must be complete."""
    return Cells(pool.pools, pool.known) if isinstance(pool, Cells) else pool


def away_cells(pool: Pool) -> list[str]:
    """Returns the cells that did not answer shortly before."""
    return [cell for cell in pool.pools if pool.known.is_away(cell)] if isinstance(pool, Cells) else []


def known_cells(pool: Pool) -> CellMap | None:
    """Returns what this process knows of the cells; None with one database."""
    return pool.known if isinstance(pool, Cells) else None
