"""Recomputes the ledger of a pool in the database, part by part, and compares all stored rows with it.

A part is read in one short snapshot: entries after the last one followed, with the rows of the policies and cut-offs in them.
When a part reaches the last entry, it also has a page of accounts and policies, which are compared with the state at this
entry. So no snapshot stays open while a pass goes through all rows, and the engine may commit between two parts.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from asyncpg.pool import PoolConnectionProxy

from fundsvc.core.commitment import NO_SECRETS, Secrets
from fundsvc.mutual.core.rows import AccountRow, CycleRow, PolicyRow
from fundsvc.mutual.core.verification import Replay, Version
from fundsvc.mutual.store.reader import EntryRow, PoolState, entry_from, fetch, pool_state_from
from fundsvc.mutual.store.rows import Totals, account_from, cycle_from, policy_from, terms_from
from fundsvc.mutual.store.writer import SQL
from fundsvc.store.database import CellPool, snapshot
from fundsvc.store.reader import reading

PART_ENTRIES = 1000
"""Entries of one part: some tens of milliseconds of work."""

PAGE_ROWS = 1000
"""Accounts and policies of one part after the last entry."""

CHUNK_STEPS = 25
"""Entries or rows between two yields to the event loop: about a millisecond."""

DIFFERENCES_MAX = 20
"""Differences after which entries are no longer followed: one altered entry may affect all later ones."""

ENDS = {"expire", "cancel", "complete"}
"""The kinds of entries that end a policy."""


class PoolAudit(msgspec.Struct, rename="camel"):
    """The result for one pool: the number of recomputed entries, their head, and the differences.

    `unopened` counts commitments to accounts that could not be checked, because their secrets are not configured.
    """

    pool: str
    entries: int
    head: str
    differences: list[str]
    unopened: int = 0


class Part(NamedTuple):
    """The next entries of a pool with the rows that they are compared with, and the pool, all of one snapshot.

    `state` is None if the pool, or the terms in force, are missing. `accounts` and `policies` are the next page; they are empty
    unless the entries reach the last one.
    """

    state: PoolState | None
    terms: Mapping[int, Version]
    entries: Sequence[EntryRow]
    ended: Mapping[int, PolicyRow]
    cycles: Mapping[int, CycleRow]
    accounts: Sequence[AccountRow]
    policies: Sequence[PolicyRow]


class PoolWalk:
    """Follows the ledger of a pool from entry 1 and compares all its rows, with `step` until `ended`.

    After its end, `step` follows new entries and compares all rows again.
    """

    def __init__(self, pool: CellPool, name: str, secrets: Secrets = NO_SECRETS) -> None:
        self.ended = False
        self._pool = pool
        self._name = name
        self._secrets = secrets
        self._replay: Replay | None = None
        self._missing: list[str] = []
        self._account = self._policy = 0
        self._seen: set[str] = set()
        self._steps = 0

    @property
    def entry(self) -> int:
        """The number of the last entry followed."""
        return self._replay.entry if self._replay else 0

    @property
    def differences(self) -> list[str]:
        """All differences so far."""
        return self._missing + (self._replay.differences if self._replay else [])

    @property
    def differs_at(self) -> int | None:
        """The number of the first entry that differs; None if only other rows do."""
        return self._replay.differs_at if self._replay else None

    def result(self) -> PoolAudit:
        """Returns what the walk found so far."""
        head, unopened = (self._replay.head.hex(), self._replay.unopened) if self._replay else ("", 0)
        return PoolAudit(self._name, self.entry, head, self.differences, unopened)

    async def step(self) -> int:
        """Recomputes the next part; returns the number of its entries. Raises StoreFault."""
        self.ended = False
        try:
            part = await self._read()
        except msgspec.MsgspecError as error:
            return self._end_without(f"its terms are illegal: {error}")
        if part.state is None or 1 not in part.terms:
            return self._end_without("its state or its terms are missing")
        if self._replay is None:
            self._replay = Replay(self._name, part.terms, self._secrets)
        self._replay.learn(part.terms)
        await self._take(self._followed(self._replay, part, part.state.row.entry))
        if len(self.differences) >= DIFFERENCES_MAX:
            self.ended = True
        elif len(part.entries) <= PART_ENTRIES:
            await self._take(self._compared(self._replay, part, part.state))
        return min(len(part.entries), PART_ENTRIES)

    def _end_without(self, sentence: str) -> int:
        self._missing = [f"{self._name}: {sentence}"]
        self.ended = True
        return 0

    async def _read(self) -> Part:
        cycle = self._replay.register.cycle if self._replay else 0
        async with reading(self._pool) as connection, snapshot(connection):
            states = await connection.fetch(SQL["pools"], self._name)
            terms = [terms_from(row) for row in await connection.fetch(SQL["load_terms"], self._name)]
            found = await connection.fetch(SQL["entries_after"], self._name, self.entry, PART_ENTRIES + 1)
            entries = [entry_from(row) for row in found]
            numbers = [row.entry.policy for row in entries if row.entry.kind in ENDS]
            ended = await connection.fetch(SQL["policies_numbered"], self._name, numbers) if numbers else []
            count = sum(row.entry.kind == "cycle" for row in entries)
            cycles = await connection.fetch(SQL["cycles_ascending"], self._name, cycle, count + 1)
            is_last = len(entries) <= PART_ENTRIES
            accounts, policies = await self._page(connection) if is_last else ([], [])
        return Part(
            pool_state_from(states[0]) if states else None,
            {one.version: Version(one.rules, one.entry) for one in terms},
            entries,
            {row.policy: row for row in map(policy_from, ended)},
            {row.cycle: row for row in map(cycle_from, cycles)},
            accounts,
            policies,
        )

    async def _page(self, connection: PoolConnectionProxy) -> tuple[list[AccountRow], list[PolicyRow]]:
        accounts = await connection.fetch(SQL["load_accounts"], self._name, self._account, PAGE_ROWS)
        policies = await connection.fetch(SQL["policies_page"], self._name, self._policy, PAGE_ROWS)
        return list(map(account_from, accounts)), list(map(policy_from, policies))

    def _followed(self, replay: Replay, part: Part, last: int) -> Iterator[None]:
        """Follows the entries of a part; compares the cut-offs and the policies that ended in it."""
        for row in part.entries[:PART_ENTRIES]:
            if row.entry.entry > last:
                replay.differ(f"entry {row.entry.entry} is stored, but the last one is {last}")
                break
            if len(replay.differences) >= DIFFERENCES_MAX:
                break
            yield from replay.steps_of(row.entry, row.hash)
            yield
        recomputed = replay.recomputed()
        for cycle in recomputed.cycles:
            replay.compare_cycle(part.cycles.get(cycle.cycle), cycle)
            yield
        for policy in recomputed.ended:
            replay.compare_ended(part.ended.get(policy.policy), policy)
            yield

    def _compared(self, replay: Replay, part: Part, state: PoolState) -> Iterator[None]:
        """Compares the pool after its last entry, and a page of accounts and policies with the state there."""
        replay.compare_pool(state.row)
        active = replay.register.distribution
        wanted = Totals(len(replay.register.policies), len(active), active.caps_left)
        if state.totals != wanted:
            replay.differ(f"it has (live, active, caps_left) {tuple(state.totals)}, its entries give {tuple(wanted)}")
        for cycle in part.cycles:
            if cycle > state.row.cycle:
                replay.differ(f"cycle {cycle} is stored, but the last one is {state.row.cycle}")
        yield from self._compared_accounts(replay, part.accounts)
        yield from self._compared_policies(replay, part.policies)
        self.ended = len(part.accounts) < PAGE_ROWS and len(part.policies) < PAGE_ROWS
        if self.ended:
            yield from self._compared_whole(replay, state)

    def _compared_accounts(self, replay: Replay, accounts: Iterable[AccountRow]) -> Iterator[None]:
        for row in accounts:
            replay.compare_account(row)
            known = replay.register.accounts.get(row.account)
            self._seen.add(known.name if known else row.account)
            self._account += 1
            yield

    def _compared_policies(self, replay: Replay, policies: Iterable[PolicyRow]) -> Iterator[None]:
        for row in policies:
            if row.policy != self._policy + 1:
                replay.differ(f"policy {self._policy + 1} is not stored")
            self._policy = row.policy
            replay.compare_policy(row)
            yield

    def _compared_whole(self, replay: Replay, state: PoolState) -> Iterator[None]:
        """Checks that no row is missing, and begins again with the first ones."""
        if self._policy < state.row.policies:
            replay.differ(f"{state.row.policies} policies are issued, the last stored one is {self._policy}")
        if len(self._seen) != state.accounts:
            replay.differ(f"it has {state.accounts} accounts, {len(self._seen)} are stored")
        for account in replay.register.by_number:
            if account.name not in self._seen:
                replay.differ(f"account {account.name} is not stored")
            yield
        self._account = self._policy = 0
        self._seen.clear()

    async def _take(self, steps: Iterable[None]) -> None:
        """Takes all steps; yields to the event loop after each CHUNK_STEPS."""
        for _ in steps:
            self._steps += 1
            if self._steps % CHUNK_STEPS == 0:
                await asyncio.sleep(0)


async def audited_pools(pool: CellPool) -> list[tuple[str, int]]:
    """Returns the names of all pools and of entries without a pool, with the number of the last entry; raises StoreFault."""
    return [(name, entry) for name, entry in await fetch(pool, "audited_pools")]


async def last_entry(pool: CellPool, name: str) -> int | None:
    """Returns the number of the last entry of a pool, None if it does not exist; raises StoreFault."""
    found = await fetch(pool, "last_entry", name)
    return int(found[0]["entry"]) if found else None
