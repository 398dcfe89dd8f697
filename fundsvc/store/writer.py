"""The writing side: loads a partition for its owner, and writes each batch in one transaction."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import starmap
from typing import Any, TypeVar

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.adl.book_parts import BookPart
from fundsvc.core.adl.order import AdlOrder, OrderState, RoundProgress
from fundsvc.core.adl.records import terms_of
from fundsvc.core.batch import Batch, BookState, Draft, Offset, RateState, StoredBook
from fundsvc.core.checkpoints import Saving
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.inventory import HoldingState, TrancheState
from fundsvc.core.fund.settlement import Closing, Fund, FundState
from fundsvc.core.policy import Policies, Policy, SavedGuard
from fundsvc.core.sequences import Facts
from fundsvc.store.checkpoints import StoredCheckpoint, checkpoint_parameters, load_checkpoints
from fundsvc.store.database import (
    COMMAND_SECONDS,
    SQL,
    StoreRefusal,
    connect,
    faults,
    refusals,
    single_statement,
    snapshot,
    transaction,
)
from fundsvc.store.parameters import (
    BookPartRow,
    BookRow,
    ClosingRow,
    ListingRow,
    MovedOrderRow,
    PolicyRow,
    RejectedRow,
    ReplayedRow,
    SuspensionRow,
    arrays,
    entry_columns,
    fund_row,
    listing_row,
    moved_order_row,
    policy_row,
    rejected_row,
    replayed_row,
)
from fundsvc.store.policies import policies_body, policies_from
from fundsvc.store.rows import (
    COLUMNS,
    HEADER,
    ORDER_COLUMNS,
    RECORD_COLUMNS,
    TRAILER,
    copy_orders,
    copy_records,
    copy_rows,
)
from fundsvc.store.sequences import facts_of

STRAYS_NAMED_MAX = 3

STREAM_START = "0-0"
"""The offset before the first message."""

IN_PARTS, WITH_CHANGES = b"\xc1", b"\xc0"
"""The body of a book that is stored in parts: whole, or whole and then changes.

