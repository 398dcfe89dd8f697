"""Streams without messages wait together; what happens to one of them does not affect the others."""

import asyncio
import time

import pytest
from redis.exceptions import ResponseError

from fundsvc.streams import idle as idle_streams
from fundsvc.streams.client import StreamFault, stream_key
from fundsvc.streams.idle import IdleStreams
from fundsvc.streams.source import Source
from fundsvc.streams.survey import Survey

KEYS = [stream_key(partition) for partition in range(20)]


@pytest.fixture
async def idle(client, monkeypatch):
    monkeypatch.setattr(idle_streams, "TICK_SECONDS", 0.3)
    async with IdleStreams(client) as waiting:
        yield waiting


async def calls(client, command):
    """Returns how often the server ran a command."""
    return (await client.info("commandstats")).get(f"cmdstat_{command}", {"calls": 0})["calls"]


async def waited(idle, keys, after="0-0"):
    """Lets streams wait together; returns the tasks, in which the wait has begun."""
    tasks = {key: asyncio.create_task(idle.wait(key, after)) for key in keys}
    await asyncio.sleep(0.02)
    return tasks


async def begin_of_tick():
    await asyncio.sleep(idle_streams.TICK_SECONDS - time.monotonic() % idle_streams.TICK_SECONDS + 0.01)


async def test_streams_wait_with_one_command_until_the_tick(idle, client):
    await begin_of_tick()
    before = await calls(client, "xread")
    assert await asyncio.gather(*(idle.wait(key, "0-0") for key in KEYS)) == [False] * len(KEYS)
    assert await calls(client, "xread") - before <= 2, "the server may end the first command a moment early"


async def test_message_ends_the_wait_of_its_stream_alone(idle, client):
    await begin_of_tick()
    tasks = await waited(idle, KEYS)
    await client.xadd(KEYS[7], {"json": b"{}"})
    assert await tasks.pop(KEYS[7])
    assert not any(task.done() for task in tasks.values())
    await client.xadd(KEYS[3], {"json": b"{}"})
    assert await tasks.pop(KEYS[3]), "the others continue to wait"
    assert await asyncio.gather(*tasks.values()) == [False] * len(tasks)


async def test_known_message_does_not_end_a_wait(idle, client):
    last = (await client.xadd(KEYS[0], {"json": b"{}"})).decode()
    assert not await idle.wait(KEYS[0], last)
    assert await idle.wait(KEYS[0], "0-0")


async def test_cancelled_wait_does_not_affect_others(idle, client):
    await begin_of_tick()
    tasks = await waited(idle, KEYS[:3])
    tasks[KEYS[1]].cancel()
    await client.xadd(KEYS[1], {"json": b"{}"})
    await client.xadd(KEYS[2], {"json": b"{}"})
    assert await tasks[KEYS[2]]
    assert not await tasks[KEYS[0]]


async def test_stream_in_trouble_leaves_the_others_to_be_read_alone(idle, client):
    """A key of another type fails the common command. The streams are then read alone, and only that one fails."""
    await client.set(KEYS[5], "text")
    tasks = await waited(idle, KEYS)
    assert await asyncio.gather(*tasks.values()) == [True] * len(KEYS)
    with pytest.raises((StreamFault, ResponseError)):
        await Source(client, 5).read("0-0")
    assert await Source(client, 6).read("0-0") == []


async def test_large_message_is_left_to_the_read_of_its_stream(idle, client, monkeypatch):
    monkeypatch.setattr(idle_streams, "REPLY_BYTES_MAX", 10_000)
    await client.xadd(KEYS[1], {"json": bytes(1_000_000)})
    tasks = await waited(idle, KEYS[:2])
    assert await tasks[KEYS[1]]
    (message,) = await Source(client, 1).read("0-0")
    assert len(message.body) == 1_000_000


async def test_lost_connection_fails_all_waits(idle, client):
    await begin_of_tick()
    tasks = await waited(idle, KEYS)
    await client.client_kill_filter(_type="normal", skipme=True)
    ended = await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert [type(one) for one in ended] == [StreamFault] * len(KEYS)
    assert len({id(one) for one in ended}) == len(KEYS), "each reader raises an error of its own"


async def test_survey_reads_all_streams_in_one_round_trip(client):
    survey, sources = Survey(client), [Source(client, partition) for partition in range(3)]
    for source in sources:
        survey.add(source)
    await client.xadd(sources[1].key, {"json": b"{}"})
    began = time.monotonic()
    await survey.run()
    first, second, _ = (survey.seen(source, began) for source in sources)
    assert (first.state.length, second.state.length) == (0, 1)
    assert abs(second.now_ms - await sources[1].now_ms()) < 1000
    assert survey.seen(sources[1], time.monotonic()) is None, "it began earlier"


async def test_survey_of_a_stream_in_trouble_does_not_affect_others(client):
    survey, sources = Survey(client), [Source(client, partition) for partition in range(3)]
    for source in sources:
        survey.add(source)
    await client.set(sources[1].key, "text")
    began = time.monotonic()
    await survey.run()
    assert [survey.seen(source, began) is not None for source in sources] == [True, False, True]
    assert (await survey.look(sources[2], began)).state.length == 0
    with pytest.raises((StreamFault, ResponseError)):
        await survey.look(sources[1], began)


async def test_survey_reads_streams_alone_if_a_message_is_too_large(client, monkeypatch):
    monkeypatch.setattr("fundsvc.streams.source.REPLY_BYTES_MAX", 10_000)
    survey, sources = Survey(client), [Source(client, partition, message_bytes_max=1000) for partition in range(2)]
    for source in sources:
        survey.add(source)
    await client.xadd(sources[1].key, {"json": bytes(1_000_000)})
    began = time.monotonic()
    await survey.run()
    assert [survey.seen(source, began).state.length for source in sources] == [0, 1]
