"""A market crash: thousands of liquidation fills in one millisecond, with rich and with dry funds.

The fills are appended in one transaction of the stream server, so that all have the same millisecond, at which the clocks
start. A matching engine answers the ADL rounds during or after the burst; marks arrive once per second. The engine is a
separate process with a watched event loop (watched.py). The benchmark polls PostgreSQL for the offset and open orders until
everything is complete, or the time limit is reached.

The CPU until the burst is durable is the cost of a dry burst relative to a rich one. The cost of the answers after that is
shown separately.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import product
from pathlib import Path

import msgspec
import psutil
from answering import Exchange
from burst import Burst, Funds
from ground import (
    STREAM,
    Cost,
    Ledger,
    ServiceProcess,
    append,
    bodies,
    connection_to,
    cost,
    id_order,
    new_ledger,
    running_engine,
    settled_to,
    stream_of,
    until_settled,
)
from report import MEMORY_MB_MAX, Target, at_most, table_of, target_table
from rich.console import Console
from rich.table import Table
from throughput import ShowProgress
from watched import Report

from fundsvc.local.servers import EmbeddedServers
from fundsvc.streams.client import StreamClient

FUNDS: tuple[Funds, ...] = ("rich", "dry")
ALLOCATIONS, ANSWERS = ("queue", "capped", "pro_rata"), ("during", "after")
"""The variants: the state of the funds, the allocation, and when the matching engine answers."""

DRY_TO_RICH_MAX = {"queue": 5.0, "capped": 5.0, "pro_rata": 10.0}
"""Limits of the CPU of a dry burst relative to a rich one, by allocation."""

HOLD_MS_MAX = 50.0
"""Five times loop_ms_max: one bounded piece of work and the other tasks of the loop."""

POLL_SECONDS = 0.02
MARK_SECONDS = 1.0


class Size(msgspec.Struct, frozen=True):
    """The size of a burst, and its time limit."""

    fills: int
    positions: int
    seconds_max: float


class Load(msgspec.Struct, frozen=True):
    """One burst."""

    size: Size
    funds: Funds
    contracts: int
    per_message: int
    allocation: str
    answers: str


class Storm(msgspec.Struct, kw_only=True):
    """The result of one burst. Seconds are since its millisecond, None if the time limit was reached.

    `announced` is the number of rounds in the ledger, `seen` of rounds that the matching engine read. `faults` are
    descriptions.
    """

    load: Load
    durable_seconds: float | None = None
    announced_seconds: float | None = None
    ended_seconds: float | None = None
    engine_cpu: float = 0.0
    postgres_cpu: float = 0.0
    engine_cpu_all: float = 0.0
    postgres_cpu_all: float = 0.0
    entries: int = 0
    orders: int = 0
    orders_open: int = 0
    announced: int = 0
    seen: int = 0
    hold_ms: float = 0.0
    late_ms: float = 0.0
    reloads: int = 0
    memory_mb: float = 0.0
    faults: list[str] = []
    to_rich: float | None = None

    @property
    def cpu(self) -> float:
        """CPU seconds of the engine and PostgreSQL until the burst was durable."""
        return self.engine_cpu + self.postgres_cpu


class Results(msgspec.Struct):
    """All bursts, and the targets."""

    storms: list[Storm]
    targets: list[Target]


async def measure(servers: EmbeddedServers, loads: Sequence[Load], show_progress: ShowProgress) -> Results:
    """Runs the bursts one after the other, each on a new ledger."""
    storms = []
    for number, load in enumerate(loads):
        show_progress(
            f"{load.funds}, {load.allocation}, {load.contracts} contracts, {load.per_message} a message", number, len(loads)
        )
        storms.append(await _storm(servers, load, f"bench_storm_{number}"))
    _compare(storms)
    return Results(storms, list(_judge(storms)))


def loads(
    funds: Sequence[Funds],
    contracts: Sequence[int],
    per_message: Sequence[int],
    allocations: Sequence[str],
    answers: str,
    size: Size,
) -> list[Load]:
    """Returns every combination. Rich funds have no ADL, so they are measured once for all allocations."""
    return [
        Load(size, kind, number, per, allocation, answers)
        for number, per, kind in product(contracts, per_message, funds)
        for allocation in (allocations if kind == "dry" else allocations[:1])
    ]


async def _storm(servers: EmbeddedServers, load: Load, name: str) -> Storm:
    storm = Storm(load=load)
    report = servers.directory / "watched.json"
    report.unlink(missing_ok=True)
    burst = Burst(load.contracts, load.size.positions, load.size.fills, load.funds)
    async with new_ledger(servers, name) as ledger:
        async with _prepared(servers, ledger, burst, load, report) as engine, stream_of(ledger) as client:
            run = _Run(servers, ledger, engine, client, burst, storm)
            await run.through()
        _read_report(report, run.began, storm)
        await _count(ledger, storm)
    return storm


@asynccontextmanager
async def _prepared(
    servers: EmbeddedServers, ledger: Ledger, burst: Burst, load: Load, report: Path
) -> AsyncIterator[ServiceProcess]:
    """Yields an engine that has settled all events before the burst."""
    program = (str(Path(__file__).with_name("watched.py")), str(report))
    policy = json.dumps({"allocation": load.allocation})
    async with stream_of(ledger) as client, connection_to(ledger.owner_dsn) as connection:
        last_id = await append(client, STREAM, bodies(burst.preparation(), 100, "json"), "json")
        log = servers.directory / "engine.log"
        async with running_engine(ledger, log, program, FUNDSVC_POLICY_DEFAULT=policy) as engine:
            await until_settled(connection, last_id, engine, POLL_SECONDS)
            await connection.execute("CHECKPOINT")
            yield engine


class _Run:
    """A burst with its engine and matching engine; `began` is its millisecond (Unix time in seconds)."""

    def __init__(
        self, servers: EmbeddedServers, ledger: Ledger, engine: ServiceProcess, client: StreamClient, burst: Burst, storm: Storm
    ) -> None:
        self.began = 0.0
        self._servers = servers
        self._ledger = ledger
        self._engine = engine
        self._client = client
        self._burst = burst
        self._storm = storm
        self._exchange = Exchange(client, burst)
        self._durable = asyncio.Event()

    async def through(self) -> None:
        """Sends the burst and follows it until it is complete, the time limit is reached, or the engine ends."""
        before = cost(self._servers, self._engine)
        last = await self._append_at_once()
        helpers = [asyncio.create_task(self._answer()), asyncio.create_task(self._move_marks())]
        try:
            async with asyncio.timeout(self._storm.load.size.seconds_max):
                await self._until_ended(last, before)
        except TimeoutError:
            self._storm.faults.append(f"not complete within {self._storm.load.size.seconds_max:g} s")
        except RuntimeError as error:
            self._storm.faults.append(str(error))
        await self._end(helpers, before)

    async def _append_at_once(self) -> tuple[int, int]:
        """Appends the burst in one transaction; returns the id of its last message."""
        async with self._client.pipeline(transaction=True) as pipeline:
            for body in bodies(self._burst.fills(), self._storm.load.per_message, "json"):
                pipeline.xadd(STREAM, {"json": body})
            ids = [id_order(stream_id.decode()) for stream_id in await pipeline.execute()]
        self.began = ids[0][0] / 1000
        return ids[-1]

    async def _until_ended(self, last: tuple[int, int], before: Cost) -> None:
        async with connection_to(self._ledger.owner_dsn) as connection:
            while await settled_to(connection) < last:
                self._engine.check()
                await asyncio.sleep(POLL_SECONDS)
            self._storm.durable_seconds = time.time() - self.began
            self._storm.engine_cpu, self._storm.postgres_cpu, *_ = cost(self._servers, self._engine).since(before)
            self._durable.set()
            while await connection.fetchval(_OPEN):
                self._engine.check()
                await asyncio.sleep(POLL_SECONDS)
            self._storm.ended_seconds = time.time() - self.began

    async def _end(self, helpers: Sequence[asyncio.Task[None]], before: Cost) -> None:
        storm, exchange = self._storm, self._exchange
        for helper in helpers:
            helper.cancel()
        ends = await asyncio.gather(*helpers, return_exceptions=True)
        storm.faults += [f"the matching engine failed: {end!r}" for end in ends if isinstance(end, Exception)]
        # An engine that ended unexpectedly is already recorded as a fault.
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            storm.memory_mb = self._engine.memory_peak_mb()
            storm.engine_cpu_all, storm.postgres_cpu_all, *_ = cost(self._servers, self._engine).since(before)
        storm.seen = len(exchange.seen)
        if exchange.seen and storm.ended_seconds is not None:
            storm.announced_seconds = exchange.last_ms / 1000 - self.began

    async def _answer(self) -> None:
        if self._storm.load.answers == "after":
            await self._durable.wait()
        await self._exchange.run()

    async def _move_marks(self) -> None:
        while True:
            await append(self._client, STREAM, bodies(self._burst.marks(), 100, "json"), "json")
            await asyncio.sleep(MARK_SECONDS)


def _read_report(path: Path, began: float, storm: Storm) -> None:
    """Reads the report of the engine; returns an empty one if the engine was killed."""
    if not path.exists():
        storm.faults.append("the engine did not stop in time")
        return
    report = msgspec.json.decode(path.read_bytes(), type=Report)
    holds = [hold for hold in report.holds if hold.at >= began]
    storm.hold_ms = max((hold.cpu_ms for hold in holds), default=0.0)
    storm.late_ms = max((hold.late_ms for hold in holds), default=0.0)
    storm.reloads = report.loads - 1


async def _count(ledger: Ledger, storm: Storm) -> None:
    """Records the final state of the ledger and the result of its audit."""
    async with connection_to(ledger.owner_dsn) as connection:
        (row,) = await connection.fetch(_COUNTS)
    before = storm.load.contracts if storm.load.funds == "rich" else 0
    storm.entries, storm.orders, storm.orders_open = row["entries"] - before, row["orders"], row["open"]
    storm.announced = row["announced"]
    if row["rejected"]:
        storm.faults.append(f"{row['rejected']} events were rejected")
    if storm.ended_seconds is not None:
        storm.faults += await asyncio.to_thread(_audit, ledger)


def _audit(ledger: Ledger) -> list[str]:
    environment = {**os.environ, "FUNDSVC_DATABASE_DSN": ledger.dsn, "FUNDSVC_STREAM_URL": ledger.stream_url}
    command = [sys.executable, "-m", "fundsvc", "audit"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return [f"the audit failed: {done.stdout[-500:]}{done.stderr[-500:]}"] if done.returncode else []


_OPEN = "SELECT count(*) FROM adl_orders WHERE state = 'open'"
_COUNTS = f"""
SELECT (SELECT count(*) FROM entries WHERE kind IN ('surplus', 'flat', 'shortfall')) AS entries,
    (SELECT count(*) FROM adl_orders) AS orders, ({_OPEN}) AS open, (SELECT count(*) FROM rejected) AS rejected,
    (SELECT coalesce(sum(round - (state = 'uncovered')::integer), 0) FROM adl_orders) AS announced
