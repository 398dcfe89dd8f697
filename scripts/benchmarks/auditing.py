"""The speed of the audit: entries that one process recomputes per second of its CPU, from PostgreSQL to the checkpoint.

An engine settles a backlog. Then this process walks through the ledger as the background audit does, without pauses. The peer
only reads the same rows and hashes them; the audit cannot be faster.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec
from ground import connection_to, cost, new_ledger
from market import Market
from report import Target, at_least, table_of, target_table
from rich.console import Console
from throughput import Load, ShowProgress, drain

from fundsvc.config.settings import AuditConfig
from fundsvc.engine.audit_loop import Auditor
from fundsvc.local.servers import EmbeddedServers
from fundsvc.metrics import Metrics
from fundsvc.store.audits import audit_progress
from fundsvc.store.database import SQL, CellPool, open_pool

PER_SECOND_MIN = 100_000.0
"""Entries per second of a core."""

POLL_SECONDS = 0.1
PAGE = 10_000


class Results(msgspec.Struct, kw_only=True):
    """Entries per second of CPU of this process, and of PostgreSQL; `wall` is per second of time."""

    entries: int
    contracts: int
    per_cpu_second: float
    per_postgres_second: float
    wall: float
    peer_per_cpu_second: float
    targets: list[Target]


async def measure(servers: EmbeddedServers, load: Load, log: Path, show_progress: ShowProgress) -> Results:
    """Settles a backlog and audits it."""
    async with new_ledger(servers, "bench_audit") as ledger:
        await drain(servers, ledger, load, Market(load.contracts), log, show_progress)
        async with connection_to(ledger.owner_dsn) as owner:
            await owner.execute("DELETE FROM audit_tranches; DELETE FROM audit_progress")  # of the engine's audit
            await owner.execute("VACUUM ANALYZE entries")
        async with open_pool(ledger.dsn, 2) as pool:
            show_progress("audit", 0, 0)
            before, started = cost(servers), time.perf_counter()
            await _audit(pool, load.contracts)
            seconds, spent = time.perf_counter() - started, cost(servers).since(before)
            show_progress("reading and hashing", 0, 0)
            peer = await _read_and_hash(pool)
    per_second = load.fills / spent.benchmark
    return Results(
        entries=load.fills,
        contracts=load.contracts,
        per_cpu_second=per_second,
        per_postgres_second=load.fills / spent.postgres,
        wall=load.fills / seconds,
        peer_per_cpu_second=load.fills / peer,
        targets=[at_least("audited entries per second of a core", per_second, PER_SECOND_MIN, "{:,.0f}")],
    )


async def _audit(pool: CellPool, contracts: int) -> None:
    """Runs the audit until the full walk has reached the end of all ledgers."""
    auditing = asyncio.create_task(Auditor(pool, AuditConfig(share=1.0), Metrics(), lambda _: True).run())
    while (
        sum(one.good and not one.entry and one.age_seconds is not None for one in await audit_progress(pool, "full"))
        < contracts
    ):
        await asyncio.sleep(POLL_SECONDS)
        if auditing.done():
            auditing.result()
    auditing.cancel()
    with suppress(asyncio.CancelledError):
        await auditing


async def _read_and_hash(pool: CellPool) -> float:
    """Reads and hashes all rows; returns the CPU seconds of this process."""
    started = time.process_time()
    symbols = [row["symbol"] for row in await pool.fetch(SQL["heads"])]
    for symbol in symbols:
        entry = 0
        while rows := await pool.fetch(SQL["audit_entries"], [symbol], [entry], [PAGE]):
            for row in rows:
                sha256(row["hash"] + bytes(100)).digest()
            entry = rows[-1]["entry"]
    return time.process_time() - started


def show(results: Results, console: Console) -> None:
    """Prints the tables."""
    table = table_of(
        "Audit of a ledger", "entries", "contracts", "per CPU s", "per PostgreSQL s", "per s", "reading and hashing"
    )
    table.add_row(*_cells(results))
    console.print(table)
    console.print(target_table(results.targets))


def _cells(results: Results) -> Iterator[str]:
    yield f"{results.entries:,}"
    yield f"{results.contracts:,}"
    for speed in (results.per_cpu_second, results.per_postgres_second, results.wall, results.peer_per_cpu_second):
        yield f"{speed:,.0f}"
