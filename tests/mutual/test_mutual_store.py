"""Pools in the database: what is stored is what was in memory, whatever the batches, and only the owner writes."""

import json
import random
from contextlib import suppress
from pathlib import Path

import asyncpg
import msgspec
import pytest
from conftest import with_section
from owners import POOL, load, owned_pool
from stored_rows import stored_accounts, stored_policies

from fundsvc.cli.tools.vectors import snake_case
from fundsvc.core.events import Reason, Rejected, Rejection
from fundsvc.mutual.codec import decode
from fundsvc.mutual.core.events import Enable, TopUp, Transfer
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import PoolRow, State
from fundsvc.mutual.core.terms import Terms
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.mutual.store.rows import Applied
from fundsvc.mutual.store.writer import open_pool_writer
from fundsvc.store.database import StoreRefusal, open_pool
from fundsvc.store.leases import open_leases
from fundsvc.store.writer import OwnershipLost, Stray

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "mutual").glob("*.json"))
TS = 1_700_000_000_000


def read(path):
    """The rules of a vector and its events."""
    vector = json.loads(path.read_bytes())
    terms = msgspec.convert({snake_case(key): value for key, value in vector["pool"].items()}, Terms)
    events = [decode("json", msgspec.json.encode({"pool": POOL} | event))[0] for event in vector["events"]]
    return terms.rules(), events


def apply(pool, event):
    with suppress(Rejection):
        pool.apply(event)


@pytest.fixture
async def database(config):
    async with open_pool(config.database.dsn, 2) as pool:
        yield pool


@pytest.fixture
def reader(database):
    return MutualReader(database)


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
async def test_stored_pool_equals_that_in_memory_after_any_batches_and_loads(config, database, reader, path):
    rules, events = read(path)
    memory, dice = Pool(PoolRow(POOL), {1: rules}), random.Random(path.stem)
    async with owned_pool(config, rules) as owner:
        for event in events:
            apply(memory, event)
            apply(owner.pool, event)
            if dice.random() < 0.4:
                await owner.commit()
                await owner.load()
        await owner.commit()
        await owner.load()
    assert owner.pool.row() == memory.row()
    assert list(owner.pool.register.save_policies()) == list(memory.register.save_policies())
    assert owner.pool.identity_error() == 0
    batch = memory.take()
    stored = await reader.entries_after(POOL, 0, 1000)
    assert [row.entry for row in stored] == batch.entries
    assert [row.hash for row in stored] == batch.hashes
    assert await stored_accounts(database, POOL) == batch.accounts
    assert await stored_policies(database, POOL) == sorted(batch.policies)
    assert await reader.cycles(POOL, count=1000, forward=True) == batch.cycles
    state = await reader.pool(POOL)
    assert (state.row, state.rules, state.accounts) == (batch.pool, rules, len(batch.accounts))
    assert state.totals.live == sum(policy.state <= State.FROZEN for policy in batch.policies)


def funded(*accounts):
    for number, account in enumerate(accounts):
        yield Transfer(POOL, TS, 2 * number + 1, account, "10", f"t{number}")
        yield Enable(POOL, TS, 2 * number + 2, account)


async def test_reader_pages_statements_cycles_and_policies(config, reader):
    rules, events = read(next(path for path in VECTORS if path.stem == "frozen-and-thawed"))
    async with owned_pool(config, rules) as owner:
        for event in events:
            apply(owner.pool, event)
        batch = await owner.commit()
    account = batch.policies[0].account
    entries = [entry for entry in batch.entries if entry.account == account]
    pages, offset = [], None
    while page := await reader.statement(POOL, account, count=3, offset=offset):
        pages += [row.entry for row in page]
        offset = pages[-1].entry
    assert pages == entries[::-1]
    assert [row.entry for row in await reader.statement(POOL, account, count=99, forward=True)] == entries
    assert await reader.statement(POOL, "", count=9) == []
    last = batch.cycles[-1].cycle
    assert [row.cycle for row in await reader.cycles(POOL, count=2, offset=last)] == [last - 1, last - 2]
    mine = [policy for policy in batch.policies if policy.account == account]
    assert (await reader.policy_page(POOL, account, count=99)).policies == sorted(mine, reverse=True)
    state = await reader.account(POOL, account)
    assert state.live == [policy for policy in mine if policy.state <= State.FROZEN]
    assert state.account in batch.accounts
    assert await reader.account(POOL, "unknown") is None
    assert await reader.pools_of(account) == [POOL]
    payouts = await reader.payouts(state.pool)
    assert payouts.released == sum(cycle.budget - cycle.returned for cycle in batch.cycles[-30:])
    assert payouts.cycles == min(30, len(batch.cycles))


