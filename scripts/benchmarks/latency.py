"""The time of a fill from XADD until it is durable, at a steady rate.

Every fill is a separate message. The sender writes the fills that are due each millisecond without waiting for replies, so
that a stall of a server delays all fills behind it. The clock of a fill starts just before its XADD is written. Another
connection polls the committed offset in PostgreSQL, about POLL_SECONDS apart; the first answer at or beyond the fill's stream
id stops its clock. PostgreSQL shows a commit only when it is on disk, so the time is never too short, and too long by at most
the time between two answers, which is reported (`poll_p99_ms`). Sender and observer are one process (uvloop) with one
monotonic clock; messages are encoded beforehand, so that this process takes little of the machine.

The sender is not the producer of `fundsvc.client`: that one waits for the reply of a message and then sends all fills that
wait as one, so a stall would delay fewer messages, and it would encode them while the clock runs. `scripts/bench client`
measures it.
"""

import asyncio
import gc
import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import asyncpg
import hiredis
import msgspec
from ground import STREAM, Ledger, ServiceProcess, bodies, connection_to, cost, id_order, new_ledger, settled_to
from market import Market
from throughput import ShowProgress, listing_engine

from fundsvc.local.servers import EmbeddedServers
from fundsvc.wire.codec import Codec

TICK_SECONDS = 0.001
"""The resolution of the event loop."""

POLL_SECONDS = 0.001
"""Pause between two polls: the resolution of the event loop's timers."""

WARM_SECONDS = 1.0
"""Seconds at the start that do not count: caches fill and plans are created once in the life of a service."""

Id = tuple[int, int]


class Latency(msgspec.Struct, kw_only=True):
    """Milliseconds from XADD to durable, over `fills`; `sent_per_second` is the actual rate.

    CPU is in seconds per million fills.
    """

    fills: int
    sent_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    poll_p99_ms: float
    engine_cpu: float
    others: float


async def measure(
    servers: EmbeddedServers,
    contracts: int,
    rate: int,
    seconds: float,
    codec: Codec,
    log: Path,
    show_progress: ShowProgress,
    checkout: Path | None = None,
) -> Latency:
    """Measures the distribution at `rate` fills per second, on a new ledger; `checkout` has the measured program."""
    market = Market(contracts)
    count = int(rate * (seconds + WARM_SECONDS))
    messages = bodies(market.fills(count), 1, codec)
    commands = [hiredis.pack_command(("XADD", STREAM, "*", codec, body)) for body in messages]  # type: ignore[arg-type]
    async with (
        new_ledger(servers, "bench_latency", checkout) as ledger,
        listing_engine(ledger, market, log) as engine,
        connection_to(ledger.owner_dsn) as connection,
    ):
        await connection.execute("CHECKPOINT")
        gc.collect()
        gc.freeze()  # A full collection in this process would look like a tenth of a second of the service.
        last: asyncio.Future[Id] = asyncio.get_running_loop().create_future()
        observer = asyncio.create_task(observe(connection, engine, last))
        before, started = cost(servers, engine), time.monotonic()
        sent = await send(ledger, commands, rate, show_progress)
        last.set_result(sent[-1][1])
        seen = await observer
        spent, took = cost(servers, engine).since(before), time.monotonic() - started
    distribution = _distribution(sent, seen, int(rate * WARM_SECONDS))
    distribution.engine_cpu, distribution.others = spent.engine / count * 1e6, spent.others_share(took)
    return distribution


async def measure_floor(servers: EmbeddedServers, commits: int) -> tuple[float, float]:
    """Returns p50 and p99 in milliseconds of transactions that insert one row, one after the other."""
    async with connection_to(servers.owner_dsn) as connection:
        await connection.execute("CREATE TABLE floor (number bigint PRIMARY KEY, text text NOT NULL)")
        insert = await connection.prepare("INSERT INTO floor VALUES ($1, $2)")
        took = []
        for number in range(commits):
            started = time.perf_counter()
            await insert.fetch(number, "x" * 200)
            took.append(time.perf_counter() - started)
        await connection.execute("DROP TABLE floor")
    took.sort()
    return _percentile_ms(took, 50), _percentile_ms(took, 99)


async def send(ledger: Ledger, commands: Sequence[bytes], rate: int, show_progress: ShowProgress) -> list[tuple[float, Id]]:
    """Sends at the rate; returns the time and stream id of each message."""
    password, _, path = ledger.stream_url.removeprefix("unix://:").partition("@")
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"AUTH {password}\r\n".encode())
    await reader.readline()
    replies = asyncio.create_task(_replies(reader, len(commands)))
    times: list[float] = []
    show_progress("latency at a steady rate", 0, 0)
    started = time.monotonic()
    while len(times) < len(commands):
        due = min(len(commands), int((time.monotonic() - started) * rate) + 1)
        run = b"".join(commands[len(times) : due])
        times += [time.monotonic()] * (due - len(times))
        writer.write(run)
        await asyncio.sleep(TICK_SECONDS)
    ids = await replies
    writer.close()
    return list(zip(times, ids, strict=True))


async def _replies(reader: asyncio.StreamReader, count: int) -> list[Id]:
    parser = hiredis.Reader()
    ids: list[Id] = []
    while len(ids) < count:
        parser.feed(await reader.read(65536))
        while (reply := parser.gets()) is not False:
            ids.append(id_order(reply.decode()))
    return ids


async def observe(connection: asyncpg.Connection, engine: ServiceProcess, last: asyncio.Future[Id]) -> list[tuple[Id, float]]:
    """Polls the ledger until the last message is durable; returns the durable ids with their times."""
    seen: list[tuple[Id, float]] = []
    while not (last.done() and seen[-1][0] >= last.result()):
        seen.append((await settled_to(connection), time.monotonic()))
        engine.check()
        await asyncio.sleep(POLL_SECONDS)
    return seen


def _distribution(sent: Sequence[tuple[float, Id]], seen: Sequence[tuple[Id, float]], warm: int) -> Latency:
    durable = [observed for observed, _ in seen]
    took = sorted(seen[bisect_left(durable, stream_id)][1] - at for at, stream_id in sent[warm:])
    polls = sorted(later[1] - earlier[1] for earlier, later in pairwise(seen))
    return Latency(
        fills=len(took),
        sent_per_second=len(took) / (sent[-1][0] - sent[warm][0]),
        p50_ms=_percentile_ms(took, 50),
        p90_ms=_percentile_ms(took, 90),
        p99_ms=_percentile_ms(took, 99),
        max_ms=took[-1] * 1000,
        poll_p99_ms=_percentile_ms(polls, 99),
        engine_cpu=0.0,
        others=0.0,
    )


def _percentile_ms(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1000
