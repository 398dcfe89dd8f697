"""The speed of `fundsvc.client` as the producer of a matching engine, relative to plain appends of the same fills.

An engine and an HTTP side run in processes of their own. Turns alternate: the client's producer, which keeps each event until
the cursor shows it as settled; and appends of as many fills per message, which keep nothing. Both encode the fills in this
process. The clock of a turn ends when its last fill is known to be durable: by the producer's own `settled`, which is late by
up to CURSOR_SECONDS, and for the appends by a look at the database.
"""

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec
from ground import connection_to, new_ledger, running_api, stream_of, until_settled, url_of
from market import Market
from report import Target, at_least, table_of, target_table
from rich.console import Console
from throughput import POLL_SECONDS, ShowProgress, listing_engine

from fundsvc.api.http.tokens import mint
from fundsvc.client.api import open_api
from fundsvc.client.producer import BATCH_EVENTS_MAX, producing
from fundsvc.config.settings import TokenConfig
from fundsvc.core.events import Fill
from fundsvc.local.servers import EmbeddedServers
from fundsvc.streams.producer import Producer

OF_PLAIN_MIN = 0.9
"""Target."""

TOKEN_SECONDS = 3600


class Results(msgspec.Struct, kw_only=True):
    """Medians over the turns. CPU is that of this process, in microseconds per fill; `of_plain` is the ratio of the speeds."""

    fills: int
    client_per_second: float
    plain_per_second: float
    client_cpu_us: float
    plain_cpu_us: float
    of_plain: float
    targets: list[Target] = []


class Turn(NamedTuple):
    """Fills per second, and microseconds of CPU per fill."""

    per_second: float
    cpu_us: float


async def measure(servers: EmbeddedServers, contracts: int, fills: int, rounds: int, show_progress: ShowProgress) -> Results:
    """Measures in turns on a new ledger."""
    market = Market(contracts)
    engine_log, api_log = (servers.directory / f"{name}.log" for name in ("engine", "api"))
    secret = TokenConfig(secret="s" * 64)
    async with (
        new_ledger(servers, "bench_client") as ledger,
        listing_engine(ledger, market, engine_log) as engine,
        running_api(ledger, api_log, FUNDSVC_TOKEN_SECRET=secret.secret),
        stream_of(ledger) as stream,
        connection_to(ledger.owner_dsn) as connection,
        open_api("http://{}:{}".format(*url_of(api_log)), mint(secret, "engine", "", "bench", TOKEN_SECONDS)) as api,
    ):

        async def by_client(run: Sequence[Fill]) -> None:
            async with producing(stream, api) as producer:
                await producer.send(*run)
                await producer.settled()

        async def plainly(run: Sequence[Fill]) -> None:
            producer = Producer(stream, 1)
            for start in range(0, len(run), BATCH_EVENTS_MAX):
                ids = await producer.append(run[start : start + BATCH_EVENTS_MAX], per_message=BATCH_EVENTS_MAX)
            await until_settled(connection, ids[0][-1], engine, POLL_SECONDS)

        turns: dict[Callable[[Sequence[Fill]], Awaitable[None]], list[Turn]] = {by_client: [], plainly: []}
        for number in range(rounds):
            show_progress("the client, and plain appends", number, rounds)
            for work, taken in turns.items():
                taken.append(await _turn(work, list(market.fills(fills))))
    return _results(fills, turns[by_client], turns[plainly])


async def _turn(work: Callable[[Sequence[Fill]], Awaitable[None]], run: Sequence[Fill]) -> Turn:
    cpu, started = time.process_time(), time.monotonic()
    await work(run)
    return Turn(len(run) / (time.monotonic() - started), (time.process_time() - cpu) / len(run) * 1e6)


def _results(fills: int, client: Sequence[Turn], plain: Sequence[Turn]) -> Results:
    ratio = statistics.median(ours.per_second / theirs.per_second for ours, theirs in zip(client, plain, strict=True))
    return Results(
        fills=fills,
        client_per_second=statistics.median(turn.per_second for turn in client),
        plain_per_second=statistics.median(turn.per_second for turn in plain),
        client_cpu_us=statistics.median(turn.cpu_us for turn in client),
        plain_cpu_us=statistics.median(turn.cpu_us for turn in plain),
        of_plain=ratio,
        targets=[at_least("fills/s of the client / plain appends", ratio, OF_PLAIN_MIN, "{:.2f}")],
    )


def show(results: Results, console: Console) -> None:
    """Prints the tables."""
    table = table_of(f"{results.fills:,} fills from a producer to durable", "", "fills/s", "CPU us/fill", "ratio")
    client, plain = results.client_per_second, results.plain_per_second
    table.add_row("client", f"{client:,.0f}", f"{results.client_cpu_us:.1f}", f"{results.of_plain:.2f}")
    table.add_row("plain appends", f"{plain:,.0f}", f"{results.plain_cpu_us:.1f}", "")
    for each in (table, target_table(results.targets)):
        console.print(each)
