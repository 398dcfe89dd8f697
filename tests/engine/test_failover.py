"""A primary that still runs after its synchronous standby was promoted: its commits wait for ever, and the engine leaves it."""

import asyncio
import signal
import time
from contextlib import asynccontextmanager

import pytest
from conftest import connected, with_section
from eventually import eventually
from ledgers import fill, listing
from replica import Replica
from test_engine import running

from fundsvc.concurrency.primary import LOOK_SECONDS
from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.migrations import migrate
from fundsvc.streams.producer import Producer

LEASE_SECONDS = 30.0
"""A commit is abandoned only after this time, as after several time-outs while nothing was promoted yet."""

CONTINUES_SECONDS_MAX = 10.0
"""From the promotion until fills are settled again; about 3 s on an idle machine."""

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name LIKE 'fundsvc engine %'"


class Pair:
    """A primary that waits for its standby, and the standby."""

    def __init__(self, directory):
        self.old = EmbeddedServers(directory / "old")
        self.old.start(valkey=False)
        asyncio.run(migrate(self.old.owner_dsn, 1))
        self.standby = Replica(self.old, directory / "standby")
        self.standby.server.start()
        self.new_dsn = self.standby.dsn(self.old.owner_dsn)
        hosts = [dsn.partition("host=")[2] for dsn in (self.old.owner_dsn, self.new_dsn)]
        self.dsn = f"postgresql://fundsvc_service@/fundsvc?host={','.join(hosts)}&port=5432,5432"
        self._frozen = []

    async def wait_for_standby(self):
        await execute(self.old.owner_dsn, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")

    async def wait_for_nobody(self):
        """Commits of the primary wait for a standby that does not exist, while the other one receives them."""
        await execute(self.old.owner_dsn, "ALTER SYSTEM SET synchronous_standby_names = 'gone'", "SELECT pg_reload_conf()")

    async def cut(self):
        """The standby receives nothing more."""
        children = self.old.postgres.process.children()
        self._frozen = [child for child in children if "walsender" in " ".join(child.cmdline())]
        assert self._frozen
        for process in self._frozen:
            process.send_signal(signal.SIGSTOP)

    async def promote(self):
        await execute(self.new_dsn, "SELECT pg_promote()")

    async def value(self, dsn, query):
        async with connected(dsn) as connection:
            return await connection.fetchval(query)

    async def old_waits(self):
        return await self.value(self.old.owner_dsn, WAITING)

    async def entries(self):
        return await self.value(self.new_dsn, "SELECT count(*) FROM entries")

    def stop(self):
        for process in self._frozen:
            process.send_signal(signal.SIGCONT)
        self.standby.server.stop()
        self.old.stop()


async def execute(dsn, *statements):
    async with connected(dsn) as connection:
        for statement in statements:
            await connection.execute(statement)


@pytest.fixture
def pair(short_directory, request):
    pair = Pair(short_directory / request.node.callspec.id)
    yield pair
    pair.stop()


@pytest.fixture
def failing(config, pair):
    """A service with both servers."""
    config = with_section(config, "engine", lease_seconds=LEASE_SECONDS)
    return with_section(config, "database", dsn=pair.dsn, owner_dsn="")


@asynccontextmanager
async def sending(producer):
    """Sends fills of 1 all the time; the list of their sequences."""
    sent = []

    async def send():
        while True:
            await producer.append([fill("AAA", len(sent) + 1, 1)])
            sent.append(len(sent) + 1)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(send())
    yield sent
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("lose", ["cut", "wait_for_nobody"], ids=["lost", "kept"])
async def test_fills_continue_at_the_new_primary_while_the_old_one_waits_for_a_standby(pair, failing, client, loads, lose):
    """The transaction in which the engine waits is lost, or the new primary has it."""
    producer = Producer(client, 1)
    await pair.wait_for_standby()
    await producer.append([listing("AAA")])
    async with running(failing), sending(producer) as sent:
        await eventually(pair.entries)
        await getattr(pair, lose)()
        await eventually(pair.old_waits)
        await asyncio.sleep(LOOK_SECONDS + 0.5)
        assert (await pair.old_waits(), len(loads)) == (1, 1), "a primary that only waits is not abandoned"
        before = await pair.entries()
        await pair.promote()
        promoted = time.monotonic()
        await eventually(lambda: more_than(pair, before + 10))
        print(f"{lose}: fills are settled {time.monotonic() - promoted:.1f} s after the promotion")
        assert time.monotonic() - promoted < CONTINUES_SECONDS_MAX
        count = len(sent)
        await eventually(lambda: more_than(pair, count))
        assert not await pair.value(pair.new_dsn, "SELECT pg_is_in_recovery()")
    seqs = "SELECT array_agg(seq ORDER BY entry) FROM entries"
    settled = await pair.value(pair.new_dsn, seqs)
    assert settled == list(range(1, len(settled) + 1)), "none is lost, none is settled twice"


async def more_than(pair, count):
    return await pair.entries() > count
