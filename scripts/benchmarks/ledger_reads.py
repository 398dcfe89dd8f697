"""The times of reads of the ledger at different sizes, such as 10**5, 10**6 and 10**7 entries. They should not grow with it.

History is written by COPY, one entry of each contract in STEP_MS, so a larger ledger is a longer one: with 10 contracts, 10**8
entries are three years. Each hundredth entry has an ADL order with an execution. The service's own code condenses the rollups.
Reads use the service's functions; they read one contract, at random places of the whole history.
"""

import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple, Self

import asyncpg
import msgspec
from ground import Ledger, connection_to, new_ledger
from market import Market
from report import Target, at_most, table_of, target_table
from rich.console import Console
from throughput import ShowProgress, listing_engine

from fundsvc.core.adl.order import OrderState, State
from fundsvc.core.adl.records import SealedRecord
from fundsvc.core.events import AdlFill, Fill, Listing, Mark, Position
from fundsvc.core.fund.chain import Entry, Kind
from fundsvc.core.partition import Partition
from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.adl import AdlReader
from fundsvc.store.database import open_pool
from fundsvc.store.reader import HOUR_MS, Reader
from fundsvc.store.rollups import condense
from fundsvc.store.rows import (
    COLUMNS,
    HEADER,
    ORDER_COLUMNS,
    RECORD_COLUMNS,
    TRAILER,
    copy_orders,
    copy_records,
    copy_rows,
)
from fundsvc.store.statistics import Statistics

STEP_MS = 10_000
"""The distance of a contract's entries: 360 in an hour."""

ENTRIES_PER_ORDER = 100
ORDERS_PER_ACCOUNT = 20
UNCOVERED, OPEN = 50, 5
"""The first orders of each contract are uncovered, the next ones open, all others done. So rare states are old."""

ROWS_PER_COPY = 50_000
ROWS_PER_CHUNK = 1_000
BALANCE = 10**15
PAGE = 50
WINDOW_MS = 6 * HOUR_MS
"""The time that a chart or a page by time covers. The smallest ledger is several times as long."""

RATIO_MAX = 1.2
"""The target: the time of a read at the largest size, relative to the smallest."""


class Results(msgspec.Struct, kw_only=True):
    """Median milliseconds of each read, by size of the ledger in entries."""

    sizes: list[int]
    milliseconds: dict[str, list[float]]
    targets: list[Target] = []


class _Place(NamedTuple):
    """An entry of the history of a contract from `begin_ms` to `end_ms`."""

    symbol: str
    begin_ms: int
    end_ms: int
    entry: int

    @property
    def moment_ms(self) -> int:
        """The time of the entry."""
        return self.begin_ms + self.entry * STEP_MS


Read = Callable[[_Place], Awaitable[object]]
"""Reads something of the history at a place."""


async def measure(
    servers: EmbeddedServers, sizes: Sequence[int], contracts: int, rounds: int, log: Path, show_progress: ShowProgress
) -> Results:
    """Measures every read of ledgers of different sizes. The ledgers take turns, so that other processes disturb all alike."""
    results = Results(sizes=sorted(sizes), milliseconds={})
    async with AsyncExitStack() as stack:
        ledgers = []
        for number, size in enumerate(results.sizes):
            ledger = await stack.enter_async_context(new_ledger(servers, f"bench_reads_{number}"))
            async with listing_engine(ledger, Market(contracts), log):
                pass
            begin_ms = time.time_ns() // 1_000_000 - (size // contracts + 1) * STEP_MS
            await _fill(ledger, size, begin_ms, show_progress)
            pool = await stack.enter_async_context(open_pool(ledger.dsn, 1))
            ledgers.append(await _Measured.of(pool, begin_ms))
        chance = random.Random(7)  # noqa: S311 - a place, not a secret
        for turn in range(rounds):
            show_progress("reads", turn, rounds)
            fraction = chance.random()
            for name in ledgers[0].reads:
                for one in ledgers if turn % 2 else reversed(ledgers):
                    await one.read(name, fraction)
    results.milliseconds = {name: [statistics.median(one.took[name]) for one in ledgers] for name in ledgers[0].reads}
    results.targets = list(_judge(results))
    return results


