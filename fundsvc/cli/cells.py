"""Commands on cells: which cell holds each partition, and moves of partitions between cells."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

import typer

from fundsvc.app import at_primary, connected, prepared
from fundsvc.cli.actions import Why, record_action
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, NO, Json, Terminal, print_json, run
from fundsvc.cli.tables import left, right, show_table
from fundsvc.config.settings import Config
from fundsvc.core.contracts import partition_of
from fundsvc.store.cell_moves import CannotMove, CellPlace, Move, Owner, as_owner, places
from fundsvc.store.cell_pools import pools_by_cell
from fundsvc.store.database import CellPool, StoreFault
from fundsvc.store.reader import fetch_in_cell

cells = typer.Typer(help="Cells: the databases of the ledger, and the partitions that they hold.", no_args_is_help=True)
cli.add_typer(cells, name="cells")

Partition = Annotated[int, typer.Argument(min=0, help="Number of the partition.")]


@cells.command("list")
def list_command(context: typer.Context, json: Json = False) -> None:
    """List the partitions of each cell; exit with 1 if a cell is away, or if not exactly one cell holds each partition."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(at_primary(complete)) as (pool, _):
            found, away = await _held(pools_by_cell(pool))
        holders = [row["partition"] for row in found]
        unheld = sorted(set(range(config.stream.partitions)) - set(holders))
        twice = sorted({number for number in holders if holders.count(number) > 1})
        if json:
            print_json({"partitions": found, "away": away, "unheld": unheld, "twice": twice})
        else:
            _print(found, away, unheld, twice)
        return NO if away or unheld or twice else DONE

    run(context, command)


@cells.command()
def move(context: typer.Context, partition: Partition, cell: str, why: Why = "", json: Json = False) -> None:
    """Move a partition to another cell while the service runs, or finish a move that was interrupted.

    Reads go on. Nothing is settled in the partition while the last rows are copied. Needs owner_dsn of all cells.
    """

    async def command(config: Config) -> int:
        record_action(config.log, "cells move", why, partition=str(partition), cell=cell)
        async with prepared(config), _owners(config, partition) as (owners, found):
            if cell not in owners:
                raise CannotMove(f"{cell} is not a cell: there are {', '.join(owners)}")
            if pools := [name for name in config.mutual.pools if partition_of(name, config.stream.partitions) == partition]:
                raise CannotMove(f"the pools {', '.join(pools)} belong to partition {partition}, which stays in the first cell")
            others = [place.cell for place in found if place.cell != cell] or [name for name in owners if name != cell]
            moved = await Move(owners[others[0]], owners[cell], partition).run()
        if json:
            print_json({"partition": partition, "cell": cell, "rows": moved.rows, "pausedSeconds": moved.paused_seconds})
        else:
            Terminal().print(
                f"cell {cell} holds partition {partition}: {moved.rows:,} entries and ADL records copied,"
                f" paused for {moved.paused_seconds:.2f} s; change `partitions` of the cells in the configuration"
            )
        return DONE

    run(context, command)


@cells.command()
def undo(context: typer.Context, partition: Partition, why: Why = "") -> None:
    """Undo a move that was interrupted before the other cell held the partition, and delete its copies."""

    async def command(config: Config) -> int:
        record_action(config.log, "cells undo", why, partition=str(partition))
        async with prepared(config), _owners(config, partition) as (owners, found):
            if not found:
                raise CannotMove(f"no cell has partition {partition}")
            for target in [name for name in owners if name != found[0].cell]:
                await Move(owners[found[0].cell], owners[target], partition).undo()
        Terminal().print(f"cell {found[0].cell} holds partition {partition}")
        return DONE

    run(context, command)


async def _held(pools: Mapping[str, CellPool]) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the partitions that the cells have, and the cells that are away."""
    found, away = [], []
    for cell, pool in pools.items():
        try:
            rows = await fetch_in_cell(pool, "cell_partitions")
        except StoreFault:
            away.append(cell)
        else:
            found += [{"cell": cell or "main", **row} for row in map(dict, rows)]
    return sorted(found, key=lambda row: (row["partition"], row["cell"])), away


@asynccontextmanager
async def _owners(config: Config, partition: int) -> AsyncIterator[tuple[dict[str, Owner], list[CellPlace]]]:
    """Connects to all cells as their owners; yields the connections, and the cells that have a partition."""
    async with AsyncExitStack() as stack:
        owners = {}
        for cell in config.cells:
            dsn = config.in_cell(cell).database.owner_dsn
            if not dsn:
                raise ValueError(f"the owner_dsn of cell {cell} is not set: set it to a DSN of the schema's owner")
            owners[cell] = await stack.enter_async_context(as_owner(dsn))
        yield owners, await places(owners, partition)


def _print(found: list[dict[str, Any]], away: list[str], unheld: list[int], twice: list[int]) -> None:
    console = Terminal()
    rows = [
        (
            str(row["partition"]),
            row["cell"],
            str(row["generation"]),
            f"{row['contracts']:,}",
            f"{row['entries']:,}",
            _state(row),
        )
        for row in found
    ]
    columns = *right("partition"), *left("cell"), *right("generation", "contracts", "entries"), *left("state")
    show_table(console, columns, rows)
    for cell in away:
        console.print(f"cell {cell} is away", style="red")
    for what, numbers in (("no cell has partition", unheld), ("several cells have partition", twice)):
        if numbers:
            console.print(f"{what} {', '.join(map(str, numbers))}", style="red")


def _state(row: dict[str, Any]) -> str:
    if row["moving_to"]:
        return f"paused: moves to {row['moving_to']}"
    return "settles" if row["live"] else "without an owner"
