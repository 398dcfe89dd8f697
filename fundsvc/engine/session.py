"""Settles one partition under one epoch: loads funds and books, runs the pipeline and periodic tasks, and handles errors.

See `attempts` for errors that stop a session. A *refusal* (the database refuses something in a batch) is narrowed down to the
event that causes it, which is rejected. Other partitions and the HTTP side continue.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import structlog

from fundsvc.concurrency.background import PeriodicTask, keep_running
from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.config.settings import Config
from fundsvc.core.adl.order import OrderState
from fundsvc.core.batch import Batch, Offset, RateState
from fundsvc.core.checkpoints import Checkpoints
from fundsvc.core.contracts import partition_of
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policies
from fundsvc.engine.announcing import RoundAnnouncer
from fundsvc.engine.attempts import Attempts, first_of
from fundsvc.engine.batch_bound import BatchBound
from fundsvc.engine.book_loading import BookLoader
from fundsvc.engine.continuity import CheckedSource, lost_tail, unsettled_messages
from fundsvc.engine.leases import Steps
from fundsvc.engine.ownership import Ownership
from fundsvc.engine.pipeline import Pipeline
from fundsvc.engine.policy_proposals import Proposals
from fundsvc.engine.refusals import Refusals, RefusedBatch
from fundsvc.engine.settling import SLICE_SHARE, Committed, SettlingContext
from fundsvc.engine.step_counter import StepCounter
from fundsvc.engine.stream_start import Halted, StreamStart
from fundsvc.engine.target_sizing import TargetSizing
from fundsvc.engine.trimming import trim
from fundsvc.logs.batches import Anomalies, Orders, Outcomes, Rejections
from fundsvc.metrics import Metrics
from fundsvc.readmodel.book_recovery import BookRecovery
from fundsvc.store.adl import AdlReader
from fundsvc.store.database import StoreRefusal
from fundsvc.store.gaps import Gaps
from fundsvc.store.partition_state import note_halted, trim_bounds
from fundsvc.store.rollups import condense
from fundsvc.store.target_sizes import Targets
from fundsvc.store.writer import STREAM_START, Writer, open_writer
from fundsvc.streams.announcer import Announcer
from fundsvc.streams.client import stream_key
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import Source, id_order

WATCH_SECONDS = 1.0
TRIM_SECONDS = 60.0
"""How often the lag is measured, and how often committed messages beyond the retention are trimmed from the stream."""

PROPOSE_SECONDS = 10.0
"""The pause after a fault that prevented the proposal of policies."""

UNSOUND_SECONDS = 60.0
"""How often the session looks for unsound hours of rollups while there are no new entries."""

ORDERS_AT_ONCE = 250
"""ADL orders that are counted, announced and logged between two yields to the loop: about a millisecond."""

log = structlog.get_logger()


class _Loaded(NamedTuple):
    """A partition in memory with all that settles it, and what loads its books.

    `read_from` is the offset at which the pipeline starts to read, `since` the monotonic time of the load.
    """

    policies: Policies
    state: Partition
    exclusive: Exclusive
    books: BookLoader
    announcer: RoundAnnouncer
    pipeline: Pipeline
    read_from: Offset
    since: float


class Session:
    """Settles one partition under one epoch, and loads it again after every error."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        ownership: Ownership,
        proposals: Proposals,
    ) -> None:
        self._config = config
        self._streams, pool, engine, partition, epoch, self._worker = ownership
        self._client = client = self._streams.client
        self._proposals = proposals
        self._metrics = metrics
        self._source = Source(client, partition, message_bytes_max=config.stream.message_bytes_max)
        self._announcer = Announcer(client, partition)
        self._producer = Producer.configured(client, config.stream)
        self._loaded: _Loaded
        self._counter = StepCounter()
        self._bound = BatchBound(config.engine.batch_fills_max)
        self._refusals = Refusals(self._bound)
        self._pool = pool
        self._engine = engine
        self._partition = partition
        self._epoch = epoch
        self._log = log.bind(engine=engine, partition=partition, epoch=epoch)
        self._start = StreamStart(
            self._source,
            Gaps(pool, partition),
            config.stream.on_gap,
            self._log,
            key=stream_key(partition),
            name=str(partition),
            regressions=metrics.stream_regressions.labels(partition),
            gap_count=metrics.stream_gaps.labels(partition),
            count_step=self._counter.restore,
        )
        self._attempts = Attempts(
            "partition",
            self._log,
            client,
            pool,
            counter=self._counter,
            bound=self._bound,
            lease_seconds=config.engine.lease_seconds,
            record=partial(note_halted, pool, partition, epoch),
            show_halted=self._show_halted,
            faults=metrics.faults,
        )
        self._rejections = Rejections(self._log)
        self._orders = Orders(self._log)
        self._outcomes = Outcomes(self._log)
        self._oddities = Anomalies(self._log)
        self._offset = Offset(STREAM_START, 0)
        self._rollups_due = 0.0
        every = config.engine
        # They survive loads, so that a task with a long interval does not run again after each refusal.
        self._periodic = (
            PeriodicTask("rollups", every.rollup_seconds, self._update_rollups, self._log),
            PeriodicTask("lag", WATCH_SECONDS, self._measure_lag, self._log),
            PeriodicTask("books", every.book_seconds, self._request_books, self._log),
            PeriodicTask("policies", PROPOSE_SECONDS, self._propose_policies, self._log),
            PeriodicTask("targets", every.target_seconds, self._compute_targets, self._log),
        )

    @property
    def problem(self) -> str:
        """The reason why the partition does not settle, "" while it does."""
        return self._attempts.problem

    @property
    def steps(self) -> Steps:
        """Returns the steps of this session. Other threads may call it."""
        return self._counter.steps

    async def run(self, stop: asyncio.Event) -> None:
        """Settles the partition until `stop` is set or another engine owns it."""
        self._metrics.own(self._partition, self._epoch)
        self._streams.survey.add(self._source)
        try:
            async with asyncio.TaskGroup() as tasks:
                # Trims also while loading fails: a full stream server may be the cause.
                trimming = tasks.create_task(PeriodicTask("trimming", TRIM_SECONDS, self._trim, self._log).run())
                await asyncio.wait([tasks.create_task(self._attempts.run(self._settle, stop))])
                trimming.cancel()
        finally:
            self._streams.survey.remove(self._source)
            self._rejections.log_rest()
            self._orders.log_rest()
            self._outcomes.log_rest()
            self._metrics.release(self._partition, self._epoch, self._config.stream.partitions)

    def _show_halted(self, halted: int) -> None:
        self._metrics.show_halted(self._partition, halted)

    async def _settle(self, stop: asyncio.Event) -> None:
        """Loads and settles the partition until `stop` is set. After a refusal loads it again on the same connection."""
        dsn, seconds = self._config.database.dsn, self._attempts.statement_seconds
        async with open_writer(dsn, self._engine, self._partition, self._epoch, seconds) as writer:
            refused: RefusedBatch | None = None
            while not stop.is_set():
                self._counter.begin_load()
                loaded = await self._load(writer)
                self._loaded, self._offset, self._counter.pipeline = loaded, loaded.read_from, loaded.pipeline
                if refused:
                    # Only after the load, which checks the ownership, and that no row of the ledger lacks a commit.
                    self._refusals.narrow(refused)
                    # Counts as progress: another engine would have to repeat the search.
                    self._counter.attempt()
                    self._counter.settle()
                refused = await self._run_pipeline(loaded, stop)

    async def _run_pipeline(self, loaded: _Loaded, stop: asyncio.Event) -> RefusedBatch | None:
        """Runs the pipeline with the periodic tasks until `stop` is set; returns the batch if the database refuses it."""
        refused, pipeline = None, loaded.pipeline
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(task.run()) for task in self._periodic]
                running.append(tasks.create_task(keep_running("announcing", loaded.announcer.run, self._log)))
                running.append(tasks.create_task(self._load_books()))
                # In a separate task: if the pipeline and a periodic task fail at once, a task group within this group's own
                # task would leave that task cancelled (CPython gh-116720, until 3.13).
                await asyncio.wait([tasks.create_task(pipeline.run(stop))])
                for task in running:
                    task.cancel()
        except* StoreRefusal as refusals:
            if pipeline.writing is None:
                raise
            refused = RefusedBatch(pipeline.writing, first_of(refusals))
        return refused

    async def _load(self, writer: Writer) -> _Loaded:
        """Loads the partition from the ledger; raises Halted if it must not be settled."""
        policies = await writer.load_policies(self._config.policy.version(1))
        stored, funds = await writer.load(policies[-1].of)
        if self._config.ledger.secrets.current is None and await writer.has_seals():
            raise Halted("the last entries hide their accounts, and ledger.secret is not set: set the secret of these entries")
        self._check_home(funds)
        kept, now = await writer.load_checkpoints(), time.monotonic()
        start = await self._start.find(stored, [checkpoint for checkpoint, _ in kept])
        exclusive = Exclusive(self._worker)
        state = self._partition_of(funds, policies, await writer.load_rates())
        books = await self._book_loader(state, exclusive, writer, stored)
        if start.known_ms is not None:
            await books.run()
            state.make_stale(start.known_ms)
            writer.begin_again(start.offset.last_id)
        orders = await writer.load_orders()
        self._metrics.loaded(funds, orders)
        announcer = RoundAnnouncer(
            state, exclusive, self._announcer, self._producer, self._config.adl, self._partition, self._metrics, self._log
        )
        announcer.update(state.reopen(order).order for order in orders)
        self._log.info("partition loaded", funds=len(funds), orders=len(orders), stream_id=stored.last_id)
        pipeline = Pipeline(
            state,
            CheckedSource(self._source, start.known_until, self._streams),
            writer,
            self._handle_commit,
            SettlingContext(
                exclusive,
                stored,
                start.offset,
                self._bound,
                SLICE_SHARE * self._config.engine.loop_ms_max / 1000,
                self._refusals.messages,
                Checkpoints((checkpoint.last_id, now - age) for checkpoint, age in kept),
            ),
            books.load,
        )
        return _Loaded(policies[-1], state, exclusive, books, announcer, pipeline, start.offset, time.monotonic())

    def _partition_of(self, funds: Iterable[Fund], policies: Sequence[Policies], rates: Iterable[RateState]) -> Partition:
        stream, currency = self._config.stream, self._config.currency
        return Partition(
            self._partition,
            stream.partitions,
            funds,
            currency.decimals,
            currency.decimals_default,
            policies[-1].of,
            stream.ts_ahead_seconds_max,
            policies,
            self._config.ledger.secrets.current,
            stream.contracts_max,
            rates,
        )

    def _check_home(self, funds: Iterable[Fund]) -> None:
        """Raises Halted if the ledger lists a contract of another partition in this one."""
        partitions = self._config.stream.partitions
        for symbol in (fund.contract.symbol for fund in funds):
            home = partition_of(symbol, partitions)
            if home != self._partition:
                raise Halted(
                    f"the ledger has {symbol} in partition {self._partition}; with {partitions} partitions its partition is"
                    f" {home}: have the database's owner correct contracts.partition"
                )

    async def _propose_policies(self) -> None:
        """Appends the configured policies if they differ from the recorded ones; once for each process."""
        version = await self._proposals.propose(self._client, self._partition, self._loaded.policies)
        if version:
            self._log.warning("policies changed", version=version)

    async def _book_loader(self, state: Partition, exclusive: Exclusive, writer: Writer, stored: Offset) -> BookLoader:
        """Has the partition begin without its saved books; returns what loads them, up to the stored offset."""
        saved, ledger = await writer.saved_books(), AdlReader(self._pool)
        state.await_books(saved)
        rejected = partial(ledger.rejected_places, self._partition)
        source = Source(self._client, self._partition, message_bytes_max=self._config.stream.message_bytes_max)
        recovery = BookRecovery(state, exclusive, source, saved, rejected, ledger.reduced_sides)
        self._counter.recovery = recovery
        read = partial(ledger.books, self._partition)
        return BookLoader(state, exclusive, recovery, stored, saved, read, self._counter.restore)

    async def _load_books(self) -> None:
        """Loads the books that are not loaded yet."""
        books, state = self._loaded.books, self._loaded.state
        if not books.loaded.is_set():
            await books.run()
        self._log.info("books loaded", positions=sum(book.open for _, book in state.books()))
        await self._request_books()

    async def _handle_commit(self, committed: Committed[Batch]) -> None:
        """Publishes a committed batch: metrics, ADL rounds and log lines."""
        started = time.perf_counter()
        self._offset = committed.offset
        self._rollups_due = 0.0
        self._refusals.forget(committed.offset.last_id)
        self._attempts.committed()
        self._metrics.committed(committed.written, committed.durations)
        await self._publish_orders(list(committed.written.orders.values()), committed.offset)
        self._outcomes.note(committed.written, committed.offset)
        self._rejections.note(committed.written.rejected)
        self._oddities.note(committed.written, committed.offset)
        await self._attempts.resume()
        self._metrics.announce_seconds.observe(time.perf_counter() - started)

    async def _publish_orders(self, orders: Sequence[OrderState], offset: Offset) -> None:
        """Publishes committed orders in parts; yields to the loop between them."""
        for first in range(0, len(orders), ORDERS_AT_ONCE):
            if first:
                await asyncio.sleep(0)
            part = orders[first : first + ORDERS_AT_ONCE]
            self._metrics.moved(part)
            self._loaded.announcer.update(part)
            self._orders.note(part, offset)
        self._orders.log_due()

    async def _update_rollups(self) -> None:
        """Condenses new entries. Without any, looks seldom for hours that are unsound."""
        if time.monotonic() < self._rollups_due:
            return
        self._rollups_due = time.monotonic() + UNSOUND_SECONDS
        condensed = True
        try:
            condensed = await condense(self._pool, self._partition) > 0
        finally:
            if condensed:
                self._rollups_due = 0.0

    async def _request_books(self) -> None:
        await self._loaded.pipeline.request_books()

    async def _compute_targets(self) -> None:
        await self._loaded.books.loaded.wait()
        state, exclusive, targets = self._loaded.state, self._loaded.exclusive, Targets(self._pool)
        await TargetSizing(state, exclusive, targets, self._config.target.of, self._metrics).recompute()

    async def _measure_lag(self) -> None:
        self._rejections.log_due()
        self._orders.log_due()
        self._outcomes.log_due()
        settled = self._offset
        seen = await self._streams.survey.look(self._source, self._loaded.since)
        now_ms = seen.now_ms
        await self._loaded.exclusive.run(partial(self._show_books, now_ms))
        await self._loaded.exclusive.run(partial(self._show_inventories, now_ms))
        await self._source.drop_oversized(settled.last_id)
        left = unsettled_messages(seen.state, settled)
        self._metrics.lag_messages.labels(self._partition).set(left)
        age = (now_ms - id_order(settled.last_id)[0]) / 1000
        self._metrics.lag_seconds.labels(self._partition).set(max(0.0, age) if left else 0)
        if not left:
            await self._attempts.resume()

    def _show_books(self, now_ms: int) -> None:
        """Sets the metrics of open positions, and of contracts with open positions whose mark or book is stale."""
        self._metrics.positions(self._loaded.state.books())
        seconds_max = self._config.adl.mark_seconds_max
        books = [book for _, book in self._loaded.state.books() if book.open]
        marks = sum(book.is_mark_old(now_ms, seconds_max) for book in books)
        self._metrics.books.show(
            self._partition,
            stale_marks=marks,
            stale_books=sum(book.stale for book in books),
            awaited=len(self._loaded.state.awaited),
        )

    def _show_inventories(self, now_ms: int) -> None:
        """Sets the metrics of inventories that depend on the mark."""
        self._metrics.exposed(self._loaded.state.exposures(now_ms))

    async def _trim(self) -> None:
        """Trims messages beyond the retention, except those that a commit or a book needs.

        Does not trim a stream that lost its tail: its new messages may have ids below the offset.
        """
        stored, kept = await trim_bounds(self._pool, self._partition)
        if lost_tail(await self._source.state(), stored):
            return
        needed = min([stored.last_id, *kept], key=id_order)
        self._metrics.servers.stream_bytes.labels(self._partition).set(await trim(self._source, self._config.stream, needed))
