"""The step of the service, for one partition: read, decode, settle, write, commit, announce.

Two tasks share a `Partition` in memory. One reads messages and settles them, a bounded chunk at a time; the other writes
whatever has been settled since its last transaction, in one transaction. So commit N runs while N+1 is settled, a lone fill
waits for nobody, and a backlog is written in batches as large as allowed. Memory runs ahead of the ledger by what is not
committed yet; if a commit fails all of it is dropped, and the partition is loaded and read again from the stored offset.

An event that was rejected before and is sent again is the exception to the overlap: everything before it is committed first,
so that the ledger itself can tell whether it was settled meanwhile. Operators send few of those.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from fundsvc.core.batch import Batch, Durations, Offset
from fundsvc.core.events import Event, Reason, Rejected, Rejection, check_replayable
from fundsvc.core.partition import Partition
from fundsvc.core.sequences import Facts, kept_as
from fundsvc.core.times import time_of_id
from fundsvc.recollection import recollect
from fundsvc.wire import Message, decode, raw_event

BLOCK_MS = 500
"""How long one read waits for messages; between reads the reader looks whether it should stop."""

CHUNK_EVENTS = 200
"""Events settled between two looks at the loop: under a millisecond, which is what each round trip of a commit may wait."""

MESSAGES_PER_READ_MAX = 1000
"""Bounds one reply of the stream, whose messages may all at once be a hundred times as large as the last ones were."""

REPLAY_KEY = re.compile(r"(\d{1,20}-\d{1,20})/(\d{1,8})", re.ASCII)
"""A stream id, and a position with more digits than any message has events."""


class Source(Protocol):
    """A partition's stream."""

    async def read(self, after: str, count: int, block_ms: int) -> list[Message]:
        """Up to `count` messages after an id, waiting up to `block_ms` for the first."""


class Ledger(Protocol):
    """A partition's ledger, fenced by its owner's epoch."""

    async def is_open(self, stream_id: str, position: int) -> bool:
        """Whether the event at this place is kept as rejected and has not been settled since."""

    async def facts(self, wanted: Mapping[str, Sequence[int]]) -> Facts:
        """What it has of the first of some sequences, rising, of each contract: of the first one at least."""

    def prepare(self, batch: Batch) -> None:
        """Called with a batch whenever some more has been settled, so that the ledger may encode that while it is fresh."""

    async def commit(self, batch: Batch, before: Offset, after: Offset) -> None:
        """Writes a batch and moves the offset, or nothing."""


class Committed(NamedTuple):
    """A batch that is durable, and what it took."""

    batch: Batch
    offset: Offset
    durations: Durations


class Pipeline:
    """Moves one partition from its stream into its ledger.

    `stored` is the offset in the ledger, `start` where to read from: the same, unless the stream lost its tail. `announce`
    is awaited after each commit with what it made durable.
    """

    def __init__(
        self,
        partition: Partition,
        source: Source,
        ledger: Ledger,
        announce: Callable[[Committed], Awaitable[None]],
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
        self._rows_max = batch_fills_max
        self._work = asyncio.Event()
        self._progress = asyncio.Event()
        self._reading = True
        self._decode_seconds = self._settle_seconds = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set, then finishes the batch in hand; raises what the source or the ledger raises."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(stop))
            tasks.create_task(self._write())

    def keep_books(self) -> None:
        """Has the ADL books kept with the next batches, or with an empty one where nothing else comes."""
        self._partition.keep_books()
        self._work.set()

    async def _read(self, stop: asyncio.Event) -> None:
        count = MESSAGES_PER_READ_MAX
        while not stop.is_set():
            messages = await self._source.read(self._settled.last_id, count, BLOCK_MS)
            events = await self._settle(messages)
            if events:
                count = max(1, min(MESSAGES_PER_READ_MAX, len(messages) * self._rows_max // events))
        self._reading = False
        self._work.set()

    async def _settle(self, messages: Sequence[Message]) -> int:
        """Settles messages in order, letting the writer run after every chunk; returns the number of events."""
        total = unwritten = 0
        for message in messages:
            started = time.perf_counter()
            events = decode(message)
            decoded = time.perf_counter()
            await recollect(self._partition, events, self._ledger, self._until_committed)
            if message.replay_of:
                await self._settle_replay(message, events)
            else:
                self._settle_message(message, events)
                self._settle_seconds += time.perf_counter() - decoded
            self._decode_seconds += decoded - started
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
        self._partition.expect(events)
        apply, stream_ms = self._partition.apply, time_of_id(message.stream_id)
        for position, event in enumerate(events):
            try:
                apply(event, stream_ms)
            except Rejection as rejection:
                self._reject(message, position, (message.stream_id, position), rejection, event)

    async def _settle_replay(self, message: Message, events: Sequence[Event | Rejection]) -> None:
        """Settles an event that was rejected before, unless that has been done since."""
        match = REPLAY_KEY.fullmatch(message.replay_of)
        if match is None:
            rejection = Rejection(Reason.UNDECODABLE, f"replayOf {message.replay_of[:60]!r} is not a stream id/position")
            self._reject(message, 0, (message.stream_id, 0), rejection)
            return
        key = match[1], int(match[2])
        await self._until_committed()
        if await self._ledger.is_open(*key):
            try:
                await self._settle_late(message, key, events)
            except Rejection as rejection:
                self._reject(message, 0, key, rejection)

    async def _settle_late(self, message: Message, key: tuple[str, int], events: Sequence[Event | Rejection]) -> None:
        """Settles the one event of a replay; one whose like came by another way is only noted as settled."""
        if len(events) != 1:
            raise Rejection(Reason.UNDECODABLE, f"{len(events)} events: send rejected events again one by one")
        (event,) = events
        check_replayable(event)
        known = self._partition.is_applied(event)
        entry = None if known else self._partition.apply_late(event, time_of_id(message.stream_id))
        self._partition.batch.replayed.append((*key, None if known else message.stream_id, entry))

    def _reject(
        self, message: Message, position: int, key: tuple[str, int], rejection: Rejection, event: object = None
    ) -> None:
        body = raw_event(message, position)
        rejected = Rejected(*key, rejection.reason, rejection.detail, message.codec, body, kept_as(event))
        self._partition.batch.rejected.append(rejected)

    async def _hand_over(self) -> None:
        """Lets the writer start, or the running COPY go on; waits while a whole batch lies unwritten."""
        self._ledger.prepare(self._partition.batch)
        self._work.set()
        await asyncio.sleep(0)
        while self._rows() >= self._rows_max:
            await self._next_progress()

    async def _until_committed(self) -> None:
        """Waits until the ledger has everything that is settled."""
        while self._settled != self._committed:
            self._work.set()
            await self._next_progress()

    async def _next_progress(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    def _rows(self) -> int:
        return self._partition.batch.count() + len(self._partition.batch.rejected)

    async def _write(self) -> None:
        while self._reading or self._settled != self._committed:
            await self._work.wait()
            self._work.clear()
            batch, after = self._partition.take(), self._settled
            decode, settle = self._decode_seconds, self._settle_seconds
            self._decode_seconds = self._settle_seconds = 0.0
            self._progress.set()
            if after == self._committed and not batch.books:
                continue
            started = time.perf_counter()
            await self._ledger.commit(batch, self._committed, after)
            self._committed = after
            self._progress.set()
            await self._announce(Committed(batch, after, Durations(decode, settle, time.perf_counter() - started)))
