"""The HTTP side under load: requests and pushes, relative to bare servers, and their cost for the engine."""

import asyncio

import fanout
import msgspec
import reads
from fanout import Bench, Fanout, Load
from ground import free_port, new_ledger, running_api
from market import Market
from reads import Reads
from report import Target, at_least, at_most, table_of, target_table
from rich.console import Console
from throughput import ShowProgress, listing_engine

from fundsvc.local.servers import EmbeddedServers

OF_BARE_MIN = 0.6  # plain aiohttp with the middleware; see D25 of the handbook
SHARING_MAX = 1.05
DELIVERED_P99_MS_MAX = 50.0
COMMIT_RATIO_MAX = 1.10
"""Targets."""

FIRST_SECONDS = 2.0
"""Pause until the funds show the values that need their history."""


class Results(msgspec.Struct, kw_only=True):
    """The results of one run."""

    reads: Reads
    fanout: Fanout
    targets: list[Target] = []


async def measure(servers: EmbeddedServers, load: Load, rounds: int, seconds: float, show_progress: ShowProgress) -> Results:
    """Measures an engine and an HTTP side in separate processes, on a ledger with one contract."""
    market, port = Market(1), free_port()
    engine_log, api_log, sharing_log = (servers.directory / f"{name}.log" for name in ("engine", "api", "sharing"))
    async with (
        new_ledger(servers, "bench_http") as ledger,
        listing_engine(ledger, market, engine_log, FUNDSVC_ENGINE_PORT=str(port)) as engine,
        running_api(ledger, api_log) as api,
    ):
        await asyncio.sleep(FIRST_SECONDS)
        show_progress("live topics", 0, 0)
        delivered = await fanout.measure(Bench(ledger, engine, port, api_log, market, load, show_progress))
        show_progress("requests", 0, 0)
        symbol = market.listings()[0].contract["symbol"]
        async with running_api(ledger, sharing_log, FUNDSVC_HTTP_SHARED_LIMITS="true") as sharing:
            served = await reads.measure(api, api_log, sharing, sharing_log, symbol, rounds, seconds)
    results = Results(reads=served, fanout=delivered)
    results.targets = _judge(results)
    return results


def _judge(results: Results) -> list[Target]:
    delivered = results.fanout
    return [
        at_least("requests/s / bare handler", results.reads.ratio, OF_BARE_MIN, "{:.2f}"),
        at_most("CPU per request with shared limits / without", results.reads.sharing_ratio, SHARING_MAX, "{:.2f}"),
        at_least("subscribers that received every change", delivered.complete, delivered.subscribers, "{:,.0f}"),
        at_most("p99 ms from durable to delivered", delivered.p99_ms, DELIVERED_P99_MS_MAX, "{:.1f}"),
        at_most("commit time / without subscribers", delivered.of_alone, COMMIT_RATIO_MAX, "{:.2f}"),
        at_most("commit time / with a bare server", delivered.of_bare, COMMIT_RATIO_MAX, "{:.2f}"),
    ]


def show(results: Results, console: Console) -> None:
    """Prints the tables."""
    served, delivered = results.reads, results.fanout
    requests = table_of("One fund over HTTP, medians of alternating rounds", "", "requests/s", "p99 ms", "CPU us", "ratio")
    for name, per_second, p99_ms, cpu_us, ratio in (
        ("fundsvc", served.service_per_second, served.service_p99_ms, served.service_cpu_us, f"{served.ratio:.2f}"),
        ("with shared limits", served.sharing_per_second, served.sharing_p99_ms, served.sharing_cpu_us, ""),
        ("bare aiohttp", served.bare_per_second, served.bare_p99_ms, served.bare_cpu_us, ""),
    ):
        requests.add_row(name, f"{per_second:,.0f}", f"{p99_ms:.2f}", f"{cpu_us:.1f}", ratio)
    topic = table_of(
        "One busy topic, ms", "subscribers", "changes/s", "complete", "p50", "p99", "max", "p99 from XADD", "error",
        "commit", "alone", "bare",
    )  # fmt: skip
    times = (delivered.p50_ms, delivered.p99_ms, delivered.max_ms, delivered.sent_p99_ms, delivered.poll_p99_ms)
    topic.add_row(
        f"{delivered.subscribers:,}", f"{delivered.per_second:,.0f}", f"{delivered.complete:,}",
        *(f"{time:.1f}" for time in times),
        f"{delivered.commit_ms:.2f}", f"{delivered.commit_alone_ms:.2f}", f"{delivered.commit_bare_ms:.2f}",
    )  # fmt: skip
    for each in (requests, topic, target_table(results.targets)):
        console.print(each)
