"""Moves a partition from one cell to another while the service runs.

Entries and ADL records never change, so they are copied in advance, in chunks that are compared by checksum. So are rollups, of
which only the newest change; those that differ are copied again at the end. Then the partition is paused: its row in the source
names the target, and a new epoch fences its owner. The last entries and everything else are copied, compared, and committed in
the target together with the partition's row, which has the next generation. So the partition has no owner, or one owner: after
the pause no engine gets its lease in the source, and before that commit the target has no lease of it. At last the rows in the
source are deleted.

Each step may be repeated: a command that was killed is run again, or undone until the target has committed. All steps run as
the owners of the schemas.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from fundsvc.store.database import connect, faults, statements, transaction

MOVE_SQL = statements("fundsvc.store.cell_moves")

CHUNK_ROWS = 20_000
"""Rows that are copied and compared in one transaction: a few megabytes."""

CATCH_UP_ROWS = 20_000
"""The partition is paused once no more rows are left to copy in advance: they take less than a second."""

PASSES_MAX = 100
"""Bounds the copying in advance of a partition that grows faster than it is copied."""

LINGER_SECONDS = 1.0
"""How long the source shows the partition after the target holds it. All processes read that within this time."""

PURGE_ROWS = 10_000
"""Rows that one statement deletes."""

PART_MS = 7 * 24 * 3_600_000
"""Rollups are compared by week (milliseconds): few sums, and few rows where the newest hours differ."""

BLOCKS_MAX = 16
"""Received blocks of rows that wait to be sent: some megabytes."""

_SESSION = {"timezone": "UTC", "idle_in_transaction_session_timeout": "0", "statement_timeout": "0"}
"""Checksums compare times as text. No other limit applies: a snapshot of the source waits for the target."""


Owner = asyncpg.Connection
"""A connection of the owner of a cell's schema."""


class Chain(NamedTuple):
    """A table whose rows never change: its name, and the columns of the numbers of its rows and of their last one in funds."""

    table: str
    number: str
    last: str


CHAINS = (Chain("entries", "entry", "entry"), Chain("adl_records", "record", "adl_record"))

BY_PARTITION = ("partitions", "rates", "policies", "rejected", "stream_gaps", "stream_checkpoints", "moves", "heartbeats")
"""The tables whose rows name their partition, that of its lease first."""

BY_SYMBOL = (
    *("contracts", "funds", "adl_orders", "holdings", "tranches", "books", "book_parts", "rollup_progress"),
    *("audit_progress", "audit_tranches", "targets", "archives", "archive_bounds"),
)
"""The tables whose rows name their contract, those that others refer to first."""


class CannotMove(ValueError):
    """The partition cannot move, or the move cannot be undone; the message has the reason and the remedy."""


class Differs(Exception):
    """A copy differs from its original: nothing of it was committed."""


class Moved(NamedTuple):
    """A finished move: the copied entries and ADL records, and how long the partition was paused (seconds)."""

    rows: int
    paused_seconds: float


Step = Callable[[str], Awaitable[None]]
"""Called after each step with its name."""


async def _no_step(_name: str) -> None:
    """Does nothing."""


