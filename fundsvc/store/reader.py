"""Reads contracts, funds, entries, rates, policies and partitions through a pool."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.batch import RateState
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.chain import Kind
from fundsvc.core.fund.settlement import Closing
from fundsvc.core.generations import named_generation
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import Policies, Policy, SavedGuard
from fundsvc.core.sequences import Facts
from fundsvc.core.times import AHEAD_SECONDS_MAX
from fundsvc.store.archive.files import NO_FILES, ArchiveFiles, Row, Wanted
from fundsvc.store.archive.ranges import Archives
from fundsvc.store.cell_routes import routed
from fundsvc.store.cells import Cells
from fundsvc.store.database import SQL, CellPool, Pool, acquired, faults
from fundsvc.store.policies import policies_from, policies_of
from fundsvc.store.schema import is_outdated, newest_revision
from fundsvc.store.sequences import facts_of
from fundsvc.store.writer import closing_from, contract_from, saved_guard_from

READ_SECONDS_MAX = 10.0
"""HTTP clients have given up by then. A longer read would only occupy a connection."""

HOUR_MS = 3_600_000
"""The width of a rollup."""


class Listed(NamedTuple):
    """A listed contract. `specification` is KuCoin's object as JSON text.

    `suspended` is True if the terms are in doubt, so that its events are rejected. `closing` is its end; None while it is open.
    """

    contract: Contract
    partition: int
    specification: str
    suspended: bool
    closing: Closing | None


class ContractStateRow(NamedTuple):
    """What decides about the next events of a contract: its terms, its last sequence, and whether it has entries or orders.

    `closing` is its end; None while it is open.
    """

    contract: Contract
    has_entries: bool
    suspended: bool
    seq: int
    closing: Closing | None


class FundRow(NamedTuple):
    """A fund as of its last entry: amounts in atoms, `seq` the last applied sequence, `head` the entry's hash.

    `escalated` is True if an ADL order is open. `base_currency` comes from the listing, or is None. `is_quanto` is True if the
    contract settles in neither its base nor its quote currency. `suspended` is True if its terms are in doubt. `status` is that
    of KuCoin's object, and `closed` is True if the contract takes no more events.
    """

    contract: Contract
    base_currency: str | None
    partition: int
    balance: int
    outstanding: int
    entry: int
    seq: int
    head: bytes
    guard: SavedGuard | None
    updated_at: datetime
    escalated: bool
    is_quanto: bool = False
    suspended: bool = False
    status: str | None = None
    closed: bool = False

    @property
    def symbol(self) -> str:
        """The contract's ledger key."""
        return self.contract.symbol

    @property
    def settle_currency(self) -> str:
        """The currency of all amounts."""
        return self.contract.settle_currency

    @property
    def settle_decimals(self) -> int:
        """An amount counts units of 10**-settle_decimals."""
        return self.contract.settle_decimals


class EntryRow(NamedTuple):
    """A ledger entry without its account, which is never public: amounts in atoms, prices in the contract's units."""

    symbol: str
    entry: int
    seq: int
    kind: Kind
    change: int
    balance: int
    uncovered: int
    repaid: int
    side: str
    lots: int
    price: int
    bankruptcy_price: int
    trade_id: str
    order_id: str
    ts: int
    seal: bytes
    closes: int
    forced: bool
    recorded_at: datetime
    hash: bytes


class PartitionRow(NamedTuple):
    """The state of a partition: its last settled message, whether an engine has a lease, the reason of a halt or ""."""

    partition: int
    last_id: str
    live: bool
    halted: str


class Span(NamedTuple):
    """A run of entry numbers, both ends included."""

    first: int
    last: int


class NotReady(Exception):
    """The database responds but does not meet a requirement. `public_text` is safe to publish; the message has all details."""

    def __init__(self, public_text: str, detail: str = "") -> None:
        super().__init__(detail or public_text)
        self.public_text = public_text


class AuditRow(NamedTuple):
    """A walk through a ledger: its last verified entry, whether it found no difference, and when it last reached the end."""

    walk: str
    entry: int
    good: bool
    verified_at: datetime | None


