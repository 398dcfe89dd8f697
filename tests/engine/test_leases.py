import asyncio
from contextlib import AsyncExitStack

import pytest
from eventually import eventually
from ledgers import fill, listing

from fundsvc.core.batch import Offset
from fundsvc.core.partition import Partition
from fundsvc.store.database import StoreFault, connect, faults
from fundsvc.store.leases import open_leases
from fundsvc.store.rows import COLUMNS
from fundsvc.store.writer import OwnershipLost, open_writer, session_name

LONG_SECONDS = 60.0
SHORT_SECONDS = 0.5


@pytest.fixture
def partitions():
    return 4


@pytest.fixture
async def join(config):
    """Returns a function with which an engine joins, with leases of `seconds`."""
    async with AsyncExitStack() as stack:

        async def join(name, seconds=LONG_SECONDS):
            return await stack.enter_async_context(open_leases(config.database.dsn, name, seconds))

        yield join


async def settle(engines):
    """Returns the partitions of each engine after all released what exceeds their share and claimed what was free."""
    held = {}
    for _ in range(3):
        for engine in engines:
            epochs = await engine.keep()
            for partition in sorted(epochs)[await engine.share() :]:
                await engine.release(partition, epochs.pop(partition))
            held[engine] = epochs
    return [held[engine] for engine in engines]


async def test_partitions_are_shared_evenly_as_engines_join_and_leave(join):
    engines = []
    for name, expected in (("a", [4]), ("b", [2, 2]), ("c", [2, 1, 1]), ("d", [1] * 4), ("e", [1, 1, 1, 1, 0])):
        engines.append(await join(name))
        held = await settle(engines)
        assert [len(epochs) for epochs in held] == expected
        assert sorted(partition for epochs in held for partition in epochs) == [0, 1, 2, 3]
    for epochs in (await settle(engines))[:2]:
        for partition, epoch in epochs.items():
            await engines[0].release(partition, epoch)
    for engine in engines[:2]:
        await engine.leave()
    assert [len(epochs) for epochs in await settle(engines[2:])] == [2, 1, 1]


async def test_joining_engine_moves_as_few_partitions_as_possible(join):
    engines = [await join(name) for name in ("z", "y")]
    before = await settle(engines)
    engines.append(await join("a"))
    after = await settle(engines)
    assert after[0] == before[0]
    assert after[1].items() < before[1].items()


async def test_renewed_lease_keeps_its_epoch(join):
    engine = await join("a")
    first = await engine.keep()
    assert await engine.keep() == first == dict.fromkeys(range(4), 1)


async def test_expired_lease_is_taken_over_with_a_higher_epoch(join):
    dead, heir = await join("dead", SHORT_SECONDS), await join("heir", SHORT_SECONDS)
    before = await dead.keep()
    assert await heir.keep() == {}
    after = await eventually(lambda: all_four(heir))
    assert all(after[partition] > epoch for partition, epoch in before.items())
    assert await dead.keep() == {}


async def all_four(engine):
    epochs = await engine.keep()
    return epochs if len(epochs) == 4 else None


async def test_expired_lease_can_be_renewed_before_a_takeover(join, service_connection):
    engine = await join("a", SHORT_SECONDS)
    before = await engine.keep()
    expired = "SELECT bool_and(lease_until < clock_timestamp()) FROM partitions"
    await eventually(lambda: service_connection.fetchval(expired))
    assert await engine.keep() == before


async def test_released_partition_is_free_at_once_and_fenced_by_its_epoch(join, owner_connection):
    old, new = await join("old"), await join("new")
    epochs = await old.keep()
    await old.release(3, epochs[3] - 1)
    assert await new.keep() == {}
    await old.release(3, epochs[3])
    assert await new.keep() == {3: epochs[3] + 1}
    await old.release(3, epochs[3])
    assert await owner_connection.fetchval("SELECT owner FROM partitions WHERE partition = 3") == "new"


async def test_engine_that_left_has_no_share(join):
    engines = [await join(name) for name in "ab"]
    await settle(engines)
    assert await engines[0].share() == 2
    await engines[1].leave()
    assert await engines[0].share() == 4


async def test_claim_ends_the_open_transaction_of_the_previous_owner(config, join, service_connection):
    """The stopped owner is in the middle of a COPY, whose rows would block those of the new owner."""
    dead, heir = await join("dead", SHORT_SECONDS), await join("heir", SHORT_SECONDS)
    await dead.keep()
    batch = batch_of(listing("AAA"), fill("AAA", 1, 5))
    asleep = asyncio.Event()

    async def endless():
        asleep.set()
        yield b"PGCOPY\n\xff\r\n\0" + bytes(8)
        await asyncio.Event().wait()

    async with connect(config.database.dsn, session_name("dead")) as connection:
        await connection.execute("BEGIN")
        await connection.execute("UPDATE partitions SET messages = 99 WHERE partition = 1")
        copy = asyncio.create_task(connection.copy_to_table("entries", source=endless(), columns=COLUMNS, format="binary"))
        await asleep.wait()
        taken = await eventually(lambda: at_least_one(heir))
        assert 1 not in taken, "it was locked when the others were claimed"
        after = await eventually(lambda: all_four(heir), 5)
        with pytest.raises(StoreFault), faults():
            await connection.execute("COMMIT")
        copy.cancel()
        await asyncio.wait([copy])
    async with open_writer(config.database.dsn, "heir", 0, after[0]) as writer:
        await asyncio.wait_for(writer.commit(batch, Offset("0-0", 0), Offset("1-0", 1)), 5)
    assert await service_connection.fetchval("SELECT messages FROM partitions WHERE partition = 1") == 0


