"""Sends the events of the demo's matching engine to the streams, one step at a time, and passes ADL orders to that engine.

The feed is the only producer, so the sequences of a contract rise over market events and ADL answers alike. The events of the
insured traders of a step go to the pool's stream first, so a step that the reserve has settled is complete there too.
"""

import asyncio
import time
from collections.abc import MutableMapping
from contextlib import suppress

import structlog

from fundsvc.config.settings import Config
from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Mark
from fundsvc.core.numbers import INT64_MAX
from fundsvc.demo.history import HISTORY_STEPS, times_of
from fundsvc.demo.instruments import INSTRUMENTS
from fundsvc.demo.insured import POOL, InsuredTraders
from fundsvc.demo.ledger import Ledger
from fundsvc.demo.market import SEQ_PER_STEP, STEP_SECONDS, SimulatedMarket, step_to_resume
from fundsvc.demo.matching import MatchingEngine
from fundsvc.demo.stakes import LIFE_STEPS
from fundsvc.logs.faults import Outage
from fundsvc.mutual.codec import encode
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.reader import Reader
from fundsvc.store.writer import STREAM_START
from fundsvc.streams.announcements import Announcements
from fundsvc.streams.client import StreamClient, StreamFault, pool_stream_key
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import Source, id_order

RETRY_SECONDS = 1.0
"""Pause before the feed retries after a fault."""

MEMORY_STEPS = 2 * LIFE_STEPS[1]
"""How far back executions are loaded: twice the longest life of a position, since an order ends long before a position does."""

log = structlog.get_logger()


async def stream_market(
    config: Config, pool: Pool, client: StreamClient, marks: MutableMapping[str, str], stop: asyncio.Event
) -> None:
    """Streams until `stop` is set. It starts at the step that the ledger has reached, also after a fault.

    Keeps the latest mark of each contract in `marks`.
    """
    feed = Feed(config, pool, client, marks)
    while not stop.is_set():
        try:
            await feed.run(stop)
        except (StoreFault, StreamFault) as fault:
            feed.outage.note(fault)
            await _pause(stop, RETRY_SECONDS)


class Feed:
    """Connects the market and its matching engine to the streams and the ledger."""

    def __init__(self, config: Config, pool: Pool, client: StreamClient, marks: MutableMapping[str, str]) -> None:
        partitions = range(config.stream.partitions)
        self.outage = Outage(log, "market")
        self._market = SimulatedMarket(config.currency)
        self._insured = InsuredTraders(self._market)
        self._producer = Producer.configured(client, config.stream)
        self._sources = [Source(client, partition) for partition in partitions]
        self._announcements = [Announcements(client, partition) for partition in partitions]
        self._reader = Reader(pool)
        self._mutual = MutualReader(pool)
        self._ledger = Ledger(pool)
        self._pool_source = Source(client, partition_of(POOL, config.stream.partitions), pool_stream_key(POOL))
        self._marks = marks

    async def run(self, stop: asyncio.Event) -> None:
        """Streams until `stop` is set; raises StoreFault and StreamFault."""
        await self._until_settled(stop)
        read = [await announcements.newest() for announcements in self._announcements]
        step, engine = await self._begin()
        insured_seq = await self._insured_seq()
        self.outage.over()
        log.info("market continues", step=step)
        due, begun_ms = time.monotonic(), _now_ms()
        while not stop.is_set():
            times = times_of(step, begun_ms, _now_ms())
            insured = [event for event in self._insured.events(step, times.insured) if event.seq > insured_seq]
            if insured:
                await self._producer.append_to(pool_stream_key(POOL), "json", [encode(insured)])
            # In a thread: a step that sizes a cascade takes some tenths of a second, and the service shares this event loop.
            events = await asyncio.to_thread(engine.events, step, times.market)
            await self._producer.append(events)
            self._marks.update((event.symbol, event.price) for event in events if isinstance(event, Mark))
            await self._take_on(engine, step, read)
            step += 1
            due = max(due + STEP_SECONDS, time.monotonic()) if step > HISTORY_STEPS else time.monotonic()
            await _pause(stop, due - time.monotonic())

    async def _until_settled(self, stop: asyncio.Event) -> None:
        """Waits until the ledgers have all messages sent before: only then are the executions of every order known."""
        while not stop.is_set() and (await self._ledger.lag(self._sources) or await self._is_pool_behind()):
            await _pause(stop, STEP_SECONDS)

    async def _is_pool_behind(self) -> bool:
        pool = await self._mutual.pool(POOL)
        stream = await self._pool_source.state()
        return id_order(stream.last_id) > id_order(pool.last_id if pool else STREAM_START)

    async def _insured_seq(self) -> int:
        """The last sequence that the pool has settled, 0 without a pool."""
        pool = await self._mutual.pool(POOL)
        return pool.row.seq if pool else 0

    async def _begin(self) -> tuple[int, MatchingEngine]:
        """Returns the first step to send, and the matching engine in its state before that step."""
        settled = {fund.symbol: INT64_MAX if fund.closed else fund.seq for fund in await self._reader.funds()}
        step = step_to_resume([settled.get(instrument.symbol, 0) for instrument in INSTRUMENTS])
        taken = await self._ledger.taken_since((step - MEMORY_STEPS) * SEQ_PER_STEP)
        engine = MatchingEngine(self._market, settled, taken, await self._ledger.carried())
        for announcement in await self._ledger.open_rounds():
            engine.take_on(announcement, step)
        return step, engine

    async def _take_on(self, engine: MatchingEngine, step: int, read: list[str]) -> None:
        """Passes new announcements to the engine; `read` holds the last id read of each partition and is updated."""
        for partition, announcements in enumerate(self._announcements):
            for announced in await announcements.read(read[partition]):
                read[partition] = announced.stream_id
                engine.take_on(announced.announcement, step)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Waits for some seconds, or until `stop` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