class Reader:
    """Reads the ledger. Every method raises StoreFault if the database is unreachable.

    Reads of archived entries raise ArchiveUnreachable if `files`, by default none, are.
    """

    def __init__(self, pool: Pool, files: ArchiveFiles = NO_FILES) -> None:
        self._pool = pool
        self._archives = Archives(pool, files)

    async def contracts(self, name: str | None = None) -> list[Listed]:
        """Returns all listed contracts by ledger key, or only the one with a public name, if it is listed."""
        rows = await self._fetch("contracts", await self._named(name))
        return [
            Listed(contract_from(row), row["partition"], row["specification"], row["suspended"], closing_from(row))
            for row in rows
        ]

    async def contract_counts(self) -> Mapping[int, int]:
        """Returns the number of listed contracts by partition; partitions without contracts are absent."""
        return {row["partition"]: row["contracts"] for row in await self._fetch("contract_counts")}

    async def contract_states(self, symbols: Sequence[str]) -> list[ContractStateRow]:
        """Returns the states of all generations of some symbols, each symbol's in their order."""
        rows = await self._fetch("contract_states", symbols)
        return [
            ContractStateRow(contract_from(row), row["has_entries"], row["suspended"], row["seq"], closing_from(row))
            for row in rows
        ]

    async def facts(self, wanted: Mapping[str, Sequence[int]]) -> Facts:
        """Returns what the ledger contains of the first of each contract's ascending sequences, at least of the very first."""
        return await facts_of(self._fetch, wanted)

    async def funds(self, name: str | None = None) -> list[FundRow]:
        """Returns all funds by ledger key, or only that of the contract with a public name, if it is listed."""
        rows = await self._fetch("funds", await self._named(name))
        return [fund_row_from(row) for row in rows]

    async def history(
        self,
        symbol: str,
        *,
        count: int,
        offset: int | None = None,
        forward: bool = False,
        kind: Kind | None = None,
        start_ms: int = 0,
        end_ms: int = INT64_MAX,
    ) -> list[EntryRow]:
        """Returns up to `count` entries: with `forward` ascending after entry `offset`, else descending before it or from the
        newest.

        `start_ms` and `end_ms` bound the engine's time of an entry, both included.
        """
        wanted = Span((offset or 0) + 1, INT64_MAX) if forward else Span(1, INT64_MAX if offset is None else offset - 1)
        spans = [Span(1, INT64_MAX)]
        if start_ms > 0 or end_ms < INT64_MAX:
            spans = await self._spans(symbol, start_ms, end_ms)
        overlaps = list(_overlaps(spans if forward else reversed(spans), wanted))
        rows: list[asyncpg.Record] = []
        for first, last in overlaps:
            block = "entries_ascending" if forward else "entries_descending"
            rows += await self._fetch(block, symbol, first, last, kind, start_ms, end_ms, count - len(rows))
            if len(rows) == count:
                break
        bound = (rows[-1]["bound"] or 0) if len(rows) == count else await self._archives.bound(symbol)
        entries = [EntryRow(*row[:-1]) for row in rows if row["entry"] > bound]
        archived = [Span(first, min(last, bound)) for first, last in overlaps if first <= bound]
        chosen = Wanted(kind, start_ms, end_ms)
        if forward:
            return [*await self._archived(symbol, archived, count, chosen, forward=True), *entries][:count]
        return entries + await self._archived(symbol, archived, count - len(entries), chosen, forward=False)

    async def _archived(
        self, symbol: str, spans: Iterable[Span], count: int, wanted: Wanted, *, forward: bool
    ) -> list[EntryRow]:
        """Returns up to `count` wanted archived entries of spans, in their order."""
        found: list[EntryRow] = []
        for first, last in spans:
            if len(found) < count:
                rows = await self._archives.rows(symbol, first, last, count - len(found), wanted, descending=not forward)
                found += [entry_row_from(row) for row in rows]
        return found

    async def account_of(self, symbol: str, entry: int) -> str:
        """Returns the account of an existing entry, for the account's owner and for risk."""
        found = await self._fetch("entry_account", symbol, entry)
        return str((found[0] if found else await self._archives.row(symbol, entry))["account"])

    async def rates(self) -> dict[str, RateState]:
        """Returns the newest rate of each currency."""
        return {row["currency"]: RateState(*row) for row in await self._fetch("rates", int(AHEAD_SECONDS_MAX * 1000))}

    async def policies(self) -> dict[int, Policies]:
        """Returns the policies in force, by partition, where any are recorded."""
        return {row["partition"]: policies_from(row) for row in await self._fetch("present_policies")}

    async def policies_of(self, symbol: str, configured: Callable[[str], Policy]) -> dict[int, Policy]:
        """Returns all recorded policies of a contract, by version; see `policies.policies_of`."""
        return (await policies_of(self._fetch, [symbol], configured))[symbol]

    async def audits(self, symbol: str) -> list[AuditRow]:
        """Returns the walks of the background audit through the ledger of a contract; none before the first part of one."""
        return [AuditRow(*row) for row in await self._fetch("audit_of", symbol)]

    async def partitions(self) -> list[PartitionRow]:
        """Returns all partitions by number."""
        rows = await self._fetch("partitions")
        return [PartitionRow(row["partition"], row["last_id"], bool(row["live"]), row["halted"]) for row in rows]

    async def check_database(self) -> None:
        """Returns if the database responds; raises StoreFault."""
        await self._fetch("ping")

    async def check_schema(self) -> None:
        """Returns if the schema is new enough for this version; raises NotReady."""
        (row,) = await self._fetch("schema_version")
        if is_outdated(row["version_num"]):
            detail = f"the schema is {row['version_num']}, this version needs {newest_revision()}: run fundsvc migrate"
            raise NotReady("the schema is older than this version requires", detail)

    async def check_owners(self) -> None:
        """Returns if a live engine owns every partition; raises NotReady."""
        idle = [row.partition for row in await self.partitions() if not row.live]
        if idle:
            raise NotReady(f"no engine owns partition {', '.join(map(str, idle))}")

    async def check_halted(self) -> None:
        """Returns if no partition is halted; raises NotReady."""
        halted = [row for row in await self.partitions() if row.halted]
        if halted:
            public_text = f"partition {', '.join(str(row.partition) for row in halted)} is halted"
            raise NotReady(public_text, "; ".join(f"partition {row.partition} is halted: {row.halted}" for row in halted))

    async def _spans(self, symbol: str, start_ms: int, end_ms: int) -> list[Span]:
        """Returns the runs of entries that may have a time in a span, in order and disjoint."""
        spans: list[Span] = []
        for first, last in await self._fetch("entry_spans", symbol, start_ms - start_ms % HOUR_MS, end_ms):
            if spans and first <= spans[-1].last + 1:
                spans[-1] = Span(spans[-1].first, max(spans[-1].last, last))
            else:
                spans.append(Span(first, last))
        return spans

    async def _named(self, name: str | None) -> list[str] | None:
        return None if name is None else [await ledger_key(self._pool, name)]

    async def _fetch(self, block: str, *parameters: Any) -> list[asyncpg.Record]:
        return await fetch(self._pool, block, *parameters)


