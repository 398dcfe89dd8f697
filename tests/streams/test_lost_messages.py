"""Messages that leave a stream before they are settled are detected, and the runbook's procedure recovers them in order."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from conftest import with_section
from escalations import LISTING, SYMBOL, TS
from eventually import eventually
from ledgers import fill
from test_ingest import world_of
from tokens import bearer

from fundsvc.streams.client import stream_key
from fundsvc.wire.codec import encode

KEY = stream_key(0)
FILLS = 1500


@pytest.fixture
def config(config):
    return with_section(config, "engine", lease_seconds=0.6)


def body(seq):
    return {"json": encode([fill(SYMBOL, seq, 1, TS + seq)])}


async def trimmed_by_the_sender(world, connection):
    """An engine that is blocked, and a producer that trims the stream to a few messages."""
    async with paused(connection):
        await send(world, range(11, FILLS + 1), maxlen=1000, approximate=False)


async def deleted(world, connection):
    async with paused(connection):
        ids = await send(world, range(11, FILLS + 1))
        await world.client.xdel(KEY, *ids[-500:-300])


async def the_last_deleted(world, connection):
    async with paused(connection):
        ids = await send(world, range(11, FILLS + 1))
        await world.client.xdel(KEY, *ids[-100:])


async def trimmed(world, connection):
    async with paused(connection):
        ids = await send(world, range(11, FILLS + 1))
        await world.client.xtrim(KEY, minid=ids[-2], approximate=False)


@asynccontextmanager
async def paused(connection):
    """Blocks commits, so that the engine reads no more than a batch."""
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("LOCK TABLE entries IN SHARE MODE")
    yield
    await asyncio.sleep(0.06)
    await transaction.rollback()


async def send(world, seqs, **options):
    async with world.client.pipeline(transaction=True) as pipeline:
        for seq in seqs:
            pipeline.xadd(KEY, body(seq), **options)
        return await pipeline.execute()


async def count(world, what="entries"):
    return await world.pool.fetchval(f"SELECT count(*) FROM {what}")


@pytest.mark.parametrize("lose", [trimmed_by_the_sender, deleted, the_last_deleted, trimmed])
async def test_removed_unsettled_messages_are_detected_and_recovered_from_the_cursor(config, owner_connection, lose):
    # The engine holds one batch of ten in memory, and reads ten messages ahead at most.
    async with world_of(with_section(config, "engine", batch_fills_max=10)) as world:
        await world.data(encode([LISTING, *(fill(SYMBOL, seq, 1, TS + seq) for seq in range(1, 11))]))
        await eventually(lambda: has(world, 10))
        await lose(world, owner_connection)
        halted = await eventually(lambda: world.pool.fetchval("SELECT halted FROM partitions WHERE halted <> ''"))
        assert "DEL" in halted
        assert "acknowledge-gap 0" in halted
        settled = await count(world)
        seqs = [row["seq"] for row in await world.pool.fetch("SELECT seq FROM entries ORDER BY entry")]
        assert seqs == list(range(1, settled + 1)), "nothing behind the gap"
        cursor = await world.cursor()
        assert [row["seq"] for row in cursor["contracts"]] == [settled]

        await world.client.delete(KEY)
        await send(world, range(settled + 1, FILLS + 1))
        await eventually(lambda: has(world, FILLS), 30)
        seqs = [row["seq"] for row in await world.pool.fetch("SELECT seq FROM entries ORDER BY entry")]
        assert seqs == list(range(1, FILLS + 1))
        assert await count(world, "rejected") == 0
        await eventually(lambda: world.pool.fetchval("SELECT halted = '' FROM partitions"))


async def has(world, number):
    return await count(world) == number


@pytest.mark.parametrize("more", [5, 50], ids=["shorter than before", "longer than before"])
async def test_stream_created_again_with_later_ids_is_detected(config, owner_connection, more):
    async with world_of(config) as world:
        await world.data(encode([LISTING]))
        await send(world, range(1, 21))
        await eventually(lambda: has(world, 20))
        last = (await world.client.xinfo_stream(KEY))["last-generated-id"]
        ahead = int(last.split(b"-")[0]) + 1000
        # In one transaction: the engine never reads the deleted stream.
        async with world.client.pipeline(transaction=True) as pipeline:
            pipeline.xadd(KEY, body(21))
            pipeline.delete(KEY)
            for seq in range(22, 22 + more):
                pipeline.xadd(KEY, body(seq), id=f"{ahead + seq}-0")
            await pipeline.execute()
        await eventually(world.regressions)


async def test_trimmed_settled_messages_are_no_gap(config):
    async with world_of(config) as world:
        await world.data(encode([LISTING]))
        for first in range(1, 101, 20):
            await send(world, range(first, first + 20))
            await eventually(lambda first=first: has(world, first + 19))
            await world.settled()
            await world.client.xtrim(KEY, maxlen=0 if first % 40 == 1 else 3, approximate=False)
        assert await world.pool.fetchval("SELECT count(*) FROM stream_gaps") == 0
        assert world.regressions() == 0


async def test_http_producers_are_sent_to_the_cursor_after_the_stream_is_deleted(config, owner_connection):
    async with world_of(with_section(config, "engine", batch_fills_max=10)) as world:
        await world.data(encode([LISTING, fill(SYMBOL, 1, 1, TS)]))
        await eventually(lambda: has(world, 1))
        async with paused(owner_connection):
            await world.data(encode([fill(SYMBOL, 2, 1, TS)]))
            await world.client.xtrim(KEY, maxlen=0, approximate=False)
            await world.client.delete(KEY)
        assert (await world.post(encode([fill(SYMBOL, 3, 1, TS)])))[0] == 409
        async with world.http.get("/api/v1/ingest/cursor", headers=bearer("engine")) as answer:
            (contract,) = (await answer.json())["data"]["contracts"]
        await world.data(encode([fill(SYMBOL, seq, 1, TS) for seq in range(contract["seq"] + 1, 4)]))
        await eventually(lambda: has(world, 3))
