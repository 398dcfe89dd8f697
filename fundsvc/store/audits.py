"""Stores the progress of the background audit, and reads the parts of ledgers that it recomputes."""

import asyncio
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import accumulate
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.adl.order import OrderState
from fundsvc.core.adl.verification import OpenOrders, OrdersCheckpoint, UnfinishedRound
from fundsvc.core.commitment import NO_SECRETS, Secrets
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.settlement import Closing, FundState
from fundsvc.core.fund.verification import (
    START,
    Checkpoint,
    OrderTotals,
    Pending,
    Policies,
    Replay,
    Undated,
    contract_differences,
)
from fundsvc.core.generations import public_symbol
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import SavedGuard
from fundsvc.core.times import AHEAD_SECONDS_MAX
from fundsvc.store.archive.files import Row
from fundsvc.store.archive.ranges import ARCHIVE_SQL
from fundsvc.store.audit_inventories import (
    PAGE_TRANCHES,
    HeldLots,
    HeldRows,
    Lots,
    Sums,
    archived_lots,
    empty_lots,
    keep_lots,
    read_held,
    restored_lots,
)
from fundsvc.store.database import SQL, CellPool, Pool, pool_of_symbol, snapshot, transaction
from fundsvc.store.exports import Line, fund_state_from, line_from, record_from
from fundsvc.store.reader import fetch_in_cell, reading
from fundsvc.store.writer import closing_from, contract_from

KEYS_PER_QUERY = 500
"""Keys that one statement names. The driver reads an answer in one go, which takes two milliseconds for 500 orders."""

RECORDS_MAX = 1000
"""ADL records of one read. A record has up to a thousand positions, in about 60 kB."""

Walk = Literal["full", "newest"]
"""`full` starts at entry 1 again after each end. `newest` follows new entries from the end of the last full walk."""

WALKS: tuple[Walk, ...] = ("full", "newest")
"""All walks."""


class Progress(NamedTuple):
    """Progress of a walk through a contract's ledger.

    `entry` is the last verified entry. `good` is False if the last part had differences. `age_seconds` is the time since the
    walk last reached the end without differences. `archived` is the last archived entry, which walks do not read.
    """

    symbol: str
    entry: int
    good: bool
    age_seconds: float | None
    archived: int = 0


async def audit_progress(pool: CellPool, walk: Walk) -> list[Progress]:
    """Returns the progress of each contract's walk of a kind; raises StoreFault."""
    return [Progress(*row) for row in await fetch_in_cell(pool, "audit_progress", walk)]


class Ledger(NamedTuple):
    """The stored state that a walk is compared with, at one moment.

    `late` contains the numbers of the part's entries that settled formerly rejected events. `differences` are those between
    contract and listing. `policies_since` is the time of the first recorded policies of the partition. `since` is the last
    sequence of the generation before, 0 without one. `closing` is the end of the contract, None while it is open.
    """

    contract: Contract
    fund: FundState
    late: frozenset[int]
    differences: list[str]
    policies_since: datetime | None
    since: int
    closing: Closing | None


class Followed(NamedTuple):
    """A checkpoint of a walk with the open orders and the inventory there, so that their rows are not read again.

    `held` is None before entry 1.
    """

    checkpoint: Checkpoint
    opened: OpenOrders
    held: HeldLots | None = None

    @property
    def size(self) -> int:
        """The number of open orders, positions of their rounds and tranches; a measure of memory."""
        return self.opened.size + (self.held.size if self.held else 0)


def beginning() -> Followed:
    """Returns the checkpoint before entry 1."""
    return Followed(START, OpenOrders())


class Rows(NamedTuple):
    """Entries and ADL records of one contract after a checkpoint, with the limits of the read."""

    entries: Sequence[Any]
    entries_max: int
    records: Sequence[asyncpg.Record]
    records_max: int

    @property
    def ended(self) -> bool:
        """Whether the read reached the end of the ledger."""
        return len(self.entries) < self.entries_max and len(self.records) < self.records_max

    @property
    def tranches(self) -> set[int]:
        """The takeover entries of the tranches that the entries add or reduce."""
        return {row["closes"] or row["entry"] for row in self.entries if row["closes"] or row["kind"] == "takeover"}


