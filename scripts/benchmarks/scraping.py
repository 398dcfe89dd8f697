"""The time of a scrape of a thousand contracts, and how long it holds the event loop that settles.

An engine runs in this process like in `fundsvc engine`. Another process sends fills over all contracts at a steady rate and, in
turns of a second, scrapes /metrics or does not. A heartbeat on the loop records its delay; the turns without a scrape show the
delay by settlement and by other processes. For comparison, a bare `generate_latest` exports as many series with
prometheus_client.
"""

import asyncio
import gc
import multiprocessing
import statistics
import time
import urllib.request
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from typing import NamedTuple, TextIO

import msgspec
from ground import STREAM, Ledger, append, bodies, connection_to, free_port, new_ledger, settled_to, stream_of
from market import Market
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from report import Target, at_most, table_of, target_table
from rich.console import Console
from throughput import ShowProgress

from fundsvc.app import http_side, run_engine
from fundsvc.config.settings import Config, DatabaseConfig, EngineConfig, LogConfig, StreamConfig
from fundsvc.engine.engine import Engine
from fundsvc.local.servers import EmbeddedServers
from fundsvc.logs import configure_logs
from fundsvc.metrics import Metrics
from fundsvc.store.database import open_pool
from fundsvc.streams.client import open_client

SCRAPE_MS_MAX = 200.0
STALL_MS_MAX = 20.0
"""Targets."""

BEAT_SECONDS = 0.001
"""The resolution of the event loop."""

TURN_SECONDS = 1.0
"""Duration of a turn: long enough that a scrape and its effects end before the next turn."""

BARE_ROUNDS = 5
SERIES_PER_GAUGE = 1000
"""Series per contract; their distribution over metrics makes no difference to prometheus_client."""


class Load(NamedTuple):
    """Numbers of contracts, of fills per second over them, and of turns with a scrape; as many turns are without."""

    contracts: int
    rate: int
    turns: int


class Results(msgspec.Struct, kw_only=True):
    """Medians in milliseconds over the turns, and the worst; a stall is the delay of a turn's latest beat.

    `listing_seconds` is the time from the first XADD of the listings until all contracts were durable.
    """

    contracts: int
    listing_seconds: float
    series: int
    scrape_ms: float
    scrape_max_ms: float
    render_cpu_ms: float
    bare_ms: float
    stall_ms: float
    stall_max_ms: float
    stall_alone_ms: float
    stall_alone_max_ms: float
    targets: list[Target] = []


class Turn(NamedTuple):
    """The start of a turn (monotonic clock of this machine), and the seconds of its scrape, or None."""

    began: float
    scrape: float | None


async def measure(servers: EmbeddedServers, load: Load, show_progress: ShowProgress) -> Results:
    """Measures everything on a new ledger."""
    market, metrics = Market(load.contracts), Metrics()
    with (servers.directory / "engine.log").open("w") as log:
        async with new_ledger(servers, "bench_metrics") as ledger, _service(ledger, metrics, log) as url:
            listing_seconds = await _list(ledger, market)
            gc.collect()
            gc.freeze()
            show_progress("turns with and without a scrape", 0, 0)
            turns, beats = await _take_turns(ledger, url, load)
            text = await asyncio.to_thread(metrics.render)
            cpu = [_cpu_of(metrics.render) for _ in range(BARE_ROUNDS)]
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    show_progress("bare generate_latest", 0, 0)
    return _results(load.contracts, listing_seconds, series, turns, beats, statistics.median(cpu), _bare_seconds(series))


@asynccontextmanager
async def _service(ledger: Ledger, metrics: Metrics, log: TextIO) -> AsyncIterator[str]:
    """Runs an engine on this loop; yields the URL of its metrics."""
    config = Config(
        database=DatabaseConfig(dsn=ledger.dsn, owner_dsn=ledger.owner_dsn),
        stream=StreamConfig(url=ledger.stream_url),
        engine=EngineConfig(port=free_port()),
        log=LogConfig(level="error"),
    )
    stop = asyncio.Event()
    configure_logs(config.log, log)
    async with open_pool(ledger.dsn, 4) as pool, open_client(config.stream) as client:
        consumer = Engine(config, metrics)
        engine = asyncio.create_task(run_engine(consumer, stop))
        try:
            async with http_side(config, metrics, pool, client, engine=consumer, public=False) as url:
                yield url
        finally:
            stop.set()
            await engine


async def _list(ledger: Ledger, market: Market) -> float:
    """Lists the contracts; returns the seconds until the ledger has them."""
    started = time.monotonic()
    async with stream_of(ledger) as client, connection_to(ledger.dsn) as connection:
        last_id = await append(client, STREAM, bodies(market.listings(), 100, "json"), "json")
        wanted = tuple(map(int, last_id.split("-")))
        while await settled_to(connection) < wanted:  # noqa: ASYNC110 - a database sends no event
            await asyncio.sleep(0.05)
    return time.monotonic() - started


