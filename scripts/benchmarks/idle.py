"""What an engine costs that owns many partitions and receives nothing.

The engine is a separate process on a ledger with one contract in each partition. It settles the listings of all contracts
before the measurement.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from ground import append, connection_to, cost, new_ledger, running_engine, stream_of
from report import Target, at_most, table_of, target_table
from rich.console import Console
from throughput import ShowProgress

from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Listing
from fundsvc.local.servers import EmbeddedServers
from fundsvc.streams.client import StreamClient, stream_key
from fundsvc.wire.codec import encode

CPU_SHARE_MAX = 0.02
"""The target: the share of a core that an idle engine uses."""

COMMANDS_SHOWN = 5


class Results(msgspec.Struct, kw_only=True):
    """Means over the measurement. Shares are of one core; `commands` has the most frequent commands to the stream server."""

    partitions: int
    seconds: float
    engine_share: float
    postgres_share: float
    commands_per_second: float
    commands: dict[str, float]
    transactions_per_second: float
    stream_connections: int
    database_connections: int
    targets: list[Target] = []


async def measure(
    servers: EmbeddedServers, partitions: int, settle_seconds: float, seconds: float, log: Path, show_progress: ShowProgress
) -> Results:
    """Measures an idle engine on a new ledger, `settle_seconds` after it has received the last message."""
    async with (
        new_ledger(servers, "bench_idle", partitions=partitions) as ledger,
        stream_of(ledger) as client,
        connection_to(ledger.owner_dsn) as owner,
    ):
        await _list(client, partitions)
        async with running_engine(ledger, log, FUNDSVC_STREAM_PARTITIONS=str(partitions)) as engine:
            while await owner.fetchval("SELECT count(*) FROM funds") < partitions:
                engine.check()
                await asyncio.sleep(0.1)
            await asyncio.sleep(settle_seconds)
            show_progress("idle engine", 0, 0)
            began, before = time.perf_counter(), cost(servers, engine)
            calls, transactions = await _calls(client), await _transactions(owner)
            await asyncio.sleep(seconds)
            took, used = time.perf_counter() - began, cost(servers, engine).since(before)
            made = {name: number - calls.get(name, 0) for name, number in (await _calls(client)).items()}
            rates = {name: number / took for name, number in made.items() if number and name != "info"}
            results = Results(
                partitions=partitions,
                seconds=took,
                engine_share=used.engine / took,
                postgres_share=used.postgres / took,
                commands_per_second=sum(rates.values()),
                commands=dict(sorted(rates.items(), key=lambda one: -one[1])[:COMMANDS_SHOWN]),
                transactions_per_second=(await _transactions(owner) - transactions) / took,
                stream_connections=int((await client.info("clients"))["connected_clients"]) - 1,
                database_connections=await owner.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                ),
            )
    results.targets = [
        at_most(f"CPU of an idle engine with {partitions} partitions", results.engine_share, CPU_SHARE_MAX, "{:.1%}")
    ]
    return results


async def _list(client: StreamClient, partitions: int) -> None:
    """Lists a contract in each partition."""
    wanted = set(range(partitions))
    for number in range(1_000 * partitions):
        symbol = f"BENCH{number}USDTM"
        partition = partition_of(symbol, partitions)
        if partition in wanted:
            wanted.remove(partition)
            listing = Listing({"symbol": symbol, "settleCurrency": "USDT", "multiplier": 1, "isInverse": False})
            await append(client, stream_key(partition), [encode([listing])], "json")
        if not wanted:
            return


async def _calls(client: StreamClient) -> dict[str, int]:
    """Returns the number of calls of each command since the start of the stream server."""
    statistics: dict[str, Any] = await client.info("commandstats")
    return {name.removeprefix("cmdstat_").partition("|")[0]: int(counts["calls"]) for name, counts in statistics.items()}


async def _transactions(owner: asyncpg.Connection) -> int:
    """Returns the number of transactions since the database was created. A single statement is one, too."""
    number: int = await owner.fetchval(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    )
    return number


def show(results: Results, console: Console) -> None:
    """Prints the results and the targets."""
    table = table_of("An engine that receives nothing", "per second, or share of a core", "measured")
    rows: Sequence[tuple[str, str]] = (
        ("CPU of the engine", f"{results.engine_share:.2%}"),
        ("CPU of PostgreSQL", f"{results.postgres_share:.2%}"),
        ("commands to the stream server", f"{results.commands_per_second:.1f}"),
        *((f"  {name}", f"{rate:.1f}") for name, rate in results.commands.items()),
        ("transactions of PostgreSQL", f"{results.transactions_per_second:.1f}"),
        ("connections to the stream server, to PostgreSQL", f"{results.stream_connections}, {results.database_connections}"),
    )
    for row in rows:
        table.add_row(*row)
    console.print(table, target_table(results.targets))
