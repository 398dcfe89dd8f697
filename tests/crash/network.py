"""Disturbances of the connections between the engines and their servers."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.crash.world import World, eventually

DELAY_SECONDS_MAX = 0.05
"""A claim of a partition, which must be quick, takes five round trips: at most half a second more."""


async def drop_commit_response(world: World, chance: random.Random) -> None:
    """Cuts an owner's connection between COMMIT and its answer: the owner cannot know that PostgreSQL committed."""
    for _ in range(chance.randint(1, 3)):
        world.postgres_proxy.drop_next_commit_response()
        seconds = await eventually("the answer to a COMMIT is lost", world.postgres_proxy.has_dropped_response)
        world.timeline.note(f"lost the answer to a COMMIT after {seconds:.2f} s")


async def leave_postgres_half_open(world: World, chance: random.Random) -> None:
    """Drops all further bytes of the present connections to PostgreSQL; new connections work."""
    world.timeline.note(f"{world.postgres_proxy.make_half_open()} connections to PostgreSQL are half open")


async def leave_valkey_half_open(world: World, chance: random.Random) -> None:
    """Drops all further bytes of the present connections to Valkey; new connections work."""
    world.timeline.note(f"{world.valkey_proxy.make_half_open()} connections to Valkey are half open")


async def slow_the_network(world: World, chance: random.Random) -> None:
    """Delays all traffic between engines and servers for some seconds."""
    async with slowed_network(world, chance):
        await asyncio.sleep(chance.uniform(2, 5))


@asynccontextmanager
async def slowed_network(world: World, chance: random.Random) -> AsyncIterator[None]:
    """Delays all traffic within the context."""
    delay = chance.uniform(0.01, DELAY_SECONDS_MAX)
    world.timeline.note(f"the proxies delay all traffic by {delay:.3f} s")
    for proxy in world.proxies:
        proxy.delay_seconds = delay
    try:
        yield
    finally:
        for proxy in world.proxies:
            proxy.delay_seconds = 0.0
