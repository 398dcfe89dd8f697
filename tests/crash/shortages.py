"""Disturbances that make servers reject writes: read-only, out of memory, disk full."""

import asyncio
import random
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from fundsvc.local.servers import EmbeddedError
from fundsvc.streams.client import open_client
from tests.crash.processes import kill_owner
from tests.crash.world import World

ROOM_BYTES_MAX = 2_000_000
"""About the amount that PostgreSQL writes in a few seconds."""


async def make_postgres_read_only(world: World, chance: random.Random) -> None:
    """Makes PostgreSQL reject all writes for some seconds, like a server that an operator has fenced."""
    await _set_postgres(world, "default_transaction_read_only = on")
    world.timeline.note("PostgreSQL is read-only")
    await asyncio.sleep(chance.uniform(1, 5))
    await _set_postgres(world, "default_transaction_read_only = off")
    world.timeline.note("PostgreSQL accepts writes again")


async def fill_valkey(world: World, chance: random.Random) -> None:
    """Leaves Valkey no memory for some seconds: it rejects all messages and announcements."""
    async with _full_valkey(world):
        await asyncio.sleep(chance.uniform(1, 5))


async def kill_engine_while_valkey_is_full(world: World, chance: random.Random) -> None:
    """Kills an owner while Valkey is full: the new owner cannot announce the open orders."""
    async with _full_valkey(world):
        await kill_owner(world, chance)
        await asyncio.sleep(chance.uniform(3, 6))


async def fill_the_disk(world: World, chance: random.Random) -> None:
    """Leaves PostgreSQL little room for its write-ahead log for some seconds; then it ends as on a full disk.

    A resource limit bounds the size of the server's files, which needs no rights and no separate disk. A process receives the
    limit at its start.
    """
    (row,) = await world.fetch("SELECT ((pg_current_wal_insert_lsn() - '0/0') % 16777216)::bigint AS used")
    room = chance.randint(ROOM_BYTES_MAX // 4, ROOM_BYTES_MAX)
    await asyncio.to_thread(world.servers.postgres.stop)
    with suppress(EmbeddedError), _limited_files(row["used"] + room):
        await world.start_servers(valkey=False)
    world.timeline.note(f"PostgreSQL has room for {room} bytes of its write-ahead log")
    await asyncio.sleep(chance.uniform(2, 5))
    ended = world.servers.postgres.process is None
    await asyncio.to_thread(world.servers.postgres.kill)
    await world.start_servers(valkey=False)
    world.timeline.note(f"there is room again; PostgreSQL had {'ended' if ended else 'not ended'}")


@contextmanager
def _limited_files(size: int) -> Iterator[None]:
    """Limits the file size of processes that start within the context."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@asynccontextmanager
async def _full_valkey(world: World) -> AsyncIterator[None]:
    async with open_client(world.config.stream) as client:
        await client.config_set("maxmemory", "1")
        world.timeline.note("Valkey is full")
        yield
        await client.config_set("maxmemory", "0")
    world.timeline.note("Valkey has room again")


async def _set_postgres(world: World, setting: str) -> None:
    await world.execute(f"ALTER SYSTEM SET {setting}")
    await world.execute("SELECT pg_reload_conf()")