class _Measured:
    """A ledger with its reads, and the milliseconds that each took."""

    def __init__(self, symbol: str, entries: int, begin_ms: int, reads: Mapping[str, Read]) -> None:
        self.reads = reads
        self.took: dict[str, list[float]] = {name: [] for name in reads}
        self._symbol, self._entries, self._begin_ms = symbol, entries, begin_ms

    @classmethod
    async def of(cls, pool: asyncpg.Pool, begin_ms: int) -> Self:
        """Returns the reads of the first contract of a ledger."""
        ((symbol, entries),) = await pool.fetch("SELECT symbol, entry FROM funds ORDER BY symbol LIMIT 1")
        return cls(symbol, entries, begin_ms, _reads(pool))

    async def read(self, name: str, fraction: float) -> None:
        """Measures a read at a place of the history."""
        entry = 1 + int(fraction * (self._entries - 1))
        place = _Place(self._symbol, self._begin_ms, self._begin_ms + self._entries * STEP_MS, entry)
        started = time.perf_counter()
        await self.reads[name](place)
        self.took[name].append((time.perf_counter() - started) * 1000)


def _judge(results: Results) -> Iterator[Target]:
    if len(results.sizes) > 1:
        for name, times in results.milliseconds.items():
            yield at_most(f"{name}: time relative to {results.sizes[0]:,} entries", times[-1] / times[0], RATIO_MAX, "{:.2f}")


