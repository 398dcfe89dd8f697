"""Streams a contract's whole ledger: entries and ADL records."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.adl.records import AdlRecord
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import FundState
from fundsvc.store.archive.files import NO_FILES, ArchiveFiles
from fundsvc.store.archive.ranges import Archives
from fundsvc.store.database import SQL, Pool, pool_of_symbol, snapshot
from fundsvc.store.reader import fetch, ledger_key, reading
from fundsvc.store.writer import contract_from, saved_guard_from

ROWS_PER_PAGE = 2000
"""Bounds memory for a ledger of any length, and keeps each transaction short."""

RECORDS_PER_PAGE = 100
"""ADL records take up to 60 kB each."""


class UnknownContract(LookupError):
    """No contract has that symbol."""


class Line(NamedTuple):
    """An entry with its hash and the time of its recording."""

    entry: Entry
    hash: bytes
    recorded_at: datetime


class RecordLine(NamedTuple):
    """An ADL record with its hash and the time of its recording."""

    record: AdlRecord
    hash: bytes
    recorded_at: datetime


class LedgerSnapshot(NamedTuple):
    """A contract and its fund in one snapshot."""

    contract: Contract
    fund: FundState


class Ledger:
    """A contract's ledger, read from entry 1 in short transactions.

    A long snapshot would keep every dead version of the rows that each commit updates, and slow commits down. It is not needed:
    entries and records never change, and the lines end with the state of the fund at the start of the read.
    """

    def __init__(self, pool: Pool, snapshot: LedgerSnapshot, files: ArchiveFiles = NO_FILES) -> None:
        self._pool = pool
        self._snapshot = snapshot
        self._archives = Archives(pool, files)

    @property
    def contract(self) -> Contract:
        """The contract's terms."""
        return self._snapshot.contract

    @property
    def fund(self) -> FundState:
        """The fund at the start of the read."""
        return self._snapshot.fund

    async def lines(self) -> AsyncIterator[Line | RecordLine]:
        """Yields all entries and ADL records in the order in which they were written; raises StoreFault."""
        records = self._records()
        record = await anext(records, None)
        async for line in self._entries():
            while record and record.record.entry < line.entry.entry:
                yield record
                record = await anext(records, None)
            yield line
        while record:
            yield record
            record = await anext(records, None)

    async def _entries(self) -> AsyncIterator[Line]:
        async for row in self._rows(self._page_of_entries, "entry", self.fund.entry):
            yield line_from(row)

    async def _records(self) -> AsyncIterator[RecordLine]:
        async for row in self._rows(self._page_of_records, "record", self.fund.adl_record):
            yield RecordLine(record_from(row), row["hash"], row["recorded_at"])

    async def _page_of_entries(self, after: int) -> Sequence[Any]:
        rows = await fetch(self._pool, "entries_after", self.contract.symbol, after, ROWS_PER_PAGE)
        if rows and rows[-1]["entry"] == after + len(rows):
            return rows
        # Entry numbers have no gaps: the missing entries are archived. An altered ledger may lack them.
        return await self._archives.after(self.contract.symbol, after, ROWS_PER_PAGE) or rows

    async def _page_of_records(self, after: int) -> Sequence[Any]:
        return await fetch(self._pool, "records_after", self.contract.symbol, after, RECORDS_PER_PAGE)

    async def _rows(self, page: Callable[[int], Awaitable[Sequence[Any]]], number: str, last: int) -> AsyncIterator[Any]:
        """Yields rows by number, page after page, up to `last`; `page` returns the rows after a number, none at the end."""
        after = 0
        while after < last and (rows := await page(after)):
            for row in rows:
                after = row[number]
                if after > last:
                    return
                yield row


async def known_contracts(pool: Pool) -> list[tuple[str, int]]:
    """Returns every symbol of contracts, funds and entries, with the entry number of its fund, or 0; raises StoreFault."""
    return [(row["symbol"], row["entry"]) for row in await fetch(pool, "audited")]


async def open_ledger(pool: Pool, name: str, files: ArchiveFiles = NO_FILES) -> Ledger:
    """Opens the ledger of the contract with a public name; raises UnknownContract or StoreFault."""
    key = await ledger_key(pool, name)
    async with reading(pool_of_symbol(pool, key)) as connection, snapshot(connection):
        return Ledger(pool, await snapshot_of(connection, key), files)


async def snapshot_of(connection: PoolConnectionProxy, symbol: str) -> LedgerSnapshot:
    """Returns a contract and its fund as the connection's transaction sees them; raises UnknownContract."""
    contract = await connection.fetchrow(SQL["contracts"], [symbol])
    fund = await connection.fetchrow(SQL["funds"], [symbol])
    if contract is None or fund is None:
        raise UnknownContract(f"no contract {symbol} is listed")
    return LedgerSnapshot(contract_from(contract), fund_state_from(fund))


def fund_state_from(row: asyncpg.Record) -> FundState:
    """Builds the fund from a row with all its columns."""
    return FundState(**{name: row[name] for name in FundState._fields} | {"guard": saved_guard_from(row)})


def line_from(row: asyncpg.Record | Mapping[str, Any]) -> Line:
    """Builds the entry with hash and time from a row with all their columns."""
    return Line(Entry(*_FIELDS(row)), row["hash"], row["recorded_at"])


_FIELDS = itemgetter(*Entry.__struct_fields__)


def record_from(row: asyncpg.Record) -> AdlRecord:
    """Builds the ADL record from a row with all its columns."""
    return AdlRecord(*(row[name] for name in AdlRecord.__struct_fields__))
