"""How far the audit in the background has come, and the parts of ledgers that it walks through."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import asyncpg

from fundsvc.core.replay import START, Checkpoint
from fundsvc.store.database import SQL, Pool, faults, lent, snapshot
from fundsvc.store.exports import LedgerSnapshot, Line, line_from, snapshot_of
from fundsvc.store.reader import READ_SECONDS_MAX, fetch

Walk = Literal["full", "newest"]
"""`full` goes from entry 1 to the end, again and again; `newest` follows what is added to what such a walk has verified."""

WALKS: tuple[Walk, ...] = ("full", "newest")
"""Both of them."""

_SUMS = ("uncovered", "repaid")
"""They may outgrow 64 bits, so that the database has them as `numeric`."""


class Progress(NamedTuple):
    """How far a walk through a contract's ledger has come: its last entry, whether everything held when it was last looked at,
    and how many seconds ago it last reached the end with everything holding.
    """

    symbol: str
    entry: int
    good: bool
    age_seconds: float | None


async def audit_progress(pool: Pool, walk: Walk) -> list[Progress]:
    """How far each contract's walk of a kind has come; raises StoreFault."""
    return [Progress(*row) for row in await fetch(pool, "audit_progress", walk)]


class Stretch:
    """The part of a contract's ledger that a walk goes through next, as it stands at one moment, and what it goes on from."""

    def __init__(self, since: Checkpoint, ledger: LedgerSnapshot, rows: Sequence[asyncpg.Record]) -> None:
        self.since = since
        self.ledger = ledger
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Line]:
        """The entries, each made when it is asked for, so that who has others to serve may do so in between."""
        return map(line_from, self._rows)


async def read_stretch(pool: Pool, symbol: str, walk: Walk, count: int) -> Stretch:
    """What lies before a walk through a contract's ledger, up to so many entries; raises UnknownContract or StoreFault."""
    with faults():
        async with asyncio.timeout(READ_SECONDS_MAX), lent(pool) as connection, snapshot(connection):
            row = await connection.fetchrow(SQL["audit_checkpoint"], symbol, walk)
            since = START if row is None else Checkpoint(**{**row, **{name: int(row[name]) for name in _SUMS}})
            ledger = await snapshot_of(connection, symbol, since.entry)
            return Stretch(since, ledger, await connection.fetch(SQL["entries_after"], symbol, since.entry, count))


async def keep_held(pool: Pool, symbol: str, walk: Walk, checkpoint: Checkpoint, *, ended: bool) -> None:
    """Keeps how far a walk has come; `ended` says that this is the end. Raises StoreFault.

    A full walk then begins anew, and its end is where the newest one goes on: so no checkpoint is trusted for longer than
    until the next full walk.
    """
    if walk == "full" and ended:
        await fetch(pool, "audit_held", symbol, "newest", *checkpoint, ended)
        checkpoint = START
    await fetch(pool, "audit_held", symbol, walk, *checkpoint, ended)


async def keep_difference(pool: Pool, symbol: str, walk: Walk) -> None:
    """Keeps that a walk found a difference; it stays where it was. Raises StoreFault."""
    await fetch(pool, "audit_differs", symbol, walk)
