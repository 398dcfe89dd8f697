"""The restart of an engine with many positions, and the WAL of saving those that changed.

One contract has half of the positions, the others share the rest. Before the restart, the stream gets a fill that its fund
pays, and one that its fund cannot pay, so that ADL ranks the book of its contract. All times begin with the start of the
process.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec
from ground import (
    STREAM,
    Ledger,
    ServiceProcess,
    append,
    bodies,
    connection_to,
    new_ledger,
    running_engine,
    stream_of,
    until_settled,
)
from report import Target, at_most, table_of, target_table
from rich.console import Console
from throughput import POLL_SECONDS, ShowProgress

from fundsvc.core.events import Event, Fill, Listing, Mark, Position
from fundsvc.local.servers import EmbeddedServers

SAVE_SECONDS = 2
"""The interval of saving books while the ledger is prepared."""

NEVER_SAVED_SECONDS = 3600
"""The interval with which no book is saved, so that a restart reads the tail of the stream."""

PER_MESSAGE = 100
MESSAGES_PER_APPEND = 500
PRICE = 20_000
LOADED_SECONDS_MAX = 900.0

TARGET_CONTRACTS, TARGET_POSITIONS = 3_000, 1_000_000
FIRST_FILL_CPU_MAX = 3.0
WAL_BYTES_MAX = 400.0
"""Targets: CPU seconds up to the first settled fill, and bytes of WAL per changed position."""


class Load(msgspec.Struct, frozen=True):
    """Contracts, positions, and positions that changed after the last save of the books."""

    contracts: int
    positions: int
    changed: int


class Moment(msgspec.Struct, frozen=True):
    """Seconds since the start of the process, and its CPU seconds."""

    wall: float
    cpu: float


class Results(msgspec.Struct, kw_only=True):
    """The results of one run. `wal_bytes` is the WAL until the changes are saved, with all else that a start writes."""

    load: Load
    first_fill: Moment
    first_order: Moment
    loaded: Moment
    wal_bytes: int
    memory_mb: float
    targets: list[Target] = []


async def measure(servers: EmbeddedServers, load: Load, show_progress: ShowProgress) -> Results:
    """Fills the books, changes some positions that are not saved, and restarts the engine."""
    log = servers.directory / "restart.log"
    async with new_ledger(servers, "bench_restart") as ledger, connection_to(ledger.owner_dsn) as connection:
        market = _Market(load)
        last_id = await _prepare(ledger, connection, market, load, log, show_progress)
        show_progress("restart", 0, 0)
        async with stream_of(ledger) as client:
            first_id = await append(client, STREAM, bodies([market.paid_fill()], 1, "json"), "json")
            await append(client, STREAM, bodies([market.unpaid_fill()], 1, "json"), "json")
        await asyncio.to_thread(log.write_bytes, b"")
        results = await _restart(ledger, connection, load, log, first_id, last_id)
    results.targets = list(_judge(results))
    return results


async def _prepare(
    ledger: Ledger, connection: asyncpg.Connection, market: "_Market", load: Load, log: Path, show_progress: ShowProgress
) -> str:
    """Fills and saves the books, and changes some positions; returns the id of the last message."""
    async with _engine(ledger, log, SAVE_SECONDS) as engine:
        await _settle(
            ledger, connection, engine, market.listings(), lambda done: show_progress("listings", done, load.contracts)
        )
        last_id = await _settle(
            ledger, connection, engine, market.positions(), lambda done: show_progress("positions", done, load.positions)
        )
        await _until_saved(connection, engine, last_id)
    async with _engine(ledger, log, NEVER_SAVED_SECONDS) as engine:
        await _until_loaded(log, engine)
        last_id = await _settle(ledger, connection, engine, market.changes(load.changed))
    # Else an automatic vacuum of earlier saves, or the first images of all pages, would count.
    await connection.execute("VACUUM books")
    await connection.execute("VACUUM book_parts")
    return last_id


async def _restart(
    ledger: Ledger, connection: asyncpg.Connection, load: Load, log: Path, first_id: str, last_id: str
) -> Results:
    wal, started = await _wal(connection), time.perf_counter()
    engine = ServiceProcess(ledger, log, FUNDSVC_LOG_LEVEL="info")

    def now() -> Moment:
        return Moment(time.perf_counter() - started, engine.cpu_seconds())

    try:
        await until_settled(connection, first_id, engine, POLL_SECONDS)
        first_fill = now()
        while not await connection.fetchval("SELECT count(*) FROM adl_orders"):
            engine.check()
            await asyncio.sleep(POLL_SECONDS)
        first_order = now()
        await _until_loaded(log, engine)
        loaded, memory = now(), engine.memory_peak_mb()
        await _until_saved(connection, engine, last_id)
        wal = await _wal(connection) - wal
    finally:
        await asyncio.to_thread(engine.stop)
    return Results(load=load, first_fill=first_fill, first_order=first_order, loaded=loaded, wal_bytes=wal, memory_mb=memory)


async def _until_loaded(log: Path, engine: ServiceProcess) -> None:
    deadline = time.perf_counter() + LOADED_SECONDS_MAX
    while "books loaded" not in await asyncio.to_thread(log.read_text):
        engine.check()
        if time.perf_counter() > deadline:
            raise RuntimeError(f"the engine did not load its books within {LOADED_SECONDS_MAX:g} s")
        await asyncio.sleep(POLL_SECONDS)


def _judge(results: Results) -> Iterator[Target]:
    load = results.load
    if (load.contracts, load.positions) == (TARGET_CONTRACTS, TARGET_POSITIONS):
        yield at_most("CPU to the first settled fill, s", results.first_fill.cpu, FIRST_FILL_CPU_MAX, "{:.2f}")
        if load.changed >= load.contracts:
            each = results.wal_bytes / load.changed
            yield at_most("WAL per changed position, bytes", each, WAL_BYTES_MAX, "{:,.0f}")


def show(results: Results, console: Console) -> None:
    """Prints the results and the targets."""
    load = results.load
    title = f"Restart with {load.positions:,} positions of {load.contracts:,} contracts"
    table = table_of(title, "until", "seconds", "CPU seconds")
    for name, moment in (
        ("first settled fill", results.first_fill),
        ("first ADL order", results.first_order),
        ("all books loaded", results.loaded),
    ):
        table.add_row(name, f"{moment.wall:.2f}", f"{moment.cpu:.2f}")
    console.print(table)
    console.print(f"peak memory {results.memory_mb:,.0f} MB")
    wal = f"{results.wal_bytes / 1e6:,.2f} MB, {results.wal_bytes / max(1, load.changed):,.0f} bytes each"
    console.print(f"WAL of saving {load.changed:,} changed positions: {wal}")
    if results.targets:
        console.print(target_table(results.targets))


@asynccontextmanager
async def _engine(ledger: Ledger, log: Path, book_seconds: int) -> AsyncIterator[ServiceProcess]:
    await asyncio.to_thread(log.write_bytes, b"")
    settings = {"FUNDSVC_ENGINE_BOOK_SECONDS": str(book_seconds), "FUNDSVC_LOG_LEVEL": "info"}
    async with running_engine(ledger, log, **settings) as engine:
        yield engine


async def _settle(
    ledger: Ledger,
    connection: asyncpg.Connection,
    engine: ServiceProcess,
    events: Iterator[Event],
    show_done: Callable[[int], None] = lambda _: None,
) -> str:
    """Appends events and waits until they are settled; returns the id of the last message."""
    last_id, done, run = "0-0", 0, []
    async with stream_of(ledger) as client:
        for body in bodies(events, PER_MESSAGE, "msgpack"):
            run.append(body)
            if len(run) == MESSAGES_PER_APPEND:
                last_id = await append(client, STREAM, run, "msgpack")
                done += len(run) * PER_MESSAGE
                run.clear()
                show_done(done)
                await until_settled(connection, last_id, engine, POLL_SECONDS)
        if run:
            last_id = await append(client, STREAM, run, "msgpack")
            await until_settled(connection, last_id, engine, POLL_SECONDS)
    return last_id


async def _until_saved(connection: asyncpg.Connection, engine: ServiceProcess, last_id: str) -> None:
    """Waits until all books are saved after a message."""
    milliseconds, number = map(int, last_id.split("-"))
    while await connection.fetchval(_UNSAVED, milliseconds, number):
        engine.check()
        await asyncio.sleep(POLL_SECONDS)


_UNSAVED = """
SELECT count(*) FROM contracts c LEFT JOIN books b USING (symbol)
WHERE b.last_id IS NULL
    OR (split_part(b.last_id, '-', 1)::bigint, split_part(b.last_id, '-', 2)::bigint) < ($1::bigint, $2::bigint)
