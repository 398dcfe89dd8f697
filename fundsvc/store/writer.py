"""The writing side: what a partition's owner loads, and the one transaction that moves the ledger on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import asyncpg
import msgspec

from fundsvc.core.adl.book import LARGE_POSITIONS, SavedBook
from fundsvc.core.adl.order import AdlOrder, Asked, OrderState
from fundsvc.core.adl.records import terms_of
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.batch import Batch, KeptBook, Offset, Place
from fundsvc.core.contracts import Contract
from fundsvc.core.events import Rejected
from fundsvc.core.fund.settlement import Fund, FundState
from fundsvc.core.policy import Policies, Policy, SavedGuard
from fundsvc.core.sequences import Facts
from fundsvc.store.database import COMMAND_SECONDS, SQL, StoreRefusal, connect, faults, refusals, transaction
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
"""Before the first message."""

ROWS_AT_ONCE = 250
"""ADL orders or records that are encoded between two looks at the loop: half a millisecond or one."""

_Row = TypeVar("_Row")
_Part = TypeVar("_Part")


class OwnershipLost(Exception):
    """Another engine owns the partition by now: nothing of ours was written, and nothing of ours may be."""


class Stray(StoreRefusal):
    """The ledger has rows of this partition that no commit left there; the message says which, and what to do."""


class Writer:
    """The ledger as the owner of one partition writes it; every write is fenced by the owner's epoch."""

    def __init__(self, connection: asyncpg.Connection, partition: int, epoch: int) -> None:
        self._connection = connection
        self._partition = partition
        self._epoch = epoch
        self._one_at_a_time = asyncio.Lock()  # Books may be kept while a replay asks: a connection does one thing at a time.

    async def load(self, policy_of: Callable[[str], Policy] = lambda _: Policy()) -> tuple[Offset, list[Fund]]:
        """Where the partition stands, and all its funds under their policies; raises OwnershipLost, Stray or StoreFault."""
        with faults():
            position = await self._connection.fetchrow(SQL["load_position"], self._partition, self._epoch)
            if position is None:
                raise OwnershipLost(f"partition {self._partition} is no longer ours")
            funds = await self._connection.fetch(SQL["load_funds"], self._partition, None)
            strays = await self._connection.fetch(SQL["stray_rows"], self._partition)
        if strays:
            named = ", ".join(
                f"{symbol} beyond entry {entry} and ADL record {record}" for symbol, entry, record in strays[:STRAYS_NAMED_MAX]
            )
            raise Stray(
                f"{len(strays)} contracts have rows that no commit left: {named}. See what they are (fundsvc export), and have"
                f" the database's owner remove them"
            )
        return Offset(*position), [fund_from(row, policy_of(row["symbol"])) for row in funds]

    async def load_policies(self, configured: Policies) -> list[Policies]:
        """All versions of the policies that the partition has recorded, rising; the first is what is configured then."""
        with faults():
            await self._connection.execute(SQL["first_policies"], self._partition, self._epoch, policies_body(configured))
            rows = await self._connection.fetch(SQL["load_policies"], self._partition)
        if not rows:
            raise OwnershipLost(f"partition {self._partition} is no longer ours")
        return [policies_from(row) for row in rows]

    async def load_orders(self) -> list[AdlOrder]:
        """The orders that are open, with what their present round asks."""
        with faults():
            orders = await self._connection.fetch(SQL["load_orders"], self._partition, None)
            records = await self._connection.fetch(SQL["load_records"], self._partition, None)
        return orders_from(orders, records)

    async def load_books(self) -> list[KeptBook]:
        """The books of all contracts as they were last kept; one that never was begins with the stream."""
        with faults():
            rows = await self._connection.fetch(SQL["load_books"], self._partition, None)
        return [kept_book_from(row) for row in rows]

    async def rejected_places(self, messages: Sequence[str]) -> Mapping[Place, str | None]:
        """Which events of these messages were rejected, and the message that had them settled since."""
        with faults():
            rows = await self._connection.fetch(SQL["rejected_places"], self._partition, messages)
        return {Place(row["stream_id"], row["position"]): row["settled_by"] for row in rows}

    async def reduced_sides(self, orders: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], SideName]:
        """Which side each of these orders (contract and number; at least one) reduces."""
        with faults():
            rows = await self._connection.fetch(SQL["reduced_sides"], *zip(*orders, strict=True))
        return {(row["symbol"], row["adl"]): row["reduce"] for row in rows}

    async def has_seals(self) -> bool:
        """Whether the last entry of any contract has a commitment in the place of its account."""
        with faults():
            return bool(await self._connection.fetchval(SQL["last_seals"], self._partition))

    async def is_open(self, stream_id: str, position: int) -> bool:
        """Whether the event at this place is kept as rejected and has not been settled since."""
        with faults():
            async with self._one_at_a_time:
                return bool(await self._connection.fetchval(SQL["rejected_open"], self._partition, stream_id, position))

    async def facts(self, wanted: Mapping[str, Sequence[int]]) -> Facts:
        """What the ledger has of the first of some sequences, rising, of each contract: of the first one at least."""
        with faults():
            async with self._one_at_a_time:
                return await facts_of(self._fetch, wanted)

    async def _fetch(self, block: str, *parameters: Any) -> list[asyncpg.Record]:
        return await self._connection.fetch(SQL[block], *parameters)

    def prepare(self, batch: Batch) -> None:
        """Encodes the entries that a batch has by now, so that `commit` has only to send them."""
        batch.pack(copy_rows)

    async def commit(self, batch: Batch, before: Offset, after: Offset) -> None:
        """Writes all of a batch and moves the partition's offset, or nothing.

        Raises OwnershipLost when the partition is not ours any more, StoreRefusal when the database refuses something in it,
        and StoreFault when that is away: then the transaction may or may not have been committed, and the partition must be
        loaded again, by another writer, to know. Everything is encoded before the transaction begins.
        """
        moved = (self._partition, self._epoch, *_moved(before, after), batch.duplicates.total(), *_columns(batch))
        moving = [order for key, order in batch.orders.items() if key not in batch.opened]
        statements = _statements(batch, self._partition, after, await _encoded(moving, _moved_orders), await _books(batch))
        entries = [*batch.packed, copy_rows(batch.entries, batch.hashes)]
        opened = await _encoded([order for key, order in batch.orders.items() if key in batch.opened], copy_orders)
        records = await _encoded(batch.records, copy_records)
        with faults(), refusals(), _strays():
            async with self._one_at_a_time, transaction(self._connection):
                if batch.count():
                    await self._copy("entries", COLUMNS, entries)
                ((is_ours, unwritten),) = await self._connection.fetch(SQL["commit"], *moved)
                if opened:
                    await self._copy("adl_orders", ORDER_COLUMNS, opened)
                if records:
                    await self._copy("adl_records", RECORD_COLUMNS, records)
                for block, parameters in statements:
                    await self._connection.execute(SQL[block], *parameters)
                if not is_ours:
                    raise OwnershipLost(f"partition {self._partition} was moved by another engine")
                if unwritten:
                    raise StoreRefusal(
                        f"the ledger has {', '.join(unwritten)} in another partition, or further than this one knows: run"
                        " fundsvc audit, and have the database's owner put it right"
                    )

    async def _copy(self, table: str, columns: Sequence[str], rows: Sequence[bytes]) -> None:
        source = _each((HEADER, *rows, TRAILER))
        await self._connection.copy_to_table(table, source=source, columns=columns, format="binary")


