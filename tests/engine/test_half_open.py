"""Half-open connections: the service detects them, uses others, or leaves the partition to another engine."""

# ruff: noqa: F811 - fixtures of another module are parameters here

import asyncio
import time

import pytest
from conftest import with_section
from eventually import eventually
from ledgers import listing
from tcp_proxy import proxied
from test_engine import STOP_SECONDS_MAX, fills, ledger, producer, running, settled  # noqa: F401 - fixtures

from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.database import StoreFault, acquired, open_pool
from fundsvc.store.reader import fetch
from fundsvc.streams.client import stream_key

KEY = stream_key(0)

WAYS = [("questions",), ("answers",), ("questions", "answers")]


@pytest.fixture
async def proxies(servers: EmbeddedServers):
    """A proxy for PostgreSQL, and one for Valkey."""
    run = servers.directory / "run"
    async with proxied(str(run / ".s.PGSQL.5432")) as postgres, proxied(str(run / "valkey.sock")) as valkey:
        yield {"postgres": postgres, "valkey": valkey}


def through(config, proxies):
    """The configuration of an engine that reaches both servers through proxies."""
    database = config.database.dsn.partition("@/")[2].partition("?")[0]
    dsn = f"postgresql://fundsvc_service@127.0.0.1:{proxies['postgres'].port}/{database}"
    config = with_section(config, "database", dsn=dsn)
    user = config.stream.url.removeprefix("unix://").partition("@")[0]
    return with_section(config, "stream", url=f"redis://{user}@127.0.0.1:{proxies['valkey'].port}")


@pytest.mark.parametrize("ways", WAYS, ids="+".join)
@pytest.mark.parametrize(("part", "seconds"), [("postgres", 20.0), ("valkey", 9.0)])
async def test_half_open_connection_is_dropped_after_about_a_lease(config, proxies, producer, ledger, part, seconds, ways):
    async with running(through(config, proxies)) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        proxies[part].swallow_on_old_connections(*ways)
        started = time.monotonic()
        await producer.append(fills([2]))
        await settled(ledger, 2, 60)  # The query may have been sent before.
        await producer.append(fills([3]))
        await settled(ledger, 3, 60)
        assert time.monotonic() - started < seconds
        assert engine.count("fundsvc_faults_total") >= 1


async def test_half_open_pooled_connections_do_not_delay_settlement(config, proxies, producer, ledger):
    async with running(through(config, proxies)):
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        await asyncio.sleep(2)  # until each periodic task has a pooled connection
        proxies["postgres"].swallow_on_old_connections("questions", "answers")
        started = time.monotonic()
        await producer.append(fills([2]))
        await settled(ledger, 2, 60)
        assert time.monotonic() - started < 20.0


async def test_partition_moves_to_an_engine_that_reaches_its_stream(config, proxies, producer, ledger, monkeypatch):
    monkeypatch.setattr("fundsvc.engine.leases.FAILING_SECONDS", 5.0)
    async with running(through(config, proxies)) as cut_off:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        async with running(config) as other:
            proxies["valkey"].swallow("questions", "answers")
            await producer.append(fills([2]))
            await settled(ledger, 2, 40)
            assert other.count("fundsvc_partition_owned")
            assert not cut_off.count("fundsvc_partition_owned")


async def test_single_engine_keeps_a_failing_partition(config, proxies, producer, ledger, monkeypatch):
    monkeypatch.setattr("fundsvc.engine.leases.FAILING_SECONDS", 1.0)
    async with running(through(config, proxies)):
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        proxies["valkey"].swallow("questions", "answers")
        await asyncio.sleep(8)
        assert await ledger("SELECT (epoch, lease_until > clock_timestamp()) = (1, true) FROM partitions")
        proxies["valkey"].pass_on()
        await producer.append(fills([2]))
        await settled(ledger, 2, 20)
        assert await ledger("SELECT epoch FROM partitions") == 1


async def test_partition_that_waits_for_an_operator_is_not_released(config, client, producer, ledger, monkeypatch):
    monkeypatch.setattr("fundsvc.engine.leases.FAILING_SECONDS", 3.0)
    async with running(config) as first:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        async with running(config):
            await client.xadd(KEY, {"json": b"[]"}, id="9999999999999-1")
            await eventually(lambda: ledger("SELECT last_id = '9999999999999-1' FROM partitions"))
            async with client.pipeline(transaction=True) as pipeline:
                pipeline.xadd(KEY, {"json": b"[]"})
                pipeline.xtrim(KEY, maxlen=0, approximate=False)
                await pipeline.execute()
            await eventually(lambda: ledger("SELECT halted <> '' FROM partitions"))
            await asyncio.sleep(7)
            assert first.count("fundsvc_partition_owned")
            assert await ledger("SELECT epoch FROM partitions") == 1
            await client.delete(KEY)  # The engine also reads a stream from its empty start.
            await asyncio.sleep(7)
            assert await ledger("SELECT epoch FROM partitions") == 1


async def test_idle_partition_is_not_released(config, producer, ledger, monkeypatch):
    monkeypatch.setattr("fundsvc.engine.leases.FAILING_SECONDS", 1.5)
    async with running(config) as first:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        async with running(config):
            await asyncio.sleep(4)
            assert first.count("fundsvc_partition_owned")
            assert await ledger("SELECT epoch FROM partitions") == 1


@pytest.mark.parametrize("seconds", [0, 2, 5])
@pytest.mark.parametrize("part", ["postgres", "valkey"])
async def test_an_engine_with_half_open_connections_stops_in_time(config, proxies, producer, ledger, part, seconds):
    async with running(through(config, proxies)) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        await asyncio.sleep(2)  # until each periodic task has a pooled connection
        proxies[part].swallow_on_old_connections("questions", "answers")
        await producer.append(fills([2]))
        await asyncio.sleep(seconds)
        assert await engine.finish() < STOP_SECONDS_MAX


async def test_timeout_on_a_half_open_connection_expires_its_pool(config, proxies, monkeypatch):
    monkeypatch.setattr("fundsvc.store.reader.READ_SECONDS_MAX", 1.0)
    async with open_pool(through(config, proxies).database.dsn, 4) as pool:
        async with acquired(pool), acquired(pool), acquired(pool), acquired(pool):
            pass
        proxies["postgres"].swallow_on_old_connections("questions", "answers")
        with pytest.raises(StoreFault):
            await fetch(pool, "ping")
        started = time.monotonic()
        await asyncio.gather(*(fetch(pool, "ping") for _ in range(4)))
        assert time.monotonic() - started < 1.0
