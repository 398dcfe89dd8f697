"""Keeps leases in a separate thread, so that long work on the engine's loop does not let them expire.

An engine stops renewing the lease of a partition that takes no step for STANDSTILL_SECONDS; another engine takes it over. If
all attempts of a partition fail for FAILING_SECONDS, this host may have lost a server that other hosts reach: the engine then
leaves the partition to another engine, if there is one.

An engine also detects by its own clock that a lease was not renewed, because the database's clock may be set back.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self, TypeVar

from fundsvc.store.database import StoreFault
from fundsvc.store.leases import Lease, Leases, open_leases

RENEWALS_PER_LEASE = 4
"""A lease survives three lost renewals. Engines look for expired leases as often, so they claim one within a quarter lease."""

STANDSTILL_SECONDS = 90.0
"""Longer than the timeout of any statement: a partition may wait that long for the database."""

FAILING_SECONDS = 30.0
"""Longer than a server's restart and a few slow commits."""

BACKOFF_LEASES = 3.0
BACKOFF_SECONDS_MAX = 600.0
"""An engine does not claim a partition for this time (in leases) after it left it to others. The time doubles with each
repetition, up to BACKOFF_SECONDS_MAX.
"""

RETRY_SECONDS_MAX = 1.0
"""The pause before connecting to the database again."""

END_SECONDS_MAX = 1.0
"""How long `__aexit__` waits for the thread, which only closes a connection."""

Result = TypeVar("Result")


class HeldLeases(NamedTuple):
    """The epochs of the held partitions, by number, and how many partitions are this engine's fair share."""

    epochs: Mapping[int, int]
    share: int


class Steps(NamedTuple):
    """How many steps a partition took, failed attempts included; how many of them settled something or found nothing new."""

    taken: int
    settled: int


class _Observed(NamedTuple):
    """The steps of a partition, and the times (monotonic) at which each count last changed."""

    steps: Steps
    taken_at: float
    settled_at: float


class LeaseKeeper:
    """Keeps the leases of one engine. Calls `steps` from its thread for the steps of each partition."""

    def __init__(self, dsn: str, engine: str, lease_seconds: float, steps: Callable[[], Mapping[int, Steps]]) -> None:
        self._dsn = dsn
        self._engine = engine
        self._seconds = lease_seconds
        self._steps = steps
        self._observed: dict[int, _Observed] = {}
        self._stuck_until: dict[int, float] = {}
        self._failing_until: dict[int, float] = {}
        self._backoffs: dict[int, float] = {}
        self._others: dict[int, tuple[Lease, float]] = {}
        self._leases: Leases | None = None
        self._leaving = self._ending = False
        self._keeping: asyncio.Task[Any] | None = None
        self._result: HeldLeases | Exception | None = None
        self._has_result = asyncio.Event()
        self._owner = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._one_at_a_time = asyncio.Lock()
        self._thread = threading.Thread(target=self._work, name="fundsvc leases", daemon=True)

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end)
        await asyncio.to_thread(self._thread.join, END_SECONDS_MAX)

    async def next(self) -> HeldLeases:
        """Waits for the next renewal and returns the held leases; raises its error, StoreFault if the database fails."""
        await self._has_result.wait()
        self._has_result.clear()
        result = self._result
        assert result is not None, "set before the event"
        if isinstance(result, Exception):
            raise result
        return result

    async def release(self, partition: int, epoch: int) -> None:
        """Releases a partition at once; raises StoreFault."""
        await self._in_thread(self._with_leases(lambda leases: leases.release(partition, epoch)))

    async def leave(self, epochs: Mapping[int, int]) -> None:
        """Releases all held partitions, stops acquiring, and removes the engine from the list; raises StoreFault."""
        await self._in_thread(self._with_leases(lambda leases: self._leave(leases, epochs)))

    def _work(self) -> None:
        """Runs the thread's event loop."""
        with suppress(asyncio.CancelledError), asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._keep())

    def _end(self) -> None:
        self._ending = True
        if self._keeping:
            self._keeping.cancel()

    async def _keep(self) -> None:
        self._keeping = asyncio.current_task()
        while not self._ending:
            try:
                async with open_leases(self._dsn, self._engine, self._seconds, self._others) as self._leases:
                    while True:
                        await self._renew(self._leases)
                        await asyncio.sleep(self._seconds / RENEWALS_PER_LEASE)
            except Exception as error:  # noqa: BLE001 - the engine classifies it
                self._publish(error)
            finally:
                self._leases = None
            await asyncio.sleep(RETRY_SECONDS_MAX)

    async def _renew(self, leases: Leases) -> None:
        async with self._one_at_a_time:
            if not self._leaving:
                self._observe_partitions()
                now = time.monotonic()
                stuck = [partition for partition, until in self._stuck_until.items() if until > now]
                failing = [partition for partition, until in self._failing_until.items() if until > now]
                self._publish(HeldLeases(await leases.keep(stuck, failing), await leases.share()))

    async def _leave(self, leases: Leases, epochs: Mapping[int, int]) -> None:
        self._leaving = True
        for partition, epoch in epochs.items():
            await leases.release(partition, epoch)
        await leases.leave()

    async def _with_leases(self, act: Callable[[Leases], Coroutine[Any, Any, None]]) -> None:
        async with self._one_at_a_time:
            if self._leases is None:
                raise StoreFault("the lease keeper has no connection to the database")
            await act(self._leases)

    async def _in_thread(self, work: Coroutine[Any, Any, Result]) -> Result:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _publish(self, result: HeldLeases | Exception) -> None:
        self._result = result
        with suppress(RuntimeError):  # The engine's loop is closed.
            self._owner.call_soon_threadsafe(self._has_result.set)

    def _observe_partitions(self) -> None:
        """Notes which partitions take no steps, and which fail at every attempt."""
        now = time.monotonic()
        self._observed = {
            partition: _observed(self._observed.get(partition), steps, now) for partition, steps in self._steps().items()
        }
        for partition, observed in self._observed.items():
            if now - observed.taken_at > STANDSTILL_SECONDS:
                self._back_off(self._stuck_until, partition, now)
            if now - observed.settled_at > FAILING_SECONDS:
                self._back_off(self._failing_until, partition, now)
            elif observed.settled_at == now:
                self._failing_until.pop(partition, None)
                self._backoffs.pop(partition, None)

    def _back_off(self, until: dict[int, float], partition: int, now: float) -> None:
        if until.get(partition, 0.0) <= now:
            backoff = self._backoffs.get(partition, BACKOFF_LEASES * self._seconds)
            until[partition] = now + backoff
            self._backoffs[partition] = min(2 * backoff, BACKOFF_SECONDS_MAX)


def _observed(before: _Observed | None, steps: Steps, now: float) -> _Observed:
    if before is None:
        return _Observed(steps, now, now)
    taken_at = before.taken_at if steps.taken == before.steps.taken else now
    settled_at = before.settled_at if steps.settled == before.steps.settled else now
    return _Observed(steps, taken_at, settled_at)
