"""The HTTP side under load: what it answers and tells, beside what carries it, and what that costs the engine."""

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
from throughput import Tell, listing_engine

from fundsvc.local.servers import EmbeddedServers

OF_BARE_MIN = 0.8
TOLD_P99_MS_MAX = 50.0
COMMIT_RATIO_MAX = 1.10
"""What the service promises."""

FIRST_SECONDS = 2.0
"""What the funds are worth shows after the first look at their past."""


class Results(msgspec.Struct, kw_only=True):
    """Everything one run measured."""

    reads: Reads
    fanout: Fanout
    targets: list[Target] = []


async def measure(servers: EmbeddedServers, load: Load, rounds: int, seconds: float, tell: Tell) -> Results:
    """Engine and HTTP side as processes of their own, on a ledger with one contract."""
    market, port = Market(1), free_port()
    engine_log, api_log = (servers.directory / f"{name}.log" for name in ("engine", "api"))
    async with (
        new_ledger(servers, "bench_http") as ledger,
        listing_engine(ledger, market, engine_log, FUNDSVC_ENGINE_PORT=str(port)) as engine,
        running_api(ledger, api_log) as api,
    ):
        await asyncio.sleep(FIRST_SECONDS)
        tell("live topics", 0, 0)
        told = await fanout.measure(Bench(ledger, engine, port, api_log, market, load, tell))
        tell("requests", 0, 0)
        asked = await reads.measure(api, api_log, market.listings()[0].contract["symbol"], rounds, seconds)
    results = Results(reads=asked, fanout=told)
    results.targets = _judge(results)
    return results


def _judge(results: Results) -> list[Target]:
    told = results.fanout
    return [
        at_least("requests/s, of a bare handler's", results.reads.ratio, OF_BARE_MIN, "{:.2f}"),
        at_least("subscribers that got every change", told.complete, told.subscribers, "{:,.0f}"),
        at_most("p99 ms from durable to told", told.p99_ms, TOLD_P99_MS_MAX, "{:.1f}"),
        at_most("commits, beside those without subscribers", told.of_alone, COMMIT_RATIO_MAX, "{:.2f}"),
        at_most("commits, beside those with a bare server's", told.of_bare, COMMIT_RATIO_MAX, "{:.2f}"),
    ]


def show(results: Results, console: Console) -> None:
    """Prints the tables."""
    asked, told = results.reads, results.fanout
    requests = table_of("One fund over HTTP, medians of rounds that took turns", "", "requests/s", "p99 ms", "ratio")
    requests.add_row("fundsvc", f"{asked.service_per_second:,.0f}", f"{asked.service_p99_ms:.2f}", f"{asked.ratio:.2f}")
    requests.add_row("bare aiohttp", f"{asked.bare_per_second:,.0f}", f"{asked.bare_p99_ms:.2f}", "")
    topic = table_of(
        "One busy topic, ms", "subscribers", "changes/s", "got all", "p50", "p99", "max", "p99 from XADD", "error",
        "commit", "alone", "bare",
    )  # fmt: skip
    times = (told.p50_ms, told.p99_ms, told.max_ms, told.sent_p99_ms, told.poll_p99_ms)
    topic.add_row(
        f"{told.subscribers:,}", f"{told.per_second:,.0f}", f"{told.complete:,}", *(f"{time:.1f}" for time in times),
        f"{told.commit_ms:.2f}", f"{told.commit_alone_ms:.2f}", f"{told.commit_bare_ms:.2f}",
    )  # fmt: skip
    for each in (requests, topic, target_table(results.targets)):
        console.print(each)
