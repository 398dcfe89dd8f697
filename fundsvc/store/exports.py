"""A contract's whole ledger, entries and ADL records, streamed."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.adl.records import AdlRecord
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import FundState
from fundsvc.store.database import SQL, Pool, snapshot
from fundsvc.store.reader import fetch, reading
from fundsvc.store.writer import contract_from, saved_guard_from

ROWS_PER_PAGE = 2000
"""Keeps memory constant however long the ledger is, and each transaction short."""

RECORDS_PER_PAGE = 100
"""ADL records take up to 60 kB each."""


class UnknownContract(LookupError):
    """No contract of that symbol is listed."""


class Line(NamedTuple):
    """An entry with its hash and the time it was recorded."""

    entry: Entry
    hash: bytes
    recorded_at: datetime


class RecordLine(NamedTuple):
    """An ADL record with its hash and the time it was recorded."""

    record: AdlRecord
    hash: bytes
    recorded_at: datetime


class LedgerSnapshot(NamedTuple):
    """A contract and its fund, as a transaction that sees one moment knows them."""

    contract: Contract
    fund: FundState


class Ledger:
    """A contract's ledger, read from entry 1 on in short transactions, however long that takes.

    A snapshot that stayed open as long would keep every dead version of the rows that each commit updates, and slow commits
    down. Entries and records never change, so none is needed: the lines end where the fund, read at first, says that they do.
    """

    def __init__(self, pool: Pool, snapshot: LedgerSnapshot) -> None:
        self._pool = pool
        self._snapshot = snapshot

    @property
    def contract(self) -> Contract:
        """Its contract's terms."""
        return self._snapshot.contract

    @property
    def fund(self) -> FundState:
        """Its fund."""
        return self._snapshot.fund

    async def lines(self) -> AsyncIterator[Line | RecordLine]:
        """All entries and ADL records in the order in which they were made; raises StoreFault."""
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
        async for row in self._rows("entries_after", "entry", self.fund.entry, ROWS_PER_PAGE):
            yield line_from(row)

    async def _records(self) -> AsyncIterator[RecordLine]:
        async for row in self._rows("records_after", "record", self.fund.adl_record, RECORDS_PER_PAGE):
            yield RecordLine(record_from(row), row["hash"], row["recorded_at"])

    async def _rows(self, block: str, number: str, last: int, count: int) -> AsyncIterator[asyncpg.Record]:
        """The rows of a statement by their number, a page after the other, up to a last one."""
        after, is_last = 0, False
        while not is_last:
            rows = await fetch(self._pool, block, self.contract.symbol, after, count)
            for row in rows:
                after = row[number]
                if after > last:
                    return
                yield row
            is_last = len(rows) < count


async def known_contracts(pool: Pool) -> list[tuple[str, int]]:
    """Every symbol that the ledger knows in any way, with how many entries its fund says it has; raises StoreFault."""
    return [(row["symbol"], row["entry"]) for row in await fetch(pool, "audited")]


async def open_ledger(pool: Pool, symbol: str) -> Ledger:
    """The ledger of a contract; raises UnknownContract or StoreFault."""
    async with reading(pool) as connection, snapshot(connection):
        return Ledger(pool, await snapshot_of(connection, symbol))


async def snapshot_of(connection: PoolConnectionProxy, symbol: str) -> LedgerSnapshot:
    """What the connection's transaction sees of a contract and its fund; raises UnknownContract."""
    contract = await connection.fetchrow(SQL["contracts"], [symbol])
    fund = await connection.fetchrow(SQL["funds"], [symbol])
    if contract is None or fund is None:
        raise UnknownContract(f"no contract {symbol} is listed")
    return LedgerSnapshot(contract_from(contract), fund_state_from(fund))


def fund_state_from(row: asyncpg.Record) -> FundState:
    """The fund in a row that has all its columns."""
    return FundState(**{name: row[name] for name in FundState._fields} | {"guard": saved_guard_from(row)})


def line_from(row: asyncpg.Record) -> Line:
    """The entry, hash and time in a row that has all their columns."""
    return Line(Entry(*(row[name] for name in Entry.__struct_fields__)), row["hash"], row["recorded_at"])


def record_from(row: asyncpg.Record) -> AdlRecord:
    """The ADL record in a row that has all its columns."""
    return AdlRecord(*(row[name] for name in AdlRecord.__struct_fields__))
