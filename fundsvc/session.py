"""One partition under one epoch: funds and books are loaded, the stream is settled, chores are done, through every fault."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from fundsvc.config import Config
from fundsvc.core.batch import Offset, Round
from fundsvc.core.partition import Partition
from fundsvc.logs.batches import Oddities, Rejections, log_orders
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.pipeline import Committed, Pipeline
from fundsvc.proposals import Proposals
from fundsvc.recall import Recall
from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.freshness import HEARTBEAT_SECONDS
from fundsvc.store.reader import fetch
from fundsvc.store.rollups import condense
from fundsvc.store.targets import Targets
from fundsvc.store.writer import OwnershipLost, Writer, open_writer
from fundsvc.streams.announcer import Announcer
from fundsvc.streams.client import Client, StreamFault
from fundsvc.streams.source import Source, StreamState, id_order
from fundsvc.targeting import Targeting

BACKOFF_SECONDS_MAX = 1.0
"""What is away is asked for again within a second, so that recovery is quick once it is back."""

WATCH_SECONDS = 1.0
TRIM_SECONDS = 60.0
"""How often the lag is measured, and how often committed messages past retention are dropped from the stream."""

log = structlog.get_logger()


class Session:
    """The consumption of one partition under one epoch, begun anew after every fault."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        client: Client,
        pool: Pool,
        engine: str,
        partition: int,
        epoch: int,
        proposals: Proposals,
    ) -> None:
        self._config = config
        self._client = client
        self._proposals = proposals
        self._metrics = metrics
        self._source = Source(client, partition)
        self._announcer = Announcer(client, partition)
        self._state: Partition
        self._books: dict[str, str] = {}
        self._pool = pool
        self._engine = engine
        self._partition = partition
        self._epoch = epoch
        self._log = log.bind(engine=engine, partition=partition, epoch=epoch)
        self._outage = Outage(self._log, "settling")
        self._rejections = Rejections(self._log)
        self._oddities = Oddities(self._log)
        self._offset = Offset("0-0", 0)

    async def run(self, stop: asyncio.Event) -> None:
        """Consumes until told to stop or the ownership is lost."""
        self._metrics.own(self._partition, self._epoch)
        try:
            await self._consume_through_faults(stop)
        finally:
            self._rejections.say_rest()
            self._metrics.let_go(self._partition, self._config.stream.partitions)

    async def _consume_through_faults(self, stop: asyncio.Event) -> None:
        backoff = 0.05
        while not stop.is_set():
            started = time.monotonic()
            try:
                await self._consume(stop)
            except* OwnershipLost as lost:
                self._log.warning("partition lost", cause=str(_first(lost)))
                stop.set()
            except* (StoreFault, StreamFault) as group:
                fault = _first(group)
                self._metrics.faults.labels("database" if isinstance(fault, StoreFault) else "stream").inc()
                self._outage.note(fault)
            if time.monotonic() - started > 2 * BACKOFF_SECONDS_MAX:
                backoff = 0.05
            await wait(stop, backoff)
            backoff = min(2 * backoff, BACKOFF_SECONDS_MAX)

    async def _consume(self, stop: asyncio.Event) -> None:
        async with open_writer(self._config.database.dsn, self._engine, self._partition, self._epoch) as writer:
            pipeline = await self._load(writer)
            targeting = Targeting(self._state, Targets(self._pool), self._config.target.of, self._metrics)
            async with asyncio.TaskGroup() as tasks:
                chores = [
                    tasks.create_task(_every(self._config.engine.rollup_seconds, self._condense)),
                    tasks.create_task(_every(HEARTBEAT_SECONDS, self._beat)),
                    tasks.create_task(_every(WATCH_SECONDS, self._watch)),
                    tasks.create_task(_every(TRIM_SECONDS, self._trim)),
                    tasks.create_task(_every(self._config.engine.book_seconds, pipeline.keep_books)),
                    tasks.create_task(_every(self._config.engine.target_seconds, targeting.recompute)),
                ]
                # In a task of its own: where it and a chore fail at once, a group within this group's own task would leave that
                # task cancelled for good (CPython gh-116720, until 3.13).
                await asyncio.wait([tasks.create_task(pipeline.run(stop))])
                for chore in chores:
                    chore.cancel()

    async def _load(self, writer: Writer) -> Pipeline:
        policies = await writer.load_policies(self._config.policy.version(1))
        stored, funds = await writer.load(policies[-1].of)
        start = await self._where_to_read(stored)
        self._offset = start
        currency = self._config.currency
        self._state = Partition(
            self._partition,
            self._config.stream.partitions,
            funds,
            currency.decimals,
            currency.decimals_default,
            policies[-1].of,
            self._config.stream.ts_ahead_seconds_max,
            policies,
        )
        await self._restore_books(writer, stored)
        orders = await writer.load_orders()
        self._metrics.loaded(funds, orders)
        for order in orders:
            await self._announce_round(self._state.reopen(order))
        version = await self._proposals.propose(self._client, self._partition, policies[-1])
        if version:
            self._log.warning("policies changed", version=version)
        self._log.info("partition loaded", funds=len(funds), orders=len(orders), stream_id=stored.last_id)
        self._outage.over()
        return Pipeline(
            self._state,
            self._source,
            writer,
            self._announce,
            stored=stored,
            start=start,
            batch_fills_max=self._config.engine.batch_fills_max,
        )

    async def _restore_books(self, writer: Writer, stored: Offset) -> None:
        """Brings the ADL books to the stored offset: as they were kept, then what the stream holds since."""
        kept = await writer.load_books()
        for book in kept:
            for _ in self._state.restore(book):
                await asyncio.sleep(0)
        self._books = {book.symbol: book.last_id for book in kept}
        await Recall(self._state, self._source, kept, writer.rejected_places, writer.reduced_sides).run(stored.last_id)

    async def _where_to_read(self, stored: Offset) -> Offset:
        """The stored offset, or the start of a stream that ends before it: a failover lost its tail.

        Raises StreamFault where messages after the offset were dropped before they were settled.
        """
        stream = await self._source.state()
        if not _lost_tail(stream, stored):
            _check_nothing_dropped(stream, stored)
            return stored
        self._metrics.stream_regressions.labels(self._partition).inc()
        self._log.error(
            "stream regression",
            detail="the stream lost its tail: it is read from the start, known events are dropped by their sequence;"
            " the engine should send again from /api/v1/ingest/cursor",
            stream_ends=stream.last_id,
            stream_id=stored.last_id,
        )
        return Offset("0-0", stream.added - stream.length)

    async def _announce(self, committed: Committed) -> None:
        started = time.perf_counter()
        self._offset = committed.offset
        self._metrics.committed(committed.batch, committed.durations)
        self._books |= {kept.symbol: committed.offset.last_id for kept in committed.batch.books}
        for round_ in committed.batch.rounds:
            await self._announce_round(round_)
        log_orders(self._log, committed.batch, committed.offset)
        self._rejections.note(committed.batch.rejected)
        self._oddities.note(committed.batch, committed.offset)
        self._metrics.announce_seconds.observe(time.perf_counter() - started)

    async def _announce_round(self, round_: Round) -> None:
        await self._announcer.announce(round_, self._state.price_decimals(round_.order.symbol))

    async def _condense(self) -> None:
        await condense(self._pool, self._partition)

    async def _beat(self) -> None:
        """Tells readers of replicas how far these are."""
        await fetch(self._pool, "heartbeat", self._partition)

    async def _watch(self) -> None:
        self._rejections.say_due()
        settled = self._offset
        self._metrics.positions(self._state.books())
        stream = await self._source.state()
        if _lost_tail(stream, settled):
            raise StreamFault(f"the stream ends at {stream.last_id}, before the offset {settled.last_id}")
        _check_nothing_dropped(stream, self._offset)
        waiting = max(0, stream.added - self._offset.messages)
        self._metrics.lag_messages.labels(self._partition).set(waiting)
        age = time.time() - id_order(self._offset.last_id)[0] / 1000
        self._metrics.lag_seconds.labels(self._partition).set(max(0.0, age) if waiting else 0)

    async def _trim(self) -> None:
        """Drops what is older than the retention; never what is not committed, or what the books still need."""
        oldest_ms = int((time.time() - self._config.stream.retention_hours * 3600) * 1000)
        await self._source.trim(min(f"{oldest_ms}-0", self._offset.last_id, *self._books.values(), key=id_order))


def _lost_tail(stream: StreamState, offset: Offset) -> bool:
    """Whether the stream ends before an offset, or had fewer messages than were settled: its new ids may lie beyond it."""
    return id_order(stream.last_id) < id_order(offset.last_id) or stream.added < offset.messages


def _check_nothing_dropped(stream: StreamState, offset: Offset) -> None:
    """Raises StreamFault if the stream's start, which is dropped first, was dropped beyond an offset.

    What is left must not be settled: what came before it would be sent again with lower sequences, as duplicates.
    """
    dropped = stream.added - stream.length - offset.messages
    if dropped > 0:
        raise StreamFault(
            f"{dropped} messages after the offset {offset.last_id} were dropped from the stream before they were settled: "
            "nothing is settled until the stream is deleted and the engine sends again from /api/v1/ingest/cursor"
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first single exception in a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _every(seconds: float, work: Callable[[], Awaitable[None] | None]) -> None:
    while True:
        waiting = work()
        if waiting is not None:
            await waiting
        await asyncio.sleep(seconds)


async def wait(stop: asyncio.Event, seconds: float) -> None:
    """Waits, but not once told to stop."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
