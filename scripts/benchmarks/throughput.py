"""How fast a backlog becomes durable, and the ceiling: the same rows by bare COPY.

The backlog is written under another key while the engine waits in its read, then renamed to the stream: the rename is the
first read, so neither the start of processes nor the writing of the backlog is measured. The end is when another connection
sees the offset of the last message, which PostgreSQL shows only after the commit is on disk; it is asked for every
POLL_SECONDS, so the end is seen late by at most that, never early.

The ceiling takes the rows out of that very ledger in binary, grouped by the transaction that wrote them and in the order in
which they were written, and sends each group as it is, one COPY and one commit each, into a table with the same columns,
constraints, indexes and triggers, by the same role. Encoding is over before its clock starts.
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
"""A few thousandths of what a run takes, and next to no work for the server."""

FILLS_PER_APPEND = 20_000
"""Fills sent to the stream in one go while the backlog is written."""

SLICE_BYTES = 256 * 1024
"""What bare COPY sends at once; larger and smaller slices were not faster."""

Tell = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is (0: unknown)."""


class Throughput(msgspec.Struct, kw_only=True):
    """One measurement. CPU is in seconds per million fills; `others` is the share of the machine that others took."""

    contracts: int
    per_message: int
    fills: int
    history: int
    fills_per_second: float
    engine_cpu: float
    postgres_cpu: float
    others: float
    memory_mb: float
    transactions: int = 0
    ceiling_per_second: float = 0.0
    ceiling_postgres_cpu: float = 0.0

    @property
    def of_ceiling(self) -> float:
        """Speed in ceilings."""
        return self.fills_per_second / self.ceiling_per_second


class Load(msgspec.Struct, frozen=True):
    """What is sent: so many fills, so many to a message, over so many contracts."""

    fills: int
    per_message: int
    contracts: int
    codec: Codec


async def measure(servers: EmbeddedServers, load: Load, log: Path, tell: Tell) -> Throughput:
    """A backlog through the engine and then its rows through bare COPY, on a ledger of their own."""
    async with new_ledger(servers, f"bench_{load.contracts}_{load.per_message}") as ledger:
        result = await drain(servers, ledger, load, Market(load.contracts), log, tell)
        await _measure_ceiling(servers, ledger, result, tell)
    return result


async def drain(servers: EmbeddedServers, ledger: Ledger, load: Load, market: Market, log: Path, tell: Tell) -> Throughput:
    """Lets an engine settle a backlog; says what that took."""
    async with connection_to(ledger.owner_dsn) as connection, listing_engine(ledger, market, log) as engine:
        last_id = await _stage(ledger, load, market, tell)
        history = await connection.fetchval("SELECT sum(entry)::bigint FROM funds")
        await connection.execute("CHECKPOINT")
        tell("fundsvc settles", 0, 0)
        before, started = cost(servers, engine), time.perf_counter()
        async with stream_of(ledger) as client:
            await client.rename(STAGED, STREAM)
        await until_settled(connection, last_id, engine, POLL_SECONDS)
        seconds, spent = time.perf_counter() - started, cost(servers, engine).since(before)
        memory = engine.memory_peak_mb()
        entries = await connection.fetchval("SELECT sum(entry)::bigint FROM funds")
    if entries - history != load.fills:
        raise RuntimeError(f"{load.fills} fills were sent, {entries - history} entries were written")
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
    )


@asynccontextmanager
async def listing_engine(ledger: Ledger, market: Market, log: Path, **settings: str) -> AsyncIterator[ServiceProcess]:
    """An engine that has listed the market's contracts and waits for fills."""
    async with stream_of(ledger) as client:
        last_id = await append(client, STREAM, bodies(market.listings(), 100, "json"), "json")
    async with running_engine(ledger, log, **settings) as engine, connection_to(ledger.owner_dsn) as connection:
        await until_settled(connection, last_id, engine, POLL_SECONDS)
        yield engine


async def _stage(ledger: Ledger, load: Load, market: Market, tell: Tell) -> str:
    """Writes the backlog where the engine does not see it; returns the last message's id."""
    messages = bodies(market.fills(load.fills), load.per_message, load.codec)
    done, last_id = 0, ""
    async with stream_of(ledger) as client:
        while run := list(islice(messages, max(1, FILLS_PER_APPEND // load.per_message))):
            last_id = await append(client, STAGED, run, load.codec)
            done += len(run) * load.per_message
            tell("writing the backlog", min(done, load.fills), load.fills)
    return last_id


async def _measure_ceiling(servers: EmbeddedServers, ledger: Ledger, result: Throughput, tell: Tell) -> None:
    tell("taking the rows out", 0, 0)
    async with connection_to(ledger.owner_dsn) as owner:
        groups = await _written(owner, tell)
        await owner.execute(
            "CREATE TABLE ceiling (LIKE entries INCLUDING ALL);"
            "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ceiling FOR EACH ROW EXECUTE FUNCTION refuse_change();"
            "CREATE TRIGGER never_emptied BEFORE TRUNCATE ON ceiling FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();"
            "GRANT INSERT ON ceiling TO fundsvc_service;"
            "CHECKPOINT"
        )
    tell("bare COPY", 0, 0)
    async with connection_to(ledger.dsn) as connection:
        before, started = cost(servers), time.perf_counter()
        for group in groups:
            await connection.copy_to_table("ceiling", source=_slices(group), columns=COLUMNS, format="binary")
        seconds, spent = time.perf_counter() - started, cost(servers).since(before)
    result.transactions = len(groups)
    result.ceiling_per_second = result.fills / seconds
    result.ceiling_postgres_cpu = spent.postgres / result.fills * 1e6


async def _written(owner: asyncpg.Connection, tell: Tell) -> list[bytes]:
    """The ledger's rows in COPY's binary format, one piece for each transaction that wrote some.

    All rows of a transaction carry the time at which it began, and no others do: a partition has one writer.
    """
    await owner.execute("CREATE INDEX ON entries (recorded_at)")
    times = await owner.fetch("SELECT DISTINCT recorded_at FROM entries ORDER BY 1")
    groups = []
    for number, row in enumerate(times):
        rows = f"SELECT {', '.join(COLUMNS)} FROM entries WHERE recorded_at = $1 ORDER BY ctid"  # noqa: S608 - our own names
        pieces: list[bytes] = []
        await owner.copy_from_query(rows, row[0], output=_collect(pieces), format="binary")
        groups.append(b"".join(pieces))
        tell("taking the rows out", number + 1, len(times))
    return groups


def _collect(pieces: list[bytes]) -> Callable[[bytes], Coroutine[None, None, None]]:
    async def collect(piece: bytes) -> None:
        pieces.append(piece)

    return collect


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), SLICE_BYTES):
        yield data[start : start + SLICE_BYTES]