No MessagePack of a book begins with these bytes: a version that cannot read such a book fails, and does not take it for an
empty one. Versions with a schema before 0016 read neither, those before saves of changes only the first.
"""

MOVED = "FS001"
"""The SQLSTATE of a commit whose partition another engine owns."""

SMALL_ROWS_MAX = 50
"""Entries that one statement commits faster than a transaction with COPY."""

PART_BYTES_AT_ONCE = 400_000
"""Bytes of book parts that one statement writes or reads: the driver encodes and parses them without yielding to the loop."""

ROWS_AT_ONCE = 250
"""ADL orders or records that are encoded between two yields to the event loop: 0.5 to 1 ms."""

_Row = TypeVar("_Row")
_Part = TypeVar("_Part")


class OwnershipLost(Exception):
    """Another engine owns the partition. This engine wrote nothing and must not write."""


class Stray(StoreRefusal):
    """The ledger has rows of this partition that no commit wrote. The message names them and the remedy."""


class Writer:
    """Writes the ledger for the owner of one partition. The owner's epoch fences every write."""

    def __init__(self, connection: asyncpg.Connection, partition: int, epoch: int) -> None:
        self._connection = connection
        self._partition = partition
        self._epoch = epoch
        # A connection runs one statement at a time, and a replay may read while books are stored.
        self._one_at_a_time = asyncio.Lock()
        self._begins_again: str | None = None

    async def load(self, policy_of: Callable[[str], Policy] = lambda _: Policy()) -> tuple[Offset, list[Fund]]:
        """Returns the partition's offset and all its funds under their policies; raises OwnershipLost, Stray or StoreFault."""
        with faults():
            position = await self._connection.fetchrow(SQL["load_position"], self._partition, self._epoch)
            if position is None:
                raise OwnershipLost(f"partition {self._partition} has another owner")
            funds = await load_funds(self._fetch, self._partition, None, policy_of)
            strays = await self._connection.fetch(SQL["stray_rows"], self._partition)
        if strays:
            named = ", ".join(
                f"{symbol} beyond entry {entry} and ADL record {record}" for symbol, entry, record in strays[:STRAYS_NAMED_MAX]
            )
            raise Stray(
                f"{len(strays)} contracts have rows that no commit wrote: {named}. Inspect them (fundsvc export), and have"
                f" the database's owner remove them"
            )
        return Offset(*position), funds

    async def load_policies(self, configured: Policies) -> list[Policies]:
        """Returns all recorded versions of the partition's policies, ascending. Records `configured` as version 1 if there is
        none.
        """
        with faults():
            await self._connection.execute(SQL["first_policies"], self._partition, self._epoch, policies_body(configured))
            rows = await self._connection.fetch(SQL["load_policies"], self._partition)
        if not rows:
            raise OwnershipLost(f"partition {self._partition} has another owner")
        return [policies_from(row) for row in rows]

    async def load_orders(self) -> list[AdlOrder]:
        """Returns the open orders with their current rounds."""
        with faults():
            orders = await self._connection.fetch(SQL["load_orders"], self._partition, None)
            records = await self._connection.fetch(SQL["load_records"], self._partition, None)
        return orders_from(orders, records)

    async def load_rates(self) -> list[RateState]:
        """Returns the latest rates of the partition's stream."""
        with faults():
            return [RateState(*row) for row in await self._connection.fetch(SQL["load_rates"], self._partition)]

    async def saved_books(self) -> list[StoredBook]:
        """Returns the saved books of all contracts without their positions; one that never was saved begins with the stream."""
        with faults():
            rows = await self._connection.fetch(SQL["saved_books"], self._partition)
        return [_stored_book(row, deque()) for row in rows]

    def begin_again(self, last_id: str) -> None:
        """Has the next commit record that books which are saved after a message are saved after that one: they contain it, too.

        The stream lost its tail, and is read again from this message: its next messages may have ids below those of the books.
        """
        self._begins_again = last_id

    async def load_checkpoints(self) -> list[StoredCheckpoint]:
        """Returns the checkpoints of the partition's stream in the order in which they were stored."""
        with faults():
            return await load_checkpoints(self._connection, self._partition)

    async def has_seals(self) -> bool:
        """Returns whether the last entry of any contract has a commitment instead of its account."""
        with faults():
            return bool(await self._connection.fetchval(SQL["last_seals"], self._partition))

    async def is_open(self, stream_id: str, position: int) -> bool:
        """Returns whether the event at this place is kept as rejected and not settled yet."""
        with faults():
            async with self._one_at_a_time:
                return bool(await self._connection.fetchval(SQL["rejected_open"], self._partition, stream_id, position))

    async def facts(self, wanted: Mapping[str, Sequence[int]]) -> Facts:
        """Returns what the ledger contains of the first of each contract's ascending sequences, at least of the very first."""
        with faults():
            async with self._one_at_a_time:
                return await facts_of(self._fetch, wanted)

    async def _fetch(self, block: str, *parameters: Any) -> list[asyncpg.Record]:
        return await self._connection.fetch(SQL[block], *parameters)

    def prepare(self, batch: Draft) -> None:
        """Encodes the entries and records of a batch so far, so that `commit` only sends them."""
        if batch.count() > SMALL_ROWS_MAX:
            batch.pack(copy_rows)
        batch.pack_records(copy_records)

    async def commit(self, batch: Batch, before: Offset, after: Offset, saving: Saving | None = None) -> None:
        """Writes a batch and moves the partition's offset, in one transaction, which also stores a checkpoint if one is given.

        Raises OwnershipLost if another engine owns the partition, StoreRefusal if the database rejects a value, and StoreFault
        if it is unreachable. After a StoreFault the transaction may have been committed; another writer must load the partition
        again to know. Everything is encoded before the transaction begins.
        """
        funds = arrays(FundState, map(fund_row, batch.funds))
        moved = (self._partition, self._epoch, *_moved(before, after), batch.duplicates.total(), *funds)
        moving = [order for key, order in batch.orders.items() if key not in batch.opened]
        statements = _statements(batch, self._partition, after, await _encoded(moving, _moved_orders))
        if self._begins_again is not None:
            statements.insert(0, ("set_books_back", (self._partition, self._begins_again)))
        if saving:
            statements.append(("commit_checkpoint", checkpoint_parameters(saving, self._partition)))
        opened = await _encoded([order for key, order in batch.orders.items() if key in batch.opened], copy_orders)
        records = [*batch.packed_records, *await _encoded(batch.records, copy_records)]
        is_small = not (opened or records or statements or batch.listings or batch.packed) and batch.count() <= SMALL_ROWS_MAX
        if is_small:
            await self._commit_small((*moved, *entry_columns(batch.entries, batch.hashes)))
            return
        entries = [*batch.packed, copy_rows(batch.entries, batch.hashes)]
        with faults(), refusals(), _strays(), _losses():
            async with self._one_at_a_time, transaction(self._connection):
                if batch.listings:
                    listed = arrays(ListingRow, starmap(listing_row, batch.listings.values()))
                    await self._connection.fetch(SQL["commit_contracts"], self._partition, *listed)
                if batch.count():
                    await self._copy("entries", COLUMNS, entries)
                await self._connection.fetch(SQL["commit"], *moved, *entry_columns((), ()))
                if opened:
                    await self._copy("adl_orders", ORDER_COLUMNS, opened)
                if records:
                    await self._copy("adl_records", RECORD_COLUMNS, records)
                for block, parameters in statements:
                    await self._connection.execute(SQL[block], *parameters)
        self._begins_again = None

    async def _commit_small(self, parameters: Sequence[Any]) -> None:
        """Writes a batch by the statement `commit` alone, which is then a transaction: one round trip instead of four."""
        with faults(), refusals(), _strays(), _losses():
            async with self._one_at_a_time, single_statement(self._connection):
                await self._connection.fetch(SQL["commit"], *parameters)

    async def _copy(self, table: str, columns: Sequence[str], rows: Sequence[bytes]) -> None:
        source = _each((HEADER, *rows, TRAILER))
        await self._connection.copy_to_table(table, source=source, columns=columns, format="binary")


