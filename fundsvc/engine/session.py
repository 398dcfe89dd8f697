"""One partition under one epoch: funds and books are loaded, the stream is settled, chores are done, through every fault.

What keeps a partition from being settled is of three kinds, and `_answer` tells them apart. A *fault* (the database or the
stream is away, or refuses) is waited for. A *refusal* (the database refuses something in a batch) is narrowed down to the event
that causes it, which is rejected. Anything else *halts* the partition: a mistake of ours, or messages that left the stream
before they were settled. A halted partition is tried again seldom; the other partitions and the HTTP side go on.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import structlog

from fundsvc.concurrency.background import PeriodicTask, keep_running
from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.config.settings import Config
from fundsvc.core.adl.order import OrderState
from fundsvc.core.batch import Batch, Offset, Place
from fundsvc.core.contracts import partition_of
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policies
from fundsvc.engine.announcing import RoundAnnouncer
from fundsvc.engine.continuity import CheckedSource, find_gap, lost_tail, same_gap, unsettled_messages
from fundsvc.engine.leases import Steps
from fundsvc.engine.pipeline import SLICE_SHARE, BatchBound, Committed, Pipeline
from fundsvc.engine.policy_proposals import Proposals
from fundsvc.engine.target_sizing import TargetSizing
from fundsvc.logs.batches import Oddities, Orders, Rejections
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.readmodel.book_recovery import BookRecovery
from fundsvc.store.database import COMMAND_SECONDS, Pool, StoreFault, StoreRefusal
from fundsvc.store.freshness import HEARTBEAT_SECONDS
from fundsvc.store.gaps import Gaps, KnownGap
from fundsvc.store.partition_state import note_halted, trim_bounds
from fundsvc.store.reader import fetch
from fundsvc.store.rollups import condense
from fundsvc.store.target_sizes import Targets
from fundsvc.store.writer import STREAM_START, OwnershipLost, Stray, Writer, open_writer
from fundsvc.streams.announcer import Announcer
from fundsvc.streams.client import Client, StreamFault, drop_idle, stream_key
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import Source, StreamState, id_order

STATEMENT_SECONDS_MIN = 3.0
"""So long a statement of the ledger may take at first: a server that is silent for longer may be out of reach, and another
connection may reach it. After each statement that took longer the next ones have twice as long, up to what any may take."""

BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 0.05, 1.0
"""Lost servers are tried again within a second, so that recovery is quick once they are back."""

HALTED_SECONDS_MIN, HALTED_SECONDS_MAX = 5.0, 60.0
"""After a mistake of ours the partition is tried again after so long: what it met may be gone."""

WATCH_SECONDS = 1.0
TRIM_SECONDS = 60.0
"""How often the lag is measured, and how often committed messages past retention are dropped from the stream."""

ORDERS_AT_ONCE = 250
"""ADL orders that are counted, announced and logged between two looks at the loop: about a millisecond."""

log = structlog.get_logger()


class Halted(Exception):
    """The partition must not go on before somebody has acted; the message says who and how."""


class Session:
    """The consumption of one partition under one epoch, begun anew after every fault.

    `trouble` says why nothing is settled at present, "" while it is. `steps` counts what was done. `worker` runs long work.
    """

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
        worker: Executor,
    ) -> None:
        self.trouble = ""
        self._config = config
        self._client = client
        self._proposals = proposals
        self._worker = worker
        self._metrics = metrics
        self._source = Source(client, partition, message_bytes_max=config.stream.message_bytes_max)
        self._announcer = Announcer(client, partition)
        self._producer = Producer.configured(client, config.stream)
        self._gaps = Gaps(pool, partition)
        self._state: Partition
        self._exclusive: Exclusive
        self._policies: Policies
        self._announcing: RoundAnnouncer
        self._pipeline: Pipeline | None = None
        self._recall: BookRecovery | None = None
        self._bound = BatchBound(config.engine.batch_fills_max)
        self._refused: dict[Place, str] = {}
        self._pool = pool
        self._engine = engine
        self._partition = partition
        self._epoch = epoch
        self._log = log.bind(engine=engine, partition=partition, epoch=epoch)
        self._outage = Outage(self._log, "settling")
        self._rejections = Rejections(self._log)
        self._orders = Orders(self._log)
        self._oddities = Oddities(self._log)
        self._offset = Offset(STREAM_START, 0)
        self._halted = ""
        self._noted: str | None = None
        every = config.engine
        # Kept from load to load: one that is done seldom is not done anew after each refusal.
        self._chores = (
            PeriodicTask("rollups", every.rollup_seconds, self._condense, self._log),
            PeriodicTask("lag", WATCH_SECONDS, self._watch, self._log),
            PeriodicTask("books", every.book_seconds, self._keep_books, self._log),
            PeriodicTask("policies", WATCH_SECONDS, self._propose, self._log),
            PeriodicTask("targets", every.target_seconds, self._find_targets, self._log),
        )
        self._backoff = BACKOFF_SECONDS_MIN
        self._halted_seconds = HALTED_SECONDS_MIN
        self._attempts = self._restored = 0
        self._settled_before = self._loaded_before = 0
        self._statement_seconds = self._statement_seconds_min = max(STATEMENT_SECONDS_MIN, config.engine.lease_seconds)

    @property
    def steps(self) -> Steps:
        """How many steps were taken in any part of the work, and how many that brought the partition on."""
        parts = (self._pipeline, self._recall)
        taken = self._attempts + sum(part.progress for part in parts if part)
        return Steps(taken, self._settled_steps() + max(self._loaded_before, self._load_steps()))

    def _settled_steps(self) -> int:
        return self._settled_before + (self._pipeline.settled if self._pipeline else 0)

    def _load_steps(self) -> int:
        """How far the present load is, in steps."""
        return self._restored + (self._recall.progress if self._recall else 0)

    def _begin_load(self) -> None:
        """Counts the last load as progress as far as it came further than those before; after settling each one counts."""
        settled = self._settled_steps()
        self._loaded_before = max(self._loaded_before, self._load_steps()) if settled == self._settled_before else 0
        self._settled_before = settled
        self._pipeline = self._recall = None
        self._restored = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Consumes until told to stop or the ownership is lost."""
        self._metrics.own(self._partition, self._epoch)
        try:
            async with asyncio.TaskGroup() as tasks:
                # Not among the other chores: a full stream server keeps the partition from being loaded, and needs trimming.
                chores = (
                    PeriodicTask("trimming", TRIM_SECONDS, self._trim, self._log),
                    PeriodicTask("heartbeat", HEARTBEAT_SECONDS, self._beat, self._log),
                )
                running = [tasks.create_task(chore.run()) for chore in chores]
                await asyncio.wait([tasks.create_task(self._consume_through_faults(stop))])
                for chore in running:
                    chore.cancel()
        finally:
            self._rejections.log_rest()
            self._orders.log_rest()
            self._metrics.let_go(self._partition, self._config.stream.partitions)

    async def _consume_through_faults(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            started, pause = time.monotonic(), 0.0
            self._attempts += 1
            try:
                await self._consume(stop)
            except* OwnershipLost as lost:
                self._log.warning("partition lost", cause=str(_first(lost)))
                stop.set()
            except* Exception as group:  # noqa: BLE001 - a mistake of ours halts this partition and nothing else
                pause = await self._answer(_first(group))
            if time.monotonic() - started > 2 * BACKOFF_SECONDS_MAX:
                self._backoff = BACKOFF_SECONDS_MIN
            await wait(stop, pause)

    async def _answer(self, error: BaseException) -> float:
        """Does what an error asks for; returns after how many seconds the partition is to be tried again."""
        match error:
            case StoreFault() | StreamFault():
                return await self._wait_for(error)
            case Halted() | Stray():
                # As good as settling: another engine would have to wait for somebody too.
                self._settled_before += 1
                await self._halt(str(error))
                return BACKOFF_SECONDS_MAX
        return await self._halt_by_mistake(error)

    async def _wait_for(self, fault: StoreFault | StreamFault) -> float:
        """A fault: a batch that met it is not tried again whole, as its size may be the cause."""
        writing = self._pipeline.writing if self._pipeline else None
        if isinstance(fault, StoreFault) and writing:
            self._bound.shrink(writing)
        if isinstance(fault.__cause__, TimeoutError):
            self._statement_seconds = min(2 * self._statement_seconds, COMMAND_SECONDS)
            await self._pool.expire_connections()
        if isinstance(fault, StreamFault):
            await drop_idle(self._client)
        self._metrics.faults.labels("database" if isinstance(fault, StoreFault) else "stream").inc()
        self._outage.note(fault)
        self.trouble = str(fault)
        pause = self._backoff
        self._backoff = min(2 * pause, BACKOFF_SECONDS_MAX)
        return pause

    async def _halt_by_mistake(self, mistake: BaseException) -> float:
        self._log.error("mistake", part="settling", exc_info=mistake)
        await self._halt(f"{type(mistake).__name__}: {mistake}")
        pause = self._halted_seconds
        self._halted_seconds = min(2 * pause, HALTED_SECONDS_MAX)
        return pause

    async def _halt(self, reason: str) -> None:
        """Says that nothing is settled, and why: once in the log, and for readiness in any process."""
        if self._halted != reason:
            self._log.error("partition halted", detail=reason)
        self._halted = self.trouble = reason
        self._metrics.halted.labels(self._partition).set(1)
        await self._note_halted(reason)

    async def _go_on(self) -> None:
        """Says that the partition is settled."""
        self._outage.over()
        if self._halted:
            self._log.info("partition resumed")
        self._halted = self.trouble = ""
        self._halted_seconds = HALTED_SECONDS_MIN
        self._metrics.halted.labels(self._partition).set(0)
        await self._note_halted("")

    async def _note_halted(self, reason: str) -> None:
        """Keeps it in the database, if that takes it."""
        if self._noted != reason:
            with suppress(StoreFault):
                await note_halted(self._pool, self._partition, self._epoch, reason)
                self._noted = reason

    async def _consume(self, stop: asyncio.Event) -> None:
        """Consumes until told to stop; narrows each refusal down, on the connection that met it."""
        dsn, seconds = self._config.database.dsn, self._statement_seconds
        async with open_writer(dsn, self._engine, self._partition, self._epoch, seconds) as writer:
            refused: _Refused | None = None
            while not stop.is_set():
                pipeline = await self._load(writer)
                if refused:
                    # Only now: loading tells whether the partition is still ours, and whether it has rows that no commit left.
                    self._narrow(refused)
                refused = await self._run_pipeline(pipeline, stop)

    async def _run_pipeline(self, pipeline: Pipeline, stop: asyncio.Event) -> "_Refused | None":
        """Runs a pipeline with its chores until told to stop, or until the database refuses something in a batch."""
        refused = None
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(chore.run()) for chore in self._chores]
                running.append(tasks.create_task(keep_running("announcing", self._announcing.run, self._log)))
                # In a task of its own: where it and a chore fail at once, a group within this group's own task would leave that
                # task cancelled for good (CPython gh-116720, until 3.13).
                await asyncio.wait([tasks.create_task(pipeline.run(stop))])
                for chore in running:
                    chore.cancel()
        except* StoreRefusal as refusals:
            if pipeline.writing is None:
                raise
            refused = _Refused(pipeline.writing, _first(refusals))
        return refused

    def _narrow(self, refused: "_Refused") -> None:
        """A refusal: its batch is written in parts, down to the one event that is to be rejected.

        Raises the refusal where no event is the cause.
        """
        batch, refusal = refused
        may_be_a_book = batch.books and self._bound.takes_books
        may_be_cut = batch.events > 1 and not (batch.uncut and self._bound.is_least)
        if may_be_a_book or may_be_cut:
            self._bound.narrow(batch)
        else:
            causes = [place for place in _suspects(batch) if place not in self._refused]
            if not causes:
                raise refusal
            # Those behind the first of a batch that cannot be cut are refused together, and only then the first.
            self._refused |= dict.fromkeys(causes[1:] or causes, str(refusal))
        # Another engine would have to begin anew.
        self._attempts += 1
        self._settled_before += 1

    async def _load(self, writer: Writer) -> Pipeline:
        self._begin_load()
        policies = await writer.load_policies(self._config.policy.version(1))
        self._policies = policies[-1]
        stored, funds = await writer.load(policies[-1].of)
        secret = self._config.ledger.secrets.current
        if secret is None and await writer.has_seals():
            raise Halted("the last entries hide their accounts, and this engine has no ledger.secret to hide further ones with")
        self._check_home(funds)
        start = await self._where_to_read(stored)
        self._offset = start.offset
        currency = self._config.currency
        self._exclusive = Exclusive(self._worker)
        self._state = Partition(
            self._partition,
            self._config.stream.partitions,
            funds,
            currency.decimals,
            currency.decimals_default,
            policies[-1].of,
            self._config.stream.ts_ahead_seconds_max,
            policies,
            secret,
            self._config.stream.contracts_max,
        )
        await self._restore_books(writer, stored)
        if start.known_ms is not None:
            self._state.make_stale(start.known_ms)
        orders = await writer.load_orders()
        self._metrics.loaded(funds, orders)
        self._announcing = RoundAnnouncer(
            self._state,
            self._exclusive,
            self._announcer,
            self._producer,
            self._config.adl,
            self._partition,
            self._metrics,
            self._log,
        )
        self._announcing.update(self._state.reopen(order).order for order in orders)
        self._log.info("partition loaded", funds=len(funds), orders=len(orders), stream_id=stored.last_id)
        self._pipeline = Pipeline(
            self._state,
            CheckedSource(self._source, start.known_until),
            writer,
            self._announce,
            exclusive=self._exclusive,
            stored=stored,
            start=start.offset,
            bound=self._bound,
            slice_seconds=SLICE_SHARE * self._config.engine.loop_ms_max / 1000,
            refused=self._refused,
        )
        return self._pipeline

    def _check_home(self, funds: Iterable[Fund]) -> None:
        """Raises Halted where a contract of another partition is listed in this one."""
        partitions = self._config.stream.partitions
        for symbol in (fund.contract.symbol for fund in funds):
            home = partition_of(symbol, partitions)
            if home != self._partition:
                raise Halted(
                    f"the ledger has {symbol} in partition {self._partition}, of {partitions} it belongs to {home}: have the"
                    f" database's owner set contracts.partition"
                )

    async def _propose(self) -> None:
        """Appends the configured policies, if this process has not compared them with the recorded ones yet and they differ."""
        version = await self._proposals.propose(self._client, self._partition, self._policies)
        if version:
            self._log.warning("policies changed", version=version)

    async def _restore_books(self, writer: Writer, stored: Offset) -> None:
        """Brings the ADL books to the stored offset: as they were kept, then what the stream holds since."""
        kept = await writer.load_books()
        for book in kept:
            for _ in self._state.restore(book):
                self._attempts += 1
                self._restored += 1
                await asyncio.sleep(0)
        self._recall = BookRecovery(
            self._state, self._exclusive, self._source, kept, writer.rejected_places, writer.reduced_sides
        )
        await self._recall.run_part(stored)

    async def _where_to_read(self, stored: Offset) -> "_Start":
        """The stored offset, or the start of a stream that ends before it: a failover lost its tail.

        Raises Halted where messages after the offset left the stream, and nobody has acknowledged that.
        """
        stream = await self._source.state()
        known = await self._gaps.known()
        if not lost_tail(stream, stored):
            return await self._pass_gap(stream, stored, known)
        self._metrics.stream_regressions.labels(self._partition).inc()
        self._log.error(
            "stream regression",
            detail="the stream lost its tail: it is read from the start, known events are dropped by their sequence;"
            " the engine should send again from /api/v1/ingest/cursor",
            stream_ends=stream.last_id,
            stream_id=stored.last_id,
        )
        known_ms, _ = min(id_order(stream.last_id), id_order(stored.last_id))
        return _Start(Offset(STREAM_START, stream.added - stream.length), stream.deleted_id, known_ms)

    async def _pass_gap(self, stream: StreamState, stored: Offset, known: list[KnownGap]) -> "_Start":
        """Where to read on from an offset: past a gap, if there is one and it may be known_until."""
        goes_on = self._config.stream.on_gap == "continue"
        known_until = max((gap.until_id for gap in known if goes_on or gap.acknowledged_at), key=id_order, default=STREAM_START)
        found = find_gap(stream, stored, STREAM_START)
        if found is None:
            return _Start(stored, known_until)
        gap = next((one for one in known if same_gap(found, one)), None)
        if gap is None:
            missing = found.messages or max(1, await self._settled_or_gone(stream, stored) - stored.messages)
            gap = await self._report(KnownGap(found.after_id, found.until_id, missing, None), stored)
        if not goes_on and id_order(gap.until_id) > id_order(known_until):
            raise Halted(
                f"{gap.messages} messages after {gap.after_id}, up to {gap.until_id}, were deleted or trimmed from the stream"
                f" before they were settled: delete the stream (DEL {stream_key(self._partition)}) and have the engine send"
                f" everything after its cursor again, or go on without them by fundsvc stream acknowledge-gap {self._partition}"
            )
        # Not the gap's own number: while the offset is within a gap each load passes it, and must not add that again.
        offset = stored._replace(messages=await self._settled_or_gone(stream, stored))
        return _Start(offset, max(known_until, gap.until_id, key=id_order))

    async def _settled_or_gone(self, stream: StreamState, stored: Offset) -> int:
        """The number of messages that a stream of this state ever had, without those that it holds after an offset."""
        return stream.added - await self._source.count_between(stored.last_id, stream.last_id)

    async def _report(self, gap: KnownGap, stored: Offset) -> KnownGap:
        """Keeps a gap, logs and counts it, once for each gap."""
        if await self._gaps.keep(gap):
            self._metrics.stream_gaps.labels(self._partition).inc()
            self._log.error(
                "stream gap",
                detail="messages left the stream before they were settled",
                after_id=gap.after_id,
                until_id=gap.until_id,
                count=gap.messages,
                policy=self._config.stream.on_gap,
                stream_id=stored.last_id,
            )
        return gap

    async def _announce(self, committed: Committed) -> None:
        started = time.perf_counter()
        self._offset = committed.offset
        self._forget_refused()
        self._statement_seconds = self._statement_seconds_min
        self._metrics.committed(committed.batch, committed.durations)
        await self._tell_orders(list(committed.batch.orders.values()), committed.offset)
        self._rejections.note(committed.batch.rejected)
        self._oddities.note(committed.batch, committed.offset)
        await self._go_on()
        self._metrics.announce_seconds.observe(time.perf_counter() - started)

    def _forget_refused(self) -> None:
        """Lets go of refused events that are settled as such: each event is compared with those that are left."""
        settled = id_order(self._offset.last_id)
        for place in [place for place in self._refused if id_order(place.stream_id) <= settled]:
            del self._refused[place]

    async def _tell_orders(self, orders: Sequence[OrderState], offset: Offset) -> None:
        """Tells of durable orders, with the loop let go between parts of them."""
        for first in range(0, len(orders), ORDERS_AT_ONCE):
            if first:
                await asyncio.sleep(0)
            part = orders[first : first + ORDERS_AT_ONCE]
            self._metrics.moved(part)
            self._announcing.update(part)
            self._orders.note(part, offset)
        self._orders.log_due()

    async def _condense(self) -> None:
        await condense(self._pool, self._partition)

    async def _keep_books(self) -> None:
        if self._pipeline:
            await self._pipeline.keep_books()

    async def _find_targets(self) -> None:
        targets = Targets(self._pool)
        await TargetSizing(self._state, self._exclusive, targets, self._config.target.of, self._metrics).recompute()

    async def _beat(self) -> None:
        """Tells readers of replicas how far these are."""
        await fetch(self._pool, "heartbeat", self._partition)

    async def _watch(self) -> None:
        self._rejections.log_due()
        self._orders.log_due()
        settled = self._offset
        now_ms = await self._source.now_ms()
        await self._exclusive.run(partial(self._show_books, now_ms))
        await self._source.drop_oversized(settled.last_id)
        left = unsettled_messages(await self._source.state(), settled)
        self._metrics.lag_messages.labels(self._partition).set(left)
        age = (now_ms - id_order(settled.last_id)[0]) / 1000
        self._metrics.lag_seconds.labels(self._partition).set(max(0.0, age) if left else 0)
        if not left:
            await self._go_on()

    def _show_books(self, now_ms: int) -> None:
        """Shows open positions, and the contracts with open positions whose mark or book is stale."""
        self._metrics.positions(self._state.books())
        seconds_max = self._config.adl.mark_seconds_max
        books = [book for _, book in self._state.books() if book.open]
        marks = sum(book.is_mark_old(now_ms, seconds_max) for book in books)
        self._metrics.stale(self._partition, marks, sum(book.stale for book in books))

    async def _trim(self) -> None:
        """Drops what is older than the retention by the stream server's clock; never what is not committed, or what the books
        still need.

        Nothing of a stream that lost its tail: what it got since may have ids below the offset.
        """
        stored, kept = await trim_bounds(self._pool, self._partition)
        if lost_tail(await self._source.state(), stored):
            return
        oldest_ms = max(0, await self._source.now_ms() - int(self._config.stream.retention_hours * 3_600_000))
        await self._source.trim(min([f"{oldest_ms}-0", stored.last_id, *kept], key=id_order))


class _Refused(NamedTuple):
    """A batch in which the database refused something, and with which words."""

    batch: Batch
    refusal: BaseException


class _Start(NamedTuple):
    """Where to read from, and the id up to which gaps are known. Where the stream lost its tail, up to which time (ms) of it
    messages had been settled.
    """

    offset: Offset
    known_until: str
    known_ms: int | None = None


def _suspects(batch: Batch) -> list[Place]:
    """The places of the events of a batch within one message."""
    if batch.place is None:
        return []
    stream_id, last = batch.place
    return [Place(stream_id, position) for position in range(last - batch.events + 1, last + 1)]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first single exception in a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def wait(stop: asyncio.Event, seconds: float) -> None:
    """Waits, but not once told to stop."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
