"""Benchmarks of the service on this machine, with real servers and a real engine process, all in one run."""

import asyncio
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import adl_book
import asyncpg
import auditing
import client_producer
import fanout
import history as ledger_history
import idle as idle_engine
import latency
import ledger_reads
import msgspec
import mutual_ledger
import mutual_pool
import peer
import psutil
import regression as regressions
import restart as restarts
import revisions
import scale as scales
import scraping
import serving
import storm as storms
import structlog
import takeover as takeovers
import throughput
import typer
import uvloop
from ground import sync_ms
from report import BATCHED, PEER_CONNECTIONS, TARGET_CONTRACTS, Machine, Results, Target, judge, show
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from throughput import Load, ShowProgress, Throughput

from fundsvc.local.servers import EmbeddedServers
from fundsvc.wire.codec import Codec

PARTS = ("throughput", "peers", "latency")
MUTUAL_PARTS = ("core", "ledger")

COLUMNS = 110
"""Width of tables if the output is not a terminal."""

Directory = Annotated[
    Path | None, typer.Option(help="Directory on the measured disk; by default the system's temporary directory.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
"""Options of several benchmarks."""

Name = TypeVar("Name", bound=str)

application = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@application.callback()
def benchmarks() -> None:
    """Benchmarks of the service on this machine."""
    # Standard output is for the results.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


@application.command()
def ingest(
    fills: Annotated[int, typer.Option(help="Fills of a backlog.")] = 500_000,
    contracts: Annotated[str, typer.Option(help="Numbers of contracts, comma-separated.")] = "1,50,1000",
    per_message: Annotated[str, typer.Option(help="Fills per message, comma-separated.")] = "100,1",
    codec: Annotated[Codec, typer.Option(help="Encoding of messages.")] = "json",
    parts: Annotated[str, typer.Option(help="Measurements, comma-separated.")] = ",".join(PARTS),
    rounds: Annotated[int, typer.Option(help="Measurements of each backlog; the median counts.")] = 1,
    peer_seconds: Annotated[float, typer.Option(help="Duration of each peer with one transaction per fill.")] = 10.0,
    rate: Annotated[int, typer.Option(help="Fills per second of the latency measurement, one per message.")] = 5_000,
    latency_seconds: Annotated[float, typer.Option(help="Duration of the latency measurement.")] = 20.0,
    against: Annotated[str, typer.Option(help="Earlier revision of this repository to measure in turns.")] = "",
    history: Annotated[bool, typer.Option(help="Measure again with history in the ledger.")] = False,
    history_millions: Annotated[str, typer.Option(help="Million entries of history, comma-separated.")] = "0,10,50",
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure settlement from the stream to durable entries, relative to bare COPY of the same rows and to one transaction per
    fill.

    Exits with 1 when a target is missed.
    """
    if not set(parts.split(",")) <= {*PARTS, ""}:
        raise typer.BadParameter(f"--parts must be of {', '.join(PARTS)}")
    loads = [Load(fills, per, number, codec) for per in _numbers(per_message) for number in _numbers(contracts)]
    with _servers(directory) as servers, _progress() as show_progress:
        log = servers.directory / "engine.log"
        results = Results(machine=_run(_machine(servers)))
        if "throughput" in parts:
            results.throughput = [_median(servers, load, rounds, log, show_progress) for load in loads]
        if "peers" in parts:
            show_progress("one transaction per fill", 0, 0)
            for connections in (1, PEER_CONNECTIONS):
                results.peers.append(_run(peer.measure(servers, TARGET_CONTRACTS, connections, peer_seconds)))
        if "latency" in parts:
            results.latency = _run(latency.measure(servers, TARGET_CONTRACTS, rate, latency_seconds, codec, log, show_progress))
        if against:
            seconds = latency_seconds if "latency" in parts else 0
            turns = revisions.measure(servers, against, loads, rounds, seconds, log, show_progress)
            results.comparison = _run(turns)
        if history:
            load = Load(fills, BATCHED, TARGET_CONTRACTS, codec)
            millions = _numbers(history_millions)
            results.history = _run(ledger_history.measure(servers, load, millions, max(3, rounds), log, show_progress))
    results.targets = judge(results)
    _finish(results, results.targets, lambda console: show(results, console), as_json)


@application.command()
def adl(
    positions: Annotated[str, typer.Option(help="Positions of a side, comma-separated.")] = "1000,100000,1000000",
    rounds: Annotated[int, typer.Option(help="Measurements of each; the fastest counts.")] = 15,
    as_json: AsJson = False,
) -> None:
    """Measure ranking, allocation, look-ups and updates of an ADL book, relative to a bare sort; exits with 1 when a target is
    missed.
    """
    with _progress() as show_progress:
        results = adl_book.measure(_numbers(positions), rounds, lambda what: show_progress(what, 0, 0))
    _finish(results, results.targets, lambda console: adl_book.show(results, console), as_json)


@application.command()
def audit(
    entries: Annotated[int, typer.Option(help="Entries of the ledger.")] = 300_000,
    contracts: Annotated[int, typer.Option(help="Contracts of the ledger.")] = 50,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure the audit of a ledger, relative to reading and hashing its rows; exits with 1 when a target is missed."""
    with _servers(directory) as servers, _progress() as show_progress:
        load = Load(entries, BATCHED, contracts, "json")
        results = _run(auditing.measure(servers, load, servers.directory / "engine.log", show_progress))
    _finish(results, results.targets, lambda console: auditing.show(results, console), as_json)


@application.command()
def takeover(
    tranches: Annotated[int, typer.Option(help="Tranches of the loaded inventory.")] = 100_000,
    rounds: Annotated[int, typer.Option(help="Measurements of each; the fastest counts.")] = 5,
    before: Annotated[
        Path | None, typer.Option(help="Checkout of an earlier revision, whose fills are measured in turns.")
    ] = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure fills beside inventories, takeovers, unwinds, marks, and the load of a large inventory.

    Exits with 1 when a target is missed.
    """
    with _servers(directory) as servers, _progress() as show_progress:
        results = takeovers.measure(servers, tranches, rounds, before, lambda what: show_progress(what, 0, 0))
    _finish(results, results.targets, lambda console: takeovers.show(results, console), as_json)


@application.command()
def mutual(
    policies: Annotated[int, typer.Option(help="Live policies.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="Cut-offs that complete none; the fastest counts.")] = 9,
    trades: Annotated[int, typer.Option(help="Trades of each measurement of their speed.")] = 200_000,
    codec: Annotated[Codec, typer.Option(help="Encoding of durable trades.")] = "json",
    parts: Annotated[str, typer.Option(help="Measurements, comma-separated.")] = ",".join(MUTUAL_PARTS),
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure a pool of the mutual: cut-offs relative to a plain loop, memory, restart, trades, an account's answer.

    Exits with 1 when a target is missed.
    """
    wanted = _names(parts, MUTUAL_PARTS, "--parts")
    results: dict[str, mutual_pool.Results | mutual_ledger.Results] = {}
    if "core" in wanted:
        with _progress() as show_progress:
            results["core"] = mutual_pool.measure(policies, rounds, trades, lambda what: show_progress(what, 0, 0))
    if "ledger" in wanted:
        with _servers(directory) as servers, _progress() as show_progress:
            log = servers.directory / "engine.log"
            measuring = mutual_ledger.measure(servers, policies, trades, codec, log, show_progress)
            results["ledger"] = _run(measuring)
    targets = [target for result in results.values() for target in result.targets]
    _finish(results, targets, lambda console: [result.show(console) for result in results.values()], as_json)


@application.command()
def http(
    rounds: Annotated[int, typer.Option(help="Turns of the servers; medians count.")] = 21,
    seconds: Annotated[float, typer.Option(help="Duration of a round of requests.")] = 1.0,
    subscribers: Annotated[int, typer.Option(help="Clients of one busy topic.")] = 1_000,
    changes: Annotated[int, typer.Option(help="Changes per second of that topic.")] = 200,
    topic_rounds: Annotated[int, typer.Option(help="Turns of the loads; medians count.")] = 5,
    topic_seconds: Annotated[float, typer.Option(help="Duration of a round of changes.")] = 10.0,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure requests relative to a bare aiohttp handler, and one topic with many subscribers; exits with 1 when a target is
    missed.
    """
    load = fanout.Load(subscribers, changes, topic_seconds, topic_rounds)
    with _servers(directory) as servers, _progress() as show_progress:
        results = _run(serving.measure(servers, load, rounds, seconds, show_progress))
    _finish(results, results.targets, lambda console: serving.show(results, console), as_json)


@application.command()
def client(
    contracts: Annotated[int, typer.Option(help="Contracts of the fills.")] = 50,
    fills: Annotated[int, typer.Option(help="Fills of a turn.")] = 200_000,
    rounds: Annotated[int, typer.Option(help="Turns of the client and of plain appends; medians count.")] = 5,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure the client's producer relative to plain appends to the stream; exits with 1 when a target is missed."""
    with _servers(directory) as servers, _progress() as show_progress:
        results = _run(client_producer.measure(servers, contracts, fills, rounds, show_progress))
    _finish(results, results.targets, lambda console: client_producer.show(results, console), as_json)


@application.command()
def metrics(
    contracts: Annotated[int, typer.Option(help="Exported contracts.")] = 1_000,
    rate: Annotated[int, typer.Option(help="Settled fills per second meanwhile.")] = 1_000,
    turns: Annotated[int, typer.Option(help="Turns of a second with a scrape; as many are without.")] = 15,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure a scrape of many contracts, and how long it holds the event loop; exits with 1 when a target is missed."""
    with _servers(directory) as servers, _progress() as show_progress:
        results = _run(scraping.measure(servers, scraping.Load(contracts, rate, turns), show_progress))
    _finish(results, results.targets, lambda console: scraping.show(results, console), as_json)


@application.command()
def restart(
    contracts: Annotated[int, typer.Option(help="Contracts.")] = 300,
    positions: Annotated[int, typer.Option(help="Open positions over all contracts; the target is for 1,000,000.")] = 20_000,
    changed: Annotated[int, typer.Option(help="Positions that change after the last save before the restart.")] = 10_000,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure a restart with many positions up to the first settled fill, and the WAL of saving changed positions.

    Exits with 1 when a target is missed.
    """
    load = restarts.Load(contracts, positions, changed)
    with _servers(directory) as servers, _progress() as show_progress:
        results = _run(restarts.measure(servers, load, show_progress))
    _finish(results, results.targets, lambda console: restarts.show(results, console), as_json)


@application.command()
def regression(
    fills: Annotated[int, typer.Option(help="Fills of the stream.")] = 1_000_000,
    recent: Annotated[int, typer.Option(help="Fills since the last checkpoint: 10 s of 5,000 a second.")] = 50_000,
    lost: Annotated[int, typer.Option(help="Newest fills that the stream loses.")] = 10_000,
    contracts: Annotated[int, typer.Option(help="Contracts.")] = 3_000,
    per_message: Annotated[int, typer.Option(help="Fills per message.")] = 20,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much of a stream the engine reads again after the stream lost its newest messages."""
    load = regressions.Load(fills, recent, lost, contracts, per_message)
    with _servers(directory) as servers, _progress() as show_progress:
        results = _run(regressions.measure(servers, load, show_progress))
    _finish(results, [], lambda console: regressions.show(results, console), as_json)


@application.command()
def storm(
    fills: Annotated[int, typer.Option(help="Fills of the burst.")] = 11_279,
    positions: Annotated[int, typer.Option(help="Open positions over all contracts.")] = 19_320,
    contracts: Annotated[str, typer.Option(help="Numbers of contracts, comma-separated.")] = "1,100",
    per_message: Annotated[str, typer.Option(help="Fills per message, comma-separated.")] = "1,100",
    allocations: Annotated[str, typer.Option(help="Allocations, comma-separated.")] = "queue,capped,pro_rata",
    funds: Annotated[str, typer.Option(help="States of the funds, comma-separated.")] = "rich,dry",
    answers: Annotated[
        str, typer.Option(help="When the matching engine answers rounds: during or after the burst.")
    ] = "during",
    seconds_max: Annotated[float, typer.Option(help="Time limit of a burst.")] = 120.0,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure thousands of liquidation fills in one millisecond, with rich and with dry funds.

    Exits with 1 when a target is missed.
    """
    loads = storms.loads(
        _names(funds, storms.FUNDS, "--funds"),
        _numbers(contracts),
        _numbers(per_message),
        _names(allocations, storms.ALLOCATIONS, "--allocations"),
        _names(answers, storms.ANSWERS, "--answers")[0],
        storms.Size(fills, positions, seconds_max),
    )
    with _servers(directory) as servers, _progress() as show_progress:
        results = _run(storms.measure(servers, loads, show_progress))
    _finish(results, results.targets, lambda console: storms.show(results, console), as_json)


@application.command()
def idle(
    partitions: Annotated[int, typer.Option(help="Partitions of the engine.")] = 64,
    settle_seconds: Annotated[
        float, typer.Option(help="Time before it. PostgreSQL counts transactions up to ten seconds late.")
    ] = 12.0,
    seconds: Annotated[float, typer.Option(help="Duration of the measurement.")] = 20.0,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure what an engine costs that receives nothing; exits with 1 when a target is missed."""
    with _servers(directory) as servers, _progress() as show_progress:
        log = servers.directory / "engine.log"
        results = _run(idle_engine.measure(servers, partitions, settle_seconds, seconds, log, show_progress))
    _finish(results, results.targets, lambda console: idle_engine.show(results, console), as_json)


@application.command()
def scale(
    fills: Annotated[int, typer.Option(help="Fills of a turn.")] = 400_000,
    contracts: Annotated[int, typer.Option(help="Contracts of the fills.")] = 64,
    partitions: Annotated[int, typer.Option(help="Partitions, which the engines share.")] = 8,
    per_message: Annotated[int, typer.Option(help="Fills per message.")] = 100,
    engines: Annotated[str, typer.Option(help="Numbers of engines, comma-separated; the first is the base.")] = "1,2,4",
    rounds: Annotated[int, typer.Option(help="Turns of each number of engines; medians count.")] = 3,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure how speed and CPU per fill change with the number of engine processes; exits with 1 when a target is missed."""
    load = scales.Load(fills, per_message, contracts, partitions, _numbers(engines), rounds)
    with _servers(directory) as servers, _progress() as show_progress:
        results = _run(scales.measure(servers, load, show_progress))
    _finish(results, results.targets, lambda console: scales.show(results, console), as_json)


@application.command()
def reads(
    entries: Annotated[str, typer.Option(help="Sizes of the ledger, comma-separated; 1e8 takes hours and 60 GB.")] = "1e5,1e6",
    contracts: Annotated[int, typer.Option(help="Contracts that share the entries.")] = 10,
    rounds: Annotated[int, typer.Option(help="Measurements of each read; the median counts.")] = 101,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Measure reads of ledgers of different sizes; exits with 1 when a read is slower in the largest than in the smallest."""
    sizes = [int(float(size)) for size in entries.split(",")]
    with _servers(directory) as servers, _progress() as show_progress:
        log = servers.directory / "engine.log"
        results = _run(ledger_reads.measure(servers, sizes, contracts, rounds, log, show_progress))
    _finish(results, results.targets, lambda console: ledger_reads.show(results, console), as_json)


def _finish(results: object, targets: Iterable[Target], show_on: Callable[[Console], object], as_json: bool) -> NoReturn:
    """Prints the results, and exits with 1 if a target is missed."""
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(results)).decode() + "\n")
    else:
        show_on(Console(width=None if sys.stdout.isatty() else COLUMNS))
    raise typer.Exit(0 if all(target.met for target in targets) else 1)


def _names(text: str, known: Sequence[Name], option: str) -> list[Name]:
    """Returns those of the known names that a comma-separated text contains."""
    names = text.split(",")
    if not set(names) <= set(known):
        raise typer.BadParameter(f"{option} must be of {', '.join(known)}")
    return [name for name in known if name in names]


def _median(servers: EmbeddedServers, load: Load, rounds: int, log: Path, show_progress: ShowProgress) -> Throughput:
    """Returns the run with the median share of the ceiling."""
    runs = [_run(throughput.measure(servers, load, log, show_progress)) for _ in range(rounds)]
    return sorted(runs, key=lambda run: run.of_ceiling)[len(runs) // 2]


async def _machine(servers: EmbeddedServers) -> Machine:
    connection = await asyncpg.connect(servers.owner_dsn)
    version = await connection.fetchval("SHOW server_version")
    for setting in ("fsync", "synchronous_commit"):
        if await connection.fetchval(f"SHOW {setting}") != "on":
            raise RuntimeError(f"{setting} is off: switch it on, else the results are not comparable")
    await connection.close()
    return Machine(
        cpus=os.cpu_count() or 1,
        memory_gb=psutil.virtual_memory().total / 1e9,
        python=platform.python_version(),
        postgres=version,
        sync_ms=sync_ms(servers.directory),
    )


@contextmanager
def _servers(directory: Path | None) -> Iterator[EmbeddedServers]:
    """Yields servers in a temporary directory, which is removed at the end, also after SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = Path(tempfile.mkdtemp(prefix="fundsvc-bench-", dir=directory))
    try:
        servers = EmbeddedServers(place / "data")
        with servers.used():
            servers.start()
            yield servers
    finally:
        shutil.rmtree(place)


@contextmanager
def _progress() -> Iterator[ShowProgress]:
    """Yields a function that shows progress on standard error, with few refreshes so that it does not disturb measurements."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total or None)


Result = TypeVar("Result")


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    application()
