"""A primary that ends, and a standby made by pg_basebackup that an operator promotes, with both hosts in the DSN.

A synchronous standby has every entry that anyone has seen. What an asynchronous one lacks, the engine settles again from the
stream, with the same heads.
"""

import asyncio

import pytest
from commands import fundsvc
from conftest import connected
from eventually import eventually
from ledgers import fill, listing
from replica import Replica
from test_engine import running

from fundsvc.config.settings import Config, DatabaseConfig, DataConfig, EngineConfig, StreamConfig
from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.migrations import migrate
from fundsvc.streams.client import open_client
from fundsvc.streams.producer import Producer

SYMBOLS = ("AAA", "BBB")
MESSAGES = 200
HEADS = "SELECT symbol, entry, balance, head FROM funds ORDER BY symbol"
HASHES = f"SELECT symbol, entry, hash FROM entries WHERE entry <= {2 * MESSAGES} ORDER BY symbol, entry"
STANDBYS = "SELECT sync_state FROM pg_stat_replication"
PROMOTE = "SELECT pg_promote()"


class Pair:
    """A primary with its standby. `config` is a service on both."""

    def __init__(self, directory):
        directory.mkdir(mode=0o700)
        self.primary = EmbeddedServers(directory / "primary")
        self.primary.start()
        asyncio.run(migrate(self.primary.owner_dsn, 1))
        self.standby = Replica(self.primary, directory / "standby")
        self.standby.server.start()
        dsn = self.primary.dsn
        both = f"{dsn},{self.standby.dsn(dsn).partition('host=')[2]}"
        self.config = Config(
            data=DataConfig(directory=str(self.primary.directory)),
            database=DatabaseConfig(dsn=both),
            stream=StreamConfig(url=self.primary.stream_url),
            engine=EngineConfig(lease_seconds=0.6),
        )

    async def on_primary(self, *statements):
        return await ask(self.primary.owner_dsn, *statements)

    async def on_standby(self, *statements):
        return await ask(self.standby.dsn(self.primary.owner_dsn), *statements)

    async def is_followed(self, state):
        """Whether the standby follows as `sync` or `async`."""
        return [row[0] for row in await self.on_primary(STANDBYS)] == [state]

    def close(self):
        self.standby.server.stop()
        self.primary.stop()


@pytest.fixture
def pair(short_directory, request):
    pair = Pair(short_directory / request.node.originalname.split("_")[2])
    yield pair
    pair.close()


async def ask(dsn, *statements):
    """Runs statements; returns the rows of the last one."""
    async with connected(dsn) as owner:
        for statement in statements:
            rows = [tuple(row) for row in await owner.fetch(statement)]
    return rows


def entries(heads):
    return sum(entry for _, entry, *_ in heads)


async def send(producer, first):
    """Appends messages with a fill of each contract, a few at a time; returns the next sequence."""
    for seq in range(first, first + MESSAGES):
        await producer.append([fill(symbol, seq, seq % 11 - 4) for symbol in SYMBOLS])
        await asyncio.sleep(0.002)
    return first + MESSAGES


async def settled(on_server, number):
    """Waits for that many entries at least; returns the heads."""

    async def reached():
        heads = await on_server(HEADS)
        return heads if entries(heads) >= number else None

    return await eventually(reached)


async def test_a_synchronous_standby_has_every_entry_that_was_visible(pair):
    await pair.on_primary("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
    await eventually(lambda: pair.is_followed("sync"))
    async with open_client(pair.config.stream) as client:
        producer = Producer(client, 1)
        await producer.append([*map(listing, SYMBOLS)])
        async with running(pair.config):
            sending = asyncio.create_task(send(producer, 1))
            seen = entries(await settled(pair.on_primary, MESSAGES // 2))
            pair.primary.postgres.kill()
        await sending
    await pair.on_standby(PROMOTE)
    kept = entries(await pair.on_standby(HEADS))
    sent = len(SYMBOLS) * MESSAGES
    async with running(pair.config):
        heads = await settled(pair.on_standby, sent)
    print(f"{sent} sent, {max(0, seen - kept)} of {seen} visible ones lost, {entries(heads) - sent} doubled")
    assert kept >= seen
    assert entries(heads) == sent
    assert (await fundsvc(pair.config, "audit")).code == 0


async def test_an_asynchronous_standby_gets_what_it_lost_from_the_stream(pair):
    await eventually(lambda: pair.is_followed("async"))
    async with open_client(pair.config.stream) as client:
        producer = Producer(client, 1)
        await producer.append([*map(listing, SYMBOLS)])
        async with running(pair.config):
            seq = await send(producer, 1)
            await settled(pair.on_primary, len(SYMBOLS) * MESSAGES)
            cut_off = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication"
            await pair.on_primary("ALTER ROLE replica NOLOGIN", cut_off)
            await send(producer, seq)
            await settled(pair.on_primary, sent := 2 * len(SYMBOLS) * MESSAGES)
            before = await pair.on_primary(HASHES)
            pair.primary.postgres.kill()
            await pair.on_standby(PROMOTE)
            kept = entries(await pair.on_standby(HEADS))
            await producer.append([fill(SYMBOLS[0], 1 + 2 * MESSAGES, 1)])  # the next write reveals what the ledger lacks
            await settled(pair.on_standby, sent + 1)
    after = await pair.on_standby(HASHES)
    print(f"{sent} sent, {sent - kept} lost by the standby, {len(before) - len(after)} after settling again")
    assert kept < sent
    assert after == before
    assert (await fundsvc(pair.config, "audit")).code == 0
