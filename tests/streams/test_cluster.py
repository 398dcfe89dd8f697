"""A Valkey Cluster whose primaries end, freeze and come back: nothing acknowledged is lost, and nothing stays stuck."""

import asyncio
import time

import pytest
from eventually import eventually
from valkey_cluster import valkey_cluster

from fundsvc.streams.client import REPLY_SECONDS_MAX, StreamFault, open_client, server_time_ms, stream_key
from fundsvc.streams.producer import Producer, StreamReplaced
from fundsvc.streams.source import Source

PARTITIONS = 12
STARTS = 20
MOVED = 3
RECOVERY_SECONDS_MAX = {"kill": 2, "freeze": REPLY_SECONDS_MAX + 2}
"""Until every partition flows again, beyond what the servers take to elect a primary. Only silence reveals a frozen server."""

MESSAGE = [b'{"type":"none"}']


@pytest.fixture
async def cluster(tmp_path):
    async with valkey_cluster(tmp_path) as cluster:
        yield cluster


class Traffic:
    """A producer and a reader of each partition; `acknowledged` and `read` are ids by partition.

    With `checks`, each append checks that the stream lost nothing, as posts over HTTP do.
    """

    def __init__(self, client, replicas_min=0, *, checks=False):
        self._client = client
        self._append = self._append_checked if checks else self._append_unchecked
        self._versions = {}
        self._producer = Producer(client, PARTITIONS, replicas_min=replicas_min)
        self.acknowledged = {number: [] for number in range(PARTITIONS)}
        self.read = {number: [] for number in range(PARTITIONS)}
        self.appended_at = dict.fromkeys(range(PARTITIONS), 0.0)
        self.read_at = dict.fromkeys(range(PARTITIONS), 0.0)

    async def run(self, stop):
        async with asyncio.TaskGroup() as tasks:
            for number in range(PARTITIONS):
                tasks.create_task(self._produce(number, stop))
                tasks.create_task(self._follow(number, stop))

    async def _produce(self, number, stop):
        while not stop.is_set():
            try:
                self.acknowledged[number] += await self._append(number)
                self.appended_at[number] = time.monotonic()
            except StreamFault:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.01)

    async def _append_unchecked(self, number):
        return await self._producer.append_bodies(number, "json", MESSAGE)

    async def _append_checked(self, number):
        known = self._versions.get(number) or await self._producer.version(number)
        try:
            ids, self._versions[number] = await self._producer.append_after(known, number, "json", MESSAGE)
        except StreamReplaced as replaced:
            ids, self._versions[number] = [], replaced.found
        return ids

    async def _follow(self, number, stop):
        source = Source(self._client, number)
        while not stop.is_set():
            try:
                messages, _ = await source.read_with_state((self.read[number] or ["0-0"])[-1], 100)
                self.read[number] += [message.stream_id for message in messages]
                self.read_at[number] = time.monotonic()
            except StreamFault:
                await asyncio.sleep(0.05)

    def flows_since(self, moment):
        """Whether every partition was appended to and read since a moment."""
        return min(*self.appended_at.values(), *self.read_at.values()) > moment


async def test_twenty_clients_start_with_concurrent_partitions(cluster):
    for _ in range(STARTS):
        async with open_client(cluster.config(PARTITIONS)) as client:
            reads = (Source(client, number).read_with_state("0-0") for number in range(PARTITIONS))
            await asyncio.gather(*reads, server_time_ms(client, stream_key(0)))


@pytest.mark.alone
@pytest.mark.parametrize("failure", RECOVERY_SECONDS_MAX)
async def test_producers_and_readers_follow_a_failed_primary(cluster, failure):
    async with open_client(cluster.config(PARTITIONS)) as client:
        traffic, stop = Traffic(client), asyncio.Event()
        running = asyncio.create_task(traffic.run(stop))
        begun = time.monotonic()
        await eventually(lambda: traffic.flows_since(begun))
        failed = cluster.primary_of(stream_key(0))
        getattr(failed, failure)()
        moment = time.monotonic()
        await eventually(lambda: cluster.primary_of(stream_key(0)) is not failed)
        elected = time.monotonic()
        await eventually(lambda: traffic.flows_since(elected))
        took = time.monotonic() - moment
        print(f"{failure}: another primary after {elected - moment:.1f} s, every partition flows again after {took:.1f} s")
        stop.set()
        await running
    assert took < elected - moment + RECOVERY_SECONDS_MAX[failure]


@pytest.mark.parametrize("checks", [False, True], ids=["appended", "posted"])
async def test_acknowledged_messages_survive_a_frozen_primary(cluster, checks):
    config = cluster.config(PARTITIONS)
    async with open_client(config) as client:
        traffic, stop = Traffic(client, replicas_min=1, checks=checks), asyncio.Event()
        running = asyncio.create_task(traffic.run(stop))
        begun = time.monotonic()
        await eventually(lambda: traffic.flows_since(begun))
        frozen = cluster.primary_of(stream_key(0))
        frozen.freeze()
        await eventually(lambda: cluster.primary_of(stream_key(0)) is not frozen)
        # At once: it then executes and acknowledges what the producers have sent since, before it learns of the other primary.
        frozen.wake()
        woken = time.monotonic()
        await eventually(lambda: traffic.flows_since(woken))
        stop.set()
        await running
        kept = {number: await ids_of(Source(client, number)) for number in range(PARTITIONS)}
    lost = {number: set(ids) - kept[number] for number, ids in traffic.acknowledged.items()}
    sent = sum(map(len, traffic.acknowledged.values()))
    print(f"{sent} acknowledged, {sum(map(len, lost.values()))} lost")
    assert not any(lost.values())


@pytest.mark.parametrize("how", ["one by one", "at once"])
async def test_moved_slots_lose_and_double_nothing(cluster, how):
    async with open_client(cluster.config(PARTITIONS)) as client:
        traffic, stop = Traffic(client, replicas_min=1), asyncio.Event()
        running = asyncio.create_task(traffic.run(stop))
        begun = time.monotonic()
        await eventually(lambda: traffic.flows_since(begun))
        for number in range(MOVED):
            key = stream_key(number)
            before = cluster.primary_of(key)
            await asyncio.to_thread(cluster.move, key, how)
            await eventually(lambda key=key, before=before: cluster.primary_of(key) is not before)
        moved = time.monotonic()
        await eventually(lambda: traffic.flows_since(moved))
        took = time.monotonic() - moved
        stop.set()
        await running
        kept = {number: await ids_of(Source(client, number)) for number in range(PARTITIONS)}
    lost = sum(len(set(ids) - kept[number]) for number, ids in traffic.acknowledged.items())
    doubled = sum(len(ids) - len(set(ids)) for ids in traffic.read.values())
    sent = sum(map(len, traffic.acknowledged.values()))
    print(f"{how}: {sent} acknowledged, {lost} lost, {doubled} read twice, all flow after {took:.1f} s")
    assert (lost, doubled) == (0, 0)


async def ids_of(source):
    found, last = set(), "0-0"
    while messages := await source.read(last):
        found |= {message.stream_id for message in messages}
        last = messages[-1].stream_id
    return found
