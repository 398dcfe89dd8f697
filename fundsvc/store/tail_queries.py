"""What a tail asks of the ledger, many times a second: so over a connection that it keeps."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.contracts import Contract
from fundsvc.store.adl import OrderRow
from fundsvc.store.database import SQL
from fundsvc.store.reader import EntryRow, FundRow, fund_row_from
from fundsvc.store.writer import contract_from

Connection = asyncpg.Connection | PoolConnectionProxy

OrderKey = tuple[str, int]
"""An ADL order: its contract and its number."""


class FundVersion(NamedTuple):
    """Where a contract's fund stands, by its last entry, sequence and ADL order, and when the contract was last listed."""

    entry: int
    seq: int
    adl: int
    listed_at: datetime


class PartitionProgress(NamedTuple):
    """How far a partition is settled: its last message, and how many events of the next one; by whom, and in how many commits.

    An engine of an earlier version does not count its commits.
    """

    last_id: str
    events: int
    epoch: int
    commits: int

    def commit_before(self, now: "PartitionProgress") -> int:
        """The commit after which funds may have changed by `now`: this one, or none where commits were not counted since."""
        return self.commits if self.epoch == now.epoch and self.commits < now.commits else -1


class Offsets(NamedTuple):
    """How far each partition is settled.

    The database's clock is `now_ms`; it has every commit up to `as_of_ms`.
    """

    settled: dict[int, PartitionProgress]
    now_ms: int
    as_of_ms: int | None


class VersionedFund(NamedTuple):
    """A fund at its place, and its contract's terms."""

    version: FundVersion
    fund: FundRow
    contract: Contract


async def offsets(connection: Connection) -> Offsets:
    """How far each partition is settled, and how fresh that is."""
    rows = await connection.fetch(SQL["tail_offsets"])
    offsets = {row["partition"]: PartitionProgress(row["last_id"], row["events"], row["epoch"], row["commits"]) for row in rows}
    return Offsets(offsets, rows[0]["now_ms"], rows[0]["as_of_ms"])


async def fund_versions(connection: Connection, after: Mapping[int, int]) -> dict[str, FundVersion]:
    """Where the funds stand, by contract, that some partitions changed after a commit; -1 versioned_funds before the first."""
    rows = await connection.fetch(SQL["fund_versions"], list(after), list(after.values()))
    return {symbol: FundVersion(*rest) for symbol, *rest in rows}


async def versioned_funds(connection: Connection, symbols: Collection[str]) -> dict[str, VersionedFund]:
    """Some funds as they stand, by contract."""
    rows = await connection.fetch(SQL["funds"], symbols)
    return {row["symbol"]: VersionedFund(_fund_version(row), fund_row_from(row), contract_from(row)) for row in rows}


async def entries(connection: Connection, after: Mapping[str, int], count: int) -> list[EntryRow]:
    """Up to `count` entries of each of some contracts after a number, ascending."""
    rows = await connection.fetch(SQL["entries_between"], list(after), list(after.values()), count)
    return [EntryRow(*row) for row in rows]


async def open_orders(connection: Connection, symbols: Collection[str]) -> list[OrderRow]:
    """The open orders of some contracts."""
    return [OrderRow(*row) for row in await connection.fetch(SQL["orders_open"], symbols)]


async def orders(connection: Connection, known: Iterable[OrderKey], after: Iterable[OrderKey]) -> list[OrderRow]:
    """Some orders as they now are, and those of some contracts that came after a number."""
    rows = await connection.fetch(SQL["orders_moved"], *_columns(known), *_columns(after))
    return [OrderRow(*row) for row in rows]


def _fund_version(row: asyncpg.Record) -> FundVersion:
    return FundVersion(**{name: row[name] for name in FundVersion._fields})


def _columns(keys: Iterable[OrderKey]) -> tuple[Sequence[Any], Sequence[Any]]:
    symbols, numbers = [], []
    for symbol, number in keys:
        symbols.append(symbol)
        numbers.append(number)
    return symbols, numbers
