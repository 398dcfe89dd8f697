"""A contract's whole ledger, streamed."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.chain import Entry
from fundsvc.core.contracts import Contract
from fundsvc.core.settlement import FundState
from fundsvc.store.database import SQL, Pool, faults, lent, snapshot
from fundsvc.store.reader import READ_SECONDS_MAX, fetch
from fundsvc.store.writer import contract_from, saved_guard_from

ROWS_PER_PAGE = 2000
"""Keeps memory constant however long the ledger is, and each transaction short."""


class UnknownContract(LookupError):
    """No contract of that symbol is listed."""


class Line(NamedTuple):
    """An entry with its hash and the time it was recorded."""

    entry: Entry
    hash: bytes
    recorded_at: datetime


class LedgerSnapshot(NamedTuple):
    """A contract and its fund, as a transaction that sees one moment knows them."""

    contract: Contract
    fund: FundState


class Ledger:
    """A contract's ledger, read from entry 1 on in short transactions, however long that takes.

    A snapshot that stayed open as long would keep every dead version of the rows that each commit updates, and slow commits
    down. Entries never change, so none is needed: what the ledger says of itself is of the moment of the last page. It fits the
    entries once `lines` has ended.
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

    async def lines(self) -> AsyncIterator[Line]:
        """All entries in order; raises UnknownContract or StoreFault."""
        after, is_last = 0, False
        while not is_last:
            self._snapshot, rows = await read_page(self._pool, self.contract.symbol, after, ROWS_PER_PAGE)
            for row in rows:
                yield line_from(row)
                after = row["entry"]
            is_last = len(rows) < ROWS_PER_PAGE


async def known_contracts(pool: Pool) -> list[tuple[str, int]]:
    """Every symbol that the ledger knows in any way, with how many entries its fund says it has; raises StoreFault."""
    return [(row["symbol"], row["entry"]) for row in await fetch(pool, "audited")]


async def open_ledger(pool: Pool, symbol: str) -> Ledger:
    """The ledger of a contract; raises UnknownContract or StoreFault."""
    snapshot, _ = await read_page(pool, symbol, 0, 0)
    return Ledger(pool, snapshot)


async def read_page(pool: Pool, symbol: str, after: int, count: int) -> tuple[LedgerSnapshot, list[asyncpg.Record]]:
    """Up to `count` entries of a contract after a number, and its ledger at the same moment; raises as `open_ledger` does."""
    with faults():
        async with asyncio.timeout(READ_SECONDS_MAX), lent(pool) as connection, snapshot(connection):
            ledger = await snapshot_of(connection, symbol)
            return ledger, await connection.fetch(SQL["entries_after"], symbol, after, count)


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
