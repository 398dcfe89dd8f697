"""What befalls the connections between the engines and their servers."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.crash.world import World, eventually

DELAY_SECONDS_MAX = 0.05
"""Half a second for what is asked and answered five times, such as a claim of a partition, which is to be quick."""


async def drop_commit_response(world: World, chance: random.Random) -> None:
    """Cuts an owner off between its COMMIT and the answer: the transaction is committed, and the owner cannot know."""
    for _ in range(chance.randint(1, 3)):
        world.postgres_proxy.drop_next_commit_response()
        seconds = await eventually("the answer to a COMMIT is lost", world.postgres_proxy.has_dropped_response)
        world.timeline.note(f"lost the answer to a COMMIT after {seconds:.2f} s")


async def leave_postgres_half_open(world: World, chance: random.Random) -> None:
    """Lets nothing more through the present connections to PostgreSQL; new ones are as they should be."""
    world.timeline.note(f"{world.postgres_proxy.make_half_open()} connections to PostgreSQL are half open")


async def leave_valkey_half_open(world: World, chance: random.Random) -> None:
    """Lets nothing more through the present connections to Valkey; new ones are as they should be."""
    world.timeline.note(f"{world.valkey_proxy.make_half_open()} connections to Valkey are half open")


async def slow_the_network(world: World, chance: random.Random) -> None:
    """Whatever engines and servers tell each other takes longer for some seconds."""
    async with slowed_network(world, chance):
        await asyncio.sleep(chance.uniform(2, 5))


@asynccontextmanager
async def slowed_network(world: World, chance: random.Random) -> AsyncIterator[None]:
    """Slows the network for as long as this lasts."""
    delay = chance.uniform(0.01, DELAY_SECONDS_MAX)
    world.timeline.note(f"all that passes takes {delay:.3f} s longer")
    for proxy in world.proxies:
        proxy.delay_seconds = delay
    try:
        yield
    finally:
        for proxy in world.proxies:
            proxy.delay_seconds = 0.0
