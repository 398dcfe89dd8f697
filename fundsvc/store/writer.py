"""The writing side: what a partition's owner loads, and the one transaction that moves the ledger on."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec

from fundsvc.core.contracts import Contract
from fundsvc.core.partition import Batch, Offset
from fundsvc.core.settlement import Fund
from fundsvc.store.database import SQL, connect, faults, transaction
from fundsvc.store.rows import COLUMNS, HEADER, TRAILER, copy_rows

ROWS_PER_CHUNK = 250
"""Rows are encoded and handed to the socket in pieces, so that the server works while the rest is encoded."""


class OwnershipLost(Exception):
    """Another engine owns the partition by now: nothing of ours was written, and nothing of ours may be."""


class Writer:
    """The ledger as the owner of one partition writes it; every write is fenced by the owner's epoch."""

    def __init__(self, connection: asyncpg.Connection, partition: int, epoch: int) -> None:
        self._connection = connection
        self._partition = partition
        self._epoch = epoch

    async def load(self) -> tuple[Offset, list[Fund]]:
        """Where the partition stands, and all its funds; raises OwnershipLost or StoreFault."""
        with faults():
            position = await self._connection.fetchrow(SQL["load_position"], self._partition, self._epoch)
            if position is None:
                raise OwnershipLost(f"partition {self._partition} is no longer ours")
            funds = await self._connection.fetch(SQL["load_funds"], self._partition)
        return Offset(position["last_id"], position["messages"]), [_fund(row) for row in funds]

    async def is_open(self, stream_id: str, position: int) -> bool:
        """Whether the event at this place is kept as rejected and has not been settled since."""
        with faults():
            return bool(await self._connection.fetchval(SQL["rejected_open"], self._partition, stream_id, position))

    async def has_settled(self, symbol: str, seq: int) -> bool:
        """Whether an entry of the contract has this engine sequence; not to be asked while a commit runs."""
        with faults():
            return await self._connection.fetchval(SQL["entry_of_sequence"], symbol, seq) is not None

    async def commit(self, batch: Batch, before: Offset, after: Offset) -> None:
        """Writes all of a batch and moves the partition's offset, or nothing.

        Raises OwnershipLost when the partition is not ours any more, StoreFault when the database is away: then the
        transaction may or may not have been committed, and the partition must be loaded again, by another writer, to know.
        """
        try:
            with faults():
                async with transaction(self._connection):
                    if batch.entries:
                        await self._connection.copy_to_table("entries", source=_copy(batch), columns=COLUMNS, format="binary")
                    moved = await self._connection.fetchval(
                        SQL["commit"],
                        self._partition,
                        self._epoch,
                        before.last_id,
                        after.last_id,
                        after.messages,
                        batch.duplicates.total(),
                        *_columns(batch),
                    )
                    if not moved:
                        raise OwnershipLost(f"partition {self._partition} was moved by another engine")
        except asyncpg.UniqueViolationError as error:
            raise OwnershipLost(f"partition {self._partition} is being written by another engine: {error}") from error


@asynccontextmanager
async def open_writer(dsn: str, engine: str, partition: int, epoch: int) -> AsyncIterator[Writer]:
    """A writer on a connection of its own, known to the server by the engine's name."""
    async with connect(dsn, session_name(engine)) as connection:
        yield Writer(connection, partition, epoch)


def session_name(engine: str) -> str:
    """How the sessions of an engine are called in pg_stat_activity."""
    return f"fundsvc engine {engine}"


async def _copy(batch: Batch) -> AsyncIterator[bytes]:
    yield HEADER
    for start in range(0, len(batch.entries), ROWS_PER_CHUNK):
        end = start + ROWS_PER_CHUNK
        yield copy_rows(batch.entries[start:end], batch.hashes[start:end])
    yield TRAILER


def _fund(row: asyncpg.Record) -> Fund:
    return Fund(
        contract_from(row),
        balance=row["balance"],
        outstanding=row["outstanding"],
        entry=row["entry"],
        seq=row["seq"],
        adl=row["adl"],
        head=row["head"],
    )


def contract_from(row: asyncpg.Record) -> Contract:
    """The contract in a row that has all its columns."""
    return Contract(**{name: row[name] for name in Contract.__struct_fields__})


def _columns(batch: Batch) -> list[list[Any]]:
    """The parameters of the statement `commit` after the sixth: one list per column."""
    listings = [
        (
            contract.symbol,
            contract.settle_currency,
            contract.settle_decimals,
            contract.price_decimals,
            contract.multiplier,
            contract.is_inverse,
            msgspec.json.encode(specification).decode(),
        )
        for contract, specification in batch.listings.values()
    ]
    orders = [
        (
            order.symbol,
            order.adl,
            order.cause,
            order.reduce,
            order.lots,
            order.price,
            order.uncovered,
            order.recovered,
            order.state,
            msgspec.json.encode(order.rounds).decode(),
        )
        for order in batch.orders
    ]
    rejected = [msgspec.structs.astuple(event) for event in batch.rejected]
    replayed = [
        (stream_id, position, entry.symbol if entry else None, entry.entry if entry else None)
        for stream_id, position, entry in batch.replayed
    ]
    return [
        *_transpose(listings, 7),
        *_transpose(batch.funds, 7),
        *_transpose(orders, 10),
        *_transpose(rejected, 6),
        *_transpose(replayed, 4),
    ]


def _transpose(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    return [[row[column] for row in rows] for column in range(width)]
