"""Repeats attempts to settle a stream: after faults with a growing pause, after internal errors at longer intervals.

Three kinds of errors end an attempt. After a *fault* (the database or the stream server fails) it is repeated with a back-off.
A *refusal* (the database refuses something in a batch) is the caller's. Anything else *halts*: an internal error, or messages
that left the stream before they were settled.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal

from prometheus_client import Counter
from structlog.typing import FilteringBoundLogger

from fundsvc.engine.batch_bound import BatchBound
from fundsvc.engine.step_counter import StepCounter
from fundsvc.engine.stream_start import Halted
from fundsvc.logs.faults import Outage
from fundsvc.store.database import COMMAND_SECONDS, CellPool, StoreFault
from fundsvc.store.writer import OwnershipLost, Stray
from fundsvc.streams.client import StreamClient, StreamFault, drop_idle

STATEMENT_SECONDS_MIN = 3.0
"""The first timeout of the ledger's statements. A server that is silent for longer may be unreachable, and another connection
may reach it. Each timeout doubles it, up to COMMAND_SECONDS.
"""

BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 0.05, 1.0
"""The pauses after faults: the session recovers within a second after the servers do."""

HALTED_SECONDS_MIN, HALTED_SECONDS_MAX = 5.0, 60.0
"""The pauses after internal errors, whose cause may disappear."""


Part = Literal["partition", "pool"]
"""What a session settles, as its log lines name it."""


class Attempts:
    """The attempts of one session, which settles a `part`.

    `problem` is the reason why nothing is settled, "" while it is. `statement_seconds` is the timeout of the ledger's
    statements. `record` stores the reason of a halt, or "" when settling continues. `show_halted` gets
    1 while halted, else 0. `faults` counts faults by part.
    """

    def __init__(
        self,
        part: Part,
        log: FilteringBoundLogger,
        client: StreamClient,
        pool: CellPool,
        *,
        counter: StepCounter,
        bound: BatchBound,
        lease_seconds: float,
        record: Callable[[str], Awaitable[None]],
        show_halted: Callable[[int], None],
        faults: Counter,
    ) -> None:
        self.problem = ""
        self.statement_seconds = self._statement_seconds_min = max(STATEMENT_SECONDS_MIN, lease_seconds)
        self._part = part
        self._log = log
        self._client = client
        self._pool = pool
        self._counter = counter
        self._bound = bound
        self._record = record
        self._show_halted = show_halted
        self._faults = faults
        self._outage = Outage(log, "settling")
        self._halted = ""
        self._recorded: str | None = None
        self._backoff = BACKOFF_SECONDS_MIN
        self._halted_seconds = HALTED_SECONDS_MIN

    async def run(self, settle: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event) -> None:
        """Repeats `settle` until `stop` is set. Sets it if another engine is the owner."""
        while not stop.is_set():
            started, pause = time.monotonic(), 0.0
            self._counter.attempt()
            try:
                await settle(stop)
            except* OwnershipLost as lost:
                self._log.warning(f"{self._part} lost", cause=str(first_of(lost)))
                stop.set()
            except* Exception as group:  # noqa: BLE001 - an internal error halts this part and nothing else
                pause = await self._handle(first_of(group))
            if time.monotonic() - started > 2 * BACKOFF_SECONDS_MAX:
                self._backoff = BACKOFF_SECONDS_MIN
            await wait(stop, pause)

    def committed(self) -> None:
        """Records that the ledger's statements succeed."""
        self.statement_seconds = self._statement_seconds_min

    async def resume(self) -> None:
        """Records that the session settles."""
        if self._recorded == self.problem == "":
            return
        self._outage.over()
        if self._halted:
            self._log.info(f"{self._part} resumed")
        self._halted = self.problem = ""
        self._halted_seconds = HALTED_SECONDS_MIN
        self._show_halted(0)
        await self._record_halted("")

    async def _handle(self, error: BaseException) -> float:
        """Handles an error; returns the pause (seconds) before the next attempt."""
        match error:
            case StoreFault() | StreamFault():
                return await self._handle_fault(error)
            case Halted() | Stray():
                # Counts as progress: another engine would have to wait for the operator, too.
                self._counter.settle()
                await self._halt(str(error))
                return BACKOFF_SECONDS_MAX
        return await self._handle_internal_error(error)

    async def _handle_fault(self, fault: StoreFault | StreamFault) -> float:
        """Halves the batch that was being written, as its size may be the cause, and drops connections that may be dead."""
        writing = self._counter.pipeline.writing if self._counter.pipeline else None
        if isinstance(fault, StoreFault) and writing:
            self._bound.shrink(writing)
        if isinstance(fault.__cause__, TimeoutError):
            self.statement_seconds = min(2 * self.statement_seconds, COMMAND_SECONDS)
            await self._pool.expire_connections()
        if isinstance(fault, StreamFault):
            await drop_idle(self._client)
        self._faults.labels("database" if isinstance(fault, StoreFault) else "stream").inc()
        self._outage.note(fault)
        self.problem = str(fault)
        pause = self._backoff
        self._backoff = min(2 * pause, BACKOFF_SECONDS_MAX)
        return pause

    async def _handle_internal_error(self, error: BaseException) -> float:
        self._log.error("internal error", part="settling", exc_info=error)
        await self._halt(f"{type(error).__name__}: {error}")
        pause = self._halted_seconds
        self._halted_seconds = min(2 * pause, HALTED_SECONDS_MAX)
        return pause

    async def _halt(self, reason: str) -> None:
        """Records that nothing is settled: once in the log, in the metrics, and in the database."""
        if self._halted != reason:
            self._log.error(f"{self._part} halted", detail=reason)
        self._halted = self.problem = reason
        self._show_halted(1)
        await self._record_halted(reason)

    async def _record_halted(self, reason: str) -> None:
        """Stores the reason in the database if it changed; tries again at the next call after a fault."""
        if self._recorded != reason:
            with suppress(StoreFault):
                await self._record(reason)
                self._recorded = reason


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Returns the first exception in nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def wait(stop: asyncio.Event, seconds: float) -> None:
    """Waits for some seconds, or until `stop` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
