"""The speed at which a backlog becomes durable, and the ceiling: the same rows by bare COPY.

The backlog is written under another key while the engine waits in its read, then renamed to the stream. The rename starts the
first read, so the measurement includes neither the start of processes nor the writing of the backlog. It ends when another
connection sees the offset of the last message, which PostgreSQL shows only after the commit is on disk. It polls every
POLL_SECONDS, so the end is late by at most that, never early. The producer of `fundsvc.client` cannot write such a backlog: it
needs an HTTP side, and sends no more than the engine settles. `scripts/bench client` measures it.

The ceiling reads the rows of the same ledger in binary, grouped by transaction and in the order of writing, and sends each
group by one COPY and one commit to a table with the same columns, constraints, indexes and triggers, under the same role.
Encoding ends before its clock starts.
"""

import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

import asyncpg
import msgspec
from ground import (
    STAGED,
    STREAM,
    Ledger,
    ServiceProcess,
    append,
    bodies,
    connection_to,
    cost,
    new_ledger,
    running_engine,
    stream_of,
    until_settled,
)
from market import Market

from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.rows import COLUMNS
from fundsvc.wire.codec import Codec

POLL_SECONDS = 0.01
"""Pause between two polls: a few thousandths of a run, with hardly any work for the server."""

FILLS_PER_APPEND = 20_000
"""Fills per write to the stream while the backlog is prepared."""

SLICE_BYTES = 256 * 1024
"""Bytes per write of bare COPY; larger and smaller ones were not faster."""

ShowProgress = Callable[[str, int, int], None]
"""Shows progress: a description, the amount done, and the total (0: unknown)."""


class Throughput(msgspec.Struct, kw_only=True):
    """One measurement. CPU is in seconds per million fills; `others` is the share of the machine that other processes used.

    `entry_bytes` is the size of the table and its indexes, and `wal_bytes` that of all WAL, per fill.
    """

    contracts: int
    per_message: int
    fills: int
    history: int
    fills_per_second: float
    engine_cpu: float
    postgres_cpu: float
    others: float
    memory_mb: float
    entry_bytes: float
    wal_bytes: float
    transactions: int = 0
    ceiling_per_second: float = 0.0
    ceiling_postgres_cpu: float = 0.0

    @property
    def of_ceiling(self) -> float:
        """The speed as a share of the ceiling."""
        return self.fills_per_second / self.ceiling_per_second


class Load(msgspec.Struct, frozen=True):
    """The load: numbers of fills, fills per message, and contracts."""

    fills: int
    per_message: int
    contracts: int
    codec: Codec


async def measure(servers: EmbeddedServers, load: Load, log: Path, show_progress: ShowProgress) -> Throughput:
    """Measures a backlog through the engine, then its rows through bare COPY, on a new ledger."""
    async with new_ledger(servers, f"bench_{load.contracts}_{load.per_message}") as ledger:
        result = await drain(servers, ledger, load, Market(load.contracts), log, show_progress)
        await _measure_ceiling(servers, ledger, result, show_progress)
    return result


async def drain(
    servers: EmbeddedServers, ledger: Ledger, load: Load, market: Market, log: Path, show_progress: ShowProgress
) -> Throughput:
    """Lets an engine settle a backlog; returns the measurement."""
    async with connection_to(ledger.owner_dsn) as connection, listing_engine(ledger, market, log) as engine:
        last_id = await _stage(ledger, load, market, show_progress)
        history = await connection.fetchval("SELECT sum(entry)::bigint FROM funds")
        await connection.execute("CHECKPOINT")
        size_before, wal_before = await _disk(connection)
        show_progress("fundsvc settles", 0, 0)
        before, started = cost(servers, engine), time.perf_counter()
        async with stream_of(ledger) as client:
            await client.rename(STAGED, STREAM)
        await until_settled(connection, last_id, engine, POLL_SECONDS)
        seconds, spent = time.perf_counter() - started, cost(servers, engine).since(before)
        memory = engine.memory_peak_mb()
        size, wal = await _disk(connection)
        entries = await connection.fetchval("SELECT sum(entry)::bigint FROM funds")
    if entries - history != load.fills:
        raise RuntimeError(f"{load.fills} fills were sent, but {entries - history} entries were written")
    return Throughput(
        contracts=load.contracts,
        per_message=load.per_message,
        fills=load.fills,
        history=history,
        fills_per_second=load.fills / seconds,
        engine_cpu=spent.engine / load.fills * 1e6,
        postgres_cpu=spent.postgres / load.fills * 1e6,
        others=spent.others_share(seconds),
        memory_mb=memory,
        entry_bytes=(size - size_before) / load.fills,
        wal_bytes=(wal - wal_before) / load.fills,
    )


