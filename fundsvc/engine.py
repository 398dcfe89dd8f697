"""The consumer: holds leases on partitions and runs a session for each, through every fault."""

import asyncio
import time
import uuid
from contextlib import suppress

import structlog

from fundsvc.auditing import Auditor
from fundsvc.config import Config
from fundsvc.core.contracts import partition_of
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.proposals import Proposals
from fundsvc.session import BACKOFF_SECONDS_MAX, Session, wait
from fundsvc.store.database import Pool, StoreFault, open_pool
from fundsvc.store.leases import Leases, open_leases
from fundsvc.store.statistics import Statistics
from fundsvc.streams.client import Client, open_client

RENEWALS_PER_LEASE = 4
"""A lease survives the loss of three renewals, and a dead owner's partition is claimed a quarter lease after it ends."""

FINISH_SECONDS_MAX = 1.0
"""A batch in hand is committed within this time, unless the database or the stream does not answer; then it is cut off."""

STOP_SECONDS_MAX = 2.0
"""For all that stopping takes, so that the process ends within three seconds whatever is away. Being cut off loses nothing."""

CHORE_CONNECTIONS_MAX = 4
"""One for the audit, one for what is looked up slowly, and two so that no other chore waits for these."""

PEAK_SECONDS = 20.0
"""How often the highest balances of the last eight hours are looked up: in this time few of them fall out of these."""

log = structlog.get_logger()


class Engine:
    """Consumes as many partitions as its fair share; `run` ends when `stop` is set, with nothing half done."""

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self.name = uuid.uuid4().hex[:12]
        self._config = config
        self._metrics = metrics
        self._owned: dict[int, _Ownership] = {}
        self._proposals = Proposals(config)
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
            auditing = tasks.create_task(
                Auditor(pool, self._config.audit, self._metrics, self._settles, self._config.policy.of).run()
            )
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
                    await wait(stop, self._config.engine.lease_seconds / RENEWALS_PER_LEASE)
                await self._give_up_all(leases)
        except StoreFault as fault:
            self._metrics.faults.labels("database").inc()
            self._outage.note(fault)
            await wait(stop, BACKOFF_SECONDS_MAX)

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
        session = Session(self._config, self._metrics, client, pool, self.name, partition, epoch, self._proposals)
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
