"""An engine joins another that owns many partitions. Both are processes, as in production."""

import asyncio
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from commands import environment_of
from eventually import eventually

PARTITIONS = 32
MOVE_SECONDS_MAX = 3.0
"""From the first release on. One after the other, releases of 16 partitions take 5 to 10 s."""

CALM_SECONDS = 4.0
"""Longer than a lease: nothing moves meanwhile once the partitions are shared evenly."""


@pytest.fixture
def partitions():
    return PARTITIONS


@asynccontextmanager
async def engine(config):
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "fundsvc", "engine", env=environment_of(config))
    try:
        yield process
    finally:
        process.terminate()
        await process.wait()


async def owners(connection):
    """The live owner of each partition, None without one."""
    return dict(
        await connection.fetch("SELECT partition, CASE WHEN lease_until > clock_timestamp() THEN owner END FROM partitions")
    )


async def watched(connection, until):
    """Polls the owners until they satisfy `until`; returns the seconds since the first change and the longest without owner."""
    now = time.monotonic()
    deadline, moved_at, owned_at, longest = now + 60, None, dict.fromkeys(range(PARTITIONS), now), 0.0
    before = await owners(connection)
    while now < deadline:
        found, now = await owners(connection), time.monotonic()
        for partition, owner in found.items():
            longest = max(longest, now - owned_at[partition])
            owned_at[partition] = now if owner else owned_at[partition]
        moved_at = moved_at or (now if found != before else None)
        if until(found):
            return now - (moved_at or now), longest
        await asyncio.sleep(0.02)
    raise AssertionError(f"after 60 s: {Counter(found.values())}, the longest time without an owner was {longest:.1f} s")


def are_balanced(found):
    return None not in found.values() and [*Counter(found.values()).values()] == [PARTITIONS // 2] * 2


async def all_owned(connection):
    return None not in (await owners(connection)).values()


async def test_joining_engine_gets_its_share_at_once(config, owner_connection):
    async with engine(config):
        await eventually(lambda: all_owned(owner_connection), 60)
        async with engine(config):
            seconds, unowned = await watched(owner_connection, are_balanced)
            before = await owners(owner_connection)
            calm = time.monotonic() + CALM_SECONDS
            await watched(owner_connection, lambda found: time.monotonic() > calm or found != before)
            assert await owners(owner_connection) == before
    print(f"{PARTITIONS} partitions balanced {seconds:.1f} s after the first release, at most {unowned:.1f} s without an owner")
    assert max(seconds, unowned) < MOVE_SECONDS_MAX
