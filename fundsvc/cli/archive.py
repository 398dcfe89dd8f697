"""Commands on the archive of entries: run, list, restore."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fundsvc.app import at_primary, prepared, reserved
from fundsvc.cli.actions import Why, record_action
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, NO, Bars, Json, Terminal, print_json, run
from fundsvc.cli.tables import left, right, show_table
from fundsvc.cli.tools.archiving import Archived, Archiver, NotArchived
from fundsvc.config.cells import MAIN
from fundsvc.config.settings import ARCHIVE_DAYS_MIN, Config
from fundsvc.store.archive.files import ArchiveFiles
from fundsvc.store.archive.moves import Due, KnownStub, Moves, list_stubs, open_moves
from fundsvc.store.cell_pools import known_cells, locate
from fundsvc.store.cells import CellMap
from fundsvc.store.database import Pool, open_pool
from fundsvc.store.reader import ledger_key

archive = typer.Typer(help="Old entries in files instead of the database.", no_args_is_help=True)
cli.add_typer(archive, name="archive")

Symbols = Annotated[list[str] | None, typer.Argument(help="Contracts; by default all.")]


class StubLine(msgspec.Struct, rename="camel"):
    """A range as `list` shows it."""

    symbol: str
    first_entry: int
    last_entry: int
    path: str
    bytes: int
    digest: str
    restored: bool


@archive.command("run")
def run_command(
    context: typer.Context,
    symbols: Symbols = None,
    days: Annotated[float | None, typer.Option(help="Archive entries that are older; by default archive.days.")] = None,
    before: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Archive entries before this day of UTC instead.")
    ] = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Move old entries to files; exit with 1 if a ledger or a file differs.

    Each range is verified by the rules of the audit, written, and read again before its entries leave the database. The command
    may be stopped at any time, and run again.
    """

    async def command(config: Config) -> int:
        before_ms = _bound_ms(config.archive.days if days is None else days, before)
        record_action(config.log, "archive run", why, before=datetime.fromtimestamp(before_ms / 1000, UTC).isoformat())
        found: list[Archived] = []
        wrong: list[str] = []
        async with _ledger(config) as (complete, pool):
            keys = [await ledger_key(pool, symbol) for symbol in symbols] if symbols else None
            for cell in complete.cells:
                async with _archiving(complete, cell) as (archiver, moves):
                    due = [one for one in await moves.due(before_ms, keys) if _cell_of(pool, one.symbol) == cell]
                    await _archive_all(archiver, due, found, wrong)
        if json:
            print_json({"archived": found, "differences": wrong})
        else:
            _print_archived(found, wrong)
        return NO if wrong else DONE

    run(context, command)


@archive.command("list")
def list_command(context: typer.Context, symbols: Symbols = None, json: Json = False) -> None:
    """List the files of archived entries."""

    async def command(config: Config) -> int:
        async with _ledger(config) as (_, pool):
            keys = [await ledger_key(pool, symbol) for symbol in symbols] if symbols else None
            lines = [_line(known) for known in await list_stubs(pool, keys)]
        if json:
            print_json(lines)
        else:
            columns = *left("symbol"), *right("first", "last", "bytes"), *left("file", "entries are read from")
            show_table(Terminal(soft_wrap=True), columns, [_shown(line) for line in lines])
        return DONE

    run(context, command)


@archive.command()
def restore(
    context: typer.Context,
    symbol: str,
    entry: Annotated[int, typer.Option(min=1, help="Restore the ranges from the one of this entry on.")] = 1,
    source: Annotated[
        Path | None, typer.Option("--from", help="Directory with the files, instead of archive.location.")
    ] = None,
    why: Why = "",
) -> None:
    """Insert archived entries into the database again, so that they are read from there; exit with 1 if a file differs.

    The next `fundsvc archive run` removes them again.
    """

    async def command(config: Config) -> int:
        record_action(config.log, "archive restore", why, symbol=symbol, entry=str(entry))
        async with _ledger(config) as (complete, pool), AsyncExitStack() as stack:
            key = await ledger_key(pool, symbol)
            archiver, moves = await stack.enter_async_context(_archiving(complete, _cell_of(pool, key)))
            stubs = await moves.stubs([key])
            wanted = [known.stub for known in stubs if entry <= known.stub.last_entry <= known.bound]
            files = ArchiveFiles(str(source)) if source else None
            if not wanted:
                raise LookupError(f"no entry of {symbol} from {entry} on is archived")
            with Bars() as bars:
                task = bars.add_task("entries restored", total=sum(stub.entries for stub in wanted))
                try:
                    await archiver.restore(wanted, lambda done: bars.advance(task, done), files)
                except NotArchived as difference:
                    Terminal(stderr=True).print(f"fundsvc: {difference}", style="red", soft_wrap=True)
                    return NO
        Terminal().print(f"restored {sum(stub.entries for stub in wanted):,} entries of {symbol}")
        return DONE

    run(context, command)


