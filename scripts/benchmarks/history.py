"""Compares the speed of the same backlog in ledgers of different sizes, such as 0, 10 and 50 million entries.

History is written by COPY, in transactions of the service's size over all contracts in turn, with matching funds and rollups.
VACUUM and CHECKPOINT follow, so that such work does not fall into a measurement.
"""

import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import asyncpg
from ground import Ledger, connection_to, new_ledger, stream_of
from market import Market
from throughput import Load, ShowProgress, Throughput, drain, listing_engine

from fundsvc.core.fund.chain import Entry, Kind
from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.rows import COLUMNS, HEADER, TRAILER, copy_rows

ROWS_PER_COPY = 10_000
"""Entries per transaction, as the service writes them with a backlog."""

ROWS_PER_CHUNK = 1000
MILLION = 1_000_000

BALANCE = 10**15
"""Balance of every fund: ten million USDT, so that no shortfall of the market drains it."""


async def measure(
    servers: EmbeddedServers, load: Load, millions: Sequence[int], rounds: int, log: Path, show_progress: ShowProgress
) -> list[Throughput]:
    """Returns the median of `rounds` backlogs for each size of the ledger, smallest first."""
    results = []
    async with new_ledger(servers, "bench_history") as ledger:
        async with listing_engine(ledger, Market(load.contracts), log):
            pass
        for size in sorted(millions):
            await _grow(ledger, size * MILLION, show_progress)
            runs = [await _drain_next(servers, ledger, load, log, show_progress) for _ in range(rounds)]
            results.append(sorted(runs, key=lambda run: run.fills_per_second)[len(runs) // 2])
    return results


async def _drain_next(
    servers: EmbeddedServers, ledger: Ledger, load: Load, log: Path, show_progress: ShowProgress
) -> Throughput:
    """Measures a backlog with sequences above those in the ledger, from a new stream."""
    async with connection_to(ledger.owner_dsn) as owner:
        last_seq = await owner.fetchval("SELECT max(seq) FROM funds")
        await owner.execute("UPDATE partitions SET last_id = '0-0', messages = 0")
    async with stream_of(ledger) as client:
        await client.flushall()
    return await drain(servers, ledger, load, Market(load.contracts, first_seq=last_seq + 1), log, show_progress)


async def _grow(ledger: Ledger, size: int, show_progress: ShowProgress) -> None:
    """Adds entries until the ledger has `size` entries."""
    async with connection_to(ledger.owner_dsn) as owner:
        funds = await owner.fetch("SELECT symbol, entry, seq FROM funds ORDER BY symbol")
        have = sum(fund["entry"] for fund in funds)
        rounds = max(0, size - have) // len(funds)
        rounds_per_copy = max(1, ROWS_PER_COPY // len(funds))
        for start in range(0, rounds, rounds_per_copy):
            numbers = range(start, min(rounds, start + rounds_per_copy))
            await owner.copy_to_table("entries", source=_copy(funds, numbers), columns=COLUMNS, format="binary")
            show_progress("writing history", have + start * len(funds), size)
        await owner.execute("UPDATE funds SET entry = entry + $1, seq = seq + $1, balance = $2", rounds, BALANCE)
        await owner.execute(
            "INSERT INTO rollup_progress SELECT symbol, entry FROM funds"
            " ON CONFLICT (symbol) DO UPDATE SET entry = excluded.entry"
        )
        show_progress("vacuum", 0, 0)
        await owner.execute("VACUUM (ANALYZE) entries")
        await owner.execute("CHECKPOINT")


async def _copy(funds: Sequence[asyncpg.Record], numbers: Sequence[int]) -> AsyncIterator[bytes]:
    yield HEADER
    entries = list(_entries(funds, numbers))
    for start in range(0, len(entries), ROWS_PER_CHUNK):
        chunk = entries[start : start + ROWS_PER_CHUNK]
        yield copy_rows(chunk, [os.urandom(32) for _ in chunk])
    yield TRAILER


def _entries(funds: Sequence[asyncpg.Record], numbers: Sequence[int]) -> Iterator[Entry]:
    now = time.time_ns() // MILLION
    for number in numbers:
        for symbol, entry, seq in funds:
            identifier = f"{entry + number:024x}"
            kind: Kind = "surplus" if number % 10 else "shortfall"
            change = 1000 if number % 10 else -1000
            yield Entry(
                symbol, entry + number + 1, seq + number + 1, kind, change, BALANCE, 0, 0, "sell", 10,
                20_000 * 10**9, 19_990 * 10**9, identifier, identifier, identifier, now,
            )  # fmt: skip
