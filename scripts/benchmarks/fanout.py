"""The time of a change from durable to a thousand subscribers of one busy contract, and the cost for the engine.

A sender appends single fills at a steady rate. An observer polls the committed offset in PostgreSQL, so it knows that a fill is
durable at most one poll late (`poll_p99_ms`). A subscriber has a fill when it has read the last byte of its frame. All
subscribers receive the same bytes, so each only counts and sums (CRC-32) them. A subscriber whose count and sum match the
history received every change, once and in order.

The engine's metrics give the duration of commits, in rounds that take turns: without subscribers, with all, and with all at a
bare server instead, which only sends the same bytes at the same times. Sender, observer and subscribers are one process with
one clock. They share the machine with the engine; the rounds with the bare server show how much of the effect is their own.
"""

import asyncio
import gc
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import hiredis
import msgspec
import numpy as np
from ground import STREAM, Ledger, ServiceProcess, bare_server, bodies, connection_to, url_of
from latency import Id, observe, send
from market import Market
from subscribers import Subscriber, http_answer, socket_paths, subscribed
from throughput import ShowProgress

from fundsvc.config.settings import HttpConfig

BARE = Path(__file__).with_name("bare_topic.py")

SETTLE_SECONDS = 0.5
"""Seconds after the last fill until every subscriber must have it."""


class Fanout(msgspec.Struct, kw_only=True):
    """Times in ms over `subscribers` times `changes`; commits are medians of the rounds' means, ratios medians of the turns'
    ratios.
    """

    subscribers: int
    changes: int
    per_second: float
    complete: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    sent_p99_ms: float
    poll_p99_ms: float
    commit_ms: float
    commit_alone_ms: float
    commit_bare_ms: float
    of_alone: float
    of_bare: float


class Load(NamedTuple):
    """Numbers of subscribers, changes per second, seconds of a round, and rounds."""

    subscribers: int
    rate: int
    seconds: float
    rounds: int


class Round(NamedTuple):
    """The result of a round: sent fills, when the observer saw which offset, and the engine's mean commit (ms)."""

    sent: list[tuple[float, Id]]
    seen: list[tuple[Id, float]]
    commit_ms: float


class Turn(NamedTuple):
    """Mean commits (ms) of three rounds, and the deliveries of one of them."""

    alone_ms: float
    bare_ms: float
    delivered: "Delivered"


class Delivered(NamedTuple):
    """A round with subscribers: seconds from durable and from sent per subscriber, and the number of complete subscribers."""

    took: "np.ndarray[tuple[int], np.dtype[np.float64]]"
    from_sent: "np.ndarray[tuple[int], np.dtype[np.float64]]"
    complete: int
    round: Round
    frames: list[bytes]


class Bench(NamedTuple):
    """The measured processes on a ledger with one contract."""

    ledger: Ledger
    engine: ServiceProcess
    engine_port: int
    api_log: Path
    market: Market
    load: Load
    show_progress: ShowProgress


async def measure(bench: Bench) -> Fanout:
    """Runs the rounds in turns."""
    return _result([await _turn(bench) for _ in range(bench.load.rounds)], bench.load.subscribers)


async def _turn(bench: Bench) -> Turn:
    alone = await _round(bench)
    delivered = await _with_subscribers(bench)
    return Turn(alone.commit_ms, (await _with_bare_server(bench, delivered.frames)).commit_ms, delivered)


async def _with_subscribers(bench: Bench) -> Delivered:
    """Runs a round with all subscribers."""
    await _until_shown(bench.api_log, bench.ledger)
    symbol = bench.market.listings()[0].contract["symbol"]
    host, port = url_of(bench.api_log)
    paths = await socket_paths(host, port, bench.load.subscribers)
    async with subscribed(host, port, paths, symbol) as listeners:
        with _frozen():
            done = await _round(bench)
            await asyncio.sleep(SETTLE_SECONDS)
    return _taken(listeners, done)


async def _with_bare_server(bench: Bench, frames: Sequence[bytes]) -> Round:
    """Runs a round with all subscribers at a bare server that sends as often as the service polls its ledger."""
    seconds = HttpConfig().tail_seconds
    size = round(bench.load.rate * seconds)
    groups = [b"".join(frames[start : start + size]) for start in range(0, len(frames), size)]
    file = bench.api_log.with_name("frames")
    file.write_bytes(msgspec.msgpack.encode(groups))
    with bare_server(BARE, str(file), str(seconds)) as (port, server):
        async with subscribed("127.0.0.1", port, ["/"] * bench.load.subscribers, ""):
            with _frozen():
                assert server.stdin is not None
                server.stdin.write(b"\n")
                server.stdin.flush()
                return await _round(bench)