class Orders(NamedTuple):
    """The rows of the ADL orders that a part names, by number; at the end also the sums over all orders of the contract."""

    rows: Mapping[int, OrderState]
    totals: OrderTotals | None


class LedgerPart:
    """The part of a contract's ledger that a walk verifies next, read in one snapshot, and the checkpoint before it.

    `ledger` is None if the contract or its fund is missing. `ended` is True for the last part. Only there `totals` contains the
    sums over all ADL orders.
    """

    def __init__(self, since: Followed, ledger: Ledger | None, rows: Rows, orders: Orders, held_rows: HeldRows | None) -> None:
        self.since = since
        self.ledger = ledger
        self.ended = rows.ended
        self.totals = orders.totals
        self._rows = rows
        self._orders = orders.rows
        self._held = since.held or (empty_lots(ledger.contract) if ledger else None)
        self.held_rows = held_rows

    def __len__(self) -> int:
        return len(self._rows.entries)

    def entries_until(self, entry: int) -> Sequence[Any]:
        """Returns the rows of the entries up to a number."""
        return self._rows.entries[: bisect_right(self._rows.entries, entry, key=_ENTRY)]

    def replay(self, ledger: Ledger, policies: Policies, secrets: Secrets = NO_SECRETS) -> Replay:
        """Returns a replay from the checkpoint. It changes the checkpoint's orders and inventory, so call this at most once."""
        since, inventory = self.since, self._held.inventory if self._held else None
        checkpoint = since.checkpoint._replace(seq=max(since.checkpoint.seq, ledger.since))
        return Replay(ledger.contract, ledger.late, checkpoint, policies, since.opened, secrets, inventory, ledger.closing)

    def followed(self, replay: Replay) -> Iterator[None]:
        """Passes the entries and records to a replay in the order in which they were written; yields after each."""
        for row, is_record in self._merged():
            if is_record:
                replay.follow_record(record_from(row), row["hash"])
            else:
                self._follow_entry(replay, line_from(row))
            yield

    def _follow_entry(self, replay: Replay, line: Line) -> None:
        entry, recorded_at = line.entry, line.recorded_at
        if entry.ts > recorded_at.timestamp() * 1000 + AHEAD_SECONDS_MAX * 1000:
            replay.distrust_guard()
        replay.follow(entry, line.hash, known=self._has_recorded_policies(recorded_at))
        if self._held:
            self._held.note(entry)

    def reached(self, replay: Replay) -> Followed:
        """Returns the checkpoint at the end of the part, after it was followed."""
        return Followed(replay.checkpoint, replay.orders.opened, self._held)

    def compare(self, replay: Replay) -> None:
        """Compares the recomputed values with the rows of orders, and at the end with the fund."""
        replay.compare(self._orders, ended=self.ended)
        if self.totals and self.ledger:
            replay.finish(self.ledger.fund, self.totals)
            replay.differences.extend(self.ledger.differences)

    def compared_lots(self, replay: Replay) -> Iterator[None]:
        """Compares the recomputed inventory at the end with its rows; yields after each tranche."""
        if self.held_rows and self._held and self.ledger:
            for difference in self.held_rows.differences(self.ledger.contract.symbol, self._held):
                replay.differences += [difference] if difference else []
                yield

    def lots_error(self) -> int:
        """Returns the conservation error of the inventory at the end, in lots; 0 in a correct ledger."""
        return self.held_rows.conservation_error(self._held) if self.held_rows and self._held else 0

    def _has_recorded_policies(self, recorded_at: datetime) -> bool:
        """Returns whether policies were recorded by a time. Before that, the configured policies apply."""
        since = self.ledger.policies_since if self.ledger else None
        return since is None or recorded_at >= since

    def _merged(self) -> Iterator[tuple[Any, bool]]:
        """Yields entries and records (True) by their place, up to the last place before which nothing can be missing."""
        entries, records = self._rows.entries, self._rows.records
        after = accumulate((row["entry"] for row in records), max, initial=self.since.checkpoint.entry)
        places = list(after)[1:]
        last_entry = INT64_MAX if len(entries) < self._rows.entries_max else entries[-1]["entry"]
        last_place = INT64_MAX if len(records) < self._rows.records_max else places[-1]
        first = 0
        for place, record in zip(places, records, strict=True):
            if place > last_entry:
                break
            upto = bisect_right(entries, place, first, key=_ENTRY)
            yield from ((row, False) for row in entries[first:upto])
            yield record, True
            first = upto
        upto = bisect_right(entries, last_place, first, key=_ENTRY)
        yield from ((row, False) for row in entries[first:upto])


