"""How long a fill takes from XADD until it is durable, at a steady rate.

Every fill is a message of its own. A sender writes those that are due each millisecond to its connection and does not wait
for the replies, so a server that stalls delays what it stalls and hides nothing; a fill's clock starts just before its XADD
is written. Another connection asks PostgreSQL for the committed offset again and again, about POLL_SECONDS apart: the
first answer at or past a fill's stream id ends its clock. PostgreSQL shows a commit only when it is on disk, so the time
read is never too short, and too long by at most the distance of two answers, which is reported (`poll_p99_ms`).
Sender and observer are one process (uvloop) and read one monotonic clock; what they send is encoded beforehand, so that they
take little of the machine.
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
from throughput import Tell, listing_engine

from fundsvc.local.servers import EmbeddedServers
from fundsvc.wire.codec import Codec

TICK_SECONDS = 0.001
"""The event loop's own resolution."""

POLL_SECONDS = 0.001
"""As often as the event loop's timers allow."""

WARM_SECONDS = 1.0
"""The first second is sent and not counted: caches fill and plans are made once in the life of a service."""

Id = tuple[int, int]


class Latency(msgspec.Struct, kw_only=True):
    """From XADD to durable, in milliseconds, over `fills`; `sent_per_second` is the rate that was really kept."""

    fills: int
    sent_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    poll_p99_ms: float
    others: float


async def measure(
    servers: EmbeddedServers, contracts: int, rate: int, seconds: float, codec: Codec, log: Path, tell: Tell
) -> Latency:
    """The distribution at `rate` fills a second, on a ledger of its own."""
    market = Market(contracts)
    count = int(rate * (seconds + WARM_SECONDS))
    messages = bodies(market.fills(count), 1, codec)
    commands = [hiredis.pack_command(("XADD", STREAM, "*", codec, body)) for body in messages]  # type: ignore[arg-type]
    async with (
        new_ledger(servers, "bench_latency") as ledger,
        listing_engine(ledger, market, log) as engine,
        connection_to(ledger.owner_dsn) as connection,
    ):
        await connection.execute("CHECKPOINT")
        gc.collect()
        gc.freeze()  # a full collection in here would pass for a tenth of a second of the service's
        last: asyncio.Future[Id] = asyncio.get_running_loop().create_future()
        observer = asyncio.create_task(observe(connection, engine, last))
        before, started = cost(servers, engine), time.monotonic()
        sent = await send(ledger, commands, rate, tell)
        last.set_result(sent[-1][1])
        seen = await observer
        others = cost(servers, engine).since(before).others_share(time.monotonic() - started)
    return _distribution(sent, seen, int(rate * WARM_SECONDS), others)


async def send(ledger: Ledger, commands: Sequence[bytes], rate: int, tell: Tell) -> list[tuple[float, Id]]:
    """Sends at the rate; returns when each message was sent, and the stream id that it got."""
    password, _, path = ledger.stream_url.removeprefix("unix://:").partition("@")
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"AUTH {password}\r\n".encode())
    await reader.readline()
    replies = asyncio.create_task(_replies(reader, len(commands)))
    times: list[float] = []
    tell("a steady rate", 0, 0)
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
    """What the ledger was seen to have made durable and when, until the last message is."""
    seen: list[tuple[Id, float]] = []
    while not (last.done() and seen[-1][0] >= last.result()):
        seen.append((await settled_to(connection), time.monotonic()))
        engine.check()
        await asyncio.sleep(POLL_SECONDS)
    return seen


def _distribution(sent: Sequence[tuple[float, Id]], seen: Sequence[tuple[Id, float]], warm: int, others: float) -> Latency:
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
        others=others,
    )


def _percentile_ms(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1000
