"""How far the audit in the background has come, and the parts of ledgers that it walks through."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.contracts import Contract
from fundsvc.core.replay import START, Checkpoint, OrderTotals
from fundsvc.core.settlement import FundState
from fundsvc.store.database import SQL, Pool, faults, lent, snapshot
from fundsvc.store.exports import Line, line_from
from fundsvc.store.reader import READ_SECONDS_MAX, fetch
from fundsvc.store.writer import contract_from

Walk = Literal["full", "newest"]
"""`full` goes from entry 1 to the end, again and again; `newest` follows what is added to what such a walk has verified."""

WALKS: tuple[Walk, ...] = ("full", "newest")
"""Both of them."""


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


class Ledger(NamedTuple):
    """What the end of a walk is compared with, at one moment: `late` are the numbers of entries that settled formerly rejected
    events.
    """

    contract: Contract
    fund: FundState
    late: frozenset[int]
    orders: OrderTotals


class Stretch:
    """The part of a contract's ledger that a walk goes through next, as it stands at one moment, and what it goes on from.

    `ledger` is None where the contract or its fund is missing.
    """

    def __init__(self, since: Checkpoint, ledger: Ledger | None, rows: Sequence[asyncpg.Record]) -> None:
        self.since = since
        self.ledger = ledger
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Line]:
        """The entries, each made when it is asked for, so that others may be served in between."""
        return map(line_from, self._rows)


class Held(NamedTuple):
    """How far a walk has come with everything holding; `ended` says that this is the end of the ledger."""

    symbol: str
    checkpoint: Checkpoint
    ended: bool


async def read_stretches(pool: Pool, counts: Mapping[str, int], walk: Walk) -> dict[str, Stretch]:
    """What lies before a walk through some contracts' ledgers, of each up to so many entries; raises StoreFault.

    One snapshot for all of them: its statements cost as much for a hundred contracts as for one.
    """
    symbols = list(counts)
    with faults():
        async with asyncio.timeout(READ_SECONDS_MAX), lent(pool) as connection, snapshot(connection):
            checkpoints = await connection.fetch(SQL["audit_checkpoints"], symbols, walk)
            since = dict.fromkeys(symbols, START) | {row["symbol"]: _checkpoint(row) for row in checkpoints}
            places = symbols, [since[symbol].entry for symbol in symbols]
            ledgers = await _ledgers(connection, *places)
            rows: dict[str, list[asyncpg.Record]] = {symbol: [] for symbol in symbols}
            for row in await connection.fetch(SQL["audit_entries"], *places, list(counts.values())):
                rows[row["symbol"]].append(row)
    return {symbol: Stretch(since[symbol], ledgers.get(symbol), rows[symbol]) for symbol in symbols}


async def _ledgers(connection: PoolConnectionProxy, symbols: Sequence[str], after: Sequence[int]) -> dict[str, Ledger]:
    """The ledgers of those contracts that are listed and have a fund; `late` entries only beyond those given."""
    late: dict[str, set[int]] = defaultdict(set)
    for symbol, entry in await connection.fetch(SQL["audit_late"], symbols, after):
        late[symbol].add(entry)
    totals = {row["symbol"]: row for row in await connection.fetch(SQL["audit_orders"], symbols)}
    return {
        row["symbol"]: Ledger(
            contract_from(row),
            FundState(*(row[name] for name in FundState._fields)),
            frozenset(late[row["symbol"]]),
            OrderTotals(*(int(totals[row["symbol"]][name]) for name in OrderTotals._fields)),
        )
        for row in await connection.fetch(SQL["funds"], symbols)
    }


def _checkpoint(row: asyncpg.Record) -> Checkpoint:
    return Checkpoint(row["entry"], row["seq"], row["balance"], int(row["uncovered"]), int(row["repaid"]), row["head"])


async def keep_held(pool: Pool, walk: Walk, held: Sequence[Held]) -> None:
    """Keeps how far a walk has come with some contracts. Raises StoreFault.

    A full walk that has ended begins anew, and its end is where the newest one goes on: so no checkpoint is trusted for longer
    than until the next full walk.
    """
    if walk == "newest":
        kept = [("newest", one) for one in held]
    else:
        kept = [(walk, one._replace(checkpoint=START) if one.ended else one) for one in held]
        kept += [("newest", one) for one in held if one.ended]
    rows = [(one.symbol, place, *one.checkpoint, one.ended) for place, one in kept]
    await fetch(pool, "audit_held", *map(list, zip(*rows, strict=True)))


async def keep_differences(pool: Pool, walk: Walk, symbols: Sequence[str]) -> None:
    """Keeps that a walk found differences; it stays where it was with these contracts. Raises StoreFault."""
    await fetch(pool, "audit_differs", symbols, walk)
