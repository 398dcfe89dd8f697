"""The HTTP side at a real replica of the ledger's database: it shows the age of its answers, and refuses stale ones."""

import asyncio
import time
from contextlib import asynccontextmanager

import msgspec
import pytest
from conftest import with_section
from eventually import eventually
from ledgers import fill, listing, owned
from live import BALANCE, serving
from replica import replica  # noqa: F401 - a fixture
from test_engine import running

from fundsvc.store.database import open_pool
from fundsvc.store.freshness import Behind, Freshness
from fundsvc.store.reader import fetch
from fundsvc.streams.client import open_client
from fundsvc.streams.producer import Producer

FUNDS = "/api/v1/insurance-fund"
FUND = f"{FUNDS}/AAA"
STALE_SECONDS = 2.0


@pytest.fixture
async def config(config, replica):  # noqa: F811
    """A service that reads from the replica."""
    await eventually(lambda: replica.has(config.database.dsn))
    config = with_section(config, "engine", lease_seconds=0.6)
    config = with_section(config, "http", stale_seconds_max=STALE_SECONDS, port=0)
    return with_section(config, "database", reader_dsn=replica.dsn(config.database.dsn))


@asynccontextmanager
async def world_of(config):
    """A service with a contract AAA, and a producer for it."""
    async with running(config), open_client(config.stream) as client:
        producer = Producer(client, 1)
        await producer.append([listing("AAA"), fill("AAA", 1, 5)])
        async with serving(config) as service:
            await service.until("AAA", 1)
            yield service, producer


async def get(service, path):
    async with service.http.get(path) as answer:
        return answer.status, answer.headers, await answer.json()


async def check(service, name):
    status, _, body = await get(service, "/readyz")
    (found,) = [one for one in body["checks"] if one["name"] == name]
    return status, found


async def is_refused(service):
    return (await get(service, FUND))[0] == 503


@pytest.mark.parametrize("how", ["paused", "replay", "receiver"])
async def test_delayed_replica_is_refused_as_stale(config, replica, how):  # noqa: F811
    async with world_of(config) as (service, producer):
        assert (await check(service, "replica"))[0] == 200
        before = (await service.data(FUND))["asOf"]
        assert abs(before - time.time() * 1000) < 3000
        async with service.connected() as client:
            await client.subscribe(f"{BALANCE}:AAA")
            assert (await client.data(f"{BALANCE}:AAA", "balance.change"))["balance"] == "5"
            async with replica.held_up(how):
                await producer.append([fill("AAA", 2, 7)])
                await eventually(lambda: is_refused(service))
                for path in (FUND, FUNDS, f"{FUNDS}/summary", f"{FUND}/at?ts={before + 3_600_000}", f"{FUND}/candles"):
                    status, headers, body = await get(service, path)
                    assert (status, body["code"]) == (503, "503000")
                    assert "behind the ledger, more than http.stale_seconds_max = 2" in body["msg"]
                    assert int(headers["Retry-After"]) >= 1
                status, found = await check(service, "replica")
                assert (status, found["ok"], found["needed"]) == (503, False, True)
                assert "behind the ledger" in found["error"]
                assert service.count("fundsvc_tail_heard_timestamp_seconds") < time.time() - STALE_SECONDS
                assert (await service.data(f"{FUND}/at?ts={before - 60_000}"))["balance"] == "5"
                history = await service.data(f"{FUND}/history")
                assert [row["entry"] for row in history["dataList"]] == [1]
                assert before - 2000 < history["asOf"] < time.time() * 1000 - STALE_SECONDS * 1000
            # No event arrived meanwhile, and none is lost.
            assert (await client.data(f"{BALANCE}:AAA", "balance.change"))["balance"] == "12"
        await service.until("AAA", 2)
        assert (await service.data(FUND))["asOf"] > before
        assert (await check(service, "replica"))[0] == 200


async def test_replica_is_read_while_no_engine_runs(config):
    async with world_of(config), open_pool(config.database.dsn, 1) as primary:
        # Without a heartbeat, the last replayed commit counts: the server's own maintenance moves that.
        await eventually(lambda: primary.fetchval("SELECT true FROM heartbeats"))
    async with serving(config) as service:
        await service.until("AAA", 1)
        deadline = time.monotonic() + 2 * STALE_SECONDS
        while time.monotonic() < deadline:
            assert (await get(service, FUND))[0] == 200
            await asyncio.sleep(0.05)
        assert (await check(service, "replica"))[0] == 200
        assert not (await check(service, "owners"))[1]["ok"]
        fund = await service.data(FUND)
        assert fund["asOf"] < time.time() * 1000 - STALE_SECONDS * 1000


async def test_replica_is_refused_only_while_behind_a_started_engine(config, replica):  # noqa: F811
    async with world_of(config):
        pass
    async with serving(config) as service, replica.held_up("paused"):
        await asyncio.sleep(STALE_SECONDS)
        assert (await get(service, FUND))[0] == 200
        async with running(config):
            await eventually(lambda: is_refused(service))


@pytest.mark.parametrize("how", ["paused", "replay"])
async def test_replica_without_reachable_primary_uses_its_received_wal(config, replica, how):  # noqa: F811
    async with owned(config) as owner, open_pool(config.database.reader_dsn, 2) as reader:
        await owner.settle([listing("AAA")])
        await eventually(lambda: replayed(reader))
        freshness = Freshness(reader, reader, STALE_SECONDS)
        now = time.time_ns() // 1_000_000
        freshness.observe(now, now - 60_000)
        with pytest.raises(Behind, match=r"60\.\d s behind"):
            freshness.check()
        await freshness.refresh()
        freshness.check()
        assert freshness.age_seconds == 0
        async with replica.held_up(how):
            await owner.settle([listing("BBB")])

            async def is_behind():
                await freshness.refresh()
                return freshness.age_seconds > 60

            await eventually(is_behind)


async def test_heartbeats_stay_within_their_page(config, service_connection):
    async with open_pool(config.database.dsn, 1) as pool:
        for _ in range(500):
            await fetch(pool, "heartbeat", [0])
    pages = "SELECT pg_relation_size('heartbeats') / current_setting('block_size')::int"
    assert await service_connection.fetchval(pages) == 1


async def replayed(reader):
    return await fetch(reader, "contracts", None)


async def test_primary_is_never_behind(config):
    primary = msgspec.structs.replace(config, database=msgspec.structs.replace(config.database, reader_dsn=""))
    async with owned(primary) as owner, serving(primary) as service:
        await owner.settle([listing("AAA"), fill("AAA", 1, 5)])
        await service.until("AAA", 1)
        await asyncio.sleep(1.5 * STALE_SECONDS)
        fund = await service.data(FUND)
        assert abs(fund["asOf"] - time.time() * 1000) < 2000
        assert (await check(service, "replica"))[0] == 200
