"""Measures how long callbacks hold an event loop, for tests that bound it."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

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
        while True:
            due, cpu, waited = time.monotonic() + BEAT_SECONDS, time.process_time(), _waited_seconds()
            await asyncio.sleep(BEAT_SECONDS)
            late = time.monotonic() - due - (_waited_seconds() - waited)
            hold_ms = 1000 * min(late, time.process_time() - cpu)
            if hold_ms > NOTED_MS:
                self.holds_ms.append(hold_ms)


def _waited_seconds():
    """For how long this thread has waited for a processor; 0 where the kernel does not tell."""
    with suppress(OSError):
        _, waited_ns, _ = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()
        return int(waited_ns) / 1e9
    return 0.0


@asynccontextmanager
async def watched():
    """A watchdog of the running loop."""
    watchdog = Watchdog()
    running = asyncio.create_task(watchdog.run())
    try:
        yield watchdog
    finally:
        running.cancel()
