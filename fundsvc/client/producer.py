"""Sends the events of a matching engine to their streams, and keeps them until they are settled.

The producer sends what waits in batches, one message at a time per partition. When the stream server has lost messages, it
sends what is not settled again, in order. The service ignores known events by their sequence; give marks and positions one,
too.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import NamedTuple

from fundsvc.api.answers import CursorAnswer
from fundsvc.client.api import Api, Unavailable
from fundsvc.client.rounds import announced_rounds
from fundsvc.core.events import AdlAck, Event
from fundsvc.core.sequences import Numbered
from fundsvc.streams.client import StreamClient, StreamFault
from fundsvc.streams.producer import Producer as Streams
from fundsvc.streams.producer import StreamReplaced, StreamVersion
from fundsvc.streams.source import id_order
from fundsvc.wire.codec import encode
from fundsvc.wire.rounds import Announcement

UNSETTLED_MAX = 100_000
"""Events in memory, some 50 MB: seconds of the highest rate that an engine settles, and an outage of minutes at usual rates."""

BATCH_EVENTS_MAX = 1000
"""Events of a message. The more events wait, the fewer messages and round trips they take."""

CURSOR_SECONDS = 0.25
"""How often the cursor is read while events are not settled."""

RETRY_SECONDS = 0.5
"""Pause before the next attempt after a fault."""


class Sent(NamedTuple):
    """A message in a stream, and its events."""

    stream_id: str
    events: Sequence[Event]


class Lane:
    """The unsettled events of one partition, in order: first those of sent messages, then those that wait.

    `known` is the version of the stream after the last message. It is None if nothing is sent that the stream could have lost.
    """

    def __init__(self) -> None:
        self.known: StreamVersion | None = None
        self.filled = asyncio.Event()
        self.sending = asyncio.Lock()
        self._sent: deque[Sent] = deque()
        self._waiting: deque[Event] = deque()

    def add(self, event: Event) -> None:
        """Adds an event that waits."""
        self._waiting.append(event)
        self.filled.set()

    def batch(self) -> list[Event]:
        """Returns the next events to send."""
        return list(islice(self._waiting, BATCH_EVENTS_MAX))

    def note_sent(self, stream_id: str, batch: Sequence[Event]) -> None:
        """Records that the next events are sent."""
        for _ in batch:
            self._waiting.popleft()
        self._sent.append(Sent(stream_id, batch))

    def forget_settled(self, last_id: str) -> int:
        """Forgets the messages up to the last settled one; returns the number of their events."""
        forgotten = 0
        while self._sent and id_order(self._sent[0].stream_id) <= id_order(last_id):
            forgotten += len(self._sent.popleft().events)
        return forgotten

    def send_again(self, settled: Mapping[str, int]) -> int:
        """Makes all sent events wait again, except those that the ledger has by their sequence; returns the number of these."""
        sent = [event for message in self._sent for event in message.events]
        again = [event for event in sent if not isinstance(event, Numbered) or event.seq > settled.get(event.symbol, 0)]
        self.known = None
        self._sent.clear()
        self._waiting.extendleft(reversed(again))
        if self._waiting:
            self.filled.set()
        return len(sent) - len(again)


class Producer:
    """Sends events, and yields ADL rounds.

    `unsettled` is the number of events that are not known to be settled, a rate once for each partition. `resumptions` counts
    how often the stream server had lost messages.
    """

    def __init__(self, stream: StreamClient, api: Api, cursor: CursorAnswer, unsettled_max: int) -> None:
        self.unsettled = self.resumptions = 0
        self.partitions = range(len(cursor.partitions))
        self._stream = stream
        self._streams = Streams(stream, len(cursor.partitions))
        self._api = api
        self._epoch = cursor.stream_epoch
        self._lanes = [Lane() for _ in cursor.partitions]
        self._unsettled_max = unsettled_max
        self._changed = asyncio.Condition()

    async def send(self, *events: Event) -> None:
        """Queues events for sending. Waits while the limit of unsettled events is reached."""
        for event in events:
            if self.unsettled >= self._unsettled_max:
                async with self._changed:
                    await self._changed.wait_for(lambda: self.unsettled < self._unsettled_max)
            destinations = self._streams.destinations(event)
            self.unsettled += len(destinations)
            for partition in destinations:
                self._lanes[partition].add(event)

    async def settled(self) -> None:
        """Waits until all events are settled."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.unsettled)

    async def rounds(self) -> AsyncIterator[Announcement]:
        """Yields each ADL round once.

        A round is acknowledged when the next one is requested. A consumer that stops before that gets the round again after its
        restart; it recognises a round that it has executed by contract, generation, order and round.
        """
        async for announced in announced_rounds(self._stream, self.partitions):
            yield announced
            await self.send(AdlAck(announced.symbol, announced.adl, announced.round, time.time_ns() // 1_000_000))

    async def run(self, partition: int) -> None:
        """Sends the events of a partition until cancelled."""
        lane = self._lanes[partition]
        while True:
            await lane.filled.wait()
            try:
                async with lane.sending:
                    await self._send_waiting(partition, lane)
            except StreamReplaced:
                await self._resume()
                if lane.known:  # The service has not found the change yet.
                    await asyncio.sleep(RETRY_SECONDS)
            except StreamFault:
                await asyncio.sleep(RETRY_SECONDS)

    async def follow(self) -> None:
        """Follows the cursor until cancelled: forgets what is settled, and sends again what the stream lost."""
        while True:
            await asyncio.sleep(CURSOR_SECONDS)
            if self.unsettled:
                await self._resume()

    async def _send_waiting(self, partition: int, lane: Lane) -> None:
        """Sends all that waits; raises StreamReplaced if the stream may have lost earlier messages, or StreamFault."""
        while batch := lane.batch():
            known = lane.known or await self._streams.version(partition)
            (stream_id,), lane.known = await self._streams.append_after(known, partition, "json", [encode(batch)])
            lane.note_sent(stream_id, batch)
        lane.filled.clear()

    async def _resume(self) -> None:
        """Reads the cursor until it is answered, forgets what is settled, and sends again what the stream may have lost."""
        while True:
            try:
                cursor = await self._api.cursor()
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                break
        if cursor.stream_epoch != self._epoch:
            self._epoch = cursor.stream_epoch
            self.resumptions += 1
            settled = {contract.symbol: contract.seq for contract in cursor.contracts}
            for lane in self._lanes:
                async with lane.sending:
                    self.unsettled -= lane.send_again(settled)
        else:
            for lane, partition in zip(self._lanes, cursor.partitions, strict=True):
                self.unsettled -= lane.forget_settled(partition.last_id)
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def producing(stream: StreamClient, api: Api, *, unsettled_max: int = UNSETTLED_MAX) -> AsyncIterator[Producer]:
    """Runs a producer while the context is open; raises ApiError or Unavailable. Await `settled` before its end."""
    producer = Producer(stream, api, await api.cursor(), unsettled_max)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(producer.run(partition)) for partition in producer.partitions]
        running.append(tasks.create_task(producer.follow()))
        try:
            yield producer
        finally:
            for task in running:
                task.cancel()
