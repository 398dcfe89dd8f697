"""The step of the service, for one partition: read, decode, settle, write, commit, announce.

Two tasks share a `Partition` in memory. One reads messages and settles them, a bounded chunk at a time; the other writes
whatever has been settled since its last transaction, in one transaction. So commit N runs while N+1 is settled, a lone fill
waits for nobody, and a backlog is written in batches as large as allowed. Memory runs ahead of the ledger by what is not
committed yet; if a commit fails all of it is dropped, and the partition is loaded and read again from the stored offset.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from fundsvc.core.events import Event, Rejected, Rejection
from fundsvc.core.partition import Batch, Offset, Partition
from fundsvc.wire import Message, decode, raw_event

BLOCK_MS = 500
"""How long one read waits for messages; between reads the reader looks whether it should stop."""

CHUNK_EVENTS = 1000
"""Events settled between two looks at the loop: a few milliseconds, so that a running COPY is kept fed."""

MESSAGES_PER_READ_MAX = 5000
"""Bounds one reply of the stream; with a hundred events to a message it is reached only by single ones."""


POSITION_DIGITS_MAX = 8
"""More than any message holds events."""


class Source(Protocol):
    """A partition's stream."""

    async def read(self, after: str, count: int, block_ms: int) -> list[Message]:
        """Up to `count` messages after an id, waiting up to `block_ms` for the first."""


class Ledger(Protocol):
    """A partition's ledger, fenced by its owner's epoch."""

    async def open_rejections(self, keys: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
        """Of the rejected events with these (stream id, position), those not settled since."""

    async def commit(self, batch: Batch, before: Offset, after: Offset) -> None:
        """Writes a batch and moves the offset, or nothing."""


class Committed(NamedTuple):
    """A batch that is durable; `seconds` is what its transaction took."""

    batch: Batch
    offset: Offset
    seconds: float


class Pipeline:
    """Moves one partition from its stream into its ledger.

    `stored` is the offset in the ledger, `start` where to read from: the same, unless the stream lost its tail. `announce`
    is called after each commit with what it made durable.
    """

    def __init__(
        self,
        partition: Partition,
        source: Source,
        ledger: Ledger,
        announce: Callable[[Committed], None],
        *,
        stored: Offset,
        start: Offset,
        batch_fills_max: int,
    ) -> None:
        self._partition = partition
        self._source = source
        self._ledger = ledger
        self._announce = announce
        self._committed = stored
        self._settled = start
        self._fills_max = batch_fills_max
        self._replayed: set[tuple[str, int]] = set()
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._reading = True

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set, then finishes the batch in hand; raises what the source or the ledger raises."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(stop))
            tasks.create_task(self._write())

    async def _read(self, stop: asyncio.Event) -> None:
        count = MESSAGES_PER_READ_MAX
        while not stop.is_set():
            messages = await self._source.read(self._settled.last_id, count, BLOCK_MS)
            events = await self._settle(messages)
            if events:
                count = max(1, min(MESSAGES_PER_READ_MAX, len(messages) * self._fills_max // events))
        self._reading = False
        self._work.set()

    async def _settle(self, messages: Sequence[Message]) -> int:
        """Settles messages in order, letting the writer run after every chunk; returns the number of events."""
        replays = await self._open_replays(messages)
        total = unwritten = 0
        for message in messages:
            events = decode(message)
            if message.replay_of:
                self._settle_replay(message, events, replays)
            else:
                self._settle_message(message, events)
            self._settled = Offset(message.stream_id, self._settled.messages + 1)
            total += len(events)
            unwritten += len(events) or 1
            if unwritten >= CHUNK_EVENTS:
                unwritten = 0
                await self._hand_over()
        if unwritten:
            await self._hand_over()
        return total

    def _settle_message(self, message: Message, events: Sequence[Event | Rejection]) -> None:
        apply = self._partition.apply
        for position, event in enumerate(events):
            try:
                apply(event)
            except Rejection as rejection:
                self._reject(message, position, (message.stream_id, position), rejection)

    def _settle_replay(self, message: Message, events: Sequence[Event | Rejection], replays: set[tuple[str, int]]) -> None:
        """Settles an event that was rejected before, unless that has been done since."""
        key = _replay_key(message)
        if key not in replays or key in self._replayed:
            return
        try:
            for event in events:
                entry = self._partition.apply_late(event)
                self._partition.batch.replayed.append((*key, entry))
                self._replayed.add(key)
        except Rejection as rejection:
            self._reject(message, 0, key, rejection)

    def _reject(self, message: Message, position: int, key: tuple[str, int], rejection: Rejection) -> None:
        body = raw_event(message, position)
        self._partition.batch.rejected.append(Rejected(*key, rejection.reason, rejection.detail, message.codec, body))

    async def _open_replays(self, messages: Sequence[Message]) -> set[tuple[str, int]]:
        keys = [_replay_key(message) for message in messages if message.replay_of]
        return await self._ledger.open_rejections(keys) if keys else set()

    async def _hand_over(self) -> None:
        """Lets the writer start, or the running COPY go on; waits while a whole batch lies unwritten."""
        self._work.set()
        await asyncio.sleep(0)
        if len(self._partition.batch.entries) >= self._fills_max:
            self._room.clear()
            await self._room.wait()

    async def _write(self) -> None:
        while self._reading or self._settled != self._committed:
            await self._work.wait()
            self._work.clear()
            batch, after = self._partition.take(), self._settled
            self._room.set()
            if after == self._committed:
                continue
            started = time.perf_counter()
            await self._ledger.commit(batch, self._committed, after)
            self._committed = after
            self._announce(Committed(batch, after, time.perf_counter() - started))


def _replay_key(message: Message) -> tuple[str, int]:
    """The (stream id, position) that a replayed message names; what names nothing sensible matches nothing."""
    stream_id, _, position = message.replay_of.partition("/")
    sensible = position.isascii() and position.isdecimal() and len(position) <= POSITION_DIGITS_MAX
    return stream_id, int(position) if sensible else -1
