"""The consumer: holds leases on partitions and runs a pipeline for each, through every fault."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from fundsvc.auditing import Auditor
from fundsvc.config import Config
from fundsvc.core.batch import Offset, Round
from fundsvc.core.contracts import partition_of
from fundsvc.core.partition import Partition
from fundsvc.logs.batches import Rejections, log_orders
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.pipeline import Committed, Pipeline
from fundsvc.recall import Recall
from fundsvc.store.database import Pool, StoreFault, open_pool
from fundsvc.store.leases import Leases, open_leases
from fundsvc.store.rollups import condense
from fundsvc.store.statistics import Statistics
from fundsvc.store.targets import Targets
from fundsvc.store.writer import OwnershipLost, Writer, open_writer
from fundsvc.streams.announcer import Announcer
from fundsvc.streams.client import Client, StreamFault, open_client
from fundsvc.streams.source import Source, StreamState, id_order
from fundsvc.targeting import Targeting

RENEWALS_PER_LEASE = 4
"""A lease survives the loss of three renewals, and a dead owner's partition is claimed a quarter lease after it ends."""

BACKOFF_SECONDS_MAX = 1.0
"""What is away is asked for again within a second, so that recovery is quick once it is back."""

FINISH_SECONDS_MAX = 1.0
"""A batch in hand is committed within this time, unless the database or the stream does not answer; then it is cut off."""

STOP_SECONDS_MAX = 2.0
"""For all that stopping takes, so that the process ends within three seconds whatever is away. Being cut off loses nothing."""

CHORE_CONNECTIONS_MAX = 4
"""One for the audit, one for what is looked up slowly, and two so that no other chore waits for these."""

PEAK_SECONDS = 20.0
"""How often the highest balances of the last eight hours are looked up: in this time few of them fall out of these."""

WATCH_SECONDS = 1.0
TRIM_SECONDS = 60.0
"""How often the lag is measured, and how often committed messages past retention are dropped from the stream."""

log = structlog.get_logger()