"""


async def _wal(connection: asyncpg.Connection) -> int:
    """Returns the bytes of WAL written since the creation of the cluster."""
    return int(await connection.fetchval("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))


class _Market:
    """Contracts with positions, and events that change them."""

    def __init__(self, load: Load) -> None:
        self._symbols = [f"M{number:05d}USDTM" for number in range(load.contracts)]
        self._positions = load.positions
        self._random = random.Random(20261130)  # noqa: S311 - a market, not a secret

    def listings(self) -> Iterator[Event]:
        for symbol in self._symbols:
            yield Listing(
                {
                    "symbol": symbol,
                    "baseCurrency": symbol.removesuffix("USDTM"),
                    "quoteCurrency": "USDT",
                    "settleCurrency": "USDT",
                    "multiplier": 0.001,
                    "isInverse": False,
                    "status": "Open",
                }
            )
            yield Mark(symbol, str(PRICE), self._ts())

    def positions(self) -> Iterator[Event]:
        return (self._position(number) for number in range(self._positions))

    def changes(self, count: int) -> Iterator[Event]:
        """Changes positions, at most half of them in the large book."""
        return (self._position(self._random.randrange(self._positions)) for _ in range(count))

    def paid_fill(self) -> Fill:
        return Fill(self._symbols[0], 1, "sell", 1, str(PRICE + 1), str(PRICE), self._ts())

    def unpaid_fill(self) -> Fill:
        """A shortfall of a contract without a balance, whose positions are loaded last in the order of symbols."""
        return Fill(self._symbols[-1], 2, "sell", 100, str(PRICE - 1000), str(PRICE), self._ts())

    def _position(self, number: int) -> Position:
        others = len(self._symbols) - 1
        symbol = self._symbols[0 if number % 2 == 0 or not others else 1 + number // 2 % others]
        lots = self._random.randrange(1, 100) * (1 if number % 4 < 2 else -1)
        entry = PRICE + self._random.randrange(-2000, 2000)
        return Position(symbol, f"{number * 2654435761 % 2**48:012x}", lots, str(entry), str(lots.__abs__() * 2), self._ts())

    def _ts(self) -> int:
        return time.time_ns() // 1_000_000
