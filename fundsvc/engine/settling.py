"""The two tasks that settle a stream, whatever its events are: the base of the pipelines of partitions and of pools.

The reader reads messages and settles them in slices of bounded time. The writer writes everything settled since its last
transaction in one transaction. Commit N therefore overlaps with the settling of N+1, a single event is committed at once, and a
backlog is written in batches of the maximum size. A slice or a batch may end inside a message: the offset counts the settled
events of the message. Memory is ahead of the ledger by the uncommitted events. If a commit fails, memory is dropped; the state
is loaded and read again from the stored offset.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.concurrency.waiting import before
from fundsvc.core.batch import Durations, EventPlace, Offset
from fundsvc.core.checkpoints import Checkpoint, Checkpoints, Saving
from fundsvc.engine.batch_bound import BatchBound, Filling, Written
from fundsvc.wire.codec import WHOLE_BYTES_MAX, Message, fingerprint

BLOCK_MS = 500
"""How long one read waits for messages at most."""

SLICE_SHARE = 0.25
"""A slice's share of the longest time that the loop may be held. Its last event and the encoding of rows use the rest."""

GROUP_BYTES_MAX = WHOLE_BYTES_MAX
"""The size of messages that are decoded together, in half a millisecond."""

B = TypeVar("B", bound=Written)
Decoded = TypeVar("Decoded")


class Reading(NamedTuple):
    """The messages of one read; `added` is the number of messages that the stream ever had, if the read reached its end."""

    messages: Sequence[Message]
    added: int | None


class Source(Protocol):
    """A partition's stream."""

    async def read(self, after: Offset, block_ms: int) -> Reading:
        """Returns messages after an offset, of bounded total size. Waits up to `block_ms` for the first."""


class Committed(NamedTuple, Generic[B]):
    """What was committed, its offset, and its durations."""

    written: B
    offset: Offset
    durations: Durations


def groups_of(messages: Iterable[Message]) -> Iterator[Sequence[Message]]:
    """Divides messages into groups that are decoded and settled together.

    A group has several small messages, whose work per message would exceed that per event, or one large message, or one replay.
    """
    group: list[Message] = []
    size = 0
    for message in messages:
        size += len(message.body)
        if group and (message.replay_of or group[0].replay_of or size > GROUP_BYTES_MAX):
            yield group
            group, size = [], len(message.body)
        group.append(message)
    if group:
        yield group


class SettlingContext(NamedTuple):
    """The offsets and limits with which a stream is settled, whatever its events are.

    `exclusive` gives access to the state in memory; all other tasks must use the same object. `stored` is the offset in the
    ledger. `start` is the offset from which to read; it differs from `stored` if the stream lost its tail. `refused` maps
    events that the database refused to its messages. `checkpoints` are those of the stream.
    """

    exclusive: Exclusive
    stored: Offset
    start: Offset
    bound: BatchBound
    slice_seconds: float
    refused: Mapping[EventPlace, str]
    checkpoints: Checkpoints


