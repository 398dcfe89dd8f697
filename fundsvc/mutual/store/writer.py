"""The writing side of a pool: loads it for the owner of its home partition, and writes each batch in one transaction."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, NoReturn, TypeVar

import asyncpg

from fundsvc.core.batch import Offset
from fundsvc.core.checkpoints import Saving
from fundsvc.core.commitment import LedgerSecret
from fundsvc.mutual.core.batch import Batch
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import AccountRow
from fundsvc.mutual.core.terms import Rules
from fundsvc.mutual.store.rows import (
    COPIED,
    Applied,
    RejectedRow,
    Totals,
    account_from,
    account_values,
    changed_policy,
    columns,
    entry_record,
    policy_from,
    pool_row_from,
    rejected_row,
    rules_text,
    terms_from,
)
from fundsvc.store.checkpoints import StoredCheckpoint, checkpoint_parameters, load_checkpoints
from fundsvc.store.database import COMMAND_SECONDS, StoreRefusal, connect, faults, refusals, snapshot, statements, transaction
from fundsvc.store.database import SQL as LEDGER_SQL
from fundsvc.store.writer import OwnershipLost, Stray, session_name

SQL = statements("fundsvc.mutual.store")
"""The statements of the mutual by name."""

ROWS_AT_ONCE = 500
"""Rows that are encoded or decoded between two yields to the event loop: one to two milliseconds."""

CHUNK = 2_000
"""Rows of one answer while a pool is loaded. The driver parses an answer without yielding to the event loop."""

_Row = TypeVar("_Row")


class LoadedPool(NamedTuple):
    """A pool as stored, its offset, and the sequences of rejected events that a later event may have."""

    pool: Pool
    offset: Offset
    open: frozenset[int]


class PoolWriter:
    """Writes the ledger of one pool. The epoch of its home partition fences every write."""

    def __init__(self, connection: asyncpg.Connection, pool: str, home: int, epoch: int) -> None:
        self._connection = connection
        self._pool = pool
        self._home = home
        self._epoch = epoch
        self._accounts = 0
        self._one_at_a_time = asyncio.Lock()

    async def load(
        self, configured: Rules, secret: LedgerSecret | None, ts_ahead_seconds_max: float, step: Callable[[], None]
    ) -> LoadedPool:
        """Returns the pool, which gets `configured` as version 1 of its terms if it is new. `step` is called for each part.

        Raises OwnershipLost, Stray or StoreFault, and ValueError if the pool has another home partition.
        """
        with faults():
            await self._connection.execute(SQL["open_pool"], self._pool, self._home, self._epoch, rules_text(configured))
            async with snapshot(self._connection):
                return await self._load(secret, ts_ahead_seconds_max, step)

    async def _load(self, secret: LedgerSecret | None, ts_ahead_seconds_max: float, step: Callable[[], None]) -> LoadedPool:
        stored = await self._connection.fetchrow(SQL["load_pool"], self._pool, self._home, self._epoch)
        if stored is None:
            await self._explain()
        row = pool_row_from(stored)
        stray = await self._connection.fetchval(SQL["stray_entries"], self._pool, row.entry)
        if stray:
            raise Stray(
                f"pool {self._pool} has entry {stray} that no commit wrote: inspect it, and have the database's owner remove it"
            )
        terms = map(terms_from, await self._connection.fetch(SQL["load_terms"], self._pool))
        pool = Pool(row, {one.version: one.rules for one in terms}, secret=secret, ts_ahead_seconds_max=ts_ahead_seconds_max)
        used_up: list[_Chunks] = []
        accounts = _Chunks(self._connection, "load_accounts", self._pool, account_from, used_up)
        policies = _Chunks(self._connection, "load_policies", self._pool, policy_from, used_up, last_key=_number)
        owners = _Chunks(self._connection, "load_owners", self._pool, _name, used_up)
        await _refill(used_up, step)
        for count, _ in enumerate(pool.restore(accounts, policies, owners), 1):
            if used_up:
                await _refill(used_up, step)
            if not count % ROWS_AT_ONCE:
                step()
                await asyncio.sleep(0)
        self._accounts = stored["accounts"]
        opened = await self._connection.fetch(SQL["load_open"], self._pool, row.seq)
        offset = Offset(stored["last_id"], stored["messages"], stored["events"], stored["partial_id"])
        return LoadedPool(pool, offset, frozenset(seq for (seq,) in opened))

    async def _explain(self) -> NoReturn:
        """Raises the error of a pool that cannot be loaded."""
        home = await self._connection.fetchval(SQL["pool_home"], self._pool)
        if home in (None, self._home):
            raise OwnershipLost(f"partition {self._home} of pool {self._pool} has another owner")
        raise ValueError(
            f"the ledger has pool {self._pool} at partition {home}, its partition is {self._home}: have the database's owner"
            " correct mutual_pools.home"
        )

    async def has_seals(self, entry: int) -> bool:
        """Returns whether the entry with this number has a commitment instead of its account."""
        with faults():
            return bool(await self._connection.fetchval(SQL["last_seal"], self._pool, entry))

    async def is_open(self, stream_id: str, position: int) -> bool:
        """Returns whether the event at this place is kept as rejected and may still be applied."""
        with faults():
            async with self._one_at_a_time:
                return bool(await self._connection.fetchval(SQL["is_open"], self._pool, stream_id, position))

    async def load_checkpoints(self) -> list[StoredCheckpoint]:
        """Returns the checkpoints of the pool's stream in the order in which they were stored."""
        with faults():
            return await load_checkpoints(self._connection, self._home, self._pool)

    async def commit(
        self,
        batch: Batch,
        totals: Totals,
        applied: Sequence[Applied],
        before: Offset,
        after: Offset,
        saving: Saving | None = None,
    ) -> None:
        """Writes a batch and moves the pool's state and offset, in one transaction, which also stores a checkpoint if one is
        given. `applied` are rejected events settled late.

        Raises OwnershipLost if another engine owns the pool, StoreRefusal if the database rejects a value, and StoreFault if it
        is unreachable. After a StoreFault the transaction may have been committed: load the pool again to know.
        """
        opened = [row for row in batch.accounts if row.account in batch.opened]
        moved = self._moved(batch, totals, before, after, self._accounts + len(opened))
        with faults(), refusals(), _strays():
            async with self._one_at_a_time, transaction(self._connection):
                if not await self._connection.fetchval(SQL["commit"], *moved):
                    raise OwnershipLost(f"pool {self._pool} was moved by another engine")
                await self._copy("mutual_entries", map(entry_record, batch.entries, batch.hashes))
                await self._write_states(batch, opened)
                await self._copy("mutual_cycles", ((self._pool, *row) for row in batch.cycles))
                if batch.terms:
                    await self._connection.execute(SQL["commit_terms"], self._pool, *columns(_terms(batch), 3))
                if applied:
                    await self._connection.execute(SQL["commit_settled"], self._pool, *columns(applied, 4))
                if saving:
                    parameters = checkpoint_parameters(saving, self._home, self._pool)
                    await self._connection.execute(LEDGER_SQL["commit_checkpoint"], *parameters)
        self._accounts += len(opened)

    async def _write_states(self, batch: Batch, opened: Sequence[AccountRow]) -> None:
        numbered = enumerate(opened, self._accounts)
        await self._copy("mutual_accounts", ((self._pool, number, *row) for number, row in numbered))
        known = [row for row in batch.accounts if row.account not in batch.opened]
        await self._update("commit_accounts", map(account_values, known), len(known))
        issued = (row for row in batch.policies if row.policy > batch.issued_before)
        await self._copy("mutual_policies", ((self._pool, *row) for row in issued))
        changed = [row for row in batch.policies if row.policy <= batch.issued_before]
        await self._update("commit_policies", map(changed_policy, changed), len(changed))

    def _moved(self, batch: Batch, totals: Totals, before: Offset, after: Offset, accounts: int) -> tuple[Any, ...]:
        """Returns the parameters of the statement `commit`."""
        fence = self._pool, self._epoch, before.last_id, before.events, before.partial_id
        rejected = columns(map(rejected_row, batch.rejected), len(RejectedRow._fields))
        return *fence, *batch.pool[1:], accounts, *totals, batch.duplicates, *after, *rejected

    async def _copy(self, table: str, records: Iterable[Sequence[Any]]) -> None:
        first = next(iter_records := iter(records), None)
        if first is not None:
            await self._connection.copy_records_to_table(table, records=_yielding(first, iter_records), columns=COPIED[table])

    async def _update(self, block: str, rows: Iterable[Sequence[Any]], count: int) -> None:
        """Updates rows in parts; raises StoreRefusal if the database does not have one of them."""
        updated = 0
        for _ in range(0, count, ROWS_AT_ONCE):
            part = [row for _, row in zip(range(ROWS_AT_ONCE), rows, strict=False)]
            status = await self._connection.execute(SQL[block], self._pool, *columns(part, len(part[0])))
            updated += int(status.rpartition(" ")[2])
            await asyncio.sleep(0)
        if updated != count:
            raise StoreRefusal(
                f"the ledger of pool {self._pool} lacks {count - updated} of {count} rows that {block} changes: run the audit,"
                " and have the database's owner correct it"
            )


