"""A fund that holds positions: its fills, takeovers and unwinds, the evaluation of marks, and the load of a large inventory.

Times of the core are CPU times of one process. The fastest of several rounds counts, because other processes can only add time.
"""

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
from fill_loop import SYMBOL, fills_per_second
from ground import Ledger, new_ledger
from rich.console import Console
from rich.table import Table

from fundsvc.core.batch import Offset
from fundsvc.core.events import Event, Fill, Listing, Mark, Takeover, Unwind
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy
from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.leases import open_leases
from fundsvc.store.rows import copy_rows
from fundsvc.store.writer import open_writer

TS = 1_700_000_000_000
PIECES = 10
"""Tranches that the measured unwinds close."""

MARKED_TRANCHES = 1_000
EVENTS = 5_000
BATCH = 500

LOSS_MAX = 0.03
EVENT_TIMES_MAX = 2.0
MARK_US_MAX = 20.0
LOAD_SECONDS_MAX = 1.0
"""Targets: slower fills, times of a fill, microseconds of a mark, and seconds of a load."""


class Target(msgspec.Struct, kw_only=True):
    """A target and its measurement."""

    name: str
    promised: str
    measured: str
    met: bool


class Results(msgspec.Struct, kw_only=True):
    """The results of one run: fills per second of this revision and of the earlier one, 0 without one, and microseconds."""

    fills: float
    fills_before: float
    fill_us: float
    takeover_us: float
    unwind_one_us: float
    unwind_us: float
    mark_us: float
    mark_alone_us: float
    tranches: int
    load_seconds: float
    targets: list[Target] = []


def measure(
    servers: EmbeddedServers, tranches: int, rounds: int, before: Path | None, show_progress: Callable[[str], None]
) -> Results:
    """Measures everything; `before` is a checkout of the revision to compare fills with."""
    show_progress("fills, in turns with the earlier revision" if before else "fills")
    now, then = _fills(rounds, before)
    show_progress("takeovers and unwinds")
    fill, one_takeover, one, many = (
        min(_event_us(kind) for _ in range(rounds)) for kind in ("fill", "takeover", "one", "many")
    )
    show_progress("marks")
    marked, alone = (min(_mark_us(number) for _ in range(rounds)) for number in (MARKED_TRANCHES, 0))
    show_progress(f"load of {tranches:,} tranches")
    seconds = asyncio.run(_load_seconds(servers, tranches, rounds))
    results = Results(
        fills=now,
        fills_before=then,
        fill_us=fill,
        takeover_us=one_takeover,
        unwind_one_us=one,
        unwind_us=many,
        mark_us=marked,
        mark_alone_us=alone,
        tranches=tranches,
        load_seconds=seconds,
    )
    results.targets = list(_judge(results))
    return results


def show(results: Results, console: Console) -> None:
    """Prints the results and the targets."""
    table = Table("measured", "value")
    table.add_row("fills per second", f"{results.fills:,.0f}")
    if results.fills_before:
        table.add_row("fills per second of the earlier revision", f"{results.fills_before:,.0f}")
    table.add_row("a fill", f"{results.fill_us:.1f} us")
    table.add_row("a takeover", f"{results.takeover_us:.1f} us")
    table.add_row("an unwind of 1 tranche", f"{results.unwind_one_us:.1f} us")
    table.add_row(f"an unwind of {PIECES} tranches", f"{results.unwind_us:.1f} us")
    table.add_row(f"a mark with {MARKED_TRANCHES:,} tranches", f"{results.mark_us:.1f} us")
    table.add_row("a mark without an inventory", f"{results.mark_alone_us:.1f} us")
    table.add_row(f"load of {results.tranches:,} tranches", f"{results.load_seconds:.2f} s")
    console.print(table)
    targets = Table("target", "promised", "measured", "met")
    for target in results.targets:
        targets.add_row(target.name, target.promised, target.measured, "yes" if target.met else "NO")
    console.print(targets)


def _judge(results: Results) -> Iterable[Target]:
    if results.fills_before:
        ratio = results.fills / results.fills_before
        yield _target("fills without an inventory", f">= {1 - LOSS_MAX:.2f} of before", f"{ratio:.3f}", ratio >= 1 - LOSS_MAX)
    for name, taken, entries in (
        ("unwind of 1 tranche", results.unwind_one_us, 1),
        ("takeover", results.takeover_us, 1),
        (f"unwind of {PIECES}, per entry", results.unwind_us, PIECES),
    ):
        times = taken / entries / results.fill_us
        yield _target(name, f"<= {EVENT_TIMES_MAX} fills", f"{times:.2f} fills", times <= EVENT_TIMES_MAX)
    evaluation = results.mark_us - results.mark_alone_us
    yield _target("evaluation of a mark", f"< {MARK_US_MAX} us", f"{evaluation:.1f} us", evaluation < MARK_US_MAX)
    seconds = results.load_seconds
    yield _target(
        f"load of {results.tranches:,} tranches", f"< {LOAD_SECONDS_MAX} s", f"{seconds:.2f} s", seconds < LOAD_SECONDS_MAX
    )