_ENTRY = itemgetter("entry")


class VerifiedPart(NamedTuple):
    """A checkpoint up to which a ledger has no differences. `ended` is True at the end of the ledger."""

    symbol: str
    followed: Followed
    ended: bool


async def read_parts(
    pool: CellPool, counts: Mapping[str, int], walk: Walk, followed: Mapping[str, Followed]
) -> dict[str, LedgerPart]:
    """Returns the next part of some contracts' ledgers, each with up to `counts` entries; raises StoreFault.

    One snapshot serves all contracts, because its statements cost the same for a hundred contracts as for one. `followed` are
    the checkpoints in memory. If one still equals the stored checkpoint, the records of its open orders are not read again.
    A walk does not read archived entries: before their end, it continues at the checkpoint of the archive.
    """
    async with _snapshot(pool) as connection:
        checkpoints = await connection.fetch(SQL["audit_checkpoints"], list(counts), walk)
        stored = dict.fromkeys(counts, _Stored(START)) | {row["symbol"]: _checkpoint(row) for row in checkpoints}
        passed = {symbol: one.checkpoint.entry for symbol, one in stored.items()}
        since = await _reopened(connection, stored | await _archived(connection, passed), followed, walk)
        return await _parts(connection, since, list(counts.values()), walk)


async def read_part(pool: Pool, symbol: str, since: Followed, count: int) -> LedgerPart:
    """Returns up to `count` entries of a contract's ledger after a checkpoint, or after its archive; raises StoreFault."""
    async with _snapshot(pool_of_symbol(pool, symbol)) as connection:
        archived = await _archived(connection, {symbol: since.checkpoint.entry})
        if archived:
            since = (await _reopened(connection, archived, {}, "full"))[symbol]
        return (await _parts(connection, {symbol: since}, [count], "full"))[symbol]


async def read_archived_part(pool: Pool, symbol: str, since: Followed, rows: Sequence[Row]) -> LedgerPart:
    """Returns the part of a contract's ledger after a checkpoint whose entries are archived; raises StoreFault."""
    async with _snapshot(pool_of_symbol(pool, symbol)) as connection:
        return (await _parts(connection, {symbol: since}, [len(rows)], "full", {symbol: rows}))[symbol]


@asynccontextmanager
async def _snapshot(pool: CellPool) -> AsyncIterator[PoolConnectionProxy]:
    async with reading(pool) as connection, snapshot(connection):
        yield connection


