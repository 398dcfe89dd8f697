"""Periodic work beside settlement. A failed run is retried after a growing pause and does not affect other tasks."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from structlog.typing import FilteringBoundLogger

from fundsvc.logs.faults import Outage
from fundsvc.store.database import StoreFault
from fundsvc.streams.client import StreamFault

PAUSE_SECONDS_MAX = 30.0
"""The longest pause after failures: long enough not to load a server that recovers."""

Work = Callable[[], Awaitable[None] | None]


class PeriodicTask:
    """Runs `work` every `seconds`. Each failure doubles the pause, up to PAUSE_SECONDS_MAX.

    The pause survives a cancelled `run`: the next `run` waits for the rest of it.
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
        """Repeats the work until the task is cancelled."""
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
        except Exception as error:  # noqa: BLE001 - an internal error in periodic work must not stop settlement
            self._failures += 1
            self._outage.note(error)
            self._log.error("internal error", part=self._name, exc_info=error)
        else:
            self._failures = 0
            self._outage.over()

    def _pause(self) -> float:
        return max(self._seconds, min(PAUSE_SECONDS_MAX, self._seconds * 2.0 ** min(self._failures, 16)))


async def keep_running(name: str, work: Callable[[], Awaitable[None]], log: FilteringBoundLogger) -> None:
    """Runs `work`, which normally does not return, until the task is cancelled. Restarts it a second or more after an error."""
    await PeriodicTask(name, 1.0, work, log).run()
