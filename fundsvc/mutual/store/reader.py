"""Reads pools, accounts, policies, cycles, entries and rejected events of the mutual through a connection pool.

Money is in atoms, times are in ms. `standing` of the core computes what a policy has accrued, from rows of one snapshot.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.numbers import INT64_MAX
from fundsvc.mutual.core.chain import Entry
from fundsvc.mutual.core.rows import AccountRow, CycleRow, PolicyRow, PoolRow
from fundsvc.mutual.core.terms import PPM, Rules
from fundsvc.mutual.store.rows import (
    TermsRow,
    Totals,
    account_from,
    cycle_from,
    policy_from,
    pool_row_from,
    rules_from,
    terms_from,
)
from fundsvc.mutual.store.writer import SQL
from fundsvc.store.database import CellPool, snapshot
from fundsvc.store.reader import reading
from fundsvc.wire.codec import Codec

RATIO_CYCLES = 30
"""The cut-offs of which the payout ratio is shown."""

LIVE_SHOWN_MAX = 10_000
"""The largest `live_max`: all live policies of an account are read at once."""


class PoolState(NamedTuple):
    """A pool as of its last commit: its row, the terms in force, and the state of its stream.

    `is_owned` is True if a live engine owns its home partition. `halted` is the reason why it does not settle, or "".
    """

    row: PoolRow
    rules: Rules
    totals: Totals
    accounts: int
    home: int
    last_id: str
    halted: str
    is_owned: bool
    updated_at: datetime

    @property
    def available(self) -> int:
        """What a cut-off could release of, in atoms; may be negative (rule 5d)."""
        return self.row.balance - self.rules.reserve_floor

    @property
    def health(self) -> int | None:
        """`available / caps_left` in ppm, rounded down; None without active policies that can still accrue."""
        return self.available * PPM // self.totals.caps_left if self.totals.caps_left > 0 else None

    @property
    def release_rate(self) -> int:
        """The release rate (ppm) that a cut-off would have now; 0 if it would release nothing."""
        available, caps_left = self.available, self.totals.caps_left
        return self.rules.release_rate(available, caps_left) if available > 0 and caps_left > 0 else 0


class AccountState(NamedTuple):
    """An account of a pool, its live policies by number, and the pool, all of one commit."""

    pool: PoolState
    account: AccountRow
    live: Sequence[PolicyRow]


class Payouts(NamedTuple):
    """What the last `cycles` cut-offs of a pool released, and the faces of the policies issued in the same time, in atoms."""

    released: int
    faces: int
    cycles: int

    @property
    def ratio(self) -> float | None:
        """The share of its face that a policy was paid, as far as the time is typical; None without issued policies."""
        return self.released / self.faces if self.faces else None


class PoolView(NamedTuple):
    """A pool and what its last cut-offs released, of one snapshot."""

    state: PoolState
    payouts: Payouts


class PolicyPage(NamedTuple):
    """Policies of an account, live or ended, the newest first, with the account and the pool, all of one commit."""

    pool: PoolState
    account: AccountRow
    policies: Sequence[PolicyRow]


class EntryRow(NamedTuple):
    """A ledger entry with its hash. `entry.account` is for the account's owner and for risk only."""

    entry: Entry
    hash: bytes
    recorded_at: datetime


class KeptEvent(NamedTuple):
    """A rejected event of a pool's stream. `settled_by` is the message that applied it later, or None."""

    pool: str
    stream_id: str
    position: int
    reason: str
    detail: str
    codec: Codec | Literal[""]
    body: bytes
    event_seq: int | None
    rejected_at: datetime
    replayed_at: datetime | None
    settled_at: datetime | None
    settled_by: str | None

    @property
    def key(self) -> str:
        """The name for operators: pool/stream id/position."""
        return f"{self.pool}/{self.origin}"

    @property
    def origin(self) -> str:
        """The name in a replay, within the pool: stream id/position."""
        return f"{self.stream_id}/{self.position}"


