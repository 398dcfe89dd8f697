"""Measures how long callbacks hold an event loop, for tests that bound it."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

BEAT_SECONDS = 0.001
"""The resolution of the loop's timers."""

NOTED_MS = 5.0
"""Shorter holds are not kept."""


class Watchdog:
    """The holds of one event loop, in milliseconds.

    A hold is how much later than due a timer ran. Of that, what other processes took from the loop's thread does not count: a
    hold is at most the CPU time of this process meanwhile, and the time for which the thread waited for a processor is taken
    off. So a hold is a callback that ran for long, or a call in another thread that kept the interpreter for long.
    """

    def __init__(self):
        self.holds_ms = []

    @property
    def longest_ms(self):
        return max(self.holds_ms, default=0.0)

    async def run(self):
        """Measures until cancelled."""
        with _waits() as waited_seconds:
            while True:
                # The timer comes last: where another thread has the interpreter, each look at the kernel may wait for it.
                waited, cpu = waited_seconds(), time.process_time()
                due = time.monotonic() + BEAT_SECONDS
                await asyncio.sleep(BEAT_SECONDS)
                late, used = time.monotonic() - due, time.process_time() - cpu
                hold_ms = 1000 * min(late - (waited_seconds() - waited), used)
                if hold_ms > NOTED_MS:
                    self.holds_ms.append(hold_ms)


@contextmanager
def _waits() -> Iterator[Callable[[], float]]:
    """Tells for how many seconds this thread has waited for a processor; 0 where the kernel does not tell.

    The file stays open: to open, read and close it takes six calls, and after each of them the thread has to wait for the
    interpreter again. Such waits are the watchdog's, and no hold by the service.
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
async def watched():
    """A watchdog of the running loop."""
    watchdog = Watchdog()
    running = asyncio.create_task(watchdog.run())
    try:
        yield watchdog
    finally:
        running.cancel()
