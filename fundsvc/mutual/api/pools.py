"""Pools of the mutual: balances, health, terms and cut-offs."""

from collections.abc import AsyncIterator

from aiohttp import web
from msgspec import UNSET

from fundsvc.api.answers import Page
from fundsvc.api.csv_rows import CSV
from fundsvc.api.exports import STREAMED_ROWS, Exports
from fundsvc.api.http.application import Route
from fundsvc.api.http.errors import NotFound
from fundsvc.api.http.parameters import Query
from fundsvc.api.http.routes import Endpoint, Media
from fundsvc.mutual.api.parameters import CyclesQuery
from fundsvc.mutual.api.pool_answers import (
    CycleAnswer,
    PoolAnswer,
    PoolDetailAnswer,
    cycle_answer,
    pool_answer,
    pool_detail_answer,
)
from fundsvc.mutual.readmodel import Pools
from fundsvc.mutual.store.reader import MutualReader, PoolView

POOLS = "/api/v1/mutual/pools"


class PoolResources:
    """Public routes. Pools come from memory, cut-offs from the database; `exporting` reads for CSV exports."""

    def __init__(self, pools: Pools, reader: MutualReader, exporting: MutualReader, exports: Exports) -> None:
        self._pools = pools
        self._reader = reader
        self._exporting = exporting
        self._exports = exports
        self.routes = (
            Route(POOLS, Query, self.pools),
            Route(f"{POOLS}/{{pool}}", Query, self.pool),
            Route(f"{POOLS}/{{pool}}/cycles", CyclesQuery, self.cycles),
            Endpoint(f"{POOLS}/{{pool}}/cycles.csv", self.cycles_csv, {200: Media(CSV)}, cost=self.export_cost),
        )

    async def pools(self, _query: Query) -> list[PoolAnswer]:
        """All pools of the mutual."""
        self._pools.check()
        return [pool_answer(view, self._pools.as_of_ms) for view in self._pools.views.values()]

    async def pool(self, _query: Query, pool: str) -> PoolDetailAnswer:
        """A pool with its terms, each with whose number it is."""
        return pool_detail_answer(find_pool(self._pools, pool), self._pools.as_of_ms)

    async def cycles(self, query: CyclesQuery, pool: str) -> Page[CycleAnswer]:
        """A page of the cut-offs of a pool."""
        state, as_of = find_pool(self._pools, pool).state, self._pools.as_of_ms
        rows = await self._reader.cycles(
            pool,
            count=query.max_count + 1,
            offset=None if query.offset is UNSET else query.offset,
            forward=query.forward,
        )
        shown = [cycle_answer(row, pool, state.rules.decimals) for row in rows[: query.max_count]]
        return Page(data_list=shown, has_more=len(rows) > len(shown), as_of=as_of)

    async def cycles_csv(self, request: web.Request) -> web.StreamResponse:
        """All cut-offs of a pool as CSV, up to the last one at the time of the request.

        The columns are the fields of `cycles`.
        """
        view = find_pool(self._pools, request.match_info["pool"])
        return await self._exports.send(request, f"{view.state.row.pool}-cycles", CycleAnswer, self._pages(view))

    def export_cost(self, pool: str) -> int:
        """Returns how many more requests an export counts as: the pages that it reads."""
        view = self._pools.views.get(pool)
        return view.state.row.cycle // STREAMED_ROWS if view else 0

    async def _pages(self, view: PoolView) -> AsyncIterator[list[CycleAnswer]]:
        pool, last, after = view.state.row.pool, view.state.row.cycle, 0
        while after < last:
            rows = await self._exporting.cycles(pool, count=min(STREAMED_ROWS, last - after), offset=after, forward=True)
            yield [cycle_answer(row, pool, view.state.rules.decimals) for row in rows]
            after += len(rows)
            if not rows:
                return


def find_pool(pools: Pools, name: str) -> PoolView:
    """Returns a pool; raises NotFound, or StoreFault if the pools may be outdated."""
    pools.check()
    view = pools.views.get(name)
    if view is None:
        raise NotFound(f"no pool {name!r} exists: GET {POOLS} lists all")
    return view