class Settling(ABC, Generic[B]):
    """Settles one stream into its ledger, in batches `B`.

    `announce` is called after each commit. `writing` is the batch of the current transaction. `progress` counts steps.
    `settled` counts commits, and reads after which nothing was left to commit.
    """

    def __init__(self, source: Source, announce: Callable[[Committed[B]], Awaitable[None]], context: SettlingContext) -> None:
        self.writing: B | None = None
        self.progress = self.settled = 0
        self._source = source
        self._announce = announce
        self._exclusive = context.exclusive
        self._committed = context.stored
        self._settled = context.start
        self._bound = context.bound
        self._slice_seconds = context.slice_seconds
        self._slice_ends = 0.0
        self._refused = context.refused
        self._checkpoints = context.checkpoints
        self._last: Message | None = None
        self._work = asyncio.Event()
        self._handed_over = asyncio.Event()
        self._reading = True
        self._decode_seconds = self._settle_seconds = 0.0

    @property
    @abstractmethod
    def _draft(self) -> Filling:
        """The batch that takes the settled events."""

    @property
    @abstractmethod
    def _is_divided(self) -> bool:
        """Whether the batch would end within what must not be divided, so that it must not be written yet."""

    @abstractmethod
    async def _settle(self, messages: Sequence[Message], stop: asyncio.Event) -> None:
        """Settles a group of messages; after `stop` possibly only a part of it."""

    @abstractmethod
    def _take(self) -> B:
        """Returns the batch since the last transaction."""

    @abstractmethod
    async def _commit(self, written: B, after: Offset, saving: Saving | None) -> None:
        """Writes a batch, moves the offset from `_committed`, and stores a checkpoint if one is given, in one transaction."""

    def _is_long_to_take(self) -> bool:
        """Whether the batch is taken in a thread."""
        return False

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set, then commits what is settled. Raises errors of the source, the ledger and `announce`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(stop))
            tasks.create_task(self._write())

    async def _read(self, stop: asyncio.Event) -> None:
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await self._read_until(stop, stopping)
        finally:
            stopping.cancel()
        self._reading = False
        self._work.set()

    async def _read_until(self, stop: asyncio.Event, stopping: asyncio.Future[Any]) -> None:
        """Reads and settles until `stop` is set. A read that waits for messages then ends: it changes nothing."""
        while not stop.is_set():
            reading = await before(stopping, self._source.read(self._settled, BLOCK_MS))
            if reading is None:
                return
            self.progress += 1
            self.settled += self.writing is None and not self._draft.events
            self._begin_slice()
            for messages in groups_of(reading.messages):
                await self._settle(messages, stop)
                if stop.is_set():
                    break
            else:
                self._note_end(reading)
            if reading.messages:
                await self._hand_over()

    def _note_end(self, reading: Reading) -> None:
        """Corrects the number of settled messages at the end of the stream, where all messages are settled or deleted."""
        if reading.messages and reading.added is not None:
            self._settled = self._settled._replace(messages=reading.added)

    def _decode(self, decode: Callable[[], Decoded]) -> Decoded:
        started = time.perf_counter()
        decoded = decode()
        self._decode_seconds += time.perf_counter() - started
        return decoded

    def _pass(self, message: Message) -> None:
        self._last = message
        self._settled = Offset(message.stream_id, self._settled.messages + 1)

    def _begin_slice(self) -> None:
        self._slice_ends = time.perf_counter() + self._slice_seconds

    def _is_due(self) -> bool:
        return time.perf_counter() >= self._slice_ends or self._bound.is_reached(self._draft)

    async def _hand_over(self) -> None:
        """Wakes the writer; waits while a full batch is not yet taken."""
        self.progress += 1
        self._work.set()
        await asyncio.sleep(0)
        while not self._is_divided and self._bound.is_reached(self._draft):
            await self._next_hand_over()
        self._begin_slice()

    async def _until_committed(self) -> None:
        """Waits until everything settled is committed."""
        while self._settled != self._committed:
            self._work.set()
            await self._next_hand_over()

    async def _next_hand_over(self) -> None:
        self._handed_over.clear()
        await self._handed_over.wait()

    def _take_whole(self) -> tuple[B, Offset, Message | None] | None:
        """Returns the batch since the last transaction, the offset after it, and the last message that is settled completely.

        Returns None while the batch must not be written.
        """
        return None if self._is_divided else (self._take(), self._settled, self._last)

    def _saving(self, after: Offset, last: Message | None) -> Saving | None:
        """Returns a checkpoint of the offset if one is due, and if its last message was read by this pipeline."""
        now = time.monotonic()
        if last is None or not self._checkpoints.is_due(now):
            return None
        return self._checkpoints.save(Checkpoint(after.last_id, after.messages, fingerprint(last)), now)

    async def _write(self) -> None:
        while self._reading or self._settled != self._committed:
            await self._work.wait()
            self._work.clear()
            taken = await self._exclusive.run(self._take_whole, is_long=self._is_long_to_take())
            if taken is None:
                continue
            written, after, last = taken
            decode, settle = self._decode_seconds, self._settle_seconds
            self._decode_seconds = self._settle_seconds = 0.0
            self._handed_over.set()
            if after == self._committed and not written.books:
                continue
            started = time.perf_counter()
            self.writing = written
            saving = self._saving(after, last)
            await self._commit(written, after, saving)
            if saving:
                self._checkpoints.stored(saving, time.monotonic())
            self.writing = None
            self._bound.grow(written)
            self._committed = after
            self.progress += 1
            self.settled += 1
            self._handed_over.set()
            self._note_committed(written)
            await self._announce(Committed(written, after, Durations(decode, settle, time.perf_counter() - started)))

    def _note_committed(self, written: B) -> None:
        """Called after each commit, before it is announced."""
