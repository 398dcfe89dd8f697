"""The engine process: acquires leases on partitions and runs a session for each of them. Retries after every fault."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from fundsvc.concurrency.background import PeriodicTask, keep_running
from fundsvc.concurrency.exclusive import single_thread_executor
from fundsvc.concurrency.primary import following_primary
from fundsvc.concurrency.waiting import before
from fundsvc.config.cells import MAIN
from fundsvc.config.settings import Config
from fundsvc.engine.audit_process import AuditProcess
from fundsvc.engine.continuity import Streams
from fundsvc.engine.heads import save_heads
from fundsvc.engine.leases import HeldLeases, LeaseKeeper, Steps
from fundsvc.engine.ownership import Ownership
from fundsvc.engine.policy_proposals import Proposals
from fundsvc.engine.session import Session
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.store.database import CellPool, StoreFault, open_pool
from fundsvc.store.freshness import HEARTBEAT_SECONDS
from fundsvc.store.reader import fetch_in_cell
from fundsvc.store.statistics import Statistics
from fundsvc.streams.client import open_client
from fundsvc.streams.idle import IdleStreams
from fundsvc.streams.survey import SURVEY_SECONDS, Survey

FINISH_SECONDS_MAX = 1.0
"""The time for committing the current batch. A batch that takes longer is cancelled, because a server does not answer."""

STOP_SECONDS_MAX = 2.0
"""The limit for the whole shutdown: the process ends within three seconds also while servers do not answer. A cancelled batch
is not lost: the next owner settles it.
"""

POOL_CONNECTIONS_MAX = 4
"""One for the audit of pools, one for slow queries, and two so that other periodic tasks do not wait for these."""

PEAK_SECONDS = 20.0
"""How often the highest balances of the last eight hours are computed. Few of them leave that window in this time."""

HEADS_SECONDS = 60.0
"""How often the engine checks whether this hour's heads are saved. A fault delays them by at most this time."""

log = structlog.get_logger()


class Companion(Protocol):
    """A session that runs beside that of a partition, under the same epoch."""

    async def run(self, stop: asyncio.Event) -> None:
        """Settles until `stop` is set. Handles all errors, and sets `stop` if another engine is the owner."""


Companions = Callable[[Ownership], Sequence[Companion]]
"""Returns the companions of a partition's session."""


def _no_companions(_: Ownership) -> Sequence[Companion]:
    return ()


class NotSettling(Exception):
    """Some partitions of this process do not settle; the message contains the reasons."""


