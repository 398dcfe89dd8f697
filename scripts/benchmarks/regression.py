"""A stream that loses its newest messages: how much the engine reads again, and how long, with checkpoints and without.

A long stream is settled, copied, and continued. Then the copy replaces it, as after a failover to a replica that was behind.
The engine starts, reads the copy again, and settles a new fill. All times begin with the start of the process. The stream is
settled faster than it would arrive, so a checkpoint is made before the last fills of the copy: those of the time between two.
"""

import asyncio
import time
from collections.abc import Iterator
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
from redis.asyncio import Redis
from report import table_of
from rich.console import Console
from throughput import POLL_SECONDS, ShowProgress

from fundsvc.core.events import Event, Fill, Listing
from fundsvc.local.servers import EmbeddedServers

MESSAGES_PER_APPEND = 500


class Load(msgspec.Struct, frozen=True):
    """Fills of the long stream, those after the last checkpoint of the copy, those that are lost, contracts, and fills in a
    message.
    """

    fills: int
    recent: int
    lost: int
    contracts: int
    per_message: int


class Regression(msgspec.Struct, frozen=True):
    """Events that were settled before and read again; seconds and CPU seconds until a new fill is settled."""

    way: str
    again: int
    seconds: float
    cpu: float


class Results(msgspec.Struct, kw_only=True):
    """The results of one run, and the number of checkpoints of the long stream."""

    load: Load
    checkpoints: int
    regressions: list[Regression]


async def measure(servers: EmbeddedServers, load: Load, show_progress: ShowProgress) -> Results:
    """Settles a long stream, and replaces it twice by an older copy: with checkpoints, and without."""
    log = servers.directory / "regression.log"
    market = _Market(load.contracts)
    async with new_ledger(servers, "bench_regression") as ledger, connection_to(ledger.owner_dsn) as connection:
        await _settle(ledger, connection, market.listings(), load, log, show_progress)
        for count in (load.fills - load.recent, load.recent):  # The first commit of an engine makes a checkpoint.
            await _settle(ledger, connection, market.fills(count), load, log, show_progress)
        async with _patient_client(ledger) as client:
            copy = await client.dump(STREAM) or b""
        checkpoints = await connection.fetchval("SELECT count(*) FROM stream_checkpoints")
        regressions = []
        for way in ("with checkpoints", "without"):
            await _settle(ledger, connection, market.fills(load.lost), load, log, show_progress)
            if way == "without":
                await connection.execute("TRUNCATE stream_checkpoints")
            async with _patient_client(ledger) as client:
                await client.restore(STREAM, 0, copy, replace=True)
                last_id = await append(client, STREAM, bodies(market.fills(1), 1, "json"), "json")
            show_progress(way, 0, 0)
            regressions.append(await _regress(ledger, connection, log, way, last_id))
    return Results(load=load, checkpoints=checkpoints, regressions=regressions)


def _patient_client(ledger: Ledger) -> Redis:
    """Returns a client that waits for the copy of a long stream."""
    client: Redis = Redis.from_url(ledger.stream_url)
    return client


async def _settle(
    ledger: Ledger,
    connection: asyncpg.Connection,
    events: Iterator[Event],
    load: Load,
    log: Path,
    show_progress: ShowProgress,
) -> None:
    done, run, last_id = 0, [], "0-0"
    async with running_engine(ledger, log) as engine, stream_of(ledger) as client:
        for body in bodies(events, load.per_message, "json"):
            run.append(body)
            if len(run) == MESSAGES_PER_APPEND:
                last_id = await append(client, STREAM, run, "json")
                done += len(run) * load.per_message
                run.clear()
                show_progress("settling", done, load.fills)
                await until_settled(connection, last_id, engine, POLL_SECONDS)
        if run:
            last_id = await append(client, STREAM, run, "json")
        await until_settled(connection, last_id, engine, POLL_SECONDS)


async def _regress(ledger: Ledger, connection: asyncpg.Connection, log: Path, way: str, last_id: str) -> Regression:
    entries, duplicates = "SELECT count(*) FROM entries", "SELECT duplicates FROM partitions"
    settled, known = await connection.fetchval(entries), await connection.fetchval(duplicates)
    started = time.perf_counter()
    engine = ServiceProcess(ledger, log)
    try:
        while await connection.fetchval(entries) == settled:
            engine.check()
            await asyncio.sleep(POLL_SECONDS)
        seconds, cpu = time.perf_counter() - started, engine.cpu_seconds()
        await until_settled(connection, last_id, engine, POLL_SECONDS)
    finally:
        await asyncio.to_thread(engine.stop)
    return Regression(way, await connection.fetchval(duplicates) - known, seconds, cpu)


def show(results: Results, console: Console) -> None:
    """Prints the results."""
    load = results.load
    title = f"{load.lost:,} of {load.fills + load.lost:,} fills of {load.contracts:,} contracts are lost"
    table = table_of(title, "the stream is read", "events read again", "seconds", "CPU seconds")
    for one in results.regressions:
        table.add_row(one.way, f"{one.again:,}", f"{one.seconds:.2f}", f"{one.cpu:.2f}")
    console.print(table)
    console.print(f"{results.checkpoints} checkpoints of the long stream")


class _Market:
    """Contracts, and numbered fills of each in turn."""

    def __init__(self, contracts: int) -> None:
        self._symbols = [f"M{number:05d}USDTM" for number in range(contracts)]
        self._sent = 0

    def listings(self) -> Iterator[Event]:
        for symbol in self._symbols:
            names = {"baseCurrency": symbol.removesuffix("USDTM"), "quoteCurrency": "USDT", "settleCurrency": "USDT"}
            yield Listing({"symbol": symbol, **names, "multiplier": 0.001, "isInverse": False, "status": "Open"})

    def fills(self, count: int) -> Iterator[Event]:
        for number in range(self._sent, self._sent + count):
            symbol, seq = self._symbols[number % len(self._symbols)], number // len(self._symbols) + 1
            yield Fill(symbol, seq, "sell", 1, "20001", "20000", time.time_ns() // 1_000_000, trade_id=f"t{number}")
        self._sent += count