class MutualReader:
    """Reads the mutual. Every method raises StoreFault if the database is unreachable."""

    def __init__(self, pool: CellPool) -> None:
        self._pool = pool

    async def pools(self) -> list[PoolState]:
        """Returns all pools by name."""
        return [pool_state_from(row) for row in await self._fetch("pools", None)]

    async def pool(self, name: str) -> PoolState | None:
        """Returns a pool, if it exists."""
        return next((pool_state_from(row) for row in await self._fetch("pools", name)), None)

    async def views(self, known: Mapping[str, PoolView]) -> dict[str, PoolView]:
        """Returns all pools by name with their payouts, of one snapshot.

        Copies the payouts from `known` for pools without a new cut-off.
        """
        async with reading(self._pool) as connection, snapshot(connection):
            states = [pool_state_from(row) for row in await connection.fetch(SQL["pools"], None)]
            return {state.row.pool: await _view(connection, state, known.get(state.row.pool)) for state in states}

    async def terms(self, pool: str) -> list[TermsRow]:
        """Returns all versions of the terms of a pool."""
        return [terms_from(row) for row in await self._fetch("load_terms", pool)]

    async def pools_of(self, account: str) -> list[str]:
        """Returns the names of the pools that have an account."""
        return [name for (name,) in await self._fetch("pools_of_account", account)]

    async def account(self, pool: str, account: str) -> AccountState | None:
        """Returns an account with its live policies and its pool, if the pool has it."""
        return next(iter(await self.accounts(account, pool)), None)

    async def accounts(self, account: str, pool: str | None = None) -> list[AccountState]:
        """Returns an account in all pools that have it, or in one of them, of one snapshot, by pool."""
        async with reading(self._pool) as connection, snapshot(connection):
            names = [name for (name,) in await connection.fetch(SQL["pools_of_account"], account)] if pool is None else [pool]
            found = {name: await _pool_and_account(connection, name, account) for name in names}
            return [AccountState(*both, await _live(connection, name, account)) for name, both in found.items() if both]

    async def policy_page(self, pool: str, account: str, *, count: int, before: int = INT64_MAX) -> PolicyPage | None:
        """Returns up to `count` policies of an account before a number, if the pool has the account."""
        async with reading(self._pool) as connection, snapshot(connection):
            found = await _pool_and_account(connection, pool, account)
            if found is None:
                return None
            policies = await connection.fetch(SQL["policies_descending"], pool, account, before, count)
        return PolicyPage(*found, [policy_from(row) for row in policies])

    async def changed_accounts(self, pool: str, accounts: Sequence[str], since: datetime) -> list[str]:
        """Returns those of these accounts of a pool that a commit changed after the commit at `since`."""
        return [name for (name,) in await self._fetch("changed_accounts", pool, accounts, since)]

    async def cycles(self, pool: str, *, count: int, offset: int | None = None, forward: bool = False) -> list[CycleRow]:
        """Returns up to `count` cut-offs: with `forward` ascending after number `offset`, else descending before it."""
        block = "cycles_ascending" if forward else "cycles_descending"
        return [cycle_from(row) for row in await self._fetch(block, pool, _offset(offset, forward=forward), count)]

    async def payouts(self, state: PoolState, cycles: int = RATIO_CYCLES) -> Payouts:
        """Returns what the last cut-offs of a pool released."""
        async with reading(self._pool) as connection:
            return await _payouts(connection, state, cycles)

    async def unfunded(self, pool: str) -> int:
        """Returns the number of unfunded accounts."""
        ((count,),) = await self._fetch("unfunded", pool)
        return int(count)

    async def statement(
        self, pool: str, account: str, *, count: int, offset: int | None = None, forward: bool = False
    ) -> list[EntryRow]:
        """Returns up to `count` entries of an account: with `forward` ascending after entry `offset`, else descending."""
        block = "statement_ascending" if forward else "statement_descending"
        return [entry_from(row) for row in await self._fetch(block, pool, account, _offset(offset, forward=forward), count)]

    # For exports: pages in ascending order.

    async def entries_after(self, pool: str, entry: int, count: int) -> list[EntryRow]:
        """Returns up to `count` entries of a pool after a number."""
        return [entry_from(row) for row in await self._fetch("entries_after", pool, entry, count)]

    # Rejected events.

    async def rejected(
        self,
        *,
        pool: str | None = None,
        reason: str | None = None,
        settled_too: bool = False,
        key: str | None = None,
        limit: int = 100,
    ) -> list[KeptEvent]:
        """Returns rejected events in stream order, by pool; `key` selects one.

        Raises ValueError if the key is not pool/stream id/position.
        """
        stream_id, position = None, None
        if key:
            pool, stream_id, position = _parts(key)
        rows = await self._fetch("rejected_list", pool, reason, settled_too or bool(key), stream_id, position, limit)
        return [KeptEvent(*row) for row in rows]

    async def mark_sent(self, event: KeptEvent) -> None:
        """Records that a rejected event was sent again."""
        await self._fetch("rejected_sent", event.pool, event.stream_id, event.position)

    async def _fetch(self, block: str, *parameters: Any) -> list[asyncpg.Record]:
        return await fetch(self._pool, block, *parameters)