async def at_least_one(engine):
    return await engine.keep()


def batch_of(*events):
    partition = Partition(0, 1, [], {"USDT": 8}, 10)
    for event in events:
        partition.apply(event)
    return partition.take()


async def test_resumed_stale_owner_can_write_nothing(config, join, service_connection):
    dead, heir = await join("dead", SHORT_SECONDS), await join("heir", SHORT_SECONDS)
    epochs = await dead.keep()
    await eventually(lambda: all_four(heir))
    async with open_writer(config.database.dsn, "dead", 0, epochs[0]) as writer:
        with pytest.raises(OwnershipLost):
            await writer.commit(batch_of(listing("AAA")), Offset("0-0", 0), Offset("1-0", 1))
    assert await service_connection.fetchval("SELECT count(*) FROM contracts") == 0


async def test_claim_leaves_sessions_of_other_engines_alone(config, join, service_connection):
    dead, heir = await join("dead", SHORT_SECONDS), await join("heir", SHORT_SECONDS)
    await dead.keep()
    async with open_writer(config.database.dsn, "other", 0, 0) as other, open_writer(config.database.dsn, "dead", 0, 0) as own:
        await eventually(lambda: all_four(heir))
        with pytest.raises(OwnershipLost):
            await other.load()
        with pytest.raises(StoreFault):
            await own.load()
    assert await service_connection.fetchval("SELECT 1") == 1


async def test_server_silent_for_a_lease_is_a_fault(join, owner_connection):
    engine = await join("a", SHORT_SECONDS)
    async with owner_connection.transaction():
        await owner_connection.execute("LOCK TABLE partitions")
        with pytest.raises(StoreFault):
            await asyncio.wait_for(engine.keep(), 5)


async def test_concurrent_claims_never_get_the_same_partition(join):
    engines = [await join(name) for name in "abcd"]
    held = await asyncio.gather(*(engine.keep() for engine in engines))
    partitions = [partition for epochs in held for partition in epochs]
    assert len(set(partitions)) == len(partitions)
    assert sorted(partition for epochs in await settle(engines) for partition in epochs) == [0, 1, 2, 3]


async def test_lost_privileges_are_a_fault(join, owner_connection):
    engine = await join("a")
    await owner_connection.execute("REVOKE UPDATE ON partitions FROM fundsvc_service")
    with pytest.raises(StoreFault, match="InsufficientPrivilege"):
        await engine.keep()
    await owner_connection.execute("GRANT UPDATE ON partitions TO fundsvc_service")


async def test_partition_without_progress_is_neither_renewed_nor_claimed(join):
    wedged, heir = await join("wedged", SHORT_SECONDS), await join("heir", SHORT_SECONDS)
    before = await wedged.keep()
    await eventually(lambda: takes(wedged, heir, 2))
    assert set(await wedged.keep(stalled=[2])) <= before.keys() - {2}


SET_BACK = "UPDATE partitions SET lease_until = lease_until + interval '1 hour'"
GHOST = "UPDATE engines SET seen_at = seen_at + interval '1 hour'"


async def test_leases_of_dead_engines_expire_although_the_clock_was_set_back(join, owner_connection):
    """Simulates an owner that died while the clock was an hour ahead."""
    dead, heir = await join("dead", SHORT_SECONDS), await join("heir", SHORT_SECONDS)
    before = await dead.keep()
    await owner_connection.execute(SET_BACK)
    await owner_connection.execute(GHOST)
    after = await eventually(lambda: all_four(heir))
    assert all(after[partition] > epoch for partition, epoch in before.items())
    assert await dead.keep() == {}


async def test_leases_of_live_engines_survive_a_clock_that_was_set_back(join, owner_connection):
    owner, other = await join("owner", SHORT_SECONDS), await join("other", SHORT_SECONDS)
    epochs = await owner.keep()
    await owner_connection.execute(SET_BACK)
    ends = asyncio.get_running_loop().time() + 4 * SHORT_SECONDS
    while asyncio.get_running_loop().time() < ends:
        assert await other.keep() == {}
        assert await owner.keep() == epochs
        await asyncio.sleep(SHORT_SECONDS / 10)


async def test_lease_is_observed_for_its_own_duration(join):
    owner, other = await join("owner"), await join("other", SHORT_SECONDS)
    await owner.keep()
    ends = asyncio.get_running_loop().time() + 4 * SHORT_SECONDS
    while asyncio.get_running_loop().time() < ends:
        assert await other.keep() == {}
        await asyncio.sleep(SHORT_SECONDS / 4)


async def test_failing_partition_is_left_to_another_engine_if_there_is_one(join):
    failing = await join("failing", SHORT_SECONDS)
    before = await failing.keep()
    await asyncio.sleep(2 * SHORT_SECONDS)
    assert await failing.keep(failing=[2]) == before, "no other engine could acquire it"
    heir = await join("heir", SHORT_SECONDS)

    async def is_taken():
        await failing.keep(failing=[2])
        return 2 in await heir.keep()

    await eventually(is_taken)


async def takes(wedged, heir, partition):
    await wedged.keep(stalled=[partition])
    return partition in await heir.keep()
