"""Compares this program with an earlier revision: both settle the same backlogs and the same steady rates, in turns.

The benchmark itself, the servers and the libraries are those of this revision.
"""

import statistics
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import latency
import msgspec
from ground import new_ledger
from market import Market
from throughput import Load, ShowProgress, Throughput, drain

from fundsvc.local.servers import EmbeddedServers

RATES = (1_000, 5_000)
"""Fills per second of the compared latencies."""

FLOOR_COMMITS = 2_000

ENGINE_MAX, POSTGRES_MAX, WAL_MAX, P99_MAX = 0.65, 0.6, 0.6, 0.5
"""Promised ratios to the earlier revision."""

_COSTS = {"engine_cpu": ENGINE_MAX, "postgres_cpu": POSTGRES_MAX, "wal_bytes": WAL_MAX, "entry_bytes": None}
_TIMES = {"p50_ms": None, "p99_ms": P99_MAX, "engine_cpu": None}
"""The compared measurements, and the promised ratio of each."""

Measured = TypeVar("Measured")
Turn = Callable[[Path | None], Coroutine[Any, Any, Measured]]
"""Measures the program of a checkout; None stands for this one."""


class Compared(msgspec.Struct, kw_only=True):
    """Medians of one measurement of both revisions; `promised` is the largest ratio."""

    load: str
    what: str
    now: float
    before: float
    promised: float | None

    @property
    def ratio(self) -> float:
        """The present revision relative to the earlier one."""
        return self.now / self.before


class Comparison(msgspec.Struct, kw_only=True):
    """The comparison with a revision; `floor_ms` are p50 and p99 of bare transactions of one row."""

    revision: str
    floor_ms: tuple[float, float]
    compared: list[Compared]


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Yields a temporary checkout of a revision of this repository."""
    repository = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory(prefix="fundsvc-bench-revision-") as place:
        _git(repository, "worktree", "add", "--detach", f"{place}/checkout", revision)
        try:
            yield Path(place, "checkout")
        finally:
            _git(repository, "worktree", "remove", "--force", f"{place}/checkout")


def _git(repository: Path, *arguments: str) -> None:
    subprocess.run(("git", "-C", repository, *arguments), check=True, capture_output=True)


async def measure(
    servers: EmbeddedServers,
    revision: str,
    loads: Sequence[Load],
    rounds: int,
    seconds: float,
    log: Path,
    show_progress: ShowProgress,
) -> Comparison:
    """Measures both revisions `rounds` times in turns; `seconds` is the duration of a latency measurement, 0 for none."""
    compared: list[Compared] = []
    with checked_out(revision) as checkout:
        for load in loads:

            async def settle(place: Path | None, load: Load = load) -> Throughput:
                async with new_ledger(servers, "bench_turns", place) as ledger:
                    return await drain(servers, ledger, load, Market(load.contracts), log, show_progress)

            name = f"{load.contracts:,} contracts, {load.per_message} per message"
            compared += _compare(name, _COSTS, await _in_turns(settle, checkout, rounds))
        for rate in RATES if seconds else ():

            async def follow(place: Path | None, rate: int = rate) -> latency.Latency:
                first = loads[0]
                return await latency.measure(servers, first.contracts, rate, seconds, first.codec, log, show_progress, place)

            compared += _compare(f"{rate:,} fills/s", _TIMES, await _in_turns(follow, checkout, rounds))
    return Comparison(revision=revision, floor_ms=await latency.measure_floor(servers, FLOOR_COMMITS), compared=compared)


async def _in_turns(turn: Turn[Measured], checkout: Path, rounds: int) -> list[tuple[Measured, Measured]]:
    return [(await turn(None), await turn(checkout)) for _ in range(rounds)]


def _compare(load: str, measurements: dict[str, float | None], turns: Sequence[tuple[Any, Any]]) -> Iterator[Compared]:
    for what, promised in measurements.items():
        now, before = (statistics.median(getattr(turn[side], what) for turn in turns) for side in (0, 1))
        yield Compared(load=load, what=what, now=now, before=before, promised=promised)
