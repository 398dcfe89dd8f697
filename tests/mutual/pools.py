"""Runs engines with pools of the mutual in tests, and compares the database with the stream's events applied in memory."""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from exposed import sample_sum
from stored_rows import stored_accounts, stored_policies

from fundsvc.cli.tools.vectors import snake_case
from fundsvc.config.settings import MutualConfig
from fundsvc.core.events import Rejection
from fundsvc.core.times import time_of_id
from fundsvc.engine.engine import Engine
from fundsvc.metrics import Metrics
from fundsvc.mutual.codec import decode, encode
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import PoolRow, State
from fundsvc.mutual.core.terms import Terms
from fundsvc.mutual.engine.pools import pool_sessions
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.streams.client import pool_stream_key
from fundsvc.streams.source import Source, id_order

POOL = "USDT"
KEY = pool_stream_key(POOL)
VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "mutual").glob("*.json"))


class Running:
    """An engine that runs in this process with the sessions of its pools."""

    def __init__(self, config):
        self.metrics = Metrics()
        self.stop = asyncio.Event()
        self.engine = Engine(config, self.metrics, pool_sessions(config, self.metrics))
        self.task = asyncio.create_task(self.engine.run(self.stop))

    def count(self, name, **labels):
        return sample_sum(self.metrics, name, **labels)

    async def finish(self):
        self.stop.set()
        await asyncio.wait([self.task])
        self.task.result()


@asynccontextmanager
async def running(config):
    engine = Running(config)
    try:
        yield engine
    finally:
        await engine.finish()


def with_pools(config, **terms):
    """Returns the configuration with pools."""
    return msgspec.structs.replace(config, mutual=MutualConfig(terms))


def read_vector(path):
    """The terms of a vector, its events, and what is expected."""
    vector = json.loads(path.read_bytes())
    terms = msgspec.convert({snake_case(key): value for key, value in vector["pool"].items()}, Terms)
    events = [decode("json", msgspec.json.encode({"pool": POOL} | event))[0] for event in vector["events"]]
    return terms, events, vector["expect"]


async def send(producer, *messages, codec="json", key=KEY):
    """Appends messages of events, each a list, in a codec."""
    return await producer.append_to(key, codec, [encode(events, codec) for events in messages])


class PoolOfStream(Pool):
    """A pool that counts the events that it refused."""

    refused = 0


async def in_memory(client, rules, name=POOL, until=None):
    """The pool after all messages of the stream, or those up to an id, applied in memory, with its effects."""
    pool, after = PoolOfStream(PoolRow(name), {1: rules}), "0-0"
    source = Source(client, 0, pool_stream_key(name))
    while messages := [one for one in await source.read(after) if not until or id_order(one.stream_id) <= id_order(until)]:
        await asyncio.to_thread(_apply, pool, messages)
        after = messages[-1].stream_id
    return pool


def _apply(pool, messages):
    for message in messages:
        for event in decode(message.codec, message.body):
            try:
                pool.apply(event, time_of_id(message.stream_id))
            except Rejection:
                pool.refused += 1


def meaningful(account, owners):
    """The account without `unfit_since`, which means nothing without live policies, and depends on restarts."""
    return account if account.account in owners else account._replace(unfit_since=0)


async def pages(reader, pool):
    """Pages of a pool's entries, each small enough for the loop."""
    after = 0
    while page := await reader.entries_after(pool, after, 1_000):
        yield page
        after = page[-1].entry.entry


async def assert_equal(database, pool):
    """The database has what a pool in memory has."""
    reader = MutualReader(database)
    live = sorted(pool.register.save_policies())
    accounts = [account.row() for account in pool.register.by_number]
    row, batch = pool.row(), pool.take()
    stored = [one async for page in pages(reader, row.pool) for one in page]
    assert [one.entry for one in stored] == batch.entries
    assert [one.hash for one in stored] == batch.hashes
    state = await reader.pool(row.pool)
    assert state.row == row
    owners = {policy.account for policy in live}
    stored = await stored_accounts(database, row.pool)
    assert [meaningful(one, owners) for one in stored] == [meaningful(one, owners) for one in accounts]
    ended = [policy for policy in batch.policies if policy.state > State.FROZEN]
    assert await stored_policies(database, row.pool) == sorted(live + ended)
    assert await reader.cycles(row.pool, count=100_000, forward=True) == batch.cycles
