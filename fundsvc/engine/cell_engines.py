"""Runs an engine for each cell that this process serves. A cell that is away stops none of the others."""

import asyncio
from collections.abc import Callable

from fundsvc.config.settings import Config
from fundsvc.engine.engine import Companions, Engine, NotSettling
from fundsvc.metrics import Metrics


class CellEngines:
    """The engines of the cells in `engine.cells`, by default of all cells. `companions` is called for each of them."""

    def __init__(self, config: Config, metrics: Metrics, companions: Callable[[Config, Metrics], Companions]) -> None:
        served = config.engine.cells or config.cells
        self._engines = {
            cell: Engine(config.in_cell(cell), metrics, companions(config.in_cell(cell), metrics), cell) for cell in served
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Settles partitions of all served cells until `stop` is set."""
        async with asyncio.TaskGroup() as tasks:
            for engine in self._engines.values():
                tasks.create_task(engine.run(stop))

    async def check(self) -> None:
        """Returns if all partitions of this process settle; raises NotSettling with the reasons otherwise."""
        checks = await asyncio.gather(*(engine.check() for engine in self._engines.values()), return_exceptions=True)
        failed = {cell: found for cell, found in zip(self._engines, checks, strict=True) if found is not None}
        if len(self._engines) == 1 and failed:
            raise next(iter(failed.values()))
        if failed:
            raise NotSettling("; ".join(f"cell {cell}: {reason}" for cell, reason in failed.items()))
