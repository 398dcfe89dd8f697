"""The results with the ceiling, the peer and the targets."""

from collections.abc import Iterator, Sequence

import msgspec
from latency import Latency
from peer import Peer
from revisions import Comparison
from rich.console import Console
from rich.table import Table
from throughput import Throughput

TARGET_CONTRACTS = 50
BATCHED = 100
"""The load of the targets; the other target is for single messages."""

OF_CEILING_BATCHED_MIN = 0.6
OF_CEILING_SINGLE_MIN = 0.35
OF_PEER_MIN = 50.0
P99_MS_MAX = 10.0
MEMORY_MB_MAX = 300.0
HISTORY_SLOWDOWN_MAX = 0.10
"""Targets, as ratios within one run where possible."""

PEER_CONNECTIONS = 16
"""Connections of the peer in the target."""


class Machine(msgspec.Struct, kw_only=True):
    """The machine; `sync_ms` is the disk's time for one small durable write."""

    cpus: int
    memory_gb: float
    python: str
    postgres: str
    sync_ms: float


class Target(msgspec.Struct, kw_only=True):
    """A target and its measurement."""

    name: str
    promised: str
    measured: str
    met: bool


class Results(msgspec.Struct, kw_only=True):
    """The results of one run."""

    machine: Machine
    throughput: list[Throughput] = []
    peers: list[Peer] = []
    latency: Latency | None = None
    history: list[Throughput] = []
    comparison: Comparison | None = None
    targets: list[Target] = []


def judge(results: Results) -> list[Target]:
    """Compares the results with the targets."""
    return [
        *_against_ceiling(results),
        *_against_peer(results),
        *_latency(results),
        *_memory(results),
        *_history(results),
        *_comparison(results),
    ]


def _against_ceiling(results: Results) -> Iterator[Target]:
    for per_message, least in ((BATCHED, OF_CEILING_BATCHED_MIN), (1, OF_CEILING_SINGLE_MIN)):
        run = _run(results, per_message)
        if run:
            name = f"share of the ceiling, {per_message} per message"
            yield at_least(name, run.of_ceiling, least, "{:.2f}")


def _against_peer(results: Results) -> Iterator[Target]:
    run = _run(results, BATCHED)
    for peer in results.peers:
        if run and peer.connections == PEER_CONNECTIONS:
            name = f"times the speed of {PEER_CONNECTIONS} connections with one fill per transaction"
            yield at_least(name, run.fills_per_second / peer.fills_per_second, OF_PEER_MIN, "{:.0f}")


def _latency(results: Results) -> Iterator[Target]:
    if results.latency:
        rate = f"{round(results.latency.sent_per_second, -2):,.0f}"
        yield at_most(f"p99 ms, XADD to durable, at {rate}/s", results.latency.p99_ms, P99_MS_MAX, "{:.1f}")


def _memory(results: Results) -> Iterator[Target]:
    runs = [*results.throughput, *results.history]
    if runs:
        yield at_most("peak memory of the engine, MB", max(run.memory_mb for run in runs), MEMORY_MB_MAX, "{:.0f}")


def _history(results: Results) -> Iterator[Target]:
    for run in results.history[1:]:
        slower = results.history[0].fills_per_second / run.fills_per_second - 1
        yield at_most(f"slowdown at {_entries(run.history)} entries", slower, HISTORY_SLOWDOWN_MAX, "{:.0%}")


def _comparison(results: Results) -> Iterator[Target]:
    if results.comparison:
        for one in results.comparison.compared:
            if one.promised is not None:
                name = f"{one.what} relative to {results.comparison.revision}, {one.load}"
                yield at_most(name, one.ratio, one.promised, "{:.2f}")


def _run(results: Results, per_message: int) -> Throughput | None:
    wanted = (TARGET_CONTRACTS, per_message)
    return next((run for run in results.throughput if (run.contracts, run.per_message) == wanted), None)


def at_least(name: str, measured: float, least: float, form: str) -> Target:
    """Returns a target with a minimum."""
    return Target(name=name, promised=f">= {form.format(least)}", measured=form.format(measured), met=measured >= least)


def at_most(name: str, measured: float, most: float, form: str) -> Target:
    """Returns a target with a maximum."""
    return Target(name=name, promised=f"<= {form.format(most)}", measured=form.format(measured), met=measured <= most)


