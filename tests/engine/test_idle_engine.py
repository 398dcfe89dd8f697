"""An engine that receives nothing shares its commands among its partitions."""

import asyncio

import pytest
from eventually import eventually
from ledgers import fill, listing
from test_engine import running

from fundsvc.core.contracts import partition_of
from fundsvc.streams.idle import TICK_SECONDS
from fundsvc.streams.producer import Producer

PARTITIONS = 12
SECONDS = 4 * TICK_SECONDS


async def calls(client):
    """Returns how often the server ran each command."""
    statistics = await client.info("commandstats")
    return {name.removeprefix("cmdstat_"): counts["calls"] for name, counts in statistics.items()}


@pytest.mark.parametrize("partitions", [PARTITIONS])
async def test_idle_partitions_share_their_commands(config, client, service_connection):
    symbols = {partition_of(f"M{number}", PARTITIONS): f"M{number}" for number in range(500)}
    async with running(config):
        producer = Producer(client, PARTITIONS)
        await producer.append([listing(symbol) for symbol in symbols.values()])

        async def counts(of, wanted):
            return await service_connection.fetchval(f"SELECT {of} FROM funds") == wanted

        await eventually(lambda: counts("count(*)", PARTITIONS))
        await asyncio.sleep(3 * TICK_SECONDS)
        before = await calls(client)
        await asyncio.sleep(SECONDS)
        made = {name: count - before.get(name, 0) for name, count in (await calls(client)).items()}
        # Each partition would read four times.
        assert made["xread"] < PARTITIONS
        assert made.get("xinfo|stream", 0) <= PARTITIONS * (SECONDS + 2), "one survey a second"
        assert made.get("eval", 0) < PARTITIONS
        assert made.get("xtrim", 0) < PARTITIONS
        await producer.append([fill(symbol, 1, 5) for symbol in symbols.values()])
        await eventually(lambda: counts("sum(entry)", PARTITIONS))
