"""Statements of the ledger tail. It runs them many times a second, so they use a connection that the tail keeps."""

import itertools
from collections.abc import Collection, Mapping, Sequence
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
"""An ADL order: its contract and number."""

ORDERS_PER_QUERY = 500
"""Orders that one statement names or returns: two milliseconds of work, because the driver reads an answer in one go."""


MOVES_MAX = 128
"""The number of commits of a partition that the table `moves` keeps: a fifth of a second of the smallest commits."""

EVERY_COMMIT = range(1)
"""The commits of a partition of which nothing is known. `moves` has no commit 0, and every fund was changed after commit -1."""


class FundVersion(NamedTuple):
    """The version of a fund: its last entry, sequence and ADL order, and the time of the contract's last listing."""

    entry: int
    seq: int
    adl: int
    listed_at: datetime


class PartitionProgress(NamedTuple):
    """The progress of a partition: its last settled message, the settled events of the next one, the owner's epoch and its
    commits.

    An engine of an earlier version does not count its commits.
    """

    last_id: str
    events: int
    epoch: int
    commits: int

    def commits_until(self, now: "PartitionProgress") -> range:
        """Returns the numbers of the commits up to `now`; EVERY_COMMIT if commits were not counted since."""
        counts = self.epoch == now.epoch and self.commits < now.commits
        return range(self.commits + 1, now.commits + 1) if counts else EVERY_COMMIT


class Offsets(NamedTuple):
    """The progress and the generation of each partition.

    `now_ms` is the database's clock. The database has every commit up to `as_of_ms`.
    """

    settled: dict[int, PartitionProgress]
    generations: dict[int, int]
    now_ms: int
    as_of_ms: int | None


class VersionedFund(NamedTuple):
    """A fund with its version and its contract's terms. `has_inventory` is whether it ever had an inventory."""

    version: FundVersion
    fund: FundRow
    contract: Contract
    has_inventory: bool


async def offsets(connection: Connection) -> Offsets:
    """Returns the progress of each partition of a database, and how fresh it is."""
    rows = await connection.fetch(SQL["tail_offsets"])
    held = [row for row in rows if row["partition"] is not None]
    offsets = {row["partition"]: PartitionProgress(row["last_id"], row["events"], row["epoch"], row["commits"]) for row in held}
    generations = {row["partition"]: row["generation"] for row in held}
    return Offsets(offsets, generations, rows[0]["now_ms"], rows[0]["as_of_ms"])


async def fund_versions(connection: Connection, commits: Mapping[int, range]) -> dict[str, FundVersion]:
    """Returns the versions of the funds that some commits of partitions changed, by contract; EVERY_COMMIT selects all funds.

    More than MOVES_MAX commits cost as much as EVERY_COMMIT.
    """
    # The first commit suffices to learn that the table does not have all.
    sought = [
        (partition, commit, numbers.start - 1)
        for partition, numbers in commits.items()
        for commit in (numbers if len(numbers) <= MOVES_MAX else numbers[:1])
    ]
    rows = await connection.fetch(SQL["fund_versions"], *map(list, zip(*sought, strict=True)))
    return {symbol: FundVersion(*rest) for symbol, *rest in rows}


async def versioned_funds(connection: Connection, symbols: Collection[str]) -> dict[str, VersionedFund]:
    """Returns some funds by contract."""
    rows = await connection.fetch(SQL["funds"], symbols)
    return {
        row["symbol"]: VersionedFund(_fund_version(row), fund_row_from(row), contract_from(row), row["has_inventory"])
        for row in rows
    }


async def entries(connection: Connection, after: Mapping[str, int], count: int) -> list[EntryRow]:
    """Returns up to `count` entries of each contract after a number, ascending."""
    rows = await connection.fetch(SQL["entries_between"], list(after), list(after.values()), count)
    return [EntryRow(*row) for row in rows]


async def open_orders(connection: Connection, symbols: Collection[str]) -> list[OrderRow]:
    """Returns the open orders of some contracts."""
    return await _paged(connection, "orders_open", symbols)


async def orders_after(connection: Connection, after: Mapping[str, int]) -> list[OrderRow]:
    """Returns the orders of some contracts after a number."""
    return await _paged(connection, "orders_after", list(after), list(after.values()))


async def changed_orders(connection: Connection, known: Sequence[OrderRow]) -> list[OrderRow]:
    """Returns the current state of those orders that changed since they were read."""
    found: list[OrderRow] = []
    for first in range(0, len(known), ORDERS_PER_QUERY):
        part = known[first : first + ORDERS_PER_QUERY]
        columns = ([getattr(order, name) for order in part] for name in ("symbol", "adl", "updated_at"))
        found += itertools.starmap(OrderRow, await connection.fetch(SQL["orders_changed"], *columns))
    return found


async def _paged(connection: Connection, block: str, *parameters: Any) -> list[OrderRow]:
    """Returns all orders that a statement selects, ORDERS_PER_QUERY at a time."""
    found: list[OrderRow] = []
    last: OrderKey = "", 0
    while True:
        rows = await connection.fetch(SQL[block], *parameters, *last, ORDERS_PER_QUERY)
        found += itertools.starmap(OrderRow, rows)
        if len(rows) < ORDERS_PER_QUERY:
            return found
        last = found[-1].symbol, found[-1].adl


def _fund_version(row: asyncpg.Record) -> FundVersion:
    return FundVersion(**{name: row[name] for name in FundVersion._fields})
