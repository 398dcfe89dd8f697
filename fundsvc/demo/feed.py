"""Sends what the matching engine makes of the market's steps into the streams at their pace, and brings it its ADL orders.

It is the only sender: so the sequences of a contract rise, whether the market or an ADL order gives rise to them.
"""

import asyncio
import time
from contextlib import suppress

import structlog

from fundsvc.config import Config
from fundsvc.demo.instruments import INSTRUMENTS
from fundsvc.demo.ledger import Ledger
from fundsvc.demo.market import SEQ_PER_STEP, STEP_SECONDS, Market, step_to_resume
from fundsvc.demo.matching import MatchingEngine
from fundsvc.demo.stakes import LIFE_STEPS
from fundsvc.logs.faults import Outage
from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.reader import Reader
from fundsvc.streams.announcements import Announcements
from fundsvc.streams.client import Client, StreamFault
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import Source

RETRY_SECONDS = 1.0
"""What is away is asked for again as often as the engine does."""

MEMORY_STEPS = 2 * LIFE_STEPS[1]
"""No position is older than half of this, and an order is over long before the other half."""

log = structlog.get_logger()


async def stream_market(config: Config, pool: Pool, client: Client, stop: asyncio.Event) -> None:
    """Streams until told to stop; begins, and after a fault begins again, where the ledger is."""
    feed = Feed(config, pool, client)
    while not stop.is_set():
        try:
            await feed.run(stop)
        except (StoreFault, StreamFault) as fault:
            feed.outage.note(fault)
            await _pause(stop, RETRY_SECONDS)


class Feed:
    """The market and its matching engine, and what they need of the streams and of the ledger."""

    def __init__(self, config: Config, pool: Pool, client: Client) -> None:
        partitions = range(config.stream.partitions)
        self.outage = Outage(log, "market")
        self._market = Market(config.currency)
        self._producer = Producer.configured(client, config.stream)
        self._sources = [Source(client, partition) for partition in partitions]
        self._announcements = [Announcements(client, partition) for partition in partitions]
        self._reader = Reader(pool)
        self._ledger = Ledger(pool)

    async def run(self, stop: asyncio.Event) -> None:
        """Streams until told to stop; raises StoreFault and StreamFault."""
        await self._until_settled(stop)
        read = [await announcements.newest() for announcements in self._announcements]
        step, engine = await self._begin()
        self.outage.over()
        log.info("market goes on", step=step)
        due = time.monotonic()
        while not stop.is_set():
            # In a thread: the steps that size a cascade take a tenth of a second, and the service runs in this process.
            await self._producer.append(await asyncio.to_thread(engine.events, step, time.time_ns() // 1_000_000))
            await self._take_on(engine, step, read)
            step += 1
            due = max(due + STEP_SECONDS, time.monotonic())
            await _pause(stop, due - time.monotonic())

    async def _until_settled(self, stop: asyncio.Event) -> None:
        """Waits for what was sent before: only then does the ledger tell what was executed of which order."""
        while not stop.is_set() and await self._ledger.lag(self._sources):
            await _pause(stop, STEP_SECONDS)

    async def _begin(self) -> tuple[int, MatchingEngine]:
        """The step to go on with, and the matching engine as it was before it."""
        settled = {fund.symbol: fund.seq for fund in await self._reader.funds()}
        step = step_to_resume([settled.get(instrument.symbol, 0) for instrument in INSTRUMENTS])
        taken = await self._ledger.taken_since((step - MEMORY_STEPS) * SEQ_PER_STEP)
        engine = MatchingEngine(self._market, settled, taken)
        for announcement in await self._ledger.open_rounds():
            engine.take_on(announcement, step)
        return step, engine

    async def _take_on(self, engine: MatchingEngine, step: int, read: list[str]) -> None:
        """Reads what was announced since; `read` holds the last id of each partition, and is moved on."""
        for partition, announcements in enumerate(self._announcements):
            for announced in await announcements.read(read[partition]):
                read[partition] = announced.stream_id
                engine.take_on(announced.announcement, step)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Waits, but not once told to stop."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
