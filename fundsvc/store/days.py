"""Reads what happened to all funds within a span of the engine's time, for reports."""

from datetime import datetime
from decimal import Decimal
from itertools import groupby, islice
from typing import NamedTuple

import asyncpg

from fundsvc.core.generations import public_symbol
from fundsvc.store.archive.files import NO_FILES, ArchiveFiles, Wanted
from fundsvc.store.archive.ranges import Archives
from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch


class OrderOfSpan(NamedTuple):
    """An ADL order that opened within a span; amounts in atoms, `ts` in milliseconds."""

    symbol: str
    adl: int
    origin: str
    reduce: str
    lots: int
    executed: int
    state: str
    uncovered: int
    recovered: int
    settle_currency: str
    settle_decimals: int
    ts: int


class Shortfall(NamedTuple):
    """A shortfall: its deficit is `paid` + `uncovered`, in atoms; `price` and `bankruptcy_price` in the contract's units."""

    symbol: str
    entry: int
    side: str
    lots: int
    price: int
    bankruptcy_price: int
    price_decimals: int
    paid: int
    uncovered: int
    settle_currency: str
    settle_decimals: int
    ts: int


class AuditOfContract(NamedTuple):
    """What the background audit knows of a contract: whether it found no difference, and when it last verified the end."""

    symbol: str
    good: bool
    verified_at: datetime | None


class Days:
    """Reads spans of time. Every method raises StoreFault if the database is unreachable, or `files` of archived entries."""

    def __init__(self, pool: Pool, files: ArchiveFiles = NO_FILES) -> None:
        self._pool = pool
        self._archives = Archives(pool, files)

    async def orders(self, start_ms: int, end_ms: int) -> list[OrderOfSpan]:
        """Returns the ADL orders that opened from `start_ms` to before `end_ms`, in the order of time."""
        rows = await fetch(self._pool, "orders_of_span", start_ms, end_ms)
        return [OrderOfSpan(public_symbol(symbol), *rest) for symbol, *rest in map(tuple, rows)]

    async def largest_shortfalls(self, start_ms: int, end_ms: int, count: int) -> list[Shortfall]:
        """Returns the `count` largest shortfalls of each settlement currency; the span consists of whole hours."""
        rows = await fetch(self._pool, "largest_shortfalls", start_ms, end_ms, count)
        spans = await self._archives.fetch("archived_spans", start_ms, end_ms)
        ends = {span["symbol"]: span["last_entry"] for span in spans}
        found = [Shortfall(*row) for row in rows if row["entry"] > ends.get(row["symbol"], 0)]
        for span in spans:
            found += await self._archived_shortfalls(span)
        found.sort(
            key=lambda one: (one.settle_currency, -Decimal(one.paid + one.uncovered).scaleb(-one.settle_decimals), *one[:2])
        )
        largest = (islice(group, count) for _, group in groupby(found, lambda one: one.settle_currency))
        return [one._replace(symbol=public_symbol(one.symbol)) for group in largest for one in group]

    async def _archived_shortfalls(self, span: asyncpg.Record) -> list[Shortfall]:
        """Returns all shortfalls of a contract's archived entries of a span."""
        symbol, first, last, price_decimals, currency, decimals = span
        rows = await self._archives.rows(symbol, first, last, last, Wanted("shortfall"))
        return [
            Shortfall(
                symbol,
                row["entry"],
                row["side"],
                row["lots"],
                row["price"],
                row["bankruptcy_price"],
                price_decimals,
                -row["change"],
                row["uncovered"],
                currency,
                decimals,
                row["ts"],
            )
            for row in rows
        ]

    async def audits(self) -> list[AuditOfContract]:
        """Returns the state of the background audit of each contract that it has visited."""
        rows = await fetch(self._pool, "audit_states")
        return [AuditOfContract(public_symbol(symbol), *rest) for symbol, *rest in map(tuple, rows)]
