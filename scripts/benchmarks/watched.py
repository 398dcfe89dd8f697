"""Runs an engine with a watched event loop: python watched.py REPORT

It runs like `fundsvc engine`. At the end it writes REPORT: every time that the loop was held for more than NOTED_MS, the number
of loads of partitions, and the number of duplicates.

A heartbeat measures the holds. Between two beats the loop runs its ready callbacks once or a few times. So the CPU time of the
thread between two beats is an upper bound of the time of one callback, independent of other processes. `late_ms` is the delay
of the beat by the clock, which depends on them.
"""

import asyncio
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import uvloop

from fundsvc.app import stop_on_signals, tune_interpreter
from fundsvc.config.settings import load_config
from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.batch import Batch, Durations
from fundsvc.core.fund.settlement import Fund
from fundsvc.engine.engine import Engine
from fundsvc.logs import configure_logs
from fundsvc.metrics import Metrics

BEAT_SECONDS = 0.001
"""The resolution of the event loop."""

NOTED_MS = 2.0
"""Shorter holds are not recorded."""


class Hold(msgspec.Struct, frozen=True):
    """The end of a hold (Unix time in seconds), its CPU time, and the delay of the beat."""

    at: float
    cpu_ms: float
    late_ms: float


class Report(msgspec.Struct):
    """The observations of an engine's run."""

    holds: list[Hold]
    loads: int
    duplicates: int


class CountingMetrics(Metrics):
    """Metrics that also count reloads and duplicates for the report."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = self.duplicates = 0

    def loaded(self, funds: Iterable[Fund], orders: Iterable[AdlOrder]) -> None:
        """Counts a reload."""
        self.loads += 1
        super().loaded(funds, orders)

    def committed(self, batch: Batch, durations: Durations) -> None:
        """Counts duplicates."""
        self.duplicates += batch.duplicates.total()
        super().committed(batch, durations)


async def beat(holds: list[Hold]) -> None:
    """Records holds until cancelled."""
    while True:
        cpu, due = time.thread_time(), time.monotonic() + BEAT_SECONDS
        await asyncio.sleep(BEAT_SECONDS)
        used, late = (time.thread_time() - cpu) * 1000, (time.monotonic() - due) * 1000
        if used > NOTED_MS:
            holds.append(Hold(time.time(), used, late))


async def run_watched() -> Report:
    """Runs an engine until a signal."""
    config, metrics = load_config(None), CountingMetrics()
    configure_logs(config.log)
    holds: list[Hold] = []
    heart = asyncio.create_task(beat(holds))
    tune_interpreter()
    await Engine(config, metrics).run(stop_on_signals())
    heart.cancel()
    return Report(holds, metrics.loads, metrics.duplicates)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        Path(sys.argv[1]).write_bytes(msgspec.json.encode(runner.run(run_watched())))