def show(results: Results, console: Console) -> None:
    """Prints the tables."""
    machine = results.machine
    console.print(
        "Compare ratios, not absolute values. Ratios suffer too if other processes used much of the machine.\n"
        f"{machine.cpus} CPUs, {machine.memory_gb:.0f} GB, Python {machine.python}, PostgreSQL {machine.postgres},"
        f" a durable write of 8 kB on this disk takes {machine.sync_ms:.2f} ms"
    )
    if results.throughput:
        console.print(_throughput_table(results.throughput))
    if results.peers:
        console.print(_peer_table(results))
    if results.latency:
        console.print(_latency_table(results.latency))
    if results.history:
        console.print(_history_table(results.history))
    if results.comparison:
        console.print(_comparison_table(results.comparison))
    if results.targets:
        console.print(target_table(results.targets))


def _throughput_table(runs: Sequence[Throughput]) -> Table:
    table = table_of(
        "A backlog until it is durable, and bare COPY of the same rows; CPU in seconds per million fills",
        "contracts", "per msg", "fills/s", "COPY/s", "ratio", "engine", "PostgreSQL", "for COPY", "MB", "per commit", "others",
    )  # fmt: skip
    for run in runs:
        table.add_row(
            f"{run.contracts:,}", str(run.per_message), f"{run.fills_per_second:,.0f}", f"{run.ceiling_per_second:,.0f}",
            f"{run.of_ceiling:.2f}", f"{run.engine_cpu:.1f}", f"{run.postgres_cpu:.1f}", f"{run.ceiling_postgres_cpu:.1f}",
            f"{run.memory_mb:.0f}", f"{run.fills / run.transactions:,.0f}", f"{run.others:.0%}",
        )  # fmt: skip
    return table


def _peer_table(results: Results) -> Table:
    table = table_of("One transaction per fill", "connections", "fills/s", "fundsvc", "PostgreSQL CPU", "others")
    run = _run(results, BATCHED)
    for peer in results.peers:
        times = f"{run.fills_per_second / peer.fills_per_second:.0f} times as fast" if run else ""
        table.add_row(
            str(peer.connections), f"{peer.fills_per_second:,.0f}", times, f"{peer.postgres_cpu:.0f}", f"{peer.others:.0%}"
        )
    return table


def _latency_table(latency: Latency) -> Table:
    table = table_of(
        "From XADD to durable, single fills, ms",
        "fills/s",
        "fills",
        "p50",
        "p90",
        "p99",
        "max",
        "error (p99 of polls)",
        "others",
    )
    times = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.max_ms, latency.poll_p99_ms)
    table.add_row(
        f"{latency.sent_per_second:,.0f}", f"{latency.fills:,}", *(f"{time:.2f}" for time in times), f"{latency.others:.0%}"
    )
    return table


def _history_table(runs: Sequence[Throughput]) -> Table:
    table = table_of("With history", "entries before", "fills/s", "to none", "engine CPU", "PostgreSQL CPU", "others")
    for run in runs:
        table.add_row(
            _entries(run.history), f"{run.fills_per_second:,.0f}", f"{run.fills_per_second / runs[0].fills_per_second:.2f}",
            f"{run.engine_cpu:.1f}", f"{run.postgres_cpu:.1f}", f"{run.others:.0%}",
        )  # fmt: skip
    return table


def _comparison_table(comparison: Comparison) -> Table:
    revision, (p50, p99) = comparison.revision, comparison.floor_ms
    table = table_of(
        f"In turns with {revision}; CPU in seconds per million fills, bytes per fill", "load", "what", "now", revision, "ratio"
    )
    for one in comparison.compared:
        table.add_row(one.load, one.what, f"{one.now:.1f}", f"{one.before:.1f}", f"{one.ratio:.2f}")
    table.caption = f"A bare transaction of one row takes {p50:.2f} ms (p50) and {p99:.2f} ms (p99)."
    return table


def target_table(targets: Sequence[Target]) -> Table:
    """Returns a table of the targets."""
    table = table_of("Targets", "target", "promised", "measured", "")
    for target in targets:
        table.add_row(target.name, target.promised, target.measured, "[green]met" if target.met else "[red]not met")
    return table


def table_of(title: str, *columns: str) -> Table:
    """Returns an empty table."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _entries(number: int) -> str:
    return f"{number / 1e6:.1f} M"
