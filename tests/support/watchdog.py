"""Measures how long callbacks hold an event loop, for tests that bound it."""

import asyncio
import gc
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvloop

HOLD_MS_MAX = 50
"""The budget of a service in a test: five times `loop_ms_max`, because a busy machine slows bounded work."""

BEAT_SECONDS = 0.001
"""The resolution of the loop's timers, and the interval of a watchdog that measures as precisely as they allow."""

BUDGET_BEAT_SECONDS = 0.003
"""The interval of a watchdog that only checks the budget. A thousand beats a second take 4% of a processor."""

BUDGET_MS = HOLD_MS_MAX - 1000 * (BUDGET_BEAT_SECONDS - BEAT_SECONDS)
"""A hold may last for an interval before the beat is due, so the measured time may be that much shorter than the hold."""

NOTED_MS = 5.0
"""Shorter holds are not kept."""

TEST_CODE = (str(Path(__file__).parents[1]), "/pytest_asyncio/", "/playwright/")
"""Parts of the paths of code that runs on the loop in tests only: tests, their fixtures, and the driver of the browser."""


class Excluded:
    """The time that the service did not use, in seconds by the clock and of the process's CPU. Spans may nest."""

    def __init__(self):
        self.seconds = self.cpu_seconds = 0.0
        self._depth = 0
        self._began = 0.0, 0.0

    def begin(self):
        if self._depth == 0:
            self._began = time.monotonic(), time.process_time()
        self._depth += 1

    def end(self):
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.monotonic() - self._began[0]
            self.cpu_seconds += time.process_time() - self._began[1]

    def collecting(self, phase, _):
        """Excludes a garbage collection, as a callback of `gc`: it walks through everything that the tests keep."""
        self.begin() if phase == "start" else self.end()


class ExcludedCoroutine(Coroutine):
    """A coroutine of a test; each of its steps is excluded."""

    def __init__(self, coroutine, excluded):
        self._coroutine = coroutine
        self._excluded = excluded

    def send(self, value):
        self._excluded.begin()
        try:
            return self._coroutine.send(value)
        finally:
            self._excluded.end()

    def throw(self, *exception):
        self._excluded.begin()
        try:
            return self._coroutine.throw(*exception)
        finally:
            self._excluded.end()

    def close(self):
        self._coroutine.close()

    def __await__(self):
        return self


class WatchedLoop(uvloop.Loop):
    """The service's event loop. `excluded` is the time of test code, of garbage collection, and in which it does not run."""

    def __init__(self):
        super().__init__()
        self.excluded = Excluded()
        self.excluded.begin()
        self.set_task_factory(_make_task)

    def run_forever(self):
        self.excluded.end()
        gc.callbacks.append(self.excluded.collecting)
        try:
            super().run_forever()
        finally:
            gc.callbacks.remove(self.excluded.collecting)
            self.excluded.begin()


def _make_task(loop, coroutine, **options):
    code = getattr(coroutine, "cr_code", None)
    if code and any(part in code.co_filename for part in TEST_CODE):
        coroutine = ExcludedCoroutine(coroutine, loop.excluded)
    return asyncio.Task(coroutine, loop=loop, **options)


class Watchdog:
    """The holds of one event loop, in milliseconds.

    A hold is the time by which a timer ran late. It excludes the time that other processes took from the loop's thread: a
    hold is at most the CPU time of this process meanwhile, and the time for which the thread waited for a processor is
    subtracted. So a hold is a callback that ran for long, or a call in another thread that kept the interpreter for long.
    On a `WatchedLoop`, the time of test code is subtracted too. While tracemalloc is on, which slows every allocation, the
    watchdog notes nothing.
    """

    def __init__(self, beat_seconds=BEAT_SECONDS):
        self.holds_ms = []
        self._beat_seconds = beat_seconds

    @property
    def longest_ms(self):
        return max(self.holds_ms, default=0.0)

    async def run(self):
        """Measures until cancelled."""
        excluded = getattr(asyncio.get_running_loop(), "excluded", Excluded())
        with _waits() as waited_seconds:
            while True:
                # The timer comes last: while another thread has the interpreter, each call of the kernel may wait for it.
                waited, cpu = waited_seconds() + excluded.seconds, time.process_time() - excluded.cpu_seconds
                due = time.monotonic() + self._beat_seconds
                await asyncio.sleep(self._beat_seconds)
                late, used = time.monotonic() - due, time.process_time() - excluded.cpu_seconds - cpu
                hold_ms = 1000 * min(late - (waited_seconds() + excluded.seconds - waited), used)
                if hold_ms > NOTED_MS and not tracemalloc.is_tracing():
                    self.holds_ms.append(hold_ms)


@contextmanager
def _waits() -> Iterator[Callable[[], float]]:
    """Yields a function that returns for how many seconds this thread has waited for a processor; 0 if the kernel has no count.

    The file stays open: to open, read and close it takes six calls, and after each of them the thread has to wait for the
    interpreter again. Such waits belong to the watchdog, not to the service.
    """
    try:
        file = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
    except OSError:
        yield lambda: 0.0
        return
    try:
        yield lambda: int(os.pread(file, 100, 0).split()[1]) / 1e9
    finally:
        os.close(file)


@asynccontextmanager
async def watched(beat_seconds=BEAT_SECONDS):
    """Yields a watchdog of the running loop."""
    watchdog = Watchdog(beat_seconds)
    running = asyncio.create_task(watchdog.run())
    try:
        yield watchdog
    finally:
        running.cancel()


@asynccontextmanager
async def budgeted():
    """Fails if the service holds the running loop for longer than its budget."""
    async with watched(BUDGET_BEAT_SECONDS) as watchdog:
        yield
    longest = [round(hold_ms) for hold_ms in sorted(watchdog.holds_ms)[-10:]]
    assert watchdog.longest_ms < BUDGET_MS, (
        f"the service held the event loop for {longest} ms; the watchdog allows {BUDGET_MS:.0f} ms"
    )
