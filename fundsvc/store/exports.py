"""A contract's whole ledger as it stands at one moment, streamed: for the audit and for exports."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.chain import Entry
from fundsvc.core.contracts import Contract
from fundsvc.core.replay import OrderTotals
from fundsvc.core.settlement import FundState
from fundsvc.store.database import SQL, Pool, faults
from fundsvc.store.reader import fetch
from fundsvc.store.writer import contract_from

ROWS_PER_FETCH = 2000
"""Keeps memory constant however long the ledger is."""


class UnknownContract(LookupError):
    """No contract of that symbol is listed."""


class Line(NamedTuple):
    """An entry with its hash and the time it was recorded."""

    entry: Entry
    hash: bytes
    recorded_at: datetime


class LedgerSnapshot:
    """One contract's ledger in a transaction that sees one moment.

    `late` are the numbers of entries, later than `after`, that settled formerly rejected events; `orders` are the sums over its
    ADL orders.
    """

    def __init__(
        self,
        connection: PoolConnectionProxy,
        contract: Contract,
        fund: FundState,
        after: int,
        late: set[int],
        orders: OrderTotals,
    ) -> None:
        self.contract = contract
        self.fund = fund
        self.late = late
        self.orders = orders
        self._connection = connection
        self._after = after

    async def lines(self) -> AsyncIterator[Line]:
        """All entries later than `after`, in order."""
        with faults():
            parameters = self.contract.symbol, self._after, None
            async for row in self._connection.cursor(SQL["entries_after"], *parameters, prefetch=ROWS_PER_FETCH):
                yield line_from(row)


async def known_contracts(pool: Pool) -> list[tuple[str, int]]:
    """Every symbol that the ledger knows in any way, with how many entries its fund says it has; raises StoreFault."""
    return [(row["symbol"], row["entry"]) for row in await fetch(pool, "audited")]


@asynccontextmanager
async def open_snapshot(pool: Pool, symbol: str) -> AsyncIterator[LedgerSnapshot]:
    """The ledger of a contract, for as long as the context is open; raises UnknownContract or StoreFault."""
    async with AsyncExitStack() as stack:
        with faults():
            connection = await stack.enter_async_context(pool.acquire())
            await stack.enter_async_context(connection.transaction(isolation="repeatable_read", readonly=True))
            snapshot = await snapshot_of(connection, symbol, 0)
        yield snapshot


async def snapshot_of(connection: PoolConnectionProxy, symbol: str, after: int) -> LedgerSnapshot:
    """What the connection's transaction sees of a contract, from the entry after `after` on; raises UnknownContract."""
    contract = await connection.fetchrow(SQL["contracts"], [symbol])
    fund = await connection.fetchrow(SQL["funds"], [symbol])
    if contract is None or fund is None:
        raise UnknownContract(f"no contract {symbol} is listed")
    late = {row["entry"] for row in await connection.fetch(SQL["settled_late"], symbol, after)}
    (totals,) = await connection.fetch(SQL["orders_totals"], symbol)
    state = FundState(*(fund[name] for name in FundState._fields))
    return LedgerSnapshot(connection, contract_from(contract), state, after, late, OrderTotals(*map(int, totals)))


def line_from(row: asyncpg.Record) -> Line:
    """The entry, hash and time in a row that has all their columns."""
    return Line(Entry(*(row[name] for name in Entry.__struct_fields__)), row["hash"], row["recorded_at"])
