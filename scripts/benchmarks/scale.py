"""How the settling of many partitions grows with the number of engine processes.

One, two and four engines settle the same fills in turns, each time on a new ledger with as many partitions. The engines share
the partitions evenly before the clock starts. The backlog of each partition is written under another key while the engines
wait; then all backlogs are renamed to the streams at once. On a machine with fewer cores than processes the speed cannot grow;
the CPU per fill shows what more engines cost.
"""

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec
from ground import (
    SETTLED_SECONDS_MAX,
    Ledger,
    ServiceProcess,
    append,
    bodies,
    connection_to,
    id_order,
    new_ledger,
    postgres_cpu_seconds,
    stream_of,
)
from market import Market
from report import Target, at_most, table_of, target_table
from rich.console import Console
from throughput import POLL_SECONDS, ShowProgress

from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Event, Fill, Listing
from fundsvc.local.servers import EmbeddedServers
from fundsvc.streams.client import StreamClient, stream_key

CPU_GROWTH_MAX = 1.05
"""Target: CPU per fill of engines and PostgreSQL with several engines, relative to one."""

EVENTS_PER_APPEND = 20_000


class Load(msgspec.Struct, frozen=True):
    """Fills of a turn, fills per message, contracts, partitions, and the numbers of engines."""

    fills: int
    per_message: int
    contracts: int
    partitions: int
    engines: Sequence[int]
    rounds: int


class Turn(msgspec.Struct, frozen=True):
    """Fills per second, and microseconds of CPU per fill of all engines and of PostgreSQL."""

    fills_per_second: float
    engine_us: float
    postgres_us: float


class Row(msgspec.Struct, kw_only=True):
    """Medians of the turns with a number of engines. Ratios are medians of the ratios to one engine of the same round."""

    engines: int
    fills_per_second: float
    engine_us: float
    postgres_us: float
    speed_ratio: float
    cpu_ratio: float
    engine_ratio: float


class Results(msgspec.Struct, kw_only=True):
    """The results of one run."""

    load: Load
    rows: list[Row]
    targets: list[Target] = []


async def measure(servers: EmbeddedServers, load: Load, show_progress: ShowProgress) -> Results:
    """Measures in turns."""
    turns: dict[int, list[Turn]] = defaultdict(list)
    for number in range(load.rounds):
        for engines in load.engines:
            show_progress(f"{engines} engines", number, load.rounds)
            turns[engines].append(await _turn(servers, load, engines))
    rows = [_row(engines, taken, turns[load.engines[0]]) for engines, taken in turns.items()]
    targets = [
        at_most(f"CPU per fill of {row.engines} engines relative to {load.engines[0]}", row.cpu_ratio, CPU_GROWTH_MAX, "{:.2f}")
        for row in rows[1:]
    ]
    return Results(load=load, rows=rows, targets=targets)


def _row(engines: int, turns: Sequence[Turn], base: Sequence[Turn]) -> Row:
    pairs = list(zip(turns, base, strict=True))

    def cpu(turn: Turn) -> float:
        return turn.engine_us + turn.postgres_us

    return Row(
        engines=engines,
        fills_per_second=statistics.median(turn.fills_per_second for turn in turns),
        engine_us=statistics.median(turn.engine_us for turn in turns),
        postgres_us=statistics.median(turn.postgres_us for turn in turns),
        speed_ratio=statistics.median(turn.fills_per_second / one.fills_per_second for turn, one in pairs),
        cpu_ratio=statistics.median(cpu(turn) / cpu(one) for turn, one in pairs),
        engine_ratio=statistics.median(turn.engine_us / one.engine_us for turn, one in pairs),
    )


async def _turn(servers: EmbeddedServers, load: Load, engines: int) -> Turn:
    """Settles the fills with a number of engines on a new ledger."""
    market = Market(load.contracts)
    async with (
        new_ledger(servers, f"bench_scale_{engines}", partitions=load.partitions) as ledger,
        stream_of(ledger) as client,
        connection_to(ledger.owner_dsn) as connection,
        _running(ledger, connection, servers.directory, load, engines) as processes,
    ):
        last_ids = await _stage(client, load, [*market.listings(), *market.fills(load.fills)])
        await connection.execute("CHECKPOINT")
        before, started = _cpu_seconds(servers, processes), time.perf_counter()
        await _release(client, last_ids)
        await _until(processes, lambda: _is_settled(connection, last_ids))
        seconds, after = time.perf_counter() - started, _cpu_seconds(servers, processes)
        settled = await connection.fetchval("SELECT sum(entry)::bigint FROM funds")
    if settled != load.fills:
        raise RuntimeError(f"{load.fills} fills were sent, but {settled} entries were written")
    engine, postgres = ((now - then) / load.fills * 1e6 for now, then in zip(after, before, strict=True))
    return Turn(load.fills / seconds, engine, postgres)


