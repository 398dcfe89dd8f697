"""An engine whose event loop is watched: python watched.py REPORT

Runs as `fundsvc engine` does. At its end it writes REPORT: every time that the loop was held for more than NOTED_MS, how often
a partition was loaded, and how many events were known already.

A heartbeat measures the holds. Between two beats the loop runs its ready callbacks once, or a few times: the CPU time of the
thread between two beats is an upper bound of what one of them held. CPU time is not bent by other processes that use the
machine. `late_ms` is by how much the beat was late by the clock, which is.
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
"""The event loop's own resolution."""

NOTED_MS = 2.0
"""Shorter holds are of no interest."""


class Hold(msgspec.Struct, frozen=True):
    """When a hold was over (Unix time in seconds), its CPU time, and by how much the beat was late."""

    at: float
    cpu_ms: float
    late_ms: float


class Report(msgspec.Struct):
    """What was seen of an engine's life."""

    holds: list[Hold]
    loads: int
    duplicates: int


class CountingMetrics(Metrics):
    """Metrics that also count what a report tells."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = self.duplicates = 0

    def loaded(self, funds: Iterable[Fund], orders: Iterable[AdlOrder]) -> None:
        """Counts one more."""
        self.loads += 1
        super().loaded(funds, orders)

    def committed(self, batch: Batch, durations: Durations) -> None:
        """Counts the events that were known."""
        self.duplicates += batch.duplicates.total()
        super().committed(batch, durations)


async def beat(holds: list[Hold]) -> None:
    """Notes holds until it is cancelled."""
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
