"""Settles one pool under the epoch of its home partition: loads it, runs the pipeline and periodic tasks, and handles errors.

See `fundsvc.engine.attempts` for errors that stop a session. They affect neither the reserve nor other pools. A *refusal* (the
database refuses something in a batch) is narrowed down to the event that causes it, which is rejected.
"""

import asyncio
import time
from functools import partial
from typing import NamedTuple

import structlog

from fundsvc.concurrency.background import PeriodicTask
from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.config.settings import Config
from fundsvc.core.batch import Offset
from fundsvc.core.checkpoints import Checkpoints
from fundsvc.engine.attempts import Attempts, first_of
from fundsvc.engine.batch_bound import BatchBound
from fundsvc.engine.continuity import CheckedSource, lost_tail, unsettled_messages
from fundsvc.engine.ownership import Ownership
from fundsvc.engine.refusals import Refusals, RefusedBatch
from fundsvc.engine.settling import SLICE_SHARE, Committed, SettlingContext
from fundsvc.engine.step_counter import StepCounter
from fundsvc.engine.stream_start import Halted, StreamStart
from fundsvc.engine.trimming import trim
from fundsvc.logs.batches import Rejections
from fundsvc.metrics import Metrics
from fundsvc.metrics.mutual import PoolView
from fundsvc.mutual.codec import encode
from fundsvc.mutual.core.events import Tick
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.terms import Rules
from fundsvc.mutual.engine.pipeline import PoolPipeline, Writing
from fundsvc.mutual.engine.terms_proposals import TermsProposals
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.mutual.store.state import PoolGaps, note_halted, stored_offset
from fundsvc.mutual.store.writer import PoolWriter, open_pool_writer
from fundsvc.store.database import StoreRefusal
from fundsvc.store.writer import STREAM_START
from fundsvc.streams.client import pool_stream_key, server_time_ms
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import Source

TICK_SECONDS = 60.0
"""How often the owner appends a tick, by which a cut-off without other events is at most this late."""

WATCH_SECONDS = 1.0
TRIM_SECONDS = 60.0
SURVEY_SECONDS = 60.0
"""How often the lag is measured, old settled messages are trimmed, and what only the database knows is shown."""

log = structlog.get_logger()


class _Loaded(NamedTuple):
    """A pool in memory with what settles it. `read_from` is the offset at which the pipeline starts to read, `since` the
    monotonic time of the load.
    """

    pool: Pool
    pipeline: PoolPipeline
    read_from: Offset
    since: float


