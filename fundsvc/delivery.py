"""Delivering a recording: into the stream as an engine would, then waiting until the ledger has it."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice

import msgspec

from fundsvc.core.events import Event
from fundsvc.store.database import SQL, Pool, faults
from fundsvc.streams.client import Client
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import id_order

SLICE_EVENTS = 5000
"""Events appended in one round trip: enough to keep the stream busy, few enough for a smooth progress bar."""

POLL_SECONDS = 0.05
"""How often the ledger's offset is looked at while waiting."""


class Gain(msgspec.Struct, rename="camel"):
    """What the ledger gained in entries of one kind and currency; amounts are atoms of 10**-decimals."""

    currency: str
    decimals: int
    kind: str
    entries: int
    credited: int
    paid: int
    uncovered: int
    repaid: int


class Delivered(msgspec.Struct, rename="camel"):
    """What came of a delivery: what was sent, and what the ledger had more afterwards."""

    events: int
    gains: list[Gain]
    duplicates: int
    rejected: dict[str, int]
    seconds: float


class _Mark(msgspec.Struct):
    """How the ledger stood before a delivery."""

    at: datetime
    entries: dict[str, int]
    duplicates: int


async def deliver(
    pool: Pool,
    client: Client,
    partitions: int,
    events: Iterable[Event],
    sent: Callable[[int], None],
    durable: Callable[[float], None],
) -> Delivered:
    """Appends events to their streams and waits until all are settled.

    `sent` is called with the number of events appended since the last call, `durable` with the settled share of the messages.
    What other producers send meanwhile is counted too.
    """
    started = time.monotonic()
    before = await _mark(pool)
    total, newest = await _send(Producer(client, partitions), events, sent)
    await _wait_until_settled(pool, newest, durable)
    return await _delivered(pool, before, total, time.monotonic() - started)


async def _send(producer: Producer, events: Iterable[Event], sent: Callable[[int], None]) -> tuple[int, dict[int, list[str]]]:
    """Appends all events; returns how many, and the message ids by partition."""
    total = 0
    ids: dict[int, list[str]] = {}
    for part in _slices(events):
        for partition, appended in (await producer.append(part)).items():
            ids.setdefault(partition, []).extend(appended)
        total += len(part)
        sent(len(part))
    return total, ids


def _slices(events: Iterable[Event]) -> Iterator[list[Event]]:
    rest = iter(events)
    while part := list(islice(rest, SLICE_EVENTS)):
        yield part


async def _wait_until_settled(pool: Pool, ids: dict[int, list[str]], durable: Callable[[float], None]) -> None:
    total = sum(map(len, ids.values()))
    waiting = {partition: [id_order(stream_id) for stream_id in appended] for partition, appended in ids.items()}
    while waiting:
        with faults():
            rows = await pool.fetch(SQL["partitions"])
        offsets = {row["partition"]: id_order(row["last_id"]) for row in rows}
        waiting = {
            partition: rest
            for partition, appended in waiting.items()
            if (rest := [stream_id for stream_id in appended if stream_id > offsets[partition]])
        }
        durable(1 - sum(map(len, waiting.values())) / total)
        await asyncio.sleep(POLL_SECONDS if waiting else 0)


async def _mark(pool: Pool) -> _Mark:
    with faults():
        at = await pool.fetchval(SQL["now"])
        funds = await pool.fetch(SQL["heads"])
        partitions = await pool.fetch(SQL["partitions"])
    return _Mark(at, {row["symbol"]: row["entry"] for row in funds}, sum(row["duplicates"] for row in partitions))


async def _delivered(pool: Pool, before: _Mark, total: int, seconds: float) -> Delivered:
    with faults():
        gains = await pool.fetch(SQL["totals_since"], list(before.entries), list(before.entries.values()))
        rejected = await pool.fetch(SQL["rejected_since"], before.at)
        partitions = await pool.fetch(SQL["partitions"])
    return Delivered(
        events=total,
        gains=[Gain(*row[:3], *map(int, row[3:])) for row in gains],
        duplicates=sum(row["duplicates"] for row in partitions) - before.duplicates,
        rejected={row["reason"]: row["events"] for row in rejected},
        seconds=seconds,
    )
