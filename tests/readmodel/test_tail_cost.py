"""The tail's statements read what moved, however many contracts the ledger has."""

from contextlib import asynccontextmanager

import pytest
from explaining import explained
from ledgers import fill, listing, owned

from fundsvc.core.events import Rejection
from fundsvc.store.database import acquired, open_pool
from fundsvc.store.tail_queries import (
    EVERY_COMMIT,
    MOVES_MAX,
    changed_orders,
    fund_versions,
    offsets,
    open_orders,
    orders_after,
    versioned_funds,
)

CONTRACTS = 3_000
MANY = 101
"""More funds than `moves` names for one commit."""


@pytest.fixture
def reads(monkeypatch):
    with explained(monkeypatch) as found:
        yield found


def symbol(number):
    return f"C{number:04d}USDTM"


@asynccontextmanager
async def listed(config, contracts):
    """Provides the owner of a ledger with contracts, and a connection to it."""
    async with owned(config) as owner, open_pool(config.database.dsn, 1) as pool, acquired(pool) as connection:
        await owner.settle(listing(symbol(number)) for number in range(contracts))
        yield owner, connection


async def moved(connection, work):
    """Awaits `work`; returns the commits that it made."""
    before = (await offsets(connection)).settled[0]
    await work
    return before.commits_until((await offsets(connection)).settled[0])


@pytest.mark.parametrize("analyzed", [False, True], ids=["without statistics", "with statistics"])
async def test_look_reads_the_moved_fund_of_many(config, owner_connection, reads, analyzed):
    async with listed(config, CONTRACTS) as (owner, connection):
        if analyzed:
            await owner_connection.execute("ANALYZE")
        commits = await moved(connection, owner.settle([fill(symbol(1234), 1, 5)]))
        reads.clear()
        versions = await fund_versions(connection, {0: commits})
        assert [(key, version.entry) for key, version in versions.items()] == [(symbol(1234), 1)]
        assert (reads.rows["funds"], reads.rows["contracts"]) == (1, 1)
        found = await versioned_funds(connection, list(versions))
        assert list(found) == [symbol(1234)]
        assert (reads.rows["funds"], reads.rows["contracts"]) == (2, 2)
        assert reads.rows["moves"] <= MOVES_MAX, "a small ring may be scanned"
        assert not reads.scanned & {"funds", "contracts"}


async def test_fund_that_several_commits_moved_is_read_once(config, reads):
    async with listed(config, 10) as (owner, connection):

        async def settle():
            for seq in range(1, 6):
                await owner.settle([fill(symbol(3), seq, 5), fill(symbol(seq + 3), seq, 5)])

        commits = await moved(connection, settle())
        reads.clear()
        versions = await fund_versions(connection, {0: commits})
        assert {key: version.entry for key, version in versions.items()} == {
            symbol(3): 5,
            **{symbol(n): 1 for n in range(4, 9)},
        }
        assert reads.rows["funds"] == len(versions)


async def test_commit_without_funds_reads_none(config, reads):
    async with listed(config, 10) as (owner, connection):
        commits = await moved(connection, owner.settle([]))
        reads.clear()
        assert await fund_versions(connection, {0: commits}) == {}
        assert reads.rows["funds"] == 0


async def test_all_moved_funds_are_found_where_the_ring_does_not_name_them(config, owner_connection):
    async with listed(config, 2 * MANY) as (owner, connection):

        async def found(commits):
            return {key: version.entry for key, version in (await fund_versions(connection, {0: commits})).items()}

        every = {symbol(number): 1 for number in range(MANY)}
        many = await moved(connection, owner.settle([fill(key, 1, 5) for key in every]))
        assert await found(many) == every, "too many for one commit"
        few = await moved(connection, owner.settle([fill(symbol(7), 2, 5)]))
        assert await found(few) == {symbol(7): 2}
        await owner_connection.execute("DELETE FROM moves WHERE commit = $1", few[-1])
        assert await found(few) == {symbol(7): 2}, "an engine of an earlier version did not write it"
        assert await found(range(many[0], few[-1] + 1)) == {**every, symbol(7): 2}
        assert len(await found(EVERY_COMMIT)) == 2 * MANY

        async def settle():
            for seq in range(3, 4 + MOVES_MAX):
                await owner.settle([fill(symbol(9 if seq == 3 else 8), seq, 5)])

        long = await moved(connection, settle())
        assert len(long) > MOVES_MAX
        assert await found(long) == {symbol(8): 1 + MOVES_MAX, symbol(9): 2}, "the ring has lost the first commit"


async def test_suspended_contract_counts_as_moved(config):
    async with listed(config, 10) as (owner, connection):
        await owner.settle([fill(symbol(4), 1, 5)])
        with pytest.raises(Rejection):
            owner.partition.apply(listing(symbol(4), multiplier=7))
        commits = await moved(connection, owner.settle([]))
        assert list(await fund_versions(connection, {0: commits})) == [symbol(4)]


ORDERS = """
    INSERT INTO adl_orders (symbol, adl, cause, reduce, lots, price, deficit, deficit_lots, uncovered, recovered, executed,
                            state, round, ts, seq, account, acknowledged, round_ms, policy_version, origin, unwound)
    SELECT symbol, n, n, 'long', 1, 1, 1, 1, 1, 0, 0, CASE n WHEN 20 THEN 'open' ELSE 'uncovered' END,
           1, 1, 1, '', true, 1, 1, 'shortfall', 0
    FROM contracts, generate_series(1, 20) n
"""


@pytest.mark.parametrize("statistics", ["SELECT", "ANALYZE adl_orders"])
async def test_orders_are_found_without_reading_others(config, owner_connection, reads, statistics):
    async with listed(config, 100) as (_, connection):
        await owner_connection.execute(ORDERS)
        await owner_connection.execute(statistics)
        reads.clear()
        key = symbol(50)
        (open_order,) = await open_orders(connection, [key])
        assert (open_order.symbol, open_order.adl) == (key, 20)
        assert reads.rows["adl_orders"] <= 20
        reads.rows.clear()
        assert [order.adl for order in await orders_after(connection, {key: 18})] == [19, 20]
        assert reads.rows["adl_orders"] == 2
        reads.rows.clear()
        assert await changed_orders(connection, [open_order]) == []
        assert reads.rows["adl_orders"] == 1
