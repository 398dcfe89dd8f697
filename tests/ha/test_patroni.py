"""PostgreSQL under Patroni: switchovers and killed primaries, under a stream of fills. Nothing is lost or counted twice.

`HA_ROUNDS=10 scripts/test -s tests/ha` makes ten changes of each kind instead of one, among them the end of a whole host,
through haproxy and by a DSN with all hosts.
"""

import asyncio
import os
import re
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
from test_backup import ARCHIVED, block
from test_runbook import RUNBOOK, commands_in

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

PAUSE_SECONDS_MAX = {"switch_over": 15.0, "kill_postgres": 15.0, "end_host": 40.0}
"""Without settling. Patroni notices the end of PostgreSQL within `loop_wait`, and the end of a host after `ttl`."""

PAUSE = """
    SELECT max(extract(epoch FROM pause)) FROM (
        SELECT recorded_at - lag(recorded_at) OVER (ORDER BY entry) AS pause FROM entries WHERE entry >= $1
    ) AS spaced
"""


@pytest.fixture(scope="module")
def cluster():
    patroni_packages()
    directory = Path(tempfile.mkdtemp(prefix="pt-", dir=MEMORY if MEMORY.is_dir() else None))
    cluster = PatroniCluster(directory, members=2 if ROUNDS == 1 else 3)
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


async def settled_at_least(config, number):
    return await settled(config) >= number


async def settled(config):
    """Returns the number of the last entry; 0 while there is none, or the primary does not answer."""
    with suppress(StoreFault, asyncpg.PostgresError, OSError):
        async with connect(config.database.dsn, "test") as service:
            return await service.fetchval("SELECT coalesce(max(entry), 0) FROM funds")
    return 0


async def switch_over(cluster, primary):
    await asyncio.to_thread(cluster.shell, f"patronictl switchover --force --leader {primary.name}")


async def kill_postgres(cluster, primary):
    primary.kill_postgres()


async def end_host(cluster, primary):
    primary.kill()


CHANGES = [switch_over, kill_postgres] if ROUNDS == 1 else ROUNDS * [switch_over, kill_postgres, end_host]


@pytest.mark.parametrize("route", ["haproxy"] if ROUNDS == 1 else ["haproxy", "hosts"])
async def test_changes_of_the_primary_lose_and_double_nothing(cluster, config):
    matching = Matching()

    async def until_settled(fills_min=0):
        sent = max(matching.sent, fills_min)
        await eventually(lambda: settled_at_least(config, sent))

    async with engine_process(config):
        async with matching.sending(config):
            await until_settled(1)
            for change in CHANGES:
                await cluster.until_whole()
                primary, first = cluster.primary(), matching.sent
                await change(cluster, primary)
                await eventually(lambda before=primary: cluster.primary() not in {None, before})
                await until_settled()
                primary.start()
                async with connect(config.database.dsn, "test") as service:
                    pause = await service.fetchval(PAUSE, first)
                print(f"{change.__name__}: {pause:.1f} s without settling")
                assert pause < PAUSE_SECONDS_MAX[change.__name__]
        await until_settled()
    async with connect(config.database.dsn, "test") as service:
        entries, events = await service.fetchrow("SELECT count(*), count(DISTINCT seq) FROM entries")
    print(f"{matching.sent} sent, {matching.sent - events} lost, {entries - events} doubled")
    assert (entries, events) == (matching.sent, matching.sent)
    assert (await fundsvc(config, "audit")).code == 0


START = re.search(r"`(pg_ctl [^`]+)`", RUNBOOK)[1]


def procedure(title):
    """Returns the commands of patronictl in a procedure of the runbook."""
    text = re.search(rf"\*\*{title}\.\*\*\n(.*?)(?=^\*\*|^Tested)", RUNBOOK, re.MULTILINE | re.DOTALL)[1]
    return [command for command in commands_in(text) if re.match("patronictl .+ |printf", command)]


@pytest.mark.skipif(ROUNDS == 1, reason="takes two minutes: set HA_ROUNDS")
@pytest.mark.parametrize("route", ["hosts"])
async def test_the_procedures_of_the_runbook_change_replace_and_restore_members(cluster, config):
    def standby():
        standing = cluster.standing()
        return next(member for member in cluster.members if standing[member.name][0] == "sync_standby")

    async def run(command):
        primary, candidate = cluster.primary(), standby()
        await asyncio.to_thread(cluster.shell, f"PRIMARY={primary.name} STANDBY={candidate.name}; {command}")
        return candidate

    for command in procedure("Fail over by hand"):
        candidate = await run(command)
        await eventually(lambda candidate=candidate: cluster.primary() is candidate)
        await cluster.until_whole()
    (reinitialise,) = procedure("Replace a standby")
    await run(reinitialise)
    await cluster.until_whole()

    matching = Matching()
    async with engine_process(config):
        async with matching.sending(config):
            await eventually(lambda: settled_at_least(config, 1))
            await back_up(cluster)
            moment, before = await now(config), await settled(config)
            await eventually(lambda: settled_at_least(config, before + 50))
        await eventually(lambda: settled_at_least(config, matching.sent))
    await restore(cluster, moment)
    kept = await settled(config)
    async with engine_process(config):
        await eventually(lambda: settled_at_least(config, matching.sent))
    print(f"{matching.sent} sent, {kept} after the restore")
    assert before <= kept < matching.sent
    assert (await fundsvc(config, "audit")).code == 0


async def now(config):
    async with connect(config.database.dsn, "test") as service:
        return await service.fetchval("SELECT clock_timestamp()::text")


async def back_up(cluster):
    copy = f"pg_basebackup -h {cluster.primary().address} -U fundsvc_backup -D {cluster.directory}/base-1 -c fast"
    await asyncio.to_thread(cluster.shell, f'PGPASSWORD="$PATRONI_REPLICATION_PASSWORD" {copy}')


async def restore(cluster, moment):
    """Restores the cluster to a moment as the runbook describes."""
    first, *others = sorted(cluster.members, key=lambda member: member is not cluster.primary())
    async with connect(cluster.dsn("postgres", first.address), "test") as owner:
        position = await owner.fetchval("SELECT pg_switch_wal()::text")
        await eventually(lambda: owner.fetchval(ARCHIVED, position))
    for member in (*others, first):
        await asyncio.to_thread(member.stop)
        member.data.rename(member.data.with_suffix(".lost"))
    copied = re.sub(r"(?<=recovery_target_time = ')[^']+", moment, block("Restore to a moment", "recovery.signal"))
    start = START + ' -l "$DATA.log"'
    places = f"DATA={first.data} BACKUP={cluster.directory}"
    promoted = 'until pg_controldata "$DATA" | grep -q "in production"; do sleep 0.2; done; pg_ctl -D "$DATA" stop'
    await asyncio.to_thread(cluster.shell, f"export {places}\n{copied}\n{start}\n{promoted}")
    (remove,) = procedure("Restore the cluster to a moment")
    await asyncio.to_thread(cluster.shell, remove)
    first.start()
    await eventually(lambda: cluster.primary() is first)
    for member in others:
        member.start()
    await cluster.until_whole()