async def _disk(connection: asyncpg.Connection) -> tuple[int, int]:
    """Returns the bytes of the table of entries with its indexes, and of all WAL so far."""
    (row,) = await connection.fetch("SELECT pg_total_relation_size('entries'), (pg_current_wal_lsn() - '0/0')::bigint")
    return row[0], row[1]


@asynccontextmanager
async def listing_engine(ledger: Ledger, market: Market, log: Path, **settings: str) -> AsyncIterator[ServiceProcess]:
    """Yields an engine that has listed the market's contracts and waits for fills."""
    async with stream_of(ledger) as client:
        last_id = await append(client, STREAM, bodies(market.listings(), 100, "json"), "json")
    async with running_engine(ledger, log, **settings) as engine, connection_to(ledger.owner_dsn) as connection:
        await until_settled(connection, last_id, engine, POLL_SECONDS)
        yield engine


async def _stage(ledger: Ledger, load: Load, market: Market, show_progress: ShowProgress) -> str:
    """Writes the backlog to a key that the engine does not read; returns the id of the last message."""
    messages = bodies(market.fills(load.fills), load.per_message, load.codec)
    done, last_id = 0, ""
    async with stream_of(ledger) as client:
        while run := list(islice(messages, max(1, FILLS_PER_APPEND // load.per_message))):
            last_id = await append(client, STAGED, run, load.codec)
            done += len(run) * load.per_message
            show_progress("writing the backlog", min(done, load.fills), load.fills)
    return last_id


async def _measure_ceiling(servers: EmbeddedServers, ledger: Ledger, result: Throughput, show_progress: ShowProgress) -> None:
    show_progress("reading the rows", 0, 0)
    async with connection_to(ledger.owner_dsn) as owner:
        groups = await _written(owner, show_progress)
        await owner.execute(
            "CREATE TABLE ceiling (LIKE entries INCLUDING ALL);"
            "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ceiling FOR EACH ROW EXECUTE FUNCTION refuse_change();"
            "CREATE TRIGGER never_emptied BEFORE TRUNCATE ON ceiling FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();"
            "GRANT INSERT ON ceiling TO fundsvc_service;"
            "CHECKPOINT"
        )
    show_progress("bare COPY", 0, 0)
    async with connection_to(ledger.dsn) as connection:
        before, started = cost(servers), time.perf_counter()
        for group in groups:
            await connection.copy_to_table("ceiling", source=_slices(group), columns=COLUMNS, format="binary")
        seconds, spent = time.perf_counter() - started, cost(servers).since(before)
    result.transactions = len(groups)
    result.ceiling_per_second = result.fills / seconds
    result.ceiling_postgres_cpu = spent.postgres / result.fills * 1e6


async def _written(owner: asyncpg.Connection, show_progress: ShowProgress) -> list[bytes]:
    """Returns the rows of the ledger in binary COPY format, one piece per transaction.

    All rows of a transaction have its start time, and no others do, because a partition has one writer.
    """
    await owner.execute("CREATE INDEX ON entries (recorded_at)")
    times = await owner.fetch("SELECT DISTINCT recorded_at FROM entries ORDER BY 1")
    groups = []
    for number, row in enumerate(times):
        rows = f"SELECT {', '.join(COLUMNS)} FROM entries WHERE recorded_at = $1 ORDER BY ctid"  # noqa: S608 - the names are constants
        pieces: list[bytes] = []
        await owner.copy_from_query(rows, row[0], output=_collect(pieces), format="binary")
        groups.append(b"".join(pieces))
        show_progress("reading the rows", number + 1, len(times))
    return groups


def _collect(pieces: list[bytes]) -> Callable[[bytes], Coroutine[None, None, None]]:
    async def collect(piece: bytes) -> None:
        pieces.append(piece)

    return collect


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), SLICE_BYTES):
        yield data[start : start + SLICE_BYTES]