@contextmanager
def _frozen() -> Iterator[None]:
    """Exempts the clients from garbage collection."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _taken(listeners: Sequence[Subscriber], done: Round) -> Delivered:
    data = b"".join(listeners[0].first or ())
    ends, delivered = _frames(data)
    if len(delivered) != len(done.sent):
        raise RuntimeError(f"{len(done.sent)} fills were sent, {len(delivered)} were delivered")
    if delivered != list(range(delivered[0], delivered[0] + len(delivered))):
        raise RuntimeError("entries were delivered twice, missing, or out of order")
    durable = _durable(done)
    sent = np.array([at for at, _ in done.sent])
    whole = [each for each in listeners if (each.length, each.sum) == (listeners[0].length, listeners[0].sum)]
    had = np.array([np.array(each.times)[np.searchsorted(np.array(each.lengths), ends)] for each in whole])
    frames = [data[start:end] for start, end in pairwise([0, *ends])]
    return Delivered((had - durable).ravel(), (had - sent).ravel(), len(whole), done, frames)


def _frames(data: bytes) -> tuple[list[int], list[int]]:
    """Returns the end of each frame, and its entry."""
    ends, delivered, at = [], [], 0
    while at < len(data):
        length, head = data[at + 1], 2
        if length == 126:
            length, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        message = json.loads(data[at + head : at + head + length])
        at += head + length
        ends.append(at)
        delivered.append(message["data"]["entry"])
    return ends, delivered


def _durable(done: Round) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Returns when each fill was seen to be durable."""
    times, place = [], 0
    for _, stream_id in done.sent:
        while done.seen[place][0] < stream_id:
            place += 1
        times.append(done.seen[place][1])
    return np.array(times)


def _result(turns: Sequence[Turn], subscribers: int) -> Fanout:
    delivered = [turn.delivered for turn in turns]
    took, from_sent = (
        np.concatenate(columns) for columns in zip(*((each.took, each.from_sent) for each in delivered), strict=True)
    )
    polls = [later[1] - earlier[1] for each in delivered for earlier, later in pairwise(each.round.seen)]
    sent = [each.round.sent for each in delivered]
    return Fanout(
        subscribers=subscribers,
        changes=sum(map(len, sent)),
        per_second=statistics.mean(len(run) / (run[-1][0] - run[0][0]) for run in sent),
        complete=min(each.complete for each in delivered),
        p50_ms=float(np.percentile(took, 50)) * 1000,
        p99_ms=float(np.percentile(took, 99)) * 1000,
        max_ms=float(took.max()) * 1000,
        sent_p99_ms=float(np.percentile(from_sent, 99)) * 1000,
        poll_p99_ms=float(np.percentile(polls, 99)) * 1000,
        commit_ms=statistics.median(each.round.commit_ms for each in delivered),
        commit_alone_ms=statistics.median(turn.alone_ms for turn in turns),
        commit_bare_ms=statistics.median(turn.bare_ms for turn in turns),
        of_alone=statistics.median(turn.delivered.round.commit_ms / turn.alone_ms for turn in turns),
        of_bare=statistics.median(turn.delivered.round.commit_ms / turn.bare_ms for turn in turns),
    )


async def _round(bench: Bench) -> Round:
    """Sends at the rate and polls the ledger until it has everything."""
    count = int(bench.load.rate * bench.load.seconds)
    messages = bodies(bench.market.fills(count), 1, "json")
    commands = [hiredis.pack_command(("XADD", STREAM, "*", "json", body)) for body in messages]  # type: ignore[arg-type]
    async with connection_to(bench.ledger.owner_dsn) as connection:
        last: asyncio.Future[Id] = asyncio.get_running_loop().create_future()
        observer = asyncio.create_task(observe(connection, bench.engine, last))
        before = await _commits(bench.engine_port)
        sent = await send(bench.ledger, commands, bench.load.rate, bench.show_progress)
        last.set_result(sent[-1][1])
        seen = await observer
        after = await _commits(bench.engine_port)
    return Round(sent, seen, (after[0] - before[0]) / (after[1] - before[1]) * 1000)


async def _until_shown(log: Path, ledger: Ledger) -> None:
    """Waits until the HTTP side shows the last entry, so that all subscribers start at the same entry."""
    async with connection_to(ledger.owner_dsn) as connection:
        entry = await connection.fetchval("SELECT max(entry) FROM funds")
    shown = b""
    while f'"entry":{entry},'.encode() not in shown:
        await asyncio.sleep(SETTLE_SECONDS)
        shown = await http_answer(*url_of(log), "GET", "/api/v1/insurance-fund")


async def _commits(port: int) -> tuple[float, float]:
    """Returns the total seconds and number of the engine's commits."""
    text = (await http_answer("127.0.0.1", port, "GET", "/metrics")).decode()
    values = (re.search(rf"^fundsvc_commit_seconds_{name} (\S+)$", text, re.MULTILINE) for name in ("sum", "count"))
    seconds, count = (float(found[1]) if found else 0.0 for found in values)
    return seconds, count