def _target(name: str, promised: str, measured: str, met: bool) -> Target:
    return Target(name=name, promised=promised, measured=measured, met=met)


def _fills(rounds: int, before: Path | None) -> tuple[float, float]:
    """Returns the fills per second of both revisions, measured in turns in processes of their own."""
    if before is None:
        return max(fills_per_second() for _ in range(rounds)), 0.0
    here = Path(__file__).parents[2]
    found: dict[Path, float] = dict.fromkeys((here, before), 0.0)
    for _ in range(rounds):
        for place in (before, here):
            found[place] = max(found[place], _run_fills(place))
    return found[here], found[before]


def _run_fills(place: Path) -> float:
    program = (sys.executable, str(Path(__file__).with_name("fill_loop.py")))
    environment = os.environ | {"PYTHONPATH": str(place)}
    return float(subprocess.run(program, env=environment, check=True, capture_output=True, text=True).stdout)


def _listed() -> Partition:
    partition = Partition(0, 1, [], {"USDT": 8}, 8)
    partition.apply(Listing({"symbol": SYMBOL, "settleCurrency": "USDT", "multiplier": "0.001", "isInverse": False}))
    partition.apply(Mark(SYMBOL, "40001", TS))
    partition.apply(Fill(SYMBOL, 1, "sell", 10**9, "41000", "40000", TS))
    return partition


def _takeover(seq: int, lots: int, price: str = "40000") -> Takeover:
    return Takeover(SYMBOL, seq, "sell", lots, price, TS + seq, f"t{seq}", f"o{seq}", "account-1")


def _event_us(kind: str) -> float:
    """Returns the time of one event of a kind: settled, and its rows encoded."""
    partition = _listed()
    pieces = PIECES if kind == "many" else 1
    held = EVENTS * pieces if kind in ("one", "many") else 0
    for seq in range(2, held + 2):
        partition.apply(_takeover(seq, 10))
    partition.take()
    first = held + 2
    events: dict[str, Callable[[int], Event]] = {
        "fill": lambda seq: Fill(SYMBOL, seq, "sell", 10, "40001", "40000", TS + seq, f"t{seq}", f"o{seq}", "account-1"),
        "takeover": lambda seq: _takeover(seq, 10),
        "one": lambda seq: Unwind(SYMBOL, seq, "sell", 10, "40001", TS + seq, f"t{seq}", f"o{seq}"),
        "many": lambda seq: Unwind(SYMBOL, seq, "sell", 10 * PIECES, "40001", TS + seq, f"t{seq}", f"o{seq}"),
    }
    return _time_us(partition, [events[kind](seq) for seq in range(first, first + EVENTS)])


def _mark_us(tranches: int) -> float:
    """Returns the time of a mark that needs no relief."""
    partition = _listed()
    for seq in range(2, tranches + 2):
        partition.apply(_takeover(seq, 10, f"{40_000 + seq % 7}"))
    partition.take()
    return _time_us(partition, [Mark(SYMBOL, f"{40_000 + number % 90}", TS + 10**6 + number) for number in range(EVENTS)])


def _time_us(partition: Partition, events: Sequence[Event]) -> float:
    gc.collect()
    gc.disable()
    started = time.process_time()
    for first in range(0, len(events), BATCH):
        for event in events[first : first + BATCH]:
            partition.apply(event)
        batch = partition.take()
        copy_rows(batch.entries, batch.hashes)
    taken = time.process_time() - started
    gc.enable()
    return taken / len(events) * 1e6


async def _load_seconds(servers: EmbeddedServers, tranches: int, rounds: int) -> float:
    """Returns the time in which a writer loads a partition with one contract that holds many tranches."""
    async with new_ledger(servers, "takeovers") as ledger:
        return await _load(ledger, tranches, rounds)


async def _load(ledger: Ledger, tranches: int, rounds: int) -> float:
    async with open_leases(ledger.dsn, "bench", 600) as leases:
        epochs = await leases.keep()
        async with open_writer(ledger.dsn, "bench", 0, epochs[0]) as writer:
            partition, offset = _listed(), Offset("0-0", 0)
            for seq in range(2, tranches + 2):
                partition.apply(_takeover(seq, 10, f"{40_000 + seq % 97}"))
                if seq % 5000 == 0 or seq == tranches + 1:
                    after = Offset(f"{seq}-0", seq)
                    await writer.commit(partition.take(), offset, after)
                    offset = after
            times = []
            for _ in range(rounds):
                started = time.perf_counter()
                _, (fund,) = await writer.load(lambda _: Policy())
                times.append(time.perf_counter() - started)
                assert fund.inventory is not None
                assert len(fund.inventory.long.tranches) == tranches
            return min(times)