@contextmanager
def _strays() -> Iterator[None]:
    """Raises Stray if an entry or record with the number of a new one exists."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        if error.table_name not in ("entries", "adl_records"):
            raise
        raise Stray(f"{type(error).__name__}: a row of {error.table_name} already exists: {error.detail}") from error


@contextmanager
def _losses() -> Iterator[None]:
    """Raises OwnershipLost if another engine moved the partition."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if error.sqlstate != MOVED:
            raise
        raise OwnershipLost(str(error)) from error


@asynccontextmanager
async def open_writer(
    dsn: str, engine: str, partition: int, epoch: int, statement_seconds: float = COMMAND_SECONDS
) -> AsyncIterator[Writer]:
    """Opens a writer on a separate connection that carries the engine's name; `statement_seconds` limits each statement."""
    async with connect(dsn, session_name(engine), statement_seconds) as connection:
        yield Writer(connection, partition, epoch)


def session_name(engine: str) -> str:
    """Returns the name of an engine's sessions in pg_stat_activity."""
    return f"fundsvc engine {engine}"


async def _each(rows: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in rows:
        yield part


async def _encoded(rows: Sequence[_Row], encode: Callable[[Sequence[_Row]], _Part]) -> list[_Part]:
    """Encodes rows in parts, and yields to the event loop between two parts."""
    parts = []
    for first in range(0, len(rows), ROWS_AT_ONCE):
        if first:
            await asyncio.sleep(0)
        parts.append(encode(rows[first : first + ROWS_AT_ONCE]))
    return parts


def _moved(before: Offset, after: Offset) -> tuple[Any, ...]:
    """Returns the parameters of the statement `commit` that move the offset, and the offset it must have before."""
    return before.last_id, before.events, before.partial_id, *after


async def load_funds(
    fetch: Callable[..., Awaitable[list[asyncpg.Record]]],
    partition: int,
    symbol: str | None,
    policy_of: Callable[[str], Policy],
) -> list[Fund]:
    """Returns the funds of a partition, or that of one contract, with their inventories, under their policies.

    `fetch` runs a statement: name, parameters.
    """
    rows = await fetch("load_funds", partition, symbol)
    funds = {row["symbol"]: fund_from(row, policy_of(row["symbol"])) for row in rows}
    holdings = await fetch("load_holdings", partition, symbol)
    if holdings:
        tranches = await fetch("load_tranches", partition, symbol)
        # In a thread, because 100,000 tranches take half a second.
        await asyncio.to_thread(_restore_inventories, funds, holdings, tranches)
    return list(funds.values())


def _restore_inventories(
    funds: Mapping[str, Fund], holdings: Iterable[asyncpg.Record], tranches: Iterable[asyncpg.Record]
) -> None:
    """Restores the inventories of funds from rows of `load_holdings` and `load_tranches`."""
    sides: dict[str, list[HoldingState]] = defaultdict(list)
    held: dict[str, list[TrancheState]] = defaultdict(list)
    for row in holdings:
        sides[row["symbol"]].append(holding_from(row))
    for row in tranches:
        held[row["symbol"]].append(TrancheState(*row))
    for symbol, states in sides.items():
        funds[symbol].restore_inventory(held[symbol], states)


def holding_from(row: asyncpg.Record) -> HoldingState:
    """Builds the state of a side of an inventory from a row of its columns; its sums of lots may exceed 64 bits."""
    symbol, side, taken, unwound, deleveraged, *rest = (row[name] for name in HoldingState._fields)
    return HoldingState(symbol, side, int(taken), int(unwound), int(deleveraged), *rest)


def fund_from(row: asyncpg.Record, policy: Policy) -> Fund:
    """Builds the fund from a row of `load_funds`, under a policy."""
    state = FundState(**{name: row[name] for name in FundState._fields})._replace(guard=saved_guard_from(row))
    return Fund(
        contract_from(row), state, policy, suspended=row["suspended"], closing=closing_from(row), successor=row["successor"]
    )


def closing_from(row: asyncpg.Record) -> Closing | None:
    """Returns the end of the contract of a row, or None while it is open."""
    return None if row["closed_at"] is None else Closing(row["closed_at"], row["closed_seq"], row["closed_price"])


def saved_guard_from(row: asyncpg.Record) -> SavedGuard | None:
    """Returns the stored drawdown guard of a row, or None."""
    return msgspec.json.decode(row["guard"], type=SavedGuard) if row["guard"] else None


def orders_from(orders: Iterable[asyncpg.Record], records: Iterable[asyncpg.Record]) -> list[AdlOrder]:
    """Builds the orders from rows of `load_orders`, and their current rounds from rows of `load_records`."""
    found = {(row["symbol"], row["adl"]): _order_from(row) for row in orders}
    for row in records:
        _follow(found[row["symbol"], row["adl"]], row)
    return list(found.values())


def _order_from(row: asyncpg.Record) -> AdlOrder:
    return AdlOrder(**{name: row[name] for name in OrderState._fields if name != "recovered" and name in row})


def _follow(order: AdlOrder, row: asyncpg.Record) -> None:
    """Applies one of an order's records: a new round, further positions of it, or an execution."""
    match row["kind"]:
        case "order" | "round":
            order.end_round()
            order.progress = RoundProgress(terms_of(row["kind"], row["body"]))
        case "part":
            order.progress.extend(terms_of("part", row["body"]))
        case "execution":
            order.progress.execute(row["account"], row["lots"])


async def load_books(
    connection: asyncpg.Connection | PoolConnectionProxy, partition: int, symbols: Sequence[str] | None = None
) -> list[StoredBook]:
    """Returns the last saved books of a partition's contracts, optionally only of `symbols`."""
    async with snapshot(connection):
        rows = await connection.fetch(SQL["load_books"], partition, symbols)
        parts = await _load_parts(connection, [row["symbol"] for row in rows if row["body"] in (IN_PARTS, WITH_CHANGES)])
        return [_stored_book(row, parts.get(row["symbol"]) or _split(row["body"])) for row in rows]


async def _load_parts(
    connection: asyncpg.Connection | PoolConnectionProxy, symbols: Sequence[str]
) -> dict[str, deque[bytes | memoryview]]:
    """Returns the encoded parts of books, by contract; several statements read parts of many bytes."""
    found: defaultdict[str, deque[bytes | memoryview]] = defaultdict(deque)
    wanted: list[tuple[str, int]] = []
    size = 0
    for symbol, part, part_size in await connection.fetch(SQL["list_book_parts"], symbols) if symbols else ():
        if wanted and size + part_size > PART_BYTES_AT_ONCE:
            await _read_parts(connection, wanted, found)
            wanted, size = [], 0
        wanted.append((symbol, part))
        size += part_size
    if wanted:
        await _read_parts(connection, wanted, found)
    return found


async def _read_parts(
    connection: asyncpg.Connection | PoolConnectionProxy,
    wanted: Sequence[tuple[str, int]],
    found: Mapping[str, deque[bytes | memoryview]],
) -> None:
    """Appends these parts, which are ordered by contract and number, to those of their books."""
    for symbol, body in await connection.fetch(SQL["load_book_parts"], *zip(*wanted, strict=True)):
        found[symbol].append(body)


def _split(body: bytes | None) -> deque[bytes | memoryview]:
    """Returns the parts of a book with one body, as earlier releases wrote it; some wrote a large book as an array of parts."""
    if body is None:
        return deque()
    try:
        return deque(msgspec.msgpack.decode(body, type=list[memoryview]))
    except msgspec.ValidationError:
        return deque([body])


def _stored_book(row: asyncpg.Record, parts: deque[bytes | memoryview]) -> StoredBook:
    """Builds the book from a row of `load_books`. A book that was never saved begins at the start of the stream."""
    last_id, seq = row["last_id"] or STREAM_START, row["seq"] or 0
    book = _decoded(parts) if parts else None
    mark = row["mark"], row["mark_ts"] or 0, row["mark_seq"] or 0
    in_parts = row["body"] in (None, IN_PARTS, WITH_CHANGES)
    return StoredBook(row["symbol"], last_id, seq, *mark, book, row["mark_ts_max"] or 0, row["parts"] if in_parts else 0)


def _decoded(parts: deque[bytes | memoryview]) -> Iterator[BookPart]:
    """Decodes the parts one by one and frees each before the next."""
    while parts:
        yield msgspec.msgpack.decode(parts.popleft(), type=BookPart)


def contract_from(row: asyncpg.Record) -> Contract:
    """Builds the contract from a row with all its columns."""
    return Contract(**{name: row[name] for name in Contract.__struct_fields__})


def _moved_orders(orders: Sequence[OrderState]) -> list[list[Any]]:
    """Returns the parameters of the statement `commit_orders`. The driver encodes them without yielding to the event loop."""
    return arrays(MovedOrderRow, map(moved_order_row, orders))


def _statements(batch: Batch, partition: int, after: Offset, orders: list[list[list[Any]]]) -> list[tuple[str, Sequence[Any]]]:
    """Returns the statements that a batch needs after `commit`, by name with parameters."""
    statements: list[tuple[str, Sequence[Any]]] = [("commit_orders", part) for part in orders]
    if batch.rejected:
        statements.append(("commit_rejected", (partition, *arrays(RejectedRow, map(rejected_row, batch.rejected)))))
    if batch.replayed:
        statements.append(("commit_replayed", (partition, *arrays(ReplayedRow, starmap(replayed_row, batch.replayed)))))
    if batch.tranches:
        statements.append(("commit_tranches", arrays(TrancheState, batch.tranches)))
    if batch.holdings:
        statements.append(("commit_holdings", arrays(HoldingState, batch.holdings)))
    if batch.books:
        statements.extend(_books(batch.books, after.last_id))
    if batch.rates:
        statements.append(("commit_rates", (partition, *arrays(RateState, batch.rates.values()), batch.latest_ms)))
    if batch.suspensions:
        statements.append(("commit_suspensions", arrays(SuspensionRow, batch.suspensions.items())))
    if batch.closings:
        rows = (ClosingRow(symbol, *closing) for symbol, closing in batch.closings.items())
        statements.append(("commit_closings", arrays(ClosingRow, rows)))
    if batch.policies:
        statements.append(("commit_policies", (partition, after.last_id, *arrays(PolicyRow, map(policy_row, batch.policies)))))
    return statements


def _books(books: Sequence[BookState], last_id: str) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yields the statements that save books, with their parameters. Statements with parts have a bounded size."""
    yield "commit_books", (last_id, *arrays(BookRow, map(_book_row, books)))
    rows: list[BookPartRow] = []
    size = 0
    for kept in books:
        for number, part in enumerate(kept.parts or (), kept.first):
            if rows and size + len(part) > PART_BYTES_AT_ONCE:
                yield "commit_book_parts", arrays(BookPartRow, rows)
                rows, size = [], 0
            rows.append(BookPartRow(kept.symbol, number, part))
            size += len(part)
    if rows:
        yield "commit_book_parts", arrays(BookPartRow, rows)


def _book_row(kept: BookState) -> BookRow:
    is_whole = kept.parts is not None and not kept.first
    body = None if kept.parts is None else IN_PARTS if is_whole else WITH_CHANGES
    return BookRow(kept.symbol, kept.seq, kept.mark, kept.mark_ts, kept.mark_ts_max, kept.mark_seq, body, is_whole)