class PoolSession:
    """Settles one pool under one epoch, and loads it again after every error."""

    def __init__(self, config: Config, metrics: Metrics, ownership: Ownership, name: str, proposals: TermsProposals) -> None:
        self._config = config
        self._metrics = metrics.mutual
        self._streams, self._pool, self._engine, self._home, self._epoch, self._worker = ownership
        self._client = self._streams.client
        self._name = name
        self._rules: Rules = config.mutual.pools[name].rules()
        self._proposals = proposals
        self._key = pool_stream_key(name)
        self._source = Source(self._client, self._home, self._key, config.stream.message_bytes_max)
        self._producer = Producer.configured(self._client, config.stream)
        self._reader = MutualReader(self._pool)
        self._log = log.bind(engine=self._engine, pool=name, epoch=self._epoch)
        self._counter = StepCounter()
        self._bound = BatchBound(config.engine.batch_fills_max)
        self._refusals = Refusals(self._bound)
        self._rejections = Rejections(self._log)
        self._loaded: _Loaded
        self._offset = Offset(STREAM_START, 0)
        self._next_cutoff = 0
        self._start = StreamStart(
            self._source,
            PoolGaps(self._pool, name),
            config.stream.on_gap,
            self._log,
            key=self._key,
            name=name,
            regressions=self._metrics.stream_regressions.labels(name),
            gap_count=self._metrics.stream_gaps.labels(name),
            count_step=self._counter.restore,
        )
        self._attempts = Attempts(
            "pool",
            self._log,
            self._client,
            self._pool,
            counter=self._counter,
            bound=self._bound,
            lease_seconds=config.engine.lease_seconds,
            record=partial(note_halted, self._pool, name, self._epoch),
            show_halted=self._show_halted,
            faults=metrics.faults,
        )
        # They survive loads, so that a task with a long interval does not run again after each refusal.
        self._periodic = (
            PeriodicTask("ticks", TICK_SECONDS, self._tick, self._log),
            PeriodicTask("lag", WATCH_SECONDS, self._measure_lag, self._log),
            PeriodicTask("terms", WATCH_SECONDS, self._propose_terms, self._log),
            PeriodicTask("survey", SURVEY_SECONDS, self._survey, self._log),
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Settles the pool until `stop` is set or another engine owns it."""
        self._metrics.own(self._name)
        self._streams.survey.add(self._source)
        try:
            async with asyncio.TaskGroup() as tasks:
                # Trims also while loading fails: a full stream server may be the cause.
                trimming = tasks.create_task(PeriodicTask("trim", TRIM_SECONDS, self._trim, self._log).run())
                await asyncio.wait([tasks.create_task(self._attempts.run(self._settle, stop))])
                trimming.cancel()
        finally:
            self._streams.survey.remove(self._source)
            self._rejections.log_rest()
            self._metrics.release(self._name)

    async def _settle(self, stop: asyncio.Event) -> None:
        """Loads and settles the pool until `stop` is set. After a refusal loads it again on the same connection."""
        dsn, seconds = self._config.database.dsn, self._attempts.statement_seconds
        async with open_pool_writer(dsn, self._engine, self._name, self._home, self._epoch, seconds) as writer:
            refused: RefusedBatch | None = None
            while not stop.is_set():
                self._counter.begin_load()
                loaded = await self._load(writer)
                self._loaded, self._offset, self._counter.pipeline = loaded, loaded.read_from, loaded.pipeline
                if refused:
                    # Only after the load, which checks the ownership, and that no row of the ledger lacks a commit.
                    self._refusals.narrow(refused)
                refused = await self._run_pipeline(loaded, stop)

    async def _load(self, writer: PoolWriter) -> _Loaded:
        """Loads the pool from the ledger; raises Halted if it must not be settled."""
        secret = self._config.ledger.secrets.current
        try:
            pool, stored, opened = await writer.load(
                self._rules, secret, self._config.stream.ts_ahead_seconds_max, self._counter.restore
            )
        except ValueError as error:
            raise Halted(str(error)) from None
        if secret is None and await writer.has_seals(pool.ledger.entry):
            raise Halted("the last entry hides its account, and ledger.secret is not set: set the secret of these entries")
        kept, now = await writer.load_checkpoints(), time.monotonic()
        start = await self._start.find(stored, [checkpoint for checkpoint, _ in kept])
        self._next_cutoff = pool.register.next_cutoff
        self._metrics.show(self._view(pool))
        self._log.info("pool loaded", accounts=len(pool.register.accounts), policies=len(pool.register.policies))
        pipeline = PoolPipeline(
            pool,
            CheckedSource(self._source, start.known_until, self._streams),
            writer,
            self._handle_commit,
            SettlingContext(
                Exclusive(self._worker),
                stored,
                start.offset,
                self._bound,
                SLICE_SHARE * self._config.engine.loop_ms_max / 1000,
                self._refusals.messages,
                Checkpoints((checkpoint.last_id, now - age) for checkpoint, age in kept),
            ),
            opened,
        )
        return _Loaded(pool, pipeline, start.offset, time.monotonic())

    async def _run_pipeline(self, loaded: _Loaded, stop: asyncio.Event) -> RefusedBatch | None:
        """Runs the pipeline with the periodic tasks until `stop` is set; returns the batch if the database refuses it."""
        refused, pipeline = None, loaded.pipeline
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(task.run()) for task in self._periodic]
                # In a separate task, see `fundsvc.engine.session`.
                await asyncio.wait([tasks.create_task(pipeline.run(stop))])
                for task in running:
                    task.cancel()
        except* StoreRefusal as refusals:
            if pipeline.writing is None or _is_cutoff(pipeline.writing):
                raise
            refused = RefusedBatch(pipeline.writing, first_of(refusals))
        return refused

    async def _handle_commit(self, committed: Committed[Writing]) -> None:
        """Publishes a committed batch: metrics and log lines."""
        batch, totals = committed.written.batch, committed.written.totals
        self._offset, self._next_cutoff = committed.offset, batch.pool.next_cutoff
        self._refusals.forget(committed.offset.last_id)
        self._attempts.committed()
        rules = self._loaded.pool.versions[batch.pool.terms]
        self._metrics.committed(
            PoolView(batch.pool, rules, totals.active, totals.caps_left),
            committed.durations,
            entries=len(batch.entries),
            cycles=batch.cycles,
            rejected=batch.rejected,
            duplicates=batch.duplicates,
            identity_error=batch.identity_error,
        )
        self._rejections.note(batch.rejected)
        for cycle in batch.cycles:
            self._log.info("cut-off", cycle=cycle.cycle, at=cycle.at, budget=cycle.budget, completed=cycle.completed)
        for version in batch.terms:
            self._log.info("terms in force", version=version)
        if batch.identity_error:
            self._log.error("identity error", error=batch.identity_error, entry=batch.pool.entry)
        await self._attempts.resume()

    def _view(self, pool: Pool) -> PoolView:
        distribution = pool.register.distribution
        return PoolView(pool.row(), pool.rules, len(distribution), distribution.caps_left)

    def _show_halted(self, halted: int) -> None:
        self._metrics.show_halted(self._name, halted)

    async def _tick(self) -> None:
        """Appends a tick by the stream server's clock, once the pool has had an event."""
        if not self._next_cutoff:
            return
        tick = Tick(self._name, await server_time_ms(self._client, self._key))
        await self._producer.append_to(self._key, "json", [encode([tick])])

    async def _propose_terms(self) -> None:
        versions = self._loaded.pool.versions
        await self._proposals.propose(self._client, self._producer, self._name, self._rules, versions, self._log)

    async def _measure_lag(self) -> None:
        self._rejections.log_due()
        settled, next_cutoff = self._offset, self._next_cutoff
        seen = await self._streams.survey.look(self._source, self._loaded.since)
        now_ms = seen.now_ms
        late = max(0, now_ms - next_cutoff) / 1000 if next_cutoff else 0.0
        self._metrics.late.labels(self._name).set(late)
        await self._source.drop_oversized(settled.last_id)
        left = unsettled_messages(seen.state, settled)
        self._metrics.lag_messages.labels(self._name).set(left)
        if not left:
            await self._attempts.resume()

    async def _survey(self) -> None:
        """Shows the payout ratio and the number of unfunded accounts."""
        self._metrics.unfunded.labels(self._name).set(await self._reader.unfunded(self._name))
        state = await self._reader.pool(self._name)
        payouts = await self._reader.payouts(state) if state else None
        if payouts and payouts.ratio is not None:
            self._metrics.ratio.labels(self._name).set(payouts.ratio)

    async def _trim(self) -> None:
        """Trims settled messages beyond the retention.

        Does not trim a stream that lost its tail: its new messages may have ids below the offset.
        """
        stored = await stored_offset(self._pool, self._name)
        if lost_tail(await self._source.state(), stored):
            return
        await trim(self._source, self._config.stream, stored.last_id)


def _is_cutoff(writing: Writing) -> bool:
    """Whether a batch that cannot be divided has a cut-off. Its event is not the cause: the next one would have the cut-off."""
    return writing.events == 1 and bool(writing.batch.cycles)