class Move:
    """A move of a partition. `source` and `target` are connections of the owners of the two schemas."""

    def __init__(self, source: Owner, target: Owner, partition: int, step: Step = _no_step) -> None:
        self._source = source
        self._target = target
        self._partition = partition
        self._step = step
        self._rows = 0

    async def run(self) -> Moved:
        """Moves the partition, or finishes a move that was interrupted; raises CannotMove or Differs."""
        await self._lock()
        await self._check()
        here, there = await self._place(self._source), await self._place(self._target)
        if here is None and there is None:
            raise CannotMove(f"neither cell has partition {self._partition}")
        if here and there and there.generation <= here.generation:
            raise CannotMove(
                f"both cells have partition {self._partition}, in the generations {here.generation} and {there.generation}"
            )
        paused = 0.0 if there else await self._copy(here.generation + 1 if here else 1)
        await self._leave()
        await self._step("left")
        await purge(self._source, self._partition, self._step)
        return Moved(self._rows, paused)

    async def _copy(self, generation: int) -> float:
        """Copies the partition, and lets the target hold it; returns how long it was paused (seconds)."""
        await self._refuse_pools()
        await purge(self._target, self._partition)
        generation = await self._target.fetchval(MOVE_SQL["begin"], self._partition, generation)
        await self._step("begun")
        await self._copy_in_advance()
        started = time.monotonic()
        await self._pause()
        await self._arrive(generation)
        paused = time.monotonic() - started
        await self._step("arrived")
        await asyncio.sleep(LINGER_SECONDS)
        return paused

    async def undo(self) -> None:
        """Undoes a move that the target has not committed; raises CannotMove afterwards."""
        await self._lock()
        await self._target.execute(MOVE_SQL["undo"], self._partition)
        await self._step("disarmed")
        if await self._place(self._target):
            raise CannotMove(
                f"partition {self._partition} has moved: run `fundsvc cells move` again, to finish or to move it back"
            )
        await self._source.execute(MOVE_SQL["resume"], self._partition)
        await self._step("resumed")
        symbols = await self._symbols()
        async with transaction(self._target):
            await self._target.execute(MOVE_SQL["discard"], symbols, self._partition)
            await self._target.execute(MOVE_SQL["forget_copied"], symbols)
            await self._target.execute(MOVE_SQL["delete_of_contracts"].format(table="rollups"), symbols)
        await purge(self._target, self._partition, self._step)

    async def _symbols(self) -> list[str]:
        """Returns the contracts of the partition in the source."""
        return [row["symbol"] for row in await self._source.fetch(MOVE_SQL["symbols"], self._partition)]

    async def _place(self, connection: Owner) -> "CellPlace | None":
        row = await connection.fetchrow(MOVE_SQL["holder"], self._partition)
        return CellPlace(row["cell"], row["generation"], row["moving_to"]) if row else None

    async def _lock(self) -> None:
        """Excludes another command on the partition, and the archiver. The server releases the locks with the connections."""
        for connection in (self._source, self._target):
            if not await connection.fetchval(MOVE_SQL["lock"], self._partition):
                raise CannotMove(f"another command moves partition {self._partition}: wait until it has ended")
            if not await connection.fetchval(MOVE_SQL["lock_archives"]):
                raise CannotMove("another process archives or restores entries of a cell: wait until it has ended")

    async def _check(self) -> None:
        """Raises CannotMove for cells of different ledgers or versions."""
        source, target = [(await one.fetch(MOVE_SQL["state"]))[0] for one in (self._source, self._target)]
        if source["partitions"] != target["partitions"]:
            raise CannotMove("the cells belong to ledgers with different numbers of partitions")
        if source["revision"] != target["revision"]:
            raise CannotMove(f"the cells have the schemas {source['revision']} and {target['revision']}: run fundsvc migrate")
        self._target_name = target["cell"]

    async def _refuse_pools(self) -> None:
        if pools := await self._source.fetchval(MOVE_SQL["pools"], self._partition):
            raise CannotMove(
                f"partition {self._partition} is the home of the pools {', '.join(pools)}, which stay in the first cell"
            )

    async def _copy_in_advance(self) -> None:
        """Copies rollups, and entries and ADL records until few are left."""
        await self._copy_rollups_in_advance()
        for _ in range(PASSES_MAX):
            if await self._copy_chains() <= CATCH_UP_ROWS:
                break
        # The second time also makes the last comparison quick, because PostgreSQL marks the rows that it reads as committed.
        await self._copy_rollups_in_advance()

    async def _copy_rollups_in_advance(self) -> None:
        async with self._together():
            await self._copy_rollups()

    @asynccontextmanager
    async def _together(self) -> AsyncIterator[None]:
        """Runs a transaction of the target beside a snapshot of the source."""
        async with (
            transaction(self._target, seconds=None),
            self._source.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield

    async def _copy_chains(self) -> int:
        """Copies the entries and ADL records that the target lacks, in compared chunks; returns their number."""
        ends = await self._source.fetch(MOVE_SQL["ends"], self._partition)
        rows = await self._target.fetch(MOVE_SQL["copied"], [row["symbol"] for row in ends])
        copied = {(row["source"], row["symbol"]): row["number"] for row in rows}
        total = 0
        for chain in CHAINS:
            spans = [Span(row["symbol"], copied.get((chain.table, row["symbol"]), 0), row[chain.last]) for row in ends]
            for chunk in chunks(spans):
                total += await self._copy_chunk(chain, chunk)
                await self._step("copied")
        self._rows += total
        return total

    async def _copy_chunk(self, chain: Chain, spans: Sequence["Span"]) -> int:
        columns = await self._columns(chain.table)
        keys = [list(column) for column in zip(*spans, strict=True)]
        query = MOVE_SQL["rows_of_spans"].format(columns=", ".join(columns), table=chain.table, number=chain.number)
        async with transaction(self._target):
            await _copy(self._source, self._target, chain.table, columns, query, keys)
            await self._compare(chain.table, query, keys)
            await self._target.execute(MOVE_SQL["note_copied"], *keys, chain.table)
        return sum(span.upto - span.after for span in spans)

    async def _pause(self) -> None:
        """Takes the partition from its owner: from now on no engine settles it."""
        if await self._source.fetchval(MOVE_SQL["pause"], self._partition, self._target_name) is None:
            raise CannotMove(f"partition {self._partition} moves to another cell: finish or undo that move first")
        await self._step("paused")

    async def _arrive(self, generation: int) -> None:
        """Copies and compares the rest, and commits it with the partition's row: then the target holds the partition."""
        await self._copy_chains()
        await self._step("caught up")
        async with self._together():
            symbols = await self._symbols()
            await self._delete_rest(self._target, symbols)  # left by a task that ended after the partition had left this cell
            for table in BY_PARTITION:
                await self._copy_rest(table, "rows_of_partition")
            for table in BY_SYMBOL:
                await self._copy_rest(table, "rows_of_contracts")
            await self._copy_rollups()
            await self._step("copied the rest")
            if await self._target.fetch(MOVE_SQL["restored"], self._partition) != await self._source.fetch(
                MOVE_SQL["restored"], self._partition
            ):
                raise CannotMove(
                    f"archived entries of partition {self._partition} were restored after they were copied: run"
                    " `fundsvc cells undo`, and move the partition again"
                )
            if wrong := await self._target.fetch(MOVE_SQL["heads"], self._partition):
                raise Differs(f"the heads of {', '.join(row['symbol'] for row in wrong[:3])} differ")
            if await self._target.fetchval(MOVE_SQL["arrive"], self._partition, generation) is None:
                raise CannotMove(f"the move of partition {self._partition} was undone meanwhile")
            await self._target.execute(MOVE_SQL["forget_copied"], symbols)
            await self._target.execute(MOVE_SQL["hold"], self._partition, generation)
            await self._step("compared")

    async def _copy_rest(self, table: str, block: str) -> None:
        columns = await self._columns(table)
        query = MOVE_SQL[block].format(columns=", ".join(columns), table=table)
        await _copy(self._source, self._target, table, columns, query, [self._partition])
        await self._compare(table, query, [self._partition])

    async def _copy_rollups(self) -> None:
        """Copies the rollups that differ: all of them at first, later those of the newest weeks."""
        symbols, columns = await self._symbols(), await self._columns("rollups")
        sums = MOVE_SQL["rollup_sums"].format(columns=", ".join(columns))
        found = await asyncio.gather(*(one.fetch(sums, symbols, PART_MS) for one in (self._source, self._target)))
        source, target = [set(map(tuple, rows)) for rows in found]
        differing = sorted({(symbol, part) for symbol, part, *_ in source ^ target})
        keys = [symbol for symbol, _ in differing], [part for _, part in differing], PART_MS
        await self._target.execute(MOVE_SQL["delete_rollups"], *keys)
        query = MOVE_SQL["rollups_of_parts"].format(columns=", ".join(columns))
        await _copy(self._source, self._target, "rollups", columns, query, keys)
        await self._compare("rollups", query, keys)

    async def _columns(self, table: str) -> list[str]:
        source, target = [
            [row["attname"] for row in await one.fetch(MOVE_SQL["columns"], table)] for one in (self._source, self._target)
        ]
        if source != target:
            raise CannotMove(f"the cells have different columns of {table}: run fundsvc migrate")
        return source

    async def _compare(self, table: str, query: str, parameters: Sequence[object]) -> None:
        """Compares the number and the checksum of the rows of a query in both cells."""
        checksum = MOVE_SQL["checksum"].format(rows=query)
        source, target = await asyncio.gather(*(one.fetch(checksum, *parameters) for one in (self._source, self._target)))
        if source != target:
            raise Differs(
                f"the copy of {table} differs: {target[0]['count']:,} rows instead of {source[0]['count']:,}, or others"
            )

    async def _leave(self) -> None:
        """Deletes what the source shows of the partition. Its entries and ADL records are left to `purge`."""
        async with transaction(self._source, seconds=None):
            there = await self._place(self._target)
            if there is None or await self._place(self._source) is None:
                return
            await self._source.execute(MOVE_SQL["depart"], self._partition, there.generation)
            await self._source.execute(MOVE_SQL["delete_of_partition"].format(table="partitions"), self._partition)
            symbols = await self._symbols()
            await self._source.execute(MOVE_SQL["delete_of_contracts"].format(table="rollups"), symbols)
            await self._delete_rest(self._source, symbols)

    async def _delete_rest(self, connection: Owner, symbols: Sequence[str]) -> None:
        """Deletes in a cell what belongs to the partition, except its lease and what is copied in advance."""
        for table in reversed(BY_SYMBOL):
            await connection.execute(MOVE_SQL["delete_of_contracts"].format(table=table), symbols)
        for table in BY_PARTITION[1:]:
            await connection.execute(MOVE_SQL["delete_of_partition"].format(table=table), self._partition)


class Span(NamedTuple):
    """The rows of a contract after a number and up to another."""

    symbol: str
    after: int
    upto: int


def chunks(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Divides spans into chunks of at most CHUNK_ROWS rows."""
    chunk: list[Span] = []
    room = CHUNK_ROWS
    for symbol, after, upto in spans:
        start = after
        while start < upto:
            end = min(upto, start + room)
            chunk.append(Span(symbol, start, end))
            room -= end - start
            start = end
            if not room:
                yield chunk
                chunk, room = [], CHUNK_ROWS
    if chunk:
        yield chunk


async def _copy(
    source: Owner,
    target: Owner,
    table: str,
    columns: Sequence[str],
    query: str,
    parameters: Sequence[object],
) -> None:
    """Copies the rows of a query in PostgreSQL's binary format, which loses nothing. Memory does not grow with the rows."""
    blocks: asyncio.Queue[bytes] = asyncio.Queue(BLOCKS_MAX)

    async def read() -> None:
        await source.copy_from_query(query, *parameters, output=blocks.put, format="binary")
        await blocks.put(b"")

    async def received() -> AsyncIterator[bytes]:
        while block := await blocks.get():
            yield block

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            tasks.create_task(target.copy_to_table(table, source=received(), columns=list(columns), format="binary"))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def purge(connection: Owner, partition: int, step: Step = _no_step) -> None:
    """Deletes the entries and ADL records that a partition left behind in a cell, in short transactions."""
    for row in await connection.fetch(MOVE_SQL["departed"], partition):
        for block in ("purge_records", "purge_entries"):
            while await connection.fetch(MOVE_SQL[block], row["symbol"], PURGE_ROWS):
                await step("purging")
        await connection.execute(MOVE_SQL["forget_departed"], row["symbol"])


class CellPlace(NamedTuple):
    """What a cell has of a partition: its generation, and the cell to which it moves, or None."""

    cell: str
    generation: int
    moving_to: str | None


@asynccontextmanager
async def as_owner(dsn: str) -> AsyncIterator[Owner]:
    """Connects to a cell as the owner of its schema. Raises StoreFault, also for faults within the block."""
    with faults():
        async with connect(dsn, "fundsvc move", command_seconds=None, parameters=_SESSION) as connection:
            yield connection


async def places(connections: Mapping[str, Owner], partition: int) -> list[CellPlace]:
    """Returns the cells that have a partition, the one that holds it first."""
    rows = {cell: await connection.fetchrow(MOVE_SQL["holder"], partition) for cell, connection in connections.items()}
    found = [CellPlace(cell, row["generation"], row["moving_to"]) for cell, row in rows.items() if row]
    return sorted(found, key=lambda place: place.generation, reverse=True)