@contextmanager
def _strays() -> Iterator[None]:
    """Raises Stray where an entry or record that is to be written is there."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        if error.table_name not in ("entries", "adl_records"):
            raise
        raise Stray(f"{type(error).__name__}: a row of {error.table_name} is in the way: {error.detail}") from error


@asynccontextmanager
async def open_writer(
    dsn: str, engine: str, partition: int, epoch: int, statement_seconds: float = COMMAND_SECONDS
) -> AsyncIterator[Writer]:
    """A writer on a connection of its own, known to the server by the engine's name; a statement takes so long at most."""
    async with connect(dsn, session_name(engine), statement_seconds) as connection:
        yield Writer(connection, partition, epoch)


def session_name(engine: str) -> str:
    """How the sessions of an engine are called in pg_stat_activity."""
    return f"fundsvc engine {engine}"


async def _each(rows: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in rows:
        yield part


async def _encoded(rows: Sequence[_Row], encode: Callable[[Sequence[_Row]], _Part]) -> list[_Part]:
    """Rows encoded in parts: the loop is let go between two of them."""
    parts = []
    for first in range(0, len(rows), ROWS_AT_ONCE):
        if first:
            await asyncio.sleep(0)
        parts.append(encode(rows[first : first + ROWS_AT_ONCE]))
    return parts


def _moved(before: Offset, after: Offset) -> tuple[Any, ...]:
    """The parameters of the statement `commit` that move the offset, which must be where it was."""
    return before.last_id, before.events, before.partial_id, *after


def fund_from(row: asyncpg.Record, policy: Policy) -> Fund:
    """The fund in a row of `load_funds`, under a policy."""
    return Fund(
        contract_from(row),
        policy=policy,
        guard=saved_guard_from(row),
        balance=row["balance"],
        outstanding=row["outstanding"],
        entry=row["entry"],
        seq=row["seq"],
        adl=row["adl"],
        head=row["head"],
        suspended=row["suspended"],
        adl_record=row["adl_record"],
        adl_head=row["adl_head"],
    )


def saved_guard_from(row: asyncpg.Record) -> SavedGuard | None:
    """What a row keeps of a fund's drawdown guard."""
    return msgspec.json.decode(row["guard"], type=SavedGuard) if row["guard"] else None


def orders_from(orders: Iterable[asyncpg.Record], records: Iterable[asyncpg.Record]) -> list[AdlOrder]:
    """The orders in rows of `load_orders`, in their present rounds as the rows of `load_records` tell them."""
    found = {(row["symbol"], row["adl"]): _order_from(row) for row in orders}
    for row in records:
        _follow(found[row["symbol"], row["adl"]], row)
    return list(found.values())


def _order_from(row: asyncpg.Record) -> AdlOrder:
    return AdlOrder(**{name: row[name] for name in OrderState._fields if name != "recovered"})


def _follow(order: AdlOrder, row: asyncpg.Record) -> None:
    """Takes an order through one of its records: a round begins, has further positions, or executes."""
    match row["kind"]:
        case "order" | "round":
            order.end_round()
            order.asked = Asked(terms_of(row["kind"], row["body"]))
        case "part":
            order.asked.extend(terms_of("part", row["body"]))
        case "execution":
            order.asked.execute(row["account"], row["lots"])


def kept_book_from(row: asyncpg.Record) -> KeptBook:
    """The book in a row of `load_books`; one that never was kept begins with the stream."""
    saved = decode_book(row["body"]) if row["body"] else None
    last_id, seq = row["last_id"] or STREAM_START, row["seq"] or 0
    return KeptBook(row["symbol"], last_id, seq, row["mark"], row["mark_ts"] or 0, row["mark_seq"] or 0, saved)


def encode_book(book: SavedBook) -> bytes:
    """A kept book as MessagePack; a large one is an array of parts that each hold one."""
    parts = [msgspec.msgpack.encode(part) for part in book.parts()]
    return parts[0] if len(parts) == 1 else msgspec.msgpack.encode(parts)


def decode_book(body: bytes) -> Iterator[SavedBook]:
    """The parts of a kept book, each decoded when it is asked for."""
    try:
        parts = msgspec.msgpack.decode(body, type=list[memoryview])
    except msgspec.ValidationError:
        parts = [memoryview(body)]
    return (msgspec.msgpack.decode(part, type=SavedBook) for part in parts)


def contract_from(row: asyncpg.Record) -> Contract:
    """The contract in a row that has all its columns."""
    return Contract(**{name: row[name] for name in Contract.__struct_fields__})


def _columns(batch: Batch) -> list[list[Any]]:
    """The parameters of the statement `commit` after the offsets: one list per column."""
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
    rejected = [_rejected_row(event) for event in batch.rejected]
    replayed = [
        (stream_id, position, settled_by, entry.symbol if entry else None, entry.entry if entry else None)
        for stream_id, position, settled_by, entry in batch.replayed
    ]
    return [
        *_transpose(listings, 7),
        *_transpose([_fund_row(state) for state in batch.funds], 10),
        *_transpose(rejected, 9),
        *_transpose(replayed, 5),
    ]


def _fund_row(state: FundState) -> tuple[Any, ...]:
    return state._replace(guard=msgspec.json.encode(state.guard).decode() if state.guard else None)  # type: ignore[arg-type]


def _rejected_row(event: Rejected) -> tuple[Any, ...]:
    *columns, identity = msgspec.structs.astuple(event)
    return (*columns, *(identity or (None, None, None)))


def _moved_orders(orders: Sequence[OrderState]) -> list[list[Any]]:
    """The parameters of a statement `commit_orders`: the driver encodes them without a look at the loop."""
    moved = [
        (
            order.symbol,
            order.adl,
            order.recovered,
            order.executed,
            order.state,
            order.round,
            order.seq,
            order.acknowledged,
            order.round_ms,
        )
        for order in orders
    ]
    return _transpose(moved, 9)


def _statements(
    batch: Batch, partition: int, after: Offset, orders: list[list[list[Any]]], books: list[list[Any]]
) -> list[tuple[str, Sequence[Any]]]:
    """The statements that a batch needs after `commit`, by name, with their parameters."""
    statements: list[tuple[str, Sequence[Any]]] = [("commit_orders", part) for part in orders]
    if batch.books:
        statements.append(("commit_books", (after.last_id, *books)))
    if batch.rates:
        statements.append(("commit_rates", (partition, *_transpose(list(batch.rates.values()), 3), batch.latest_ms)))
    if batch.suspensions:
        statements.append(("commit_suspensions", _transpose(list(batch.suspensions.items()), 2)))
    if batch.policies:
        policies = _transpose([(known.version, policies_body(known)) for known in batch.policies], 2)
        statements.append(("commit_policies", (partition, after.last_id, *policies)))
    return statements


async def _books(batch: Batch) -> list[list[Any]]:
    """The parameters of the statement `commit_books` after the first; large books are encoded in a thread."""
    is_large = any(kept.positions > LARGE_POSITIONS for kept in batch.books)
    return _transpose(await asyncio.to_thread(_book_rows, batch) if is_large else _book_rows(batch), 6)


def _book_rows(batch: Batch) -> list[tuple[Any, ...]]:
    return [
        (
            kept.symbol,
            kept.seq,
            kept.mark,
            kept.mark_ts,
            kept.mark_seq,
            encode_book(kept.book) if kept.book else None,
        )
        for kept in batch.books
    ]


def _transpose(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    return [[row[column] for row in rows] for column in range(width)]
