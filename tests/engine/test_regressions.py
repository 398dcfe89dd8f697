"""A stream that lost its tail is read again from the newest checkpoint that it still has: nothing is lost or settled twice."""

import pytest
from conftest import with_section
from eventually import eventually
from ledgers import fill, listing
from test_engine import ledger, running, settled  # noqa: F401 - a fixture

from fundsvc.streams.client import stream_key
from fundsvc.streams.producer import Producer
from fundsvc.wire.codec import encode

KEY = stream_key(0)


class Stream:
    """A stream of numbered fills, one in each message, that each engine settles before the next one starts."""

    def __init__(self, config, client, ledger):  # noqa: F811
        self.config = config
        self.client = client
        self._ledger = ledger
        self._producer = Producer(client, 1)
        self.sent = 0

    async def settle(self, count):
        """Has an engine settle the stream, then further fills. Returns its duplicates and regressions.

        The first commit of an engine stores a checkpoint: the first of these fills has it.
        """
        async with running(self.config) as engine:
            for part in (0, min(1, count), max(0, count - 1)):
                await self.send(part)
                await eventually(self._is_at_end)
            return [engine.count(f"fundsvc_{name}_total") for name in ("duplicates", "stream_regressions")]

    async def send(self, count):
        events = [] if self.sent else [listing("AAA")]
        events += [fill("AAA", self.sent + number, 1) for number in range(1, count + 1)]
        self.sent += count
        return [one for ids in (await self._producer.append(events, per_message=1)).values() for one in ids]

    async def _is_at_end(self):
        last = (await self.client.xinfo_stream(KEY))["last-generated-id"].decode()
        return await self._ledger("SELECT last_id FROM partitions") == last

    async def checkpoints(self):
        """The ids of the stored checkpoints."""
        return await self._ledger("SELECT array_agg(last_id ORDER BY stored_at) FROM stream_checkpoints")

    async def after(self, stream_id):
        """The number of messages after an id."""
        return len(await self.client.xrange(KEY, f"({stream_id}"))

    async def copy(self):
        return await self.client.dump(KEY)

    async def restore(self, copy, fills):
        """Puts an older copy of the stream, with this number of fills, in its place."""
        await self.client.restore(KEY, 0, copy, replace=True)
        self.sent = fills

    async def add(self, stream_id, seq):
        """Appends a fill under an id."""
        await self.client.xadd(KEY, {"json": encode([fill("AAA", seq, 1)])}, id=stream_id)

    async def entries(self):
        return await self._ledger("SELECT array_agg(seq ORDER BY entry) FROM entries")


@pytest.fixture
async def stream(config, client, ledger):  # noqa: F811
    """A stream with 60 settled fills and two checkpoints, then its copy, then ten more and a checkpoint among these."""
    stream = Stream(config, client, ledger)
    await stream.settle(50)
    await stream.settle(10)
    stream.older = await stream.copy()
    await stream.settle(10)
    return stream


async def test_older_copy_is_read_from_its_newest_checkpoint(stream):
    first, second, lost = await stream.checkpoints()
    await stream.restore(stream.older, 60)
    assert await stream.after(first) > 50
    assert await stream.after(second) == 9
    assert await stream.settle(20) == [9 + 10, 1], "ten of these fills are known too"
    assert await stream.entries() == [*range(1, 81)]
    assert (await stream.checkpoints())[:3] == [first, second, lost], "the lost one may return"


async def test_message_with_the_id_of_a_checkpoint_is_not_that_checkpoint(stream):
    *_, lost = await stream.checkpoints()
    await stream.restore(stream.older, 60)
    await stream.add(lost, 71)
    assert await stream.settle(0) == [9, 1]
    assert await stream.entries() == [*range(1, 72)]


async def test_checkpoint_after_another_number_of_messages_is_not_used(stream):
    """The clock of the server is behind, and the same fill gets the same id after others that were never settled."""
    *_, lost = await stream.checkpoints()
    ((_, fields),) = await stream.client.xrange(KEY, lost, lost)
    await stream.restore(stream.older, 60)
    end = (await stream.client.xinfo_stream(KEY))["last-generated-id"].decode()
    milliseconds, sequence = end.split("-")
    for number in range(1, 21):
        await stream.add(f"{milliseconds}-{int(sequence) + number}", 70 + number)
    await stream.client.xadd(KEY, fields, id=lost)
    assert await stream.settle(0) == [61, 1]
    assert await stream.entries() == [*range(1, 91)]


async def test_stream_that_grew_beyond_the_offset_after_it_lost_its_tail_is_recognised(stream):
    await stream.restore(stream.older, 65)
    await stream.send(20)
    assert await stream.settle(0) == [9 + 5, 1]
    assert await stream.entries() == [*range(1, 86)]


async def test_messages_of_an_acknowledged_gap_that_return_are_rejected_and_kept(config, client, ledger):  # noqa: F811
    stream = Stream(with_section(config, "stream", on_gap="continue"), client, ledger)
    await stream.settle(10)
    gone = await stream.send(3)
    await stream.send(5)
    older = await stream.copy()
    await client.xdel(KEY, *gone)
    async with running(stream.config):
        await settled(ledger, 15)
    assert len(await stream.checkpoints()) == 2
    async with running(stream.config):
        await stream.send(5)
        await settled(ledger, 20)
    await stream.restore(older, 18)
    async with running(stream.config) as engine:
        await eventually(lambda: engine.count("fundsvc_rejected_total", reason="late") == 3)