def _reads(pool: asyncpg.Pool) -> dict[str, Read]:
    """Returns the measured reads by name."""
    reader, past, adl = Reader(pool), Statistics(pool), AdlReader(pool)

    def history(*, kind: Kind | None = None) -> Read:
        return lambda place: reader.history(place.symbol, count=PAGE, offset=place.entry, kind=kind)

    def orders(state: State | None) -> Read:
        return lambda place: adl.orders(place.symbol, count=PAGE, state=state)

    def account(place: _Place) -> str:
        return _account(place.symbol, max(1, place.entry // ENTRIES_PER_ORDER))

    async def candles(place: _Place) -> object:
        start = place.moment_ms - place.moment_ms % HOUR_MS
        return await past.buckets(place.symbol, start - WINDOW_MS, start, HOUR_MS)

    async def currencies(place: _Place) -> object:
        end = place.end_ms - place.end_ms % HOUR_MS
        return await past.currencies(range(end - WINDOW_MS, end + HOUR_MS, HOUR_MS), place.end_ms)

    return {
        "newest page": lambda place: reader.history(place.symbol, count=PAGE),
        "page": history(),
        "page of shortfalls": history(kind="shortfall"),
        "page by time": lambda place: reader.history(
            place.symbol, count=PAGE, start_ms=place.moment_ms - WINDOW_MS, end_ms=place.moment_ms
        ),
        "balance at a time": lambda place: past.at(place.symbol, place.moment_ms),
        "candles": candles,
        "summary, past balances of all": lambda place: past.past(place.end_ms),
        "totals of currencies": currencies,
        "newest orders": orders(None),
        "open orders": orders("open"),
        "uncovered orders": orders("uncovered"),
        "deleveraged by account": lambda place: adl.reductions_page(account(place), count=PAGE),
        "latest of an account": lambda place: adl.latest_reductions(account(place), PAGE),
    }


async def _fill(ledger: Ledger, size: int, begin_ms: int, show_progress: ShowProgress) -> None:
    """Writes entries, orders and records, and condenses the rollups."""
    async with connection_to(ledger.owner_dsn) as owner, open_pool(ledger.dsn, 1) as pool:
        symbols = [symbol for (symbol,) in await owner.fetch("SELECT symbol FROM funds ORDER BY symbol")]
        until, step = size // len(symbols), max(1, ROWS_PER_COPY // len(symbols))
        template = _template()
        for start in range(1, until + 1, step):
            numbers = range(start, min(until + 1, start + step))
            orders = range(-(-start // ENTRIES_PER_ORDER), (numbers.stop - 1) // ENTRIES_PER_ORDER + 1)
            await _copy(owner, "entries", COLUMNS, _entry_rows(symbols, numbers, begin_ms))
            await _copy(owner, "adl_orders", ORDER_COLUMNS, _order_rows(symbols, orders, begin_ms, template))
            await _copy(owner, "adl_records", RECORD_COLUMNS, _record_rows(symbols, orders, begin_ms, template))
            show_progress("writing history", start * len(symbols), size)
        adl = until // ENTRIES_PER_ORDER
        await owner.execute(
            "UPDATE funds SET entry = $1, seq = $1, balance = $2, adl = $3::bigint, adl_record = 2 * $3::bigint",
            until,
            BALANCE,
            adl,
        )
        show_progress("rollups", 0, 0)
        while await condense(pool, 0):
            pass
        show_progress("vacuum", 0, 0)
        for table in ("entries", "adl_orders", "adl_records", "rollups", "rollup_progress", "funds"):
            await owner.execute(f"VACUUM (ANALYZE) {table}")
        await owner.execute("CHECKPOINT")


async def _copy(owner: asyncpg.Connection, table: str, columns: Sequence[str], parts: Iterable[bytes]) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield HEADER
        for part in parts:
            yield part
        yield TRAILER

    await owner.copy_to_table(table, source=source(), columns=columns, format="binary")


def _entry_rows(symbols: Sequence[str], numbers: range, begin_ms: int) -> Iterator[bytes]:
    for start in range(numbers.start, numbers.stop, max(1, ROWS_PER_CHUNK // len(symbols))):
        part = numbers[start - numbers.start :][: max(1, ROWS_PER_CHUNK // len(symbols))]
        entries = [_entry(symbol, number, begin_ms) for number in part for symbol in symbols]
        yield copy_rows(entries, [os.urandom(32) for _ in entries])


def _entry(symbol: str, number: int, begin_ms: int) -> Entry:
    identifier = f"{number:024x}"
    kind: Kind = "surplus" if number % 10 else "shortfall"
    change = 1000 if number % 10 else -1000
    return Entry(
        symbol, number, number, kind, change, BALANCE, 0, 0, "sell", 10,
        20_000 * 10**9, 19_990 * 10**9, identifier, identifier, identifier, begin_ms + number * STEP_MS,
    )  # fmt: skip


class _Template(NamedTuple):
    """An order, and its records: the beginning and an execution."""

    order: OrderState
    records: tuple[SealedRecord, SealedRecord]


def _template() -> _Template:
    """Settles an order, whose numbers the history repeats."""
    symbol, ts = "TEMPLATEUSDTM", 1_700_000_000_000
    partition = Partition(0, 1, [], {}, 8)
    for event in (
        Listing({"symbol": symbol, "settleCurrency": "USDT", "multiplier": 1, "isInverse": False}),
        Mark(symbol, "390", ts),
        Position(symbol, "long", 100, "395", "5000", ts),
        Position(symbol, "short", -100, "410", "5000", ts),
        Fill(symbol, 1, "sell", 10, "389", "390", ts, "trade", "order", "liquidated"),
        AdlFill(symbol, 2, 1, "short", 10, ts),
    ):
        partition.apply(event)
    batch = partition.take()
    ((_, order),) = batch.orders.items()
    begun, executed = batch.records
    return _Template(order, (begun, executed))


def _order_rows(symbols: Sequence[str], numbers: range, begin_ms: int, template: _Template) -> Iterator[bytes]:
    for number in numbers:
        state: State = "uncovered" if number <= UNCOVERED else "open" if number <= UNCOVERED + OPEN else "done"
        entry = number * ENTRIES_PER_ORDER
        order = template.order._replace(adl=number, cause=entry, seq=entry, ts=begin_ms + entry * STEP_MS, state=state)
        if state != "done":
            order = order._replace(executed=0, recovered=0)
        yield copy_orders([order._replace(symbol=symbol) for symbol in symbols])


def _record_rows(symbols: Sequence[str], numbers: range, begin_ms: int, template: _Template) -> Iterator[bytes]:
    begun, executed = template.records
    for number in numbers:
        entry = number * ENTRIES_PER_ORDER
        places = {"adl": number, "entry": entry, "seq": entry, "ts": begin_ms + entry * STEP_MS}
        rows = []
        for symbol in symbols:
            common = {"symbol": symbol, **places}
            rows += [
                begun._replace(record=msgspec.structs.replace(begun.record, record=2 * number - 1, **common)),
                executed._replace(
                    record=msgspec.structs.replace(
                        executed.record, record=2 * number, account=_account(symbol, number), **common
                    )
                ),
            ]
        yield copy_records(rows)


def _account(symbol: str, adl: int) -> str:
    """Returns the account that an order reduced."""
    return f"{symbol}-{adl // ORDERS_PER_ACCOUNT}"


def show(results: Results, console: Console) -> None:
    """Prints the times, the ratios and the targets."""
    table = table_of("Reads, median ms", "read", *(f"{size:,} entries" for size in results.sizes), "ratio")
    for name, times in results.milliseconds.items():
        table.add_row(name, *(f"{one:.2f}" for one in times), f"{times[-1] / times[0]:.2f}")
    console.print(table)
    if results.targets:
        console.print(target_table(results.targets))