@asynccontextmanager
async def _ledger(config: Config) -> AsyncIterator[tuple[Config, Pool]]:
    """Yields the configuration with all addresses, and connections to the primaries of all cells."""
    async with prepared(config) as complete, reserved(at_primary(complete), 1, CellMap(complete.placement)) as pool:
        await locate(pool)
        yield complete, pool


@asynccontextmanager
async def _archiving(config: Config, cell: str) -> AsyncIterator[tuple[Archiver, Moves]]:
    """Connects to a cell as its only archiver."""
    of_cell = config.in_cell(cell)
    dsn = of_cell.archive.dsn or of_cell.database.owner_dsn
    if not dsn:
        key = "archive.dsn" if cell == MAIN else f"database.cells.{cell}.archive_dsn"
        raise ValueError(f"{key} is not set: set it to a login in role fundsvc_archiver")
    files = ArchiveFiles(config.archive.location)
    async with open_moves(dsn) as moves, open_pool(of_cell.database.dsn, 1) as pool:
        yield Archiver(pool, moves, files, config.policy.of, config.ledger.secrets), moves


def _cell_of(pool: Pool, symbol: str) -> str:
    """Returns the cell that holds a contract."""
    known = known_cells(pool)
    return known.cell_of_symbol(symbol) if known else MAIN


def _bound_ms(days: float, before: datetime | None) -> int:
    """Returns the time (ms) before which entries are archived; raises ValueError for one that is too late."""
    now = datetime.now(UTC)
    bound = before.replace(tzinfo=UTC) if before else now - timedelta(days=days)
    if bound > now - timedelta(days=ARCHIVE_DAYS_MIN):
        raise ValueError(f"entries of the last {ARCHIVE_DAYS_MIN} days stay in the database: choose an earlier time")
    return int(bound.timestamp() * 1000)


async def _archive_all(archiver: Archiver, due: list[Due], found: list[Archived], wrong: list[str]) -> None:
    """Archives contracts one after another; adds what was done to `found`, and the differences of others to `wrong`."""
    with Bars() as bars:
        total = sum(max(0, one.upto - one.archived) + one.upto - one.removed for one in due)
        task = bars.add_task("entries archived and removed", total=total)
        for one in due:
            try:
                found.append(await archiver.archive(one, lambda done: bars.advance(task, done)))
            except NotArchived as difference:
                wrong.append(str(difference))
        bars.finish(task)


def _print_archived(found: list[Archived], wrong: list[str]) -> None:
    console = Terminal(soft_wrap=True)
    for difference in wrong:
        console.print(f"not archived: {difference}", style="red")
    for one in found:
        console.print(
            f"{one.symbol}: {one.entries:,} entries in {one.files} files of {one.bytes:,} bytes, {one.removed:,} removed"
        )
    if not found and not wrong:
        console.print("nothing to archive")


def _line(known: KnownStub) -> StubLine:
    stub = known.stub
    is_restored = stub.last_entry > known.bound
    return StubLine(stub.symbol, stub.first_entry, stub.last_entry, stub.path, stub.size, stub.digest.hex(), is_restored)


def _shown(line: StubLine) -> tuple[str, ...]:
    place = "the database" if line.restored else "the file"
    return line.symbol, f"{line.first_entry:,}", f"{line.last_entry:,}", f"{line.bytes:,}", line.path, place
