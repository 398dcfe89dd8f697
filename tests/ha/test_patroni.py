"""PostgreSQL under Patroni: a switchover and a killed primary, under a stream of fills. Nothing is lost or counted twice.

`HA_ROUNDS=10 scripts/test tests/ha` runs ten failovers of each kind instead of one, among them the end of a whole host.
"""

import asyncio
import os
import shutil
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
import redis
from commands import engine_process, fundsvc
from conftest import MEMORY
from eventually import eventually
from ledgers import fill, listing
from patroni import PatroniCluster, needs_ha, patroni_packages

from fundsvc.config.settings import Config, DatabaseConfig, DataConfig, StreamConfig
from fundsvc.store.database import StoreFault, connect
from fundsvc.store.migrations import migrate
from fundsvc.streams.client import open_client
from fundsvc.streams.producer import Producer

pytestmark = needs_ha

ROUNDS = int(os.environ.get("HA_ROUNDS", "1"))
SYMBOL = "XBTUSDTM"
FILLS_PER_APPEND = 5
APPEND_SECONDS = 0.01

ROUTES = ["haproxy", "hosts"] if ROUNDS > 1 else ["haproxy"]
PAUSE_SECONDS_MAX = 15.0
"""Without settling: Patroni notices the end of a primary within a `loop_wait`, and a standby is promoted in the next one."""

VERDICT = """
    SELECT count(*), count(DISTINCT seq), max(extract(epoch FROM pause)) FROM (
        SELECT seq, recorded_at - lag(recorded_at) OVER (ORDER BY entry) AS pause FROM entries
    ) AS spaced
"""


@pytest.fixture(scope="module")
def cluster():
    patroni_packages()
    directory = Path(tempfile.mkdtemp(prefix="pt-", dir=MEMORY if MEMORY.is_dir() else None))
    cluster = PatroniCluster(directory)
    try:
        asyncio.run(cluster.start())
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(directory)


@pytest.fixture
async def config(route, cluster, servers):
    """A service with an empty ledger, which reaches the primary through haproxy or by a DSN with all hosts."""
    hosts = [cluster.haproxy] if route == "haproxy" else [member.address for member in cluster.members]
    await cluster.until_whole()
    async with connect(cluster.dsn("postgres", *hosts).replace("/fundsvc", "/postgres"), "test") as administrator:
        await administrator.execute("DROP DATABASE fundsvc WITH (FORCE)")
        await administrator.execute("CREATE DATABASE fundsvc OWNER fundsvc_owner")
    with redis.Redis.from_url(servers.stream_url) as stream:
        stream.flushall()
    await migrate(cluster.dsn("fundsvc_owner", *hosts), 1)
    return Config(
        data=DataConfig(directory=str(servers.directory)),
        database=DatabaseConfig(dsn=cluster.dsn("fundsvc_app", *hosts)),
        stream=StreamConfig(url=servers.stream_url),
    )


class Matching:
    """A matching engine that sends fills without pause; `sent` is their number so far."""

    def __init__(self):
        self.sent = 0
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def sending(self, config):
        async with open_client(config.stream) as client:
            producer = Producer(client, 1)
            await producer.append([listing(SYMBOL)])
            task = asyncio.create_task(self._send(producer))
            yield
            self._stop.set()
            await task

    async def _send(self, producer):
        while not self._stop.is_set():
            await producer.append([fill(SYMBOL, self.sent + number, 1) for number in range(1, FILLS_PER_APPEND + 1)])
            self.sent += FILLS_PER_APPEND
            await asyncio.sleep(APPEND_SECONDS)


async def settled(config):
    """Returns the number of the last entry; 0 while there is none, or the primary does not answer."""
    with suppress(StoreFault, asyncpg.PostgresError, OSError):
        async with connect(config.database.dsn, "test") as service:
            return await service.fetchval("SELECT coalesce(max(entry), 0) FROM funds")
    return 0


async def check_failovers(cluster, config, fail_over):
    """Settles fills while the primary changes, and checks that none is lost or doubled."""
    matching = Matching()

    async def until_settled():
        sent = matching.sent
        await eventually(lambda: reaches(sent))

    async def reaches(sent):
        return sent and await settled(config) >= sent

    async with engine_process(config):
        async with matching.sending(config):
            await eventually(lambda: reaches(1))
            for _ in range(ROUNDS):
                await cluster.until_whole()
                before = cluster.primary()
                await fail_over(before)
                await eventually(lambda: cluster.primary() not in {None, before})
                await until_settled()
                before.start()
        await until_settled()
    async with connect(config.database.dsn, "test") as service:
        entries, events, pause = await service.fetchrow(VERDICT)
    print(f"{matching.sent} sent, {matching.sent - events} lost, {entries - events} doubled, {pause:.1f} s without settling")
    assert (entries, events) == (matching.sent, matching.sent)
    assert pause < PAUSE_SECONDS_MAX
    assert (await fundsvc(config, "audit")).code == 0


@pytest.mark.parametrize("route", ROUTES)
async def test_a_switchover_loses_and_doubles_nothing(cluster, config):
    async def switch_over(primary):
        cluster.shell(f"patronictl switchover --force --leader {primary.name}")

    await check_failovers(cluster, config, switch_over)


@pytest.mark.parametrize("route", ROUTES[::-1])
async def test_a_killed_primary_loses_and_doubles_nothing(cluster, config):
    async def kill(primary):
        primary.kill_postgres()

    await check_failovers(cluster, config, kill)


@pytest.mark.skipif(ROUNDS == 1, reason="takes half a minute: set HA_ROUNDS")
@pytest.mark.parametrize("route", ["haproxy", "hosts"])
async def test_the_end_of_a_host_loses_and_doubles_nothing(cluster, config):
    async def end(primary):
        primary.kill()

    await check_failovers(cluster, config, end)