class _Chunks(Iterator[Any]):
    """Rows of a query in their order, fetched in chunks. One whose rows are used up adds itself to `used_up`: call `refill`."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        block: str,
        pool: str,
        build: Callable[[Iterable[Any]], Any],
        used_up: "list[_Chunks]",
        last_key: Callable[[Any], int] | None = None,
    ) -> None:
        self._connection = connection
        self._block = block
        self._pool = pool
        self._build = build
        self._used_up = used_up
        self._last_key = last_key
        self._from = 0
        self._rows: Iterator[asyncpg.Record] = iter(())
        self._left = 0
        self._is_complete = False
        used_up.append(self)

    async def refill(self) -> None:
        """Fetches the next chunk."""
        rows = await self._connection.fetch(SQL[self._block], self._pool, self._from, CHUNK)
        self._rows, self._left = iter(rows), len(rows)
        self._is_complete = len(rows) < CHUNK
        self._from = self._last_key(rows[-1]) if self._last_key and rows else self._from + len(rows)

    def __next__(self) -> Any:
        assert self._left or self._is_complete, "the core pauses after each row"
        self._left -= 1
        if not self._left and not self._is_complete:
            self._used_up.append(self)
        return self._build(next(self._rows))


async def _refill(used_up: list[_Chunks], step: Callable[[], None]) -> None:
    while used_up:
        await used_up.pop().refill()
        step()


def _number(row: asyncpg.Record) -> int:
    return int(row["policy"])


def _name(row: Iterable[Any]) -> str:
    (name,) = row
    return str(name)


def _terms(batch: Batch) -> Iterator[tuple[int, str, int]]:
    """Yields the new versions, with the first entry that has each or a later one."""
    for version, rules in batch.terms.items():
        first = next((entry.entry for entry in batch.entries if entry.terms >= version), batch.pool.entry + 1)
        yield version, rules_text(rules), first


async def _yielding(first: _Row, records: Iterator[_Row]) -> AsyncIterator[_Row]:
    """Yields records, and yields to the event loop between parts of them."""
    yield first
    for count, record in enumerate(records, 1):
        yield record
        if not count % ROWS_AT_ONCE:
            await asyncio.sleep(0)


@contextmanager
def _strays() -> Iterator[None]:
    """Raises Stray if a row with the number of a new one exists."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        if error.table_name not in COPIED:
            raise
        raise Stray(f"{type(error).__name__}: a row of {error.table_name} already exists: {error.detail}") from error


@asynccontextmanager
async def open_pool_writer(
    dsn: str, engine: str, pool: str, home: int, epoch: int, statement_seconds: float = COMMAND_SECONDS
) -> AsyncIterator[PoolWriter]:
    """Opens a writer on a separate connection that carries the engine's name; `statement_seconds` limits each statement."""
    async with connect(dsn, session_name(engine), statement_seconds) as connection:
        yield PoolWriter(connection, pool, home, epoch)