def entry_row_from(row: Row) -> EntryRow:
    """Builds the entry from an archived row."""
    return EntryRow(*(row[name] for name in EntryRow._fields))


_COPIED = tuple(name for name in FundRow._fields if name not in {"contract", "guard"})


def fund_row_from(row: asyncpg.Record) -> FundRow:
    """Builds the fund from a row of `funds`."""
    return FundRow(contract_from(row), guard=saved_guard_from(row), **{name: row[name] for name in _COPIED})


async def ledger_key(pool: Pool, name: str) -> str:
    """Returns the ledger key of a public name, which no contract may have; raises StoreFault."""
    generation = named_generation(name)
    if generation is not None:
        return generation.key
    rows = await fetch(pool, "ledger_key", name)
    return str(rows[0]["symbol"]) if rows else name


async def fetch(pool: Pool, block: str, *parameters: Any) -> list[asyncpg.Record]:
    """Returns the rows of a statement; raises StoreFault if the database is unreachable, CellAway if it is one of several."""
    if isinstance(pool, Cells):
        return await routed(pool, block, parameters, fetch_in_cell)
    return await fetch_in_cell(pool, block, *parameters)


async def fetch_in_cell(pool: CellPool, block: str, *parameters: Any) -> list[asyncpg.Record]:
    """Returns the rows of a statement from one database; raises StoreFault if it is unreachable."""
    async with reading(pool) as connection:
        return await connection.fetch(SQL[block], *parameters)


@asynccontextmanager
async def reading(pool: CellPool) -> AsyncIterator[PoolConnectionProxy]:
    """Acquires a connection of a pool for at most READ_SECONDS_MAX; raises StoreFault.

    After a longer read the pool replaces its connections. They may be half-open too, and each would cost another long read.
    """
    with faults():
        try:
            async with asyncio.timeout(READ_SECONDS_MAX), acquired(pool) as connection:
                yield connection
        except TimeoutError:
            await pool.expire_connections()
            raise


def _overlaps(spans: Iterable[Span], wanted: Span) -> Iterable[Span]:
    """Returns the non-empty overlaps of spans with the wanted span."""
    overlaps = (Span(max(first, wanted.first), min(last, wanted.last)) for first, last in spans)
    return (overlap for overlap in overlaps if overlap.first <= overlap.last)