async def fetch(pool: CellPool, block: str, *parameters: Any) -> list[asyncpg.Record]:
    """Returns the rows of a statement of the mutual; raises StoreFault if the database is unreachable."""
    async with reading(pool) as connection:
        return await connection.fetch(SQL[block], *parameters)


async def _view(connection: PoolConnectionProxy, state: PoolState, known: PoolView | None) -> PoolView:
    if known and known.state.row.cycle == state.row.cycle:
        return PoolView(state, known.payouts)
    return PoolView(state, await _payouts(connection, state, RATIO_CYCLES))


async def _payouts(connection: PoolConnectionProxy, state: PoolState, cycles: int) -> Payouts:
    ((released, faces, found),) = await connection.fetch(SQL["payouts"], state.row.pool, cycles, state.rules.cycle_ms)
    return Payouts(int(released), int(faces), found)


async def _pool_and_account(connection: PoolConnectionProxy, pool: str, account: str) -> tuple[PoolState, AccountRow] | None:
    found = await connection.fetchrow(SQL["account"], pool, account)
    if found is None:
        return None
    (state,) = await connection.fetch(SQL["pools"], pool)
    return pool_state_from(state), account_from(found)


async def _live(connection: PoolConnectionProxy, pool: str, account: str) -> list[PolicyRow]:
    return [policy_from(row) for row in await connection.fetch(SQL["live_policies"], pool, account, LIVE_SHOWN_MAX)]


def pool_state_from(row: asyncpg.Record) -> PoolState:
    """Builds a pool from a row of the statement `pools`."""
    totals = Totals(row["live"], row["active"], int(row["caps_left"]))
    return PoolState(
        pool_row_from(row),
        rules_from(row["rules"]),
        totals,
        row["accounts"],
        row["home"],
        row["last_id"],
        row["halted"],
        bool(row["live_owner"]),
        row["updated_at"],
    )


def entry_from(row: asyncpg.Record) -> EntryRow:
    """Builds an entry from a row with its fields, hash and time."""
    *fields, digest, recorded_at = row
    return EntryRow(Entry(*fields), digest, recorded_at)


def _offset(offset: int | None, *, forward: bool) -> int:
    if offset is None:
        return 0 if forward else INT64_MAX
    return offset


def _parts(key: str) -> tuple[str, str, int]:
    try:
        pool, stream_id, position = key.rsplit("/", 2)
        return pool, stream_id, int(position)
    except ValueError:
        raise ValueError(f"{key!r} is not pool/stream id/position") from None
