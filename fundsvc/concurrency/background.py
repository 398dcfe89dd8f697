"""Work beside settlement: each piece fails alone, is tried again after a pause of its own, and never ends anything else."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from structlog.typing import FilteringBoundLogger

from fundsvc.logs.faults import Outage
from fundsvc.store.database import StoreFault
from fundsvc.streams.client import StreamFault

PAUSE_SECONDS_MAX = 30.0
"""A chore that goes on failing is tried this often: seldom enough to leave a server that is in trouble alone."""

Work = Callable[[], Awaitable[None] | None]


class PeriodicTask:
    """Does some work every few seconds; after each failure the pause is doubled, up to a bound.

    A chore that is cancelled and run again goes on with its pause.
    """

    def __init__(self, name: str, seconds: float, work: Work, log: FilteringBoundLogger) -> None:
        self._name = name
        self._seconds = seconds
        self._work = work
        self._log = log
        self._outage = Outage(log, name)
        self._failures = 0
        self._due = 0.0

    async def run(self) -> None:
        """Goes on until cancelled."""
        while True:
            await asyncio.sleep(max(0.0, self._due - time.monotonic()))
            await self._do()
            self._due = time.monotonic() + self._pause()

    async def _do(self) -> None:
        try:
            waiting = self._work()
            if waiting is not None:
                await waiting
        except (StoreFault, StreamFault) as fault:
            self._failures += 1
            self._outage.note(fault)
        except Exception as mistake:  # noqa: BLE001 - a mistake in a chore must not end what it is a chore of
            self._failures += 1
            self._outage.note(mistake)
            self._log.error("mistake", part=self._name, exc_info=mistake)
        else:
            self._failures = 0
            self._outage.over()

    def _pause(self) -> float:
        return max(self._seconds, min(PAUSE_SECONDS_MAX, self._seconds * 2.0 ** min(self._failures, 16)))


async def keep_running(name: str, work: Callable[[], Awaitable[None]], log: FilteringBoundLogger) -> None:
    """Runs what runs until it is cancelled; begins it again, some seconds after, when a mistake of ours ended it."""
    await PeriodicTask(name, 1.0, work, log).run()