class Engine:
    """Consumes as many partitions as its fair share; `run` ends when `stop` is set, with nothing half done."""

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self.name = uuid.uuid4().hex[:12]
        self._config = config
        self._metrics = metrics
        self._owned: dict[int, _Ownership] = {}
        self._outage = Outage(log, "leases", engine=self.name)
        metrics.partitions.set(config.stream.partitions)

    async def run(self, stop: asyncio.Event) -> None:
        """Owns and consumes partitions until told to stop; a mistake of ours in any task ends it with that exception."""
        async with (
            open_client(self._config.stream) as client,
            open_pool(self._config.database.dsn, CHORE_CONNECTIONS_MAX) as pool,
            asyncio.TaskGroup() as tasks,
        ):
            self._metrics.pooled(pool)
            auditing = tasks.create_task(Auditor(pool, self._config.audit, self._metrics, self._settles).run())
            looking_back = tasks.create_task(self._look_back(Statistics(pool)))
            holding = tasks.create_task(self._hold(tasks, client, pool, stop))
            try:
                await stop.wait()
                await asyncio.wait([holding], timeout=STOP_SECONDS_MAX)
            finally:
                auditing.cancel()
                looking_back.cancel()
                holding.cancel()
                for ownership in self._owned.values():
                    ownership.cut_off()

    async def _hold(self, tasks: asyncio.TaskGroup, client: Client, pool: Pool, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._hold_until_fault(tasks, client, pool, stop)
        await self._finish_all()

    async def _hold_until_fault(self, tasks: asyncio.TaskGroup, client: Client, pool: Pool, stop: asyncio.Event) -> None:
        """Keeps leases, and what they are for running, until told to stop or the database goes away."""
        try:
            async with open_leases(self._config.database.dsn, self.name, self._config.engine.lease_seconds) as leases:
                while not stop.is_set():
                    await self._keep(tasks, client, pool, leases)
                    self._outage.over()
                    await _wait(stop, self._config.engine.lease_seconds / RENEWALS_PER_LEASE)
                await self._give_up_all(leases)
        except StoreFault as fault:
            self._metrics.faults.labels("database").inc()
            self._outage.note(fault)
            await _wait(stop, BACKOFF_SECONDS_MAX)

    def _settles(self, symbol: str) -> bool:
        """Whether a contract is of a partition that this engine runs."""
        ownership = self._owned.get(partition_of(symbol, self._config.stream.partitions))
        return ownership is not None and not ownership.task.done()

    async def _look_back(self, statistics: Statistics) -> None:
        """Shows how high the funds stood lately; what cannot be asked for now stays as it was."""
        while True:
            with suppress(StoreFault):  # Whoever keeps the leases says that the database is away.
                self._metrics.peaked(await statistics.peaks(time.time_ns() // 1_000_000))
            await asyncio.sleep(PEAK_SECONDS)

    async def _keep(self, tasks: asyncio.TaskGroup, client: Client, pool: Pool, leases: Leases) -> None:
        """Makes what runs agree with what is held."""
        epochs = await leases.keep()
        for partition, ownership in list(self._owned.items()):
            if epochs.get(partition) != ownership.epoch:
                ownership.cut_off()
                del self._owned[partition]
                log.warning(
                    "partition lost", engine=self.name, partition=partition, epoch=ownership.epoch, cause="the lease ran out"
                )
            elif ownership.task.done():
                del self._owned[partition]
        for partition, epoch in epochs.items():
            if partition not in self._owned:
                self._owned[partition] = self._own(tasks, client, pool, partition, epoch)
        await self._give_up_surplus(leases)

    def _own(self, tasks: asyncio.TaskGroup, client: Client, pool: Pool, partition: int, epoch: int) -> "_Ownership":
        log.info("partition owned", engine=self.name, partition=partition, epoch=epoch)
        stop = asyncio.Event()
        session = Session(self._config, self._metrics, client, pool, self.name, partition, epoch)
        return _Ownership(epoch, stop, tasks.create_task(session.run(stop)))

    async def _give_up_surplus(self, leases: Leases) -> None:
        share = await leases.share()
        for partition in sorted(self._owned)[share:]:
            await self._give_up(leases, partition)

    async def _give_up_all(self, leases: Leases) -> None:
        await self._finish_all()
        for partition in list(self._owned):
            await self._give_up(leases, partition)
        await leases.leave()

    async def _finish_all(self) -> None:
        await asyncio.gather(*(ownership.finish() for ownership in self._owned.values()))

    async def _give_up(self, leases: Leases, partition: int) -> None:
        ownership = self._owned.pop(partition)
        await ownership.finish()
        await leases.release(partition, ownership.epoch)
        log.info("partition released", engine=self.name, partition=partition, epoch=ownership.epoch)


class _Ownership:
    """A partition that this engine runs, under an epoch."""

    def __init__(self, epoch: int, stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.epoch = epoch
        self.task = task
        self._stop = stop

    async def finish(self) -> None:
        """Lets the batch in hand be committed; ends it if that takes too long."""
        self._stop.set()
        await asyncio.wait([self.task], timeout=FINISH_SECONDS_MAX)
        self.task.cancel()
        await asyncio.wait([self.task])

    def cut_off(self) -> None:
        """Ends it where it stands; what is not committed is another owner's to settle."""
        self._stop.set()
        self.task.cancel()


class Session:
    """The consumption of one partition under one epoch, begun anew after every fault."""

    def __init__(
        self, config: Config, metrics: Metrics, client: Client, pool: Pool, engine: str, partition: int, epoch: int
    ) -> None:
        self._config = config
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
            await _wait(stop, backoff)
            backoff = min(2 * backoff, BACKOFF_SECONDS_MAX)

    async def _consume(self, stop: asyncio.Event) -> None:
        async with open_writer(self._config.database.dsn, self._engine, self._partition, self._epoch) as writer:
            pipeline = await self._load(writer)
            targeting = Targeting(self._state, Targets(self._pool), self._config.target.of, self._metrics)
            async with asyncio.TaskGroup() as tasks:
                chores = [
                    tasks.create_task(_every(self._config.engine.rollup_seconds, self._condense)),
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
        policy = self._config.policy
        stored, funds = await writer.load(policy.of)
        start = await self._where_to_read(stored)
        self._offset = start
        currency = self._config.currency
        self._state = Partition(
            self._partition, self._config.stream.partitions, funds, currency.decimals, currency.decimals_default, policy.of
        )
        await self._restore_books(writer, stored)
        orders = await writer.load_orders()
        self._metrics.loaded(funds, orders)
        for order in orders:
            await self._announce_round(self._state.reopen(order))
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
            self._state.restore(book.symbol, book.mark, book.book)
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
        self._metrics.announce_seconds.observe(time.perf_counter() - started)

    async def _announce_round(self, round_: Round) -> None:
        await self._announcer.announce(round_, self._state.price_decimals(round_.order.symbol))

    async def _condense(self) -> None:
        await condense(self._pool, self._partition)

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


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    """Waits, but not once told to stop."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
