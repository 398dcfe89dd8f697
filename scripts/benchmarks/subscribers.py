"""How long a change takes from durable to a thousand subscribers of one busy contract, and what they cost the engine.

A sender appends single fills at a steady rate. An observer asks PostgreSQL for the committed offset again and again, so that a
fill is known to be durable at most one poll late (`poll_p99_ms`); a subscriber has it when the last byte of its frame is read.
All subscribers are sent the same bytes, so each is a protocol that counts and sums (CRC-32) what it reads: whoever ends with
the count and the sum of what the history says was to be told got every change, once and in order.

Rounds with and without subscribers take turns; the engine's commits are timed by its own metrics. Sender, observer and
subscribers are one process with one clock, and take their share of the machine, which the engine's commits feel too.
"""

import asyncio
import base64
import gc
import json
import os
import re
import socket
import statistics
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import hiredis
import msgspec
import numpy as np
from ground import STREAM, Ledger, ServiceProcess, bodies, connection_to, url_of
from latency import Id, observe, send
from market import Market
from throughput import Tell

SETTLE_SECONDS = 0.5
"""After the last fill was sent, until everybody must have it."""

WELCOME = b'"type":"welcome"'
ACK = b'{"type":"ack","id":"1"}'
"""After the one a client subscribes; what follows the other is changes."""

CONNECTING_MAX = 50
"""Subscribers that connect at the same time."""


class Fanout(msgspec.Struct, kw_only=True):
    """Times in ms over `subscribers` times `changes`; commits are means of rounds with and without subscribers."""

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
    commit_ratio: float


class Subscriber(asyncio.Protocol):
    """Counts and sums what it reads once it is subscribed, and notes when it had how much."""

    def __init__(self, request: bytes, subscription: bytes) -> None:
        self.ready = asyncio.get_running_loop().create_future()
        self.length = 0
        self.sum = 0
        self.lengths: list[int] = []
        self.times: list[float] = []
        self.first: list[bytes] | None = None
        self._request = request
        self._subscription = subscription
        self._greeting = b""
        self._asked = False
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connects."""
        self._transport = transport  # type: ignore[assignment]
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Subscribes once welcomed, and takes note of what comes after that."""
        if not self.ready.done():
            data = self._greeted(data)
            if not data:
                return
        self.length += len(data)
        self.sum = zlib.crc32(data, self.sum)
        self.lengths.append(self.length)
        self.times.append(time.monotonic())
        if self.first is not None:
            self.first.append(data)

    def _greeted(self, data: bytes) -> bytes:
        """Subscribes; returns what came behind the acknowledgement."""
        self._greeting += data
        if WELCOME in self._greeting and not self._asked:
            self._asked = True
            self._transport.write(self._subscription)
        _, ack, rest = self._greeting.partition(ACK)
        if ack:
            self.ready.set_result(None)
        return rest


class Load(NamedTuple):
    """So many subscribers, changes a second, seconds to a round, and rounds."""

    subscribers: int
    rate: int
    seconds: float
    rounds: int


class Round(NamedTuple):
    """What a round of sending came to: fills sent, when the ledger was seen to have what, and the engine's mean commit (ms)."""

    sent: list[tuple[float, Id]]
    seen: list[tuple[Id, float]]
    commit_ms: float


async def measure(
    ledger: Ledger, engine: ServiceProcess, engine_port: int, api_log: Path, market: Market, load: Load, tell: Tell
) -> Fanout:
    """Takes turns with and without subscribers."""
    symbol = market.listings()[0].contract["symbol"]
    alone: list[float] = []
    together: list[float] = []
    fanouts: list[tuple[list[float], list[float], int, Round]] = []
    for _ in range(load.rounds):
        alone.append((await _round(ledger, engine, market, engine_port, load, tell)).commit_ms)
        await _until_shown(api_log, ledger)
        async with _subscribed(api_log, symbol, load.subscribers) as listeners:
            gc.collect()
            gc.freeze()
            done = await _round(ledger, engine, market, engine_port, load, tell)
            await asyncio.sleep(SETTLE_SECONDS)
        together.append(done.commit_ms)
        fanouts.append(_taken(listeners, done))
        gc.unfreeze()
    return _result(fanouts, load.subscribers, alone, together)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _taken(listeners: Sequence[Subscriber], done: Round) -> tuple[list[float], list[float], int, Round]:
    """Seconds from durable and from sent to each subscriber, and how many subscribers got everything."""
    ends, told = _frames(b"".join(listeners[0].first or ()))
    if len(told) != len(done.sent):
        raise RuntimeError(f"{len(done.sent)} fills were sent, {len(told)} were told")
    if told != list(range(told[0], told[0] + len(told))):
        raise RuntimeError("entries were told twice, left out or out of order")
    durable = _durable(done)
    sent = np.array([at for at, _ in done.sent])
    whole = [each for each in listeners if (each.length, each.sum) == (listeners[0].length, listeners[0].sum)]
    from_durable, from_sent = [], []
    for each in whole:
        had = np.array(each.times)[np.searchsorted(np.array(each.lengths), ends)]
        from_durable.append(had - durable)
        from_sent.append(had - sent)
    return np.concatenate(from_durable).tolist(), np.concatenate(from_sent).tolist(), len(whole), done