class Engine:
    """Settles a fair share of the partitions. `run` ends after `stop` is set, with all started batches committed or dropped.

    `companions` returns the further sessions of a partition that the engine comes to own. `cell` names its database.
    """

    def __init__(self, config: Config, metrics: Metrics, companions: Companions = _no_companions, cell: str = MAIN) -> None:
        self.name = uuid.uuid4().hex[:12]
        self._cell = cell
        self._config = config
        self._metrics = metrics
        self._companions = companions
        self._owned: dict[int, _OwnedPartition] = {}
        self._released: dict[int, int] = {}  # the last epoch of each partition that is or was released
        self._releases: set[asyncio.Task[None]] = set()
        self._worker: Executor
        self._proposals = Proposals(config)
        self._outage = Outage(log, "leases", engine=self.name)
        self._lease_fault = ""
        metrics.partitions.set(config.stream.partitions)
        metrics.servers.retention_bytes.set(config.stream.retention_bytes)
        if config.audit.heads_directory:
            metrics.heads_saved.set_to_current_time()  # Its age then counts from the start until the first file.

    async def run(self, stop: asyncio.Event) -> None:
        """Acquires and settles partitions until `stop` is set. Each part retries its own failures and does not stop another."""
        with single_thread_executor("fundsvc settling") as self._worker:
            await self._run(stop)

    async def _run(self, stop: asyncio.Event) -> None:
        async with (
            open_client(self._config.stream) as client,
            open_pool(self._config.database.dsn, POOL_CONNECTIONS_MAX) as pool,
            IdleStreams(client) as idle,
            asyncio.TaskGroup() as tasks,
        ):
            self._metrics.add_pool(pool)
            secrets = self._config.ledger.secrets
            if secrets.current is None:
                log.warning("accounts not hidden", engine=self.name)
            audit = AuditProcess(self._config, self._metrics, self._settled_here)
            streams = Streams(client, idle, Survey(client))
            periodic = (
                PeriodicTask("peaks", PEAK_SECONDS, partial(self._update_peaks, Statistics(pool)), log),
                PeriodicTask("heads", HEADS_SECONDS, partial(self._save_heads, pool), log),
                PeriodicTask("survey", SURVEY_SECONDS, streams.survey.run, log),
                PeriodicTask("heartbeats", HEARTBEAT_SECONDS, partial(self._send_heartbeats, pool), log),
                following_primary(self._config.database.dsn, log),
            )
            background = [tasks.create_task(task.run()) for task in periodic]
            background.append(tasks.create_task(keep_running("audit", audit.run, log)))
            keeping_leases = tasks.create_task(self._keep_leases(tasks, streams, pool, stop))
            try:
                await stop.wait()
                await asyncio.wait([keeping_leases], timeout=STOP_SECONDS_MAX)
            finally:
                for task in (*background, keeping_leases):
                    task.cancel()
                for ownership in self._owned.values():
                    ownership.cancel()

    async def check(self) -> None:
        """Returns if all partitions of this process settle; raises NotSettling otherwise."""
        reasons = [
            f"partition {number}: {owned.session.problem}" for number, owned in self._owned.items() if owned.session.problem
        ]
        if self._lease_fault:
            reasons.append(f"leases: {self._lease_fault}")
        if reasons:
            raise NotSettling("; ".join(reasons))

    async def _keep_leases(self, tasks: asyncio.TaskGroup, streams: Streams, pool: CellPool, stop: asyncio.Event) -> None:
        """Keeps leases, and runs the sessions of the held partitions, until `stop` is set."""
        engine = self._config.engine
        async with LeaseKeeper(self._config.database.dsn, self.name, engine.lease_seconds, self._steps) as keeper:
            stopping = asyncio.ensure_future(stop.wait())
            while not stop.is_set():
                await self._handle_leases(before(stopping, keeper.next()), tasks, streams, pool, keeper)
            with suppress(StoreFault):
                await self._release_all(keeper)

    async def _handle_leases(
        self,
        renewal: Awaitable[HeldLeases | None],
        tasks: asyncio.TaskGroup,
        streams: Streams,
        pool: CellPool,
        keeper: LeaseKeeper,
    ) -> None:
        """Applies a result of the lease keeper, unless the engine stops before it. Logs errors and continues."""
        try:
            held = await renewal
            if held is None:
                return
            self._apply_leases(tasks, streams, pool, keeper, held)
        except StoreFault as fault:
            self._note_fault(fault)
            # The keeper's connection may be half open, and so may pooled ones: each of those would block a query for a minute.
            await pool.expire_connections()
        except Exception as error:
            log.exception("internal error", part="leases")
            self._note_fault(error)
        else:
            self._lease_fault = ""
            self._outage.over()

    def _note_fault(self, fault: Exception) -> None:
        self._metrics.faults.labels("database").inc()
        self._outage.note(fault)
        self._lease_fault = str(fault)

    def _steps(self) -> Mapping[int, Steps]:
        """Returns the steps of each partition. The lease thread calls it."""
        return {partition: owned.session.steps for partition, owned in list(self._owned.items())}

    def _settled_here(self) -> frozenset[int]:
        """Returns the partitions whose sessions run in this engine."""
        return frozenset(number for number, owned in self._owned.items() if not owned.task.done())

    async def _update_peaks(self, statistics: Statistics) -> None:
        """Updates the metric of the highest balances; after a fault it keeps its values."""
        self._metrics.set_peaks(await statistics.peaks(time.time_ns() // 1_000_000), self._cell)

    async def _send_heartbeats(self, pool: CellPool) -> None:
        """Writes the heartbeats of the owned partitions, by which readers of a replica determine its delay."""
        if settled := sorted(self._settled_here()):
            await fetch_in_cell(pool, "heartbeat", settled)

    async def _save_heads(self, pool: CellPool) -> None:
        """Saves the heads of all chains outside the database, once an hour."""
        if self._config.audit.heads_directory:
            await save_heads(pool, Path(self._config.audit.heads_directory), self._config.audit.heads_days, self._cell)
            self._metrics.heads_saved.set_to_current_time()

    def _apply_leases(
        self, tasks: asyncio.TaskGroup, streams: Streams, pool: CellPool, keeper: LeaseKeeper, held: HeldLeases
    ) -> None:
        """Stops the sessions of lost partitions, starts those of new ones, and releases partitions beyond the fair share."""
        for partition, ownership in list(self._owned.items()):
            if held.epochs.get(partition) != ownership.epoch:
                ownership.cancel()
                del self._owned[partition]
                log.warning(
                    "partition lost", engine=self.name, partition=partition, epoch=ownership.epoch, cause="the lease ran out"
                )
            elif ownership.task.done():
                ownership.cancel()
                del self._owned[partition]
        for partition, epoch in held.epochs.items():
            # A result may be older than a release.
            if partition not in self._owned and epoch > self._released.get(partition, 0):
                self._owned[partition] = self._start(tasks, streams, pool, partition, epoch)
        for partition in sorted(self._owned)[held.share :]:
            self._begin_release(tasks, keeper, partition)

    def _start(
        self, tasks: asyncio.TaskGroup, streams: Streams, pool: CellPool, partition: int, epoch: int
    ) -> "_OwnedPartition":
        log.info("partition owned", engine=self.name, partition=partition, epoch=epoch)
        stop = asyncio.Event()
        ownership = Ownership(streams, pool, self.name, partition, epoch, self._worker)
        session = Session(self._config, self._metrics, ownership, self._proposals)
        companions = self._companions(ownership)
        running = [tasks.create_task(one.run(stop)) for one in (session, *companions)]
        return _OwnedPartition(epoch, session, stop, running)

    async def _release_all(self, keeper: LeaseKeeper) -> None:
        await asyncio.gather(*self._releases, *(ownership.finish() for ownership in self._owned.values()))
        await keeper.leave({partition: ownership.epoch for partition, ownership in self._owned.items()})
        for partition in list(self._owned):
            self._log_released(partition, self._owned.pop(partition))

    def _begin_release(self, tasks: asyncio.TaskGroup, keeper: LeaseKeeper, partition: int) -> None:
        """Releases a partition concurrently with others, and with the renewal of leases."""
        ownership = self._owned.pop(partition)
        self._released[partition] = ownership.epoch
        release = tasks.create_task(self._release(keeper, partition, ownership))
        self._releases.add(release)
        release.add_done_callback(self._releases.discard)

    async def _release(self, keeper: LeaseKeeper, partition: int, ownership: "_OwnedPartition") -> None:
        """Releases a partition once its batch is committed. After a fault this engine still holds it, and starts it again."""
        await ownership.finish()
        try:
            await keeper.release(partition, ownership.epoch)
        except StoreFault as fault:
            self._note_fault(fault)
            del self._released[partition]
        else:
            self._log_released(partition, ownership)

    def _log_released(self, partition: int, ownership: "_OwnedPartition") -> None:
        log.info("partition released", engine=self.name, partition=partition, epoch=ownership.epoch)


class _OwnedPartition:
    """A partition that this engine owns under an epoch, with the tasks of its session (`task`) and of the companions."""

    def __init__(self, epoch: int, session: Session, stop: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
        self.epoch = epoch
        self.session = session
        self.task = tasks[0]
        self._tasks = tasks
        self._stop = stop

    async def finish(self) -> None:
        """Waits until the current batch is committed; cancels it after FINISH_SECONDS_MAX."""
        self._stop.set()
        await asyncio.wait(self._tasks, timeout=FINISH_SECONDS_MAX)
        self.cancel()
        await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Cancels the sessions at once. The next owner settles what is not committed."""
        self._stop.set()
        for task in self._tasks:
            task.cancel()
