"""Announcement of ADL rounds to the matching engine: no round is dropped before it is acknowledged."""

import asyncio
import time

import msgspec
import pytest
from conftest import with_section
from eventually import eventually
from ledgers import fill, listing
from test_engine import running, settled

from fundsvc.core.events import AdlAck, AdlEnd, AdlFill, Mark, Position
from fundsvc.streams.announcements import Announcements
from fundsvc.streams.announcer import announcement_key
from fundsvc.streams.client import stream_key
from fundsvc.streams.producer import Producer

KEY = announcement_key(0)
TS = time.time_ns() // 1_000_000
MARKET = [listing("AAA"), Mark("AAA", "1000", TS), Position("AAA", "anna", -50_000, "2000", "90000000", TS)]


@pytest.fixture
def config(config):
    """Rounds that are acknowledged late and do not time out."""
    return with_section(config, "adl", ack_seconds=0.3, round_seconds=0)


@pytest.fixture
def producer(client):
    return Producer(client, 1)


def shortfalls(numbers):
    return [fill("AAA", number, -5, TS) for number in numbers]


async def announced(client, after="0-0"):
    """Returns the orders in the announcement stream."""
    reader, found = Announcements(client, 0), []
    while messages := await reader.read(after):
        found += [(one.announcement.adl, one.announcement.round) for one in messages]
        after = messages[-1].stream_id
    return found


async def orders(ledger_connection, condition="true"):
    return await ledger_connection.fetchval(f"SELECT count(*) FROM adl_orders WHERE {condition}")


async def test_matching_engine_that_reads_after_a_burst_receives_every_round(config, producer, client, service_connection):
    number = 11_000
    config = with_section(config, "adl", ack_seconds=3600)
    async with running(config):
        await producer.append([*MARKET, *shortfalls(range(1, number + 1))])
        await eventually(lambda: orders(service_connection, f"adl = {number}"), 60)
        await eventually(lambda: has_length(client, number))
        assert set(await announced(client)) == {(adl, 1) for adl in range(1, number + 1)}
        await producer.append(
            event
            for adl in range(1, number + 1)
            for event in (AdlFill("AAA", number + 2 * adl, adl, "anna", 1, TS), AdlEnd("AAA", number + 2 * adl + 1, adl, TS))
        )
        await eventually(lambda: no_order(service_connection), 60)


async def has_length(client, length):
    return await client.xlen(KEY) >= length


async def no_order(connection):
    return not await orders(connection, "state = 'open'")


async def test_round_is_announced_until_acknowledged(config, producer, client, service_connection):
    async with running(config) as engine:
        await producer.append([*MARKET, *shortfalls([1, 2, 3])])
        await eventually(lambda: is_announced_again(client, {1, 2, 3}))
        assert engine.count("fundsvc_adl_unacknowledged_rounds", partition="0") == 3
        assert engine.count("fundsvc_adl_announced_again_total", partition="0") >= 3
        await producer.append([AdlAck("AAA", 1, 1, TS), AdlFill("AAA", 4, 2, "anna", 1, TS), AdlEnd("AAA", 5, 3, TS)])
        await eventually(lambda: orders(service_connection, "adl = 1 AND acknowledged"))
        await eventually(lambda: engine.count("fundsvc_adl_unacknowledged_rounds", partition="0") <= 1)
        last = (await client.xrevrange(KEY, count=1))[0][0].decode()
        await asyncio.sleep(2)
        assert {adl for adl, _ in await announced(client, last)} <= {3}, "the order whose round ended may have a new round"


async def is_announced_again(client, wanted):
    found = [adl for adl, _ in await announced(client)]
    return all(found.count(adl) > 1 for adl in wanted)


async def test_restart_announces_only_unacknowledged_rounds(config, producer, client, service_connection):
    config = with_section(config, "adl", ack_seconds=3600)
    async with running(config):
        await producer.append([*MARKET, *shortfalls([1, 2, 3]), AdlAck("AAA", 2, 1, TS)])
        await eventually(lambda: orders(service_connection, "acknowledged"))
    await client.delete(KEY)
    async with running(config):
        await eventually(lambda: has_length(client, 2))
        assert sorted(await announced(client)) == [(1, 1), (3, 1)]


async def test_unacknowledged_rounds_are_not_trimmed(config, producer, client, service_connection, monkeypatch):
    monkeypatch.setattr("fundsvc.engine.announcing.RETENTION_SECONDS", 0)
    config = with_section(config, "adl", ack_seconds=3600)
    async with running(config):
        await producer.append([*MARKET, *shortfalls(range(1, 1001))])
        await eventually(lambda: has_length(client, 1000))
        kept = {*range(500, 520), 990}
        await producer.append(AdlAck("AAA", adl, 1, TS) for adl in range(1, 1001) if adl not in kept)
        await eventually(lambda: is_shorter(client, 700))
        assert kept <= {adl for adl, _ in await announced(client)}
        await producer.append(AdlAck("AAA", adl, 1, TS) for adl in kept)
        await eventually(lambda: is_shorter(client, 101))


async def is_shorter(client, length):
    return await client.xlen(KEY) < length


async def test_round_without_an_end_times_out_once(config, producer, client, service_connection):
    config = with_section(config, "adl", round_seconds=1)
    async with running(config):
        await producer.append([*MARKET, *shortfalls([1, 2])])
        await eventually(lambda: timeouts(client))
        rounds = await eventually(lambda: has_ended(client, service_connection))
        assert len(set(rounds)) == len(rounds), "once for each round"
        assert {adl for adl, _ in rounds} == {1, 2}


async def timeouts(client):
    found = []
    for _, fields in await client.xrange(stream_key(0)):
        events = msgspec.json.decode(fields[b"json"])
        found += [(event["adl"], event["round"]) for event in events if event["type"] == "adlTimeout"]
    return found


async def has_ended(client, connection):
    """Returns the ended rounds, once no order is open."""
    return not await orders(connection, "state = 'open'") and await timeouts(client)


async def test_full_stream_server_delays_announcements_but_not_settlement(config, producer, client, service_connection):
    async with running(config) as engine:
        await producer.append([*MARKET, *shortfalls([1])])
        await eventually(lambda: has_length(client, 1))
        await client.rename(KEY, "away")
        await client.set(KEY, "no stream")
        await producer.append(shortfalls([2, 3]))
        await settled(service_connection.fetchval, 3)
        assert engine.count("fundsvc_partition_halted", partition="0") == 0
        await client.delete(KEY)
        await eventually(lambda: has_all(client, {2, 3}))


async def has_all(client, wanted):
    return wanted <= {adl for adl, _ in await announced(client)}
