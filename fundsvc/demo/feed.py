"""Sends the events of the demo's matching engine to the service, one step at a time, and passes ADL orders to that engine.

The feed uses the client as a matching engine outside the service does, and is the only producer, so the sequences of a contract
rise over market events and ADL answers alike. The events of the insured traders of a step go to the pool's stream first, so a
step that the reserve has settled is complete there too.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, MutableMapping
from contextlib import suppress
from typing import NamedTuple

import structlog

from fundsvc.api.http.tokens import mint
from fundsvc.client.api import Unavailable, open_api
from fundsvc.client.producer import Producer, producing
from fundsvc.config.settings import Config, TokenConfig
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
from fundsvc.engine.attempts import first_of
from fundsvc.logs.faults import Outage
from fundsvc.mutual.codec import encode
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.store.database import Pool, StoreFault, main_pool
from fundsvc.store.reader import Reader
from fundsvc.store.writer import STREAM_START
from fundsvc.streams.client import StreamClient, StreamFault, pool_stream_key
from fundsvc.streams.producer import Producer as Streams
from fundsvc.streams.source import Source, id_order
from fundsvc.wire.rounds import Announcement

TOKEN_SECONDS = 600
"""The lifetime of a token of the market. It is used for half of that."""

RETRY_SECONDS = 1.0
"""Pause before the feed retries after a fault."""

MEMORY_STEPS = 2 * LIFE_STEPS[1]
"""How far back executions are loaded: twice the longest life of a position, since an order ends long before a position does."""

log = structlog.get_logger()


async def stream_market(
    config: Config, pool: Pool, client: StreamClient, url: str, marks: MutableMapping[str, str], stop: asyncio.Event
) -> None:
    """Streams to the service at a URL until `stop` is set.

    It starts at the step that the ledger has reached, also after a fault. Keeps the latest mark of each contract in `marks`.
    """
    outage = Outage(log, "market")
    # The service is this process, so its certificate proves nothing, and may be of another name.
    async with open_api(url, renewed(config.token), tls=False) as api:
        while not stop.is_set():
            try:
                async with producing(client, api) as producer:
                    await Feed(config, pool, client, producer, marks, outage).run(stop)
            except* (StoreFault, StreamFault, Unavailable) as faults:
                outage.note(first_of(faults))
                await _pause(stop, RETRY_SECONDS)


def renewed(config: TokenConfig) -> Callable[[], str]:
    """Returns a function that returns a valid token of the market."""
    token, until = "", 0.0

    def current() -> str:
        nonlocal token, until
        if time.monotonic() >= until:
            token = mint(config, "engine", "", "demo", TOKEN_SECONDS)
            until = time.monotonic() + TOKEN_SECONDS / 2
        return token

    return current


class Begun(NamedTuple):
    """The first step to send, the matching engine before it, the open orders, and the latest order of each contract."""

    step: int
    engine: MatchingEngine
    open: Collection[tuple[str, int]]
    latest: Mapping[str, int]

    def is_due(self, announced: Announcement) -> bool:
        """Whether a round is of an order that is open, or began later."""
        return announced.adl > self.latest.get(announced.symbol, 0) or (announced.symbol, announced.adl) in self.open


class Feed:
    """Connects the market and its matching engine to the producer and the ledger."""

    def __init__(
        self,
        config: Config,
        pool: Pool,
        client: StreamClient,
        producer: Producer,
        marks: MutableMapping[str, str],
        outage: Outage,
    ) -> None:
        self._market = SimulatedMarket(config.currency)
        self._insured = InsuredTraders(self._market)
        self._producer = producer
        self._streams = Streams.configured(client, config.stream)
        self._sources = [Source(client, partition) for partition in range(config.stream.partitions)]
        self._reader = Reader(pool)
        self._mutual = MutualReader(main_pool(pool))
        self._ledger = Ledger(pool)
        self._pool_source = Source(client, partition_of(POOL, config.stream.partitions), pool_stream_key(POOL))
        self._marks = marks
        self._outage = outage
        self._announced: deque[Announcement] = deque()

    async def run(self, stop: asyncio.Event) -> None:
        """Streams until `stop` is set, or the stream server has lost messages; raises StoreFault and StreamFault."""
        await self._until_settled(stop)
        begun = await self._begin()
        async with asyncio.TaskGroup() as tasks:
            collecting = tasks.create_task(self._collect(begun))
            await self._play(begun, stop)
            collecting.cancel()

    async def _play(self, begun: Begun, stop: asyncio.Event) -> None:
        step, engine, insured_seq = begun.step, begun.engine, await self._insured_seq()
        self._outage.over()
        log.info("market continues", step=step)
        due, begun_ms = time.monotonic(), _now_ms()
        # The producer resends what a partition lost. What the pool's stream lost is sent from the step that the ledger has.
        while not stop.is_set() and not self._producer.resumptions:
            times = times_of(step, begun_ms, _now_ms())
            insured = [event for event in self._insured.events(step, times.insured) if event.seq > insured_seq]
            if insured:
                await self._streams.append_to(pool_stream_key(POOL), "json", [encode(insured)])
            # In a thread: a step that sizes a cascade takes some tenths of a second, and the service shares this event loop.
            events = await asyncio.to_thread(engine.events, step, times.market)
            await self._producer.send(*events)
            self._marks.update((event.symbol, event.price) for event in events if isinstance(event, Mark))
            while self._announced:
                engine.take_on(self._announced.popleft(), step)
            step += 1
            due = max(due + STEP_SECONDS, time.monotonic()) if step > HISTORY_STEPS else time.monotonic()
            await _pause(stop, due - time.monotonic())

    async def _collect(self, begun: Begun) -> None:
        """Collects the rounds that begin; those of orders that ended before are still in the streams."""
        async for announced in self._producer.rounds():
            if begun.is_due(announced):
                self._announced.append(announced)

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

    async def _begin(self) -> Begun:
        """Returns the state before the first step to send."""
        settled = {fund.symbol: INT64_MAX if fund.closed else fund.seq for fund in await self._reader.funds()}
        step = step_to_resume([settled.get(instrument.symbol, 0) for instrument in INSTRUMENTS])
        taken = await self._ledger.taken_since((step - MEMORY_STEPS) * SEQ_PER_STEP)
        engine = MatchingEngine(self._market, settled, taken, await self._ledger.carried())
        rounds = await self._ledger.open_rounds()
        for announcement in rounds:
            engine.take_on(announcement, step)
        latest = {order.symbol: order.adl for order in await self._ledger.latest_orders()}
        return Begun(step, engine, {(one.symbol, one.adl) for one in rounds}, latest)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Waits for some seconds, or until `stop` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