"""  # noqa: S608 - a constant
"""An uncovered order has a last round without positions, which is not announced."""


def _compare(storms: Sequence[Storm]) -> None:
    """Sets the cost of dry bursts relative to the rich one of the same shape, if that took long enough to measure."""
    rich = {
        (storm.load.contracts, storm.load.per_message): storm
        for storm in storms
        if storm.load.funds == "rich" and storm.durable_seconds is not None and storm.cpu
    }
    for storm in storms:
        beside = rich.get((storm.load.contracts, storm.load.per_message))
        if beside and storm.load.funds == "dry" and storm.durable_seconds is not None:
            storm.to_rich = storm.cpu / beside.cpu


def _judge(storms: Sequence[Storm]) -> Iterator[Target]:
    unfinished = sum(storm.ended_seconds is None for storm in storms)
    yield at_most("incomplete bursts", unfinished, 0, "{:.0f}")
    yield at_most("bursts with faults", sum(bool(storm.faults) for storm in storms), 0, "{:.0f}")
    yield at_most("reloads", sum(storm.reloads for storm in storms), 0, "{:.0f}")
    yield at_most(
        "rounds that the matching engine did not read", sum(storm.announced - storm.seen for storm in storms), 0, "{:.0f}"
    )
    yield at_most("longest hold of the loop, ms of CPU", max(storm.hold_ms for storm in storms), HOLD_MS_MAX, "{:.0f}")
    yield at_most("peak memory of the engine, MB", max(storm.memory_mb for storm in storms), MEMORY_MB_MAX, "{:.0f}")
    for allocation, most in DRY_TO_RICH_MAX.items():
        ratios = [storm.to_rich for storm in storms if storm.to_rich is not None and storm.load.allocation == allocation]
        if ratios:
            yield at_most(f"CPU of a dry burst / rich burst, {allocation}", max(ratios), most, "{:.1f}")


def show(results: Results, console: Console) -> None:
    """Prints the tables and all faults."""
    first = results.storms[0].load.size
    answers = results.storms[0].load.answers
    console.print(f"{first.fills:,} fills in one millisecond, {first.positions:,} positions, answers {answers} the burst")
    console.print(_times_table(results.storms))
    console.print(_load_table(results.storms))
    for storm in results.storms:
        for fault in storm.faults:
            console.print(f"{' '.join(_key(storm.load))}: {fault}", markup=False)
    console.print(target_table(results.targets))


def _times_table(storms: Sequence[Storm]) -> Table:
    table = table_of(
        "Seconds from the first XADD", *_KEY, "durable", "announced", "ended", "entries", "orders", "open", "rounds", "seen"
    )
    for storm in storms:
        times = (storm.durable_seconds, storm.announced_seconds, storm.ended_seconds)
        counts = (storm.entries, storm.orders, storm.orders_open, storm.announced, storm.seen)
        table.add_row(*_key(storm.load), *map(_seconds, times), *(f"{count:,}" for count in counts))
    return table


def _load_table(storms: Sequence[Storm]) -> Table:
    table = table_of(
        "CPU seconds of engine and PostgreSQL until durable and until the end; longest hold and delay of the loop", *_KEY,
        "engine", "SQL", "to rich", "all", "SQL", "hold ms", "late ms", "reloads", "MB",
    )  # fmt: skip
    for storm in storms:
        spent = (storm.engine_cpu, storm.postgres_cpu)
        numbers = (storm.engine_cpu_all, storm.postgres_cpu_all)
        table.add_row(
            *_key(storm.load), *(f"{seconds:.2f}" for seconds in spent), f"{storm.to_rich:.1f}" if storm.to_rich else "",
            *(f"{seconds:.2f}" for seconds in numbers), f"{storm.hold_ms:.0f}", f"{storm.late_ms:.0f}", str(storm.reloads),
            f"{storm.memory_mb:.0f}",
        )  # fmt: skip
    return table


_KEY = ("funds", "contracts", "per msg")


def _key(load: Load) -> tuple[str, ...]:
    funds = f"dry, {load.allocation}" if load.funds == "dry" else "rich"
    return funds, str(load.contracts), str(load.per_message)


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"
