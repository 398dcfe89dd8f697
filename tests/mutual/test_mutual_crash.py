"""Engines are killed and their database sessions are ended at random moments; the ledger is that of the stream's events."""

import asyncio
import random
import sys
import time
from contextlib import asynccontextmanager, suppress

import msgspec
from commands import environment_of
from eventually import eventually
from pools import KEY, POOL, assert_equal, in_memory, send

from fundsvc.mutual.core.events import Cancel, Disable, Enable, Payout, TopUp, Trade, Transfer
from fundsvc.mutual.core.terms import Terms
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.store.database import open_pool
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import id_order

SECONDS = 15
HOUR = 3_600_000
ACCOUNTS = [f"account-{number}" for number in range(20)]
TERMS = Terms(waiting_hours=1, cycle_seconds=20, cap=300_000, release=((0, 200_000),), live_max=50)
"""A cut-off each 20 seconds: hundreds of them between the opening and now, and one during the test."""


class Engines:
    """Engines in separate processes, killed without notice."""

    def __init__(self, config):
        pools = msgspec.json.encode({POOL: TERMS}).decode()
        self._environment = environment_of(config, FUNDSVC_MUTUAL_POOLS=pools, FUNDSVC_ENGINE_LEASE_SECONDS="0.5")
        self._process = None

    async def start(self):
        command = (sys.executable, "-m", "fundsvc", "engine")
        self._process = await asyncio.create_subprocess_exec(*command, env=self._environment, stderr=asyncio.subprocess.DEVNULL)

    async def kill(self):
        if self._process:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def engines_of(config):
    engines = Engines(config)
    await engines.start()
    try:
        yield engines
    finally:
        await engines.kill()


def opening(ts):
    """Funded accounts with policies that are active by now, and money in the pool."""
    events = [TopUp(POOL, ts, 1, "5000", "x")]
    for account in ACCOUNTS:
        events += [Transfer(POOL, ts, len(events) + 1, account, "1000", "x"), Enable(POOL, ts, len(events) + 2, account)]
    for account in ACCOUNTS:
        events.append(Trade(POOL, ts, len(events) + 1, account, "XBTUSDTM", "x", ts, "-350", "5000"))
    return events


def event(chance, seq, ts):
    account = chance.choice(ACCOUNTS)
    match chance.choices(range(6), (60, 10, 8, 6, 10, 6))[0]:
        case 0:
            pnl = chance.choice(("-130", "-20", "55", "400"))
            return Trade(POOL, ts, seq, account, "XBTUSDTM", f"t{seq}", ts, pnl, "900")
        case 1:
            return Transfer(POOL, ts, seq, account, chance.choice(("50", "-300")), f"m{seq}")
        case 2:
            return (Enable if chance.random() < 0.7 else Disable)(POOL, ts, seq, account)
        case 3:
            return Cancel(POOL, ts, seq, account, chance.randint(1, 80))
        case 4:
            return Payout(POOL, ts, seq, account)
        case _:
            return TopUp(POOL, ts, seq, "40", f"u{seq}")


async def test_killed_engines_and_ended_sessions_settle_each_event_of_a_pool_once(config, client, owner_connection):
    chance, producer = random.Random(1), Producer(client, 1)
    events = opening(int(time.time() * 1_000) - 2 * HOUR)
    (last,) = await send(producer, events)
    seq, kills, sent = len(events), 0, list(events)
    async with engines_of(config) as engines:
        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends:
            for _ in range(chance.randint(5, 30)):
                run = []
                for _ in range(chance.randint(1, 40)):
                    seq += 1
                    run.append(event(chance, seq, int(time.time() * 1_000)))
                sent += run
                (last,) = await send(producer, [*run, *chance.sample(sent, 2)], codec=chance.choice(("json", "msgpack")))
                await asyncio.sleep(0.01)
            await asyncio.sleep(chance.uniform(0.2, 1.5))
            if chance.random() < 0.6:
                await engines.kill()
                await engines.start()
                kills += 1
            else:
                await owner_connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name LIKE 'fundsvc engine %'"
                )
        async with open_pool(config.database.dsn, 2) as pool:
            reader = MutualReader(pool)
            await eventually(lambda: is_settled(reader, last), seconds=120)
    async with open_pool(config.database.dsn, 2) as pool:
        reader = MutualReader(pool)
        memory = await in_memory(client, TERMS.rules(), until=(await reader.pool(POOL)).last_id)
        assert memory.register.cycle > 300
        assert memory.ledger.settled > 0
        assert kills > 1
        await assert_equal(pool, memory)
        assert len(await reader.rejected(limit=1_000_000)) == memory.refused
    assert await client.exists(KEY)


async def is_settled(reader, stream_id):
    state = await reader.pool(POOL)
    return state is not None and id_order(state.last_id) >= id_order(stream_id)