async def _take_turns(ledger: Ledger, url: str, load: Load) -> tuple[list[Turn], list[tuple[float, float]]]:
    """Runs the sender and scraper in another process; returns its turns, and due time and delay of each beat of this loop."""
    beats: list[tuple[float, float]] = []
    heart = asyncio.create_task(_beat(beats))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as others:
        turns = await asyncio.get_running_loop().run_in_executor(others, send_and_scrape, ledger, url, load)
    heart.cancel()
    return turns, beats


async def _beat(beats: list[tuple[float, float]]) -> None:
    while True:
        due = time.monotonic() + BEAT_SECONDS
        await asyncio.sleep(BEAT_SECONDS)
        beats.append((due, time.monotonic() - due))


def send_and_scrape(ledger: Ledger, url: str, load: Load) -> list[Turn]:
    """Takes turns with and without a scrape while it sends fills at the rate; runs in a separate process."""
    return asyncio.run(_send_and_scrape(ledger, url, load))


async def _send_and_scrape(ledger: Ledger, url: str, load: Load) -> list[Turn]:
    sender = asyncio.create_task(_send(ledger, load))
    turns = []
    for number in range(2 * load.turns):
        began = time.monotonic()
        scrape = await asyncio.to_thread(_scrape, url) if number % 2 else None
        turns.append(Turn(began, scrape))
        await asyncio.sleep(began + TURN_SECONDS - time.monotonic())
    sender.cancel()
    return turns


async def _send(ledger: Ledger, load: Load) -> None:
    """Sends fills at the rate, one per message."""
    fills, sent, started = Market(load.contracts), 0, time.monotonic()
    async with stream_of(ledger) as client:
        while True:
            due = int((time.monotonic() - started) * load.rate) - sent
            if due > 0:
                await append(client, STREAM, bodies(fills.fills(due), 1, "json"), "json")
                sent += due
            await asyncio.sleep(0.01)


def _scrape(url: str) -> float:
    """Returns the seconds until the last byte of a scrape."""
    started = time.monotonic()
    with urllib.request.urlopen(f"{url}/metrics") as answer:  # noqa: S310 - the address of the engine
        answer.read()
    return time.monotonic() - started


def _bare_seconds(series: int) -> float:
    """Returns the median time of a bare generate_latest of as many series, in CPU seconds of this thread."""
    registry = CollectorRegistry()
    for number in range(series // SERIES_PER_GAUGE):
        gauge = Gauge(f"bench_{number}", "As many.", ["symbol", "currency"], registry=registry)
        for contract in range(SERIES_PER_GAUGE):
            gauge.labels(f"M{contract:04d}USDTM", "USDT").set(contract / 7)
    return statistics.median(_cpu_of(lambda: generate_latest(registry)) for _ in range(BARE_ROUNDS))


def _cpu_of(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def _results(
    contracts: int,
    listing_seconds: float,
    series: int,
    turns: Sequence[Turn],
    beats: Sequence[tuple[float, float]],
    cpu: float,
    bare: float,
) -> Results:
    scrapes = [turn.scrape * 1000 for turn in turns if turn.scrape is not None]
    stalls = [_latest_ms(beats, turn) for turn in turns if turn.scrape is not None]
    alone = [_latest_ms(beats, turn) for turn in turns if turn.scrape is None]
    results = Results(
        contracts=contracts,
        listing_seconds=listing_seconds,
        series=series,
        scrape_ms=statistics.median(scrapes),
        scrape_max_ms=max(scrapes),
        render_cpu_ms=cpu * 1000,
        bare_ms=bare * 1000,
        stall_ms=statistics.median(stalls),
        stall_max_ms=max(stalls),
        stall_alone_ms=statistics.median(alone),
        stall_alone_max_ms=max(alone),
    )
    results.targets = [
        at_most("scrape, ms (median)", results.scrape_ms, SCRAPE_MS_MAX, "{:.0f}"),
        at_most("delay of the loop in a turn with a scrape, ms (median)", results.stall_ms, STALL_MS_MAX, "{:.1f}"),
    ]
    return results


def _latest_ms(beats: Sequence[tuple[float, float]], turn: Turn) -> float:
    """Returns the latest delay in the first half of a turn, which contains its scrape."""
    first, last = (bisect_left(beats, (moment, 0.0)) for moment in (turn.began, turn.began + TURN_SECONDS / 2))
    return max(late for _, late in beats[first:last]) * 1000


def show(results: Results, console: Console) -> None:
    """Prints the tables."""
    table = table_of(
        "Scraping /metrics while fills are settled, ms", "contracts", "listed, s", "series", "scrape", "worst", "CPU",
        "bare CPU", "stall", "worst", "without", "worst",
    )  # fmt: skip
    times = (
        results.scrape_ms, results.scrape_max_ms, results.render_cpu_ms, results.bare_ms, results.stall_ms,
        results.stall_max_ms, results.stall_alone_ms, results.stall_alone_max_ms,
    )  # fmt: skip
    table.add_row(
        f"{results.contracts:,}",
        f"{results.listing_seconds:.1f}",
        f"{results.series:,}",
        *(f"{milliseconds:.1f}" for milliseconds in times),
    )
    for each in (table, target_table(results.targets)):
        console.print(each)