def _cpu_seconds(servers: EmbeddedServers, processes: Sequence[ServiceProcess]) -> tuple[float, float]:
    return sum(process.cpu_seconds() for process in processes), postgres_cpu_seconds(servers)


def _staged(partition: int) -> str:
    """Returns the key of a prepared backlog, in the slot of its stream."""
    return f"fundsvc:{{{partition}}}:staged"


async def _stage(client: StreamClient, load: Load, events: Sequence[Fill | Listing]) -> dict[int, str]:
    """Prepares a backlog for each partition; returns the ids of their last messages."""
    split: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        symbol = event.symbol if isinstance(event, Fill) else str(event.contract["symbol"])
        split[partition_of(symbol, load.partitions)].append(event)
    last_ids = {}
    for partition, own in split.items():
        for start in range(0, len(own), EVENTS_PER_APPEND):
            run = bodies(own[start : start + EVENTS_PER_APPEND], load.per_message, "json")
            last_ids[partition] = await append(client, _staged(partition), run, "json")
    return last_ids


async def _release(client: StreamClient, partitions: Iterable[int]) -> None:
    """Makes the prepared backlogs available at once."""
    async with client.pipeline(transaction=True) as pipeline:
        for partition in partitions:
            pipeline.rename(_staged(partition), stream_key(partition))
        await pipeline.execute()


@asynccontextmanager
async def _running(
    ledger: Ledger, connection: asyncpg.Connection, directory: Path, load: Load, engines: int
) -> AsyncIterator[Sequence[ServiceProcess]]:
    """Yields engines that share the partitions evenly; stops them at the end."""
    settings = {"FUNDSVC_STREAM_PARTITIONS": str(load.partitions)}
    processes = [ServiceProcess(ledger, directory / f"engine{number}.log", **settings) for number in range(engines)]
    try:
        await _until(processes, lambda: _is_shared(connection, load.partitions, engines))
        yield processes
    finally:
        await asyncio.gather(*(asyncio.to_thread(process.stop) for process in processes))


async def _is_shared(connection: asyncpg.Connection, partitions: int, engines: int) -> bool:
    shares = await connection.fetch("SELECT count(*) FROM partitions WHERE lease_until > now() GROUP BY owner")
    counts = [row[0] for row in shares]
    return sum(counts) == partitions and len(counts) == engines and max(counts) - min(counts) <= 1


async def _is_settled(connection: asyncpg.Connection, last_ids: Mapping[int, str]) -> bool:
    rows = await connection.fetch("SELECT partition, last_id FROM partitions")
    return all(id_order(last_id) >= id_order(last_ids.get(partition, "0-0")) for partition, last_id in rows)


async def _until(processes: Sequence[ServiceProcess], check: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + SETTLED_SECONDS_MAX
    while not await check():
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"the engines were not ready within {SETTLED_SECONDS_MAX:g} s")
        await asyncio.sleep(POLL_SECONDS)


def show(results: Results, console: Console) -> None:
    """Prints the results and the targets."""
    load = results.load
    table = table_of(
        f"{load.fills:,} fills of {load.contracts} contracts in {load.partitions} partitions; CPU in microseconds per fill",
        "engines", "fills/s", "to one", "engines' CPU", "PostgreSQL's CPU", "CPU to one", "of engines",
    )  # fmt: skip
    for row in results.rows:
        table.add_row(
            str(row.engines), f"{row.fills_per_second:,.0f}", f"{row.speed_ratio:.2f}", f"{row.engine_us:.2f}",
            f"{row.postgres_us:.2f}", f"{row.cpu_ratio:.2f}", f"{row.engine_ratio:.2f}",
        )  # fmt: skip
    console.print(table, target_table(results.targets))
