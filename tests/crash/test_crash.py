"""The short form of the crash test, and what it showed about the driver of the stream."""

import asyncio
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fundsvc.config import StreamConfig
from fundsvc.embedded import EmbeddedServers
from fundsvc.streams.client import StreamFault, open_client
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import Source
from tests.crash.run import run_escalations, run_short


def test_the_ledger_ends_as_if_nothing_had_happened():
    asyncio.run(run_short(seed=1))


def test_deleveraging_goes_on_as_if_nothing_had_happened():
    asyncio.run(run_escalations(seed=2))


async def test_a_producer_learns_that_its_idle_connection_was_lost():
    async with valkey() as (servers, client):
        producer = Producer(client, 1)
        await producer.append_bodies(0, "json", [b"[]"])
        servers.valkey.kill()
        await asyncio.to_thread(servers.start, postgres=False)  # meanwhile the loop sees the connection's end
        with pytest.raises(StreamFault):
            await producer.append_bodies(0, "json", [b"[]"])
        assert await producer.append_bodies(0, "json", [b"[]"])


async def test_a_reader_ends_when_it_is_cancelled_at_whatever_moment():
    async def read_on(source):
        while True:
            await source.read("0-0", 1, 1)

    async with valkey() as (_, client):
        await Producer(client, 1).append_bodies(0, "json", [b"[]"])
        for turns_of_the_loop in range(100):
            reader = asyncio.create_task(read_on(Source(client, 0)))
            for _ in range(turns_of_the_loop):
                await asyncio.sleep(0)
            reader.cancel()
            _, still_reading = await asyncio.wait([reader], timeout=1)
            assert not still_reading, f"cancelled after {turns_of_the_loop} turns of the loop"


@asynccontextmanager
async def valkey():
    with tempfile.TemporaryDirectory(prefix="crash-") as directory:
        servers = EmbeddedServers(Path(directory))
        servers.start(postgres=False)
        try:
            async with open_client(StreamConfig(url=servers.stream_url)) as client:
                yield servers, client
        finally:
            servers.stop()