async def _parts(
    connection: PoolConnectionProxy,
    since: Mapping[str, Followed],
    counts: Sequence[int],
    walk: Walk,
    archived: Mapping[str, Sequence[Row]] = MappingProxyType({}),
) -> dict[str, LedgerPart]:
    symbols = list(since)
    entries_after = [one.checkpoint.entry for one in since.values()]
    records_after = [one.checkpoint.orders.record for one in since.values()]
    records_max = [max(1, min(count, RECORDS_MAX // len(symbols))) for count in counts]
    entries = archived or _by_symbol(await connection.fetch(SQL["audit_entries"], symbols, entries_after, counts))
    ledgers = await _ledgers(connection, symbols, await _late(connection, symbols, entries_after, counts, entries))
    records = _by_symbol(await connection.fetch(SQL["audit_records"], symbols, records_after, records_max))
    rows = {
        symbol: Rows(entries[symbol], counts[place], records[symbol], records_max[place])
        for place, symbol in enumerate(symbols)
    }
    orders = await _orders(connection, since, rows)
    held = await _held_rows(connection, since, rows, walk)
    return {
        symbol: LedgerPart(since[symbol], ledgers.get(symbol), rows[symbol], orders[symbol], held.get(symbol))
        for symbol in symbols
    }


async def _reopened(
    connection: PoolConnectionProxy, stored: Mapping[str, "_Stored"], followed: Mapping[str, Followed], walk: Walk
) -> dict[str, Followed]:
    """Returns the open orders and inventories of some checkpoints, from memory or else from their rows."""
    left = {symbol: one for symbol, one in followed.items() if _place(one.checkpoint) == _place(stored[symbol].checkpoint)}
    gone = {symbol: one for symbol, one in stored.items() if symbol not in left}
    wanted = [(symbol, adl, one.checkpoint.orders.record) for symbol, one in gone.items() for adl in one.checkpoint.orders.open]
    records = [row async for row in _rows_of(connection, "audit_opened", wanted)]
    opened = await asyncio.to_thread(_opened, records) if records else {}  # a thousand orders take tens of milliseconds
    held = await _restored(connection, {symbol: one for symbol, one in gone.items() if one.sums}, walk)
    read = {
        symbol: Followed(one.checkpoint, opened.get(symbol) or OpenOrders(), held.get(symbol)) for symbol, one in gone.items()
    }
    return {
        symbol: left[symbol]._replace(checkpoint=one.checkpoint) if symbol in left else read[symbol]
        for symbol, one in stored.items()
    }


def _place(checkpoint: Checkpoint) -> tuple[int, bytes, OrdersCheckpoint]:
    """Returns the last entry and record of a checkpoint."""
    return checkpoint.entry, checkpoint.head, checkpoint.orders


async def _restored(connection: PoolConnectionProxy, stored: Mapping[str, "_Stored"], walk: Walk) -> dict[str, HeldLots]:
    """Restores the inventories of some checkpoints from their rows."""
    contracts = [row async for row in _rows_of(connection, "contracts", [(symbol,) for symbol in stored])]
    found: dict[str, HeldLots] = {}
    for row in contracts:
        one, contract = stored[row["symbol"]], contract_from(row)
        if one.tranches is None:
            found[row["symbol"]] = await restored_lots(connection, contract, walk, *one.place)
        else:
            found[row["symbol"]] = await archived_lots(connection, contract, walk, one.tranches, one.sums)
    return found


async def _archived(connection: PoolConnectionProxy, passed: Mapping[str, int]) -> dict[str, "_Stored"]:
    """Returns the checkpoints of the archives of some contracts that have entries after the `passed` ones."""
    rows = await connection.fetch(ARCHIVE_SQL["checkpoints"], list(passed))
    return {row["symbol"]: _stored_from(row["checkpoint"]) for row in rows if row["entry"] > passed[row["symbol"]]}


async def _held_rows(
    connection: PoolConnectionProxy, since: Mapping[str, Followed], rows: Mapping[str, Rows], walk: Walk
) -> dict[str, HeldRows]:
    """Returns the rows that the inventories at the ends of ledgers are compared with.

    The newest walk compares the tranches that changed, or all of them if a ledger has nothing new.
    """
    whole: list[str] = []
    named: dict[str, set[int]] = {}
    for symbol, part in rows.items():
        if not part.ended:
            continue
        held = since[symbol].held
        unchecked = held.unchecked if held else set()
        changed = None if unchecked is None else unchecked | part.tranches
        if walk == "full" or changed is None or len(changed) > PAGE_TRANCHES or not (part.entries or part.records):
            whole.append(symbol)
        else:
            named[symbol] = changed
    return await read_held(connection, whole, named)


def _opened(records: Iterable[asyncpg.Record]) -> dict[str, OpenOrders]:
    """The open orders of contracts, made from rows of `audit_opened`."""
    return {symbol: OpenOrders(map(record_from, rows)) for symbol, rows in _by_symbol(records).items()}


async def _orders(
    connection: PoolConnectionProxy, since: Mapping[str, Followed], rows: Mapping[str, Rows]
) -> dict[str, Orders]:
    """Returns the order rows that some parts are compared with.

    These are the orders that records of a part name. At the end of a ledger they include orders that changed earlier. If a
    ledger has nothing new, they are all open orders.
    """
    ended = [symbol for symbol, part in rows.items() if part.ended]
    for symbol in ended:
        if not rows[symbol].entries and not rows[symbol].records:
            since[symbol].opened.recheck_all()
    named = {(symbol, row["adl"]) for symbol, part in rows.items() for row in part.records}
    moved = {(symbol, adl) for symbol in ended for adl in since[symbol].opened.unchecked}
    found: dict[str, dict[int, OrderState]] = defaultdict(dict)
    async for row in _rows_of(connection, "audit_order_rows", sorted(named | moved)):
        found[row["symbol"]][row["adl"]] = OrderState(*(row[name] for name in OrderState._fields))
    totals = {
        row["symbol"]: OrderTotals(*(int(row[name]) for name in OrderTotals._fields))
        async for row in _rows_of(connection, "audit_orders", [(symbol,) for symbol in ended])
    }
    return {symbol: Orders(found[symbol], totals.get(symbol)) for symbol in rows}


async def _rows_of(
    connection: PoolConnectionProxy, block: str, keys: Sequence[tuple[Any, ...]]
) -> AsyncIterator[asyncpg.Record]:
    """Runs a statement that takes the parts of its keys as arrays, for KEYS_PER_QUERY keys at a time."""
    for first in range(0, len(keys), KEYS_PER_QUERY):
        columns = zip(*keys[first : first + KEYS_PER_QUERY], strict=True)
        for row in await connection.fetch(SQL[block], *map(list, columns)):
            yield row


async def _late(
    connection: PoolConnectionProxy,
    symbols: Sequence[str],
    after: Sequence[int],
    counts: Sequence[int],
    entries: Mapping[str, Sequence[Any]],
) -> dict[str, set[int]]:
    """Returns the numbers of late entries among `counts` entries after the given ones.

    A takeover or unwind may have several entries; only the first is stored with the rejected event.
    """
    late: dict[str, set[int]] = defaultdict(set)
    for symbol, entry in await connection.fetch(SQL["audit_late"], symbols, after, counts):
        late[symbol].add(entry)
    numbers: dict[tuple[str, int], set[tuple[str, int]]] = defaultdict(set)
    for symbol, rows in entries.items():
        for row in rows:
            if row["closes"] or row["kind"] == "takeover":
                numbers[public_symbol(symbol), row["seq"]].add((symbol, row["entry"]))
    async for event_symbol, seq in _rows_of(connection, "audit_late_sequences", list(numbers)):
        for symbol, entry in numbers[event_symbol, seq]:
            late[symbol].add(entry)
    return late


async def _ledgers(connection: PoolConnectionProxy, symbols: Sequence[str], late: Mapping[str, set[int]]) -> dict[str, Ledger]:
    """Returns the ledgers of the listed contracts that have a fund, with their late entries."""
    return {
        row["symbol"]: Ledger(
            contract_from(row),
            fund_state_from(row),
            frozenset(late.get(row["symbol"], ())),
            contract_differences(
                contract_from(row), msgspec.json.decode(row["specification"]), row["partition"], row["partitions"]
            )
            + [f"{row['symbol']} entry {entry}: the entry of the other contract is missing" for entry in row["unpaired"]]
            + _closing_differences(row),
            row["policies_since"],
            row["since"],
            closing_from(row),
        )
        for row in await connection.fetch(SQL["audit_funds"], symbols)
    }


def _closing_differences(row: asyncpg.Record) -> list[str]:
    """Returns the differences between the columns that describe the end of a contract."""
    at, seq, price = row["closed_at"], row["closed_seq"], row["closed_price"]
    if (seq > 0) == (price > 0) and (at is not None or not seq):
        return []
    return [f"{row['symbol']}: its end has (time, seq, price) {(at, seq, price)}, which no settlement has"]


def _by_symbol(rows: Iterable[asyncpg.Record]) -> dict[str, list[asyncpg.Record]]:
    found: dict[str, list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        found[row["symbol"]].append(row)
    return found


class _State(msgspec.Struct, array_like=True):
    """The parts of a checkpoint without a column."""

    open: Sequence[int]
    unfinished_round: UnfinishedRound
    pending: Pending
    undated: Undated
    guard: SavedGuard | None
    sums: Sums = ()


class _Archived(msgspec.Struct, array_like=True):
    """The checkpoint of an archive: the columns of one, and the entries and lots of its tranches."""

    columns: dict[str, Any]
    tranches: Lots


class _Stored(NamedTuple):
    """A stored checkpoint, with the sums of its inventory. `tranches` are those of an archive; None if rows of the walk are."""

    checkpoint: Checkpoint
    sums: Sums = ()
    tranches: Lots | None = None

    @property
    def place(self) -> tuple[int, Sums]:
        """The last entry, and the sums after it."""
        return self.checkpoint.entry, self.sums


_NO_STATE = _State(START.orders.open, START.orders.unfinished_round, START.pending, START.undated, START.guard)


def saved_checkpoint(followed: Followed) -> bytes:
    """Encodes a checkpoint for the stub of an archive."""
    names = (
        "entry",
        "seq",
        "balance",
        "uncovered",
        "repaid",
        "head",
        "outstanding",
        "recovered",
        "record",
        "adl",
        "adl_head",
        "state",
    )
    row = _progress_row("full", VerifiedPart("", followed, ended=False))[2:-1]
    columns = dict(zip(names, row, strict=True))
    unbounded = {name: str(columns[name]) for name in ("uncovered", "repaid", "recovered")}
    return msgspec.msgpack.encode(_Archived(columns | unbounded, followed.held.lots() if followed.held else []))


def archived_checkpoint(saved: bytes) -> Checkpoint:
    """Returns the checkpoint of a stub; raises msgspec.MsgspecError if it has none."""
    return _stored_from(saved).checkpoint


def _stored_from(saved: bytes) -> _Stored:
    found = msgspec.msgpack.decode(saved, type=_Archived)
    return _checkpoint(found.columns)._replace(tranches=found.tranches)


def _checkpoint(row: asyncpg.Record | Mapping[str, Any]) -> _Stored:
    state = msgspec.msgpack.decode(row["state"], type=_State) if row["state"] else _NO_STATE
    checkpoint = Checkpoint(
        row["entry"],
        row["seq"],
        row["balance"],
        int(row["uncovered"]),
        int(row["repaid"]),
        row["head"],
        row["outstanding"],
        OrdersCheckpoint(row["record"], row["adl_head"], row["adl"], int(row["recovered"]), state.open, state.unfinished_round),
        state.pending,
        state.undated,
        state.guard,
    )
    return _Stored(checkpoint, state.sums)


def _progress_row(walk: Walk, held: VerifiedPart) -> tuple[Any, ...]:
    one, lots = held.followed.checkpoint, held.followed.held
    orders, sums = one.orders, lots.sums() if lots else ()
    return (
        held.symbol,
        walk,
        *one[:7],
        orders.recovered,
        orders.record,
        orders.adl,
        orders.head,
        msgspec.msgpack.encode(_State(orders.open, orders.unfinished_round, one.pending, one.undated, one.guard, sums)),
        held.ended,
    )


async def keep_verified(pool: CellPool, walk: Walk, held: Sequence[VerifiedPart]) -> None:
    """Stores the progress of a walk for some contracts; raises StoreFault.

    A full walk that reached the end starts again at entry 1, and the newest walk continues from that end. So every checkpoint
    is verified again by the next full walk.
    """
    rows = [_progress_row("newest", one) for one in held if walk == "newest" or one.ended]
    if walk == "full":
        rows += [_progress_row("full", one._replace(followed=beginning()) if one.ended else one) for one in held]
    lots = [(one.symbol, one.followed.held) for one in held if one.followed.held and one.followed.held.has_begun]
    ended = [one.symbol for one in held if one.ended and one.followed.held and one.followed.held.has_begun]
    async with reading(pool) as connection, transaction(connection):
        await connection.execute(SQL["audit_verified"], *map(list, zip(*rows, strict=True)))
        await keep_lots(connection, walk, lots, ended)


async def keep_differences(pool: CellPool, walk: Walk, symbols: Sequence[str]) -> None:
    """Stores that a walk found differences. Its position does not change. Raises StoreFault."""
    await fetch_in_cell(pool, "audit_differs", symbols, walk)