async def test_two_owners_cannot_both_write(config):
    async with owned_pool(config) as first:
        for event in funded("a"):
            first.pool.apply(event)
        await first.commit()
        async with open_leases(config.database.dsn, "owner", 30) as leases:
            await leases.release(0, first.epoch)
            await leases.leave()
        async with owned_pool(config, engine="second") as second:
            assert second.pool.row() == first.pool.row()
            first.pool.apply(TopUp(POOL, TS, 9, "5", "x"))
            with pytest.raises(OwnershipLost):
                await first.commit()
            async with open_pool_writer(config.database.dsn, "late", POOL, 0, first.epoch) as late:
                with pytest.raises(OwnershipLost):
                    await load(late, first.pool.rules)
            second.pool.apply(TopUp(POOL, TS, 9, "6", "x"))
            await second.commit()
            await second.load()
            assert second.pool.row().balance == 6_000_000


async def test_pool_that_moved_meanwhile_is_not_written(config):
    async with owned_pool(config) as owner, owned_pool(config) as same:
        owner.pool.apply(TopUp(POOL, TS, 1, "5", "x"))
        same.pool.apply(TopUp(POOL, TS, 1, "5", "x"))
        await owner.commit()
        with pytest.raises(OwnershipLost):
            await same.commit()


async def test_row_that_no_commit_wrote_halts_the_pool(config, owner_connection):
    async with owned_pool(config) as owner:
        await owner_connection.execute(
            "INSERT INTO mutual_entries SELECT 'USDT', 1, 1, 1, 0, 1, 1, 0, now(), 1, 'topUp', '', '', sha256('')"
        )
        owner.pool.apply(TopUp(POOL, TS, 1, "5", "x"))
        with pytest.raises(Stray, match="a row of mutual_entries already exists"):
            await owner.commit()
    with pytest.raises(Stray, match="entry 1 that no commit wrote"):
        async with owned_pool(config):
            pass


async def test_missing_row_of_a_changed_account_is_a_refusal(config, owner_connection):
    async with owned_pool(config) as owner:
        for event in funded("a"):
            owner.pool.apply(event)
        await owner.commit()
        await owner_connection.execute("DELETE FROM mutual_accounts")
        owner.pool.apply(Transfer(POOL, TS, 9, "a", "1", "x"))
        with pytest.raises(StoreRefusal, match="lacks 1 of 1 rows that commit_accounts changes"):
            await owner.commit()


async def test_pool_with_another_home_partition_is_not_loaded(config):
    async with owned_pool(config) as owner:
        pass
    async with open_leases(config.database.dsn, "owner", 30) as leases:
        epochs = await leases.keep()
    async with open_pool_writer(config.database.dsn, "owner", POOL, 3, epochs[0]) as writer:
        with pytest.raises(ValueError, match="has pool USDT at partition 0, its partition is 3"):
            await load(writer, owner.pool.rules)


async def test_rejected_events_are_open_until_they_or_their_sequence_are_applied(config, reader):
    def rejected(position, seq, reason=Reason.NOT_FUNDED):
        return Rejected("1-0", position, reason, "detail", "json", b"{}", (POOL, seq, bytes(32)) if seq else None)

    events = [rejected(0, 5), rejected(1, 6), rejected(2, 6), rejected(3, None), rejected(4, 5, Reason.CONFLICT)]
    async with owned_pool(config) as owner:
        owner.pool.draft.rejected += events
        await owner.commit()
        await owner.load()
        assert owner.open == {5, 6}
        assert [await owner.writer.is_open("1-0", position) for position in range(6)] == [True] * 4 + [False] * 2
        await owner.commit([Applied(None, None, 6, "2-0"), Applied("1-0", 3, None, "3-0")])
        await owner.load()
        assert owner.open == {5}
        assert [await owner.writer.is_open("1-0", position) for position in range(4)] == [True, False, False, False]
    kept = await reader.rejected(settled_too=True)
    assert [one.settled_by for one in kept] == [None, "2-0", "2-0", "3-0", None]
    (one,) = await reader.rejected(key=kept[1].key)
    assert (one.key, one.event_seq, one.reason) == ("USDT/1-0/1", 6, "not_funded")
    await reader.mark_sent(one)
    assert (await reader.rejected(key=one.key))[0].replayed_at
    assert len(await reader.rejected(reason="conflict")) == 1


@pytest.mark.parametrize("table", ["mutual_entries", "mutual_cycles", "mutual_terms"])
async def test_history_cannot_be_changed_even_by_the_owner_of_the_tables(config, owner_connection, table):
    rules, events = read(next(path for path in VECTORS if path.stem == "one-cycle"))
    async with owned_pool(config, rules) as owner:
        for event in events:
            apply(owner.pool, event)
        await owner.commit()
    for statement in (f"UPDATE {table} SET pool = 'x'", f"DELETE FROM {table}"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await owner_connection.execute(statement)


async def test_sealed_accounts_are_stored_with_their_commitments(config, reader):
    sealed = with_section(config, "ledger", secret=32 * "s")
    async with owned_pool(sealed) as owner:
        for event in funded("a"):
            owner.pool.apply(event)
        await owner.commit()
        assert await owner.writer.has_seals(1)
        assert not await owner.writer.has_seals(99)
    (row, *_) = await reader.entries_after(POOL, 0, 9)
    assert (row.entry.account, row.entry.seal != b"") == ("a", True)