def _frames(data: bytes) -> tuple[list[int], list[int]]:
    """Where each frame ends, and which entry it tells."""
    ends, told, at = [], [], 0
    while at < len(data):
        length, head = data[at + 1], 2
        if length == 126:
            length, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        message = json.loads(data[at + head : at + head + length])
        at += head + length
        ends.append(at)
        told.append(message["data"]["entry"])
    return ends, told


def _durable(done: Round) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """When each fill was seen to be durable."""
    times, place = [], 0
    for _, stream_id in done.sent:
        while done.seen[place][0] < stream_id:
            place += 1
        times.append(done.seen[place][1])
    return np.array(times)


def _result(
    fanouts: Sequence[tuple[list[float], list[float], int, Round]], subscribers: int, alone: list[float], together: list[float]
) -> Fanout:
    took = np.concatenate([each[0] for each in fanouts])
    from_sent = np.concatenate([each[1] for each in fanouts])
    polls = [later[1] - earlier[1] for each in fanouts for earlier, later in pairwise(each[3].seen)]
    sent = [each[3].sent for each in fanouts]
    return Fanout(
        subscribers=subscribers,
        changes=sum(map(len, sent)),
        per_second=statistics.mean(len(run) / (run[-1][0] - run[0][0]) for run in sent),
        complete=min(each[2] for each in fanouts),
        p50_ms=float(np.percentile(took, 50)) * 1000,
        p99_ms=float(np.percentile(took, 99)) * 1000,
        max_ms=float(took.max()) * 1000,
        sent_p99_ms=float(np.percentile(from_sent, 99)) * 1000,
        poll_p99_ms=float(np.percentile(polls, 99)) * 1000,
        commit_ms=statistics.median(together),
        commit_alone_ms=statistics.median(alone),
        commit_ratio=statistics.median(with_ / without for with_, without in zip(together, alone, strict=True)),
    )


async def _round(ledger: Ledger, engine: ServiceProcess, market: Market, engine_port: int, load: Load, tell: Tell) -> Round:
    """Sends at the rate and watches the ledger until it has everything."""
    rate, seconds = load.rate, load.seconds
    fills = list(islice(market.fills(int(rate * seconds)), int(rate * seconds)))
    commands = [hiredis.pack_command(("XADD", STREAM, "*", "json", body)) for body in bodies(fills, 1, "json")]  # type: ignore[arg-type]
    async with connection_to(ledger.owner_dsn) as connection:
        last: asyncio.Future[Id] = asyncio.get_running_loop().create_future()
        observer = asyncio.create_task(observe(connection, engine, last))
        before = await _commits(engine_port)
        sent = await send(ledger, commands, rate, tell)
        last.set_result(sent[-1][1])
        seen = await observer
        after = await _commits(engine_port)
    return Round(sent, seen, (after[0] - before[0]) / (after[1] - before[1]) * 1000)


async def _until_shown(log: Path, ledger: Ledger) -> None:
    """Waits until the HTTP side shows what the ledger has, so that all subscribers begin at the same entry."""
    async with connection_to(ledger.owner_dsn) as connection:
        entry = await connection.fetchval("SELECT max(entry) FROM funds")
    shown = b""
    while f'"entry":{entry},'.encode() not in shown:
        await asyncio.sleep(SETTLE_SECONDS)
        shown = await _http(*url_of(log), "GET", "/api/v1/insurance-fund")


async def _commits(port: int) -> tuple[float, float]:
    """Seconds that the engine's commits took so far, and how many there were."""
    text = (await _http("127.0.0.1", port, "GET", "/metrics")).decode()
    values = (re.search(rf"^fundsvc_commit_seconds_{name} (\S+)$", text, re.MULTILINE) for name in ("sum", "count"))
    seconds, count = (float(found[1]) if found else 0.0 for found in values)
    return seconds, count


async def _http(host: str, port: int, method: str, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.split(b"\r\n\r\n", 1)[1]


@asynccontextmanager
async def _subscribed(log: Path, symbol: str, number: int) -> AsyncIterator[list[Subscriber]]:
    """So many subscribers to the entries of a contract."""
    host, port = url_of(log)
    token = json.loads(await _http(host, port, "POST", "/api/v1/bullet-public"))["data"]["token"]
    key = base64.b64encode(os.urandom(16)).decode()
    request = (
        f"GET /ws?token={token} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    command = {"id": "1", "type": "subscribe", "topic": f"/insuranceFund/entry:{symbol}", "response": True}
    payload = json.dumps(command).encode()
    subscription = bytes((0x81, 0x80 | len(payload))) + bytes(4) + payload
    loop = asyncio.get_running_loop()
    listeners: list[Subscriber] = []
    transports: list[asyncio.Transport] = []
    try:
        while len(listeners) < number:
            some = [Subscriber(request, subscription) for _ in range(min(CONNECTING_MAX, number - len(listeners)))]
            connections = await asyncio.gather(*(loop.create_connection(lambda each=each: each, host, port) for each in some))
            transports += [transport for transport, _ in connections]
            await asyncio.wait([each.ready for each in some], timeout=20)
            if not all(each.ready.done() for each in some):
                raise RuntimeError("some were not subscribed within 20 s")
            listeners += some
        listeners[0].first = []
        yield listeners
    finally:
        for transport in transports:
            with suppress(RuntimeError):
                transport.abort()
