"""Moves entries between the table and the archive, in the database: stubs, bounds, and the removal and return of rows.

Each step is a short transaction, and repeating it does no harm. The schema refuses a stub that does not join the one before, a
bound that is not the end of a range, and the removal of an entry after the bound.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from fundsvc.core.fund.archive import Stub
from fundsvc.store.archive.files import Row
from fundsvc.store.archive.ranges import ARCHIVE_SQL, fetch_archives
from fundsvc.store.database import Pool, connect, faults, transaction

REMOVED_ROWS = 10_000
"""Entries of one removal: about a tenth of a second."""

NAME = "fundsvc archiver"


class Due(NamedTuple):
    """A contract with entries to archive or to remove, up to `upto`.

    Files have the entries up to `archived`, readers use them up to `bound`, and those up to `removed` have left the table.
    """

    symbol: str
    archived: int
    bound: int
    removed: int
    upto: int


class KnownStub(NamedTuple):
    """A stub with the last entry of its contract that is read from files."""

    stub: Stub
    bound: int


class ArchiverBusy(ValueError):
    """Another process archives or restores entries of this database, or moves a partition from or to it."""


@asynccontextmanager
async def open_moves(dsn: str) -> AsyncIterator["Moves"]:
    """Connects as the only archiver of the database; raises ArchiverBusy or StoreFault."""
    async with connect(dsn, NAME) as connection:
        moves = Moves(connection)
        if not (await moves.fetch("archiver"))[0][0]:
            raise ArchiverBusy("another process archives, restores or moves entries of this database: wait until it has ended")
        yield moves


class Moves:
    """The statements of the archiver, on its own connection. Every method raises StoreFault."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def due(self, before_ms: int, symbols: Sequence[str] | None) -> list[Due]:
        """Returns the contracts with entries that lie before a time, of some contracts or of all."""
        return [Due(*row) for row in await self.fetch("due", before_ms, symbols)]

    async def range_end(self, symbol: str, after: int, upto: int, entries_max: int) -> int:
        """Returns the end of the next range of a contract; it ends an hour."""
        ((end,),) = await self.fetch("range_end", symbol, after, upto, entries_max)
        return int(end)

    async def stubs(self, symbols: Sequence[str]) -> list[KnownStub]:
        """Returns the stubs of some contracts, in order."""
        return _known(await self.fetch("stubs", symbols))

    async def hours(self, symbol: str, first: int, last: int) -> bytes:
        """Returns the digest of the rollups of a range."""
        ((digest,),) = await self.fetch("hours", symbol, first, last)
        return bytes(digest)

    async def add(self, stub: Stub) -> None:
        """Stores a stub. From now on readers read its range from the file."""
        with faults():
            async with transaction(self._connection):
                await self.fetch("stub_add", *stub)
                await self.fetch("bound_set", stub.symbol, stub.last_entry)

    async def set_bound(self, symbol: str, entry: int) -> None:
        """Lets readers read entries up to the end of a range from files, and later ones from the table."""
        await self.fetch("bound_set", symbol, entry)

    async def removed(self, symbol: str, after: int, upto: int) -> AsyncIterator[int]:
        """Removes the entries after one up to another from the table; yields the number of entries after each transaction."""
        for first in range(after + 1, upto + 1, REMOVED_ROWS):
            last = min(first + REMOVED_ROWS - 1, upto)
            kept = [row["entry"] for row in await self.fetch("followed", symbol, first, last)]
            await self.fetch("remove", symbol, first, last, kept)
            yield last - first + 1

    async def begin_restoring(self, symbol: str, after: int) -> None:
        """Notes that the table may have entries after one again, so that a later run removes what an ended process restored."""
        await self.fetch("restoring", symbol, after)

    async def restore(self, rows: Sequence[Row]) -> None:
        """Inserts archived entries into the table again."""
        columns = [[row[name] for row in rows] for name in rows[0]]
        await self.fetch("restore", *columns)

    async def fetch(self, block: str, *parameters: object) -> list[asyncpg.Record]:
        """Returns the rows of a statement of this package."""
        with faults():
            return await self._connection.fetch(ARCHIVE_SQL[block], *parameters)


async def hours_digest(pool: Pool, stub: Stub) -> bytes:
    """Returns the present digest of the rollups of a range; raises StoreFault."""
    ((digest,),) = await fetch_archives(pool, "hours", stub.symbol, stub.first_entry, stub.last_entry)
    return bytes(digest)


async def list_stubs(pool: Pool, symbols: Sequence[str] | None) -> list[KnownStub]:
    """Returns the stubs of some contracts or of all, in order; raises StoreFault."""
    return _known(await fetch_archives(pool, "stubs", symbols))


def _known(rows: Iterable[asyncpg.Record]) -> list[KnownStub]:
    return [KnownStub(Stub(*(row[name] for name in Stub._fields)), row["bound"]) for row in rows]
