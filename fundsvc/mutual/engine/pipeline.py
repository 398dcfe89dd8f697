"""The settlement pipeline of one pool: read, decode, settle, commit, announce; the smaller sibling of the reserve's.

Two tasks share a `Pool` in memory. The reader settles messages in slices of bounded time; an event with a long cut-off takes
many slices, between which nothing is taken. The writer writes everything settled since its last transaction in one transaction.
If a commit fails, memory is dropped; the pool is loaded and read again from the stored offset.

Replayed events do not overlap with commits: everything before them is committed first, so that the ledger determines whether
they were applied meanwhile.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.core.batch import Durations, EventPlace, Offset
from fundsvc.core.events import Reason, Rejected, Rejection
from fundsvc.core.times import time_of_id
from fundsvc.engine.pipeline import BLOCK_MS, BatchBound, Reading, Source
from fundsvc.mutual.codec import DECODER
from fundsvc.mutual.core.batch import Batch
from fundsvc.mutual.core.events import Event, Numbered
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.store.rows import Applied, Totals
from fundsvc.wire.codec import REPLAY_KEY, RUN_EVENTS, Contents, Message

TAKE_ROWS_MAX = 1_000
"""A batch with more rows is taken in a thread, because each row takes up to two microseconds."""

OPEN_MAX = 10_000
"""Known sequences of rejected events; beyond this number, those that cannot be applied any more are dropped."""


_Decoded = TypeVar("_Decoded")


class Ledger(Protocol):
    """A pool's ledger. It refuses commits of an old epoch."""

    async def is_open(self, stream_id: str, position: int) -> bool:
        """Whether the event at this place is kept as rejected and may still be applied."""

    async def commit(self, batch: Batch, totals: Totals, applied: Sequence[Applied], before: Offset, after: Offset) -> None:
        """Writes a batch and moves the offset in one transaction."""


class Writing(NamedTuple):
    """The batch of a transaction: its effects, rejected events that were applied later, and the place of its last event.

    A pool has no books, and each of its batches may be divided.
    """

    batch: Batch
    totals: Totals
    applied: Sequence[Applied]
    place: EventPlace | None
    books: Sequence[object] = ()
    uncut: bool = False

    @property
    def events(self) -> int:
        """The number of settled events."""
        return self.batch.events


class Committed(NamedTuple):
    """A committed batch, its offset, and its durations."""

    written: Writing
    offset: Offset
    durations: Durations


class PoolPipeline:
    """Settles one pool's stream into its ledger.

    `exclusive` gives access to the pool. `stored` is the offset in the ledger, `start` that from which to read; it differs
    if the stream lost its tail. `opened` are the sequences of rejected events that later ones may have. `announce` is called
    after each commit. `refused` maps events that the database refused to its messages. `writing` is the batch of the current
    transaction. `progress` counts steps, `settled` commits and reads after which nothing was left to commit.
    """

    def __init__(
        self,
        pool: Pool,
        source: Source,
        ledger: Ledger,
        announce: Callable[[Committed], Awaitable[None]],
        *,
        exclusive: Exclusive,
        stored: Offset,
        start: Offset,
        opened: Iterable[int],
        bound: BatchBound,
        slice_seconds: float,
        refused: Mapping[EventPlace, str],
    ) -> None:
        self.writing: Writing | None = None
        self.progress = self.settled = 0
        self._pool = pool
        self._source = source
        self._ledger = ledger
        self._announce = announce
        self._exclusive = exclusive
        self._committed = stored
        self._settled = start
        self._open = set(opened)
        self._bound = bound
        self._slice_seconds = slice_seconds
        self._slice_ends = 0.0
        self._refused = refused
        self._steps: Iterator[None] | None = None
        self._applied: list[Applied] = []
        self._place: EventPlace | None = None
        self._work = asyncio.Event()
        self._handed_over = asyncio.Event()
        self._reading = True
        self._decode_seconds = self._settle_seconds = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set, then commits what is settled. Raises errors of the source, the ledger and `announce`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(stop))
            tasks.create_task(self._write())

    async def _read(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            reading = await self._source.read(self._settled, BLOCK_MS)
            self.progress += 1
            self.settled += self.writing is None and not self._pool.draft.events
            self._begin_slice()
            for message in reading.messages:
                await self._settle(message, stop)
                if stop.is_set():
                    break
            else:
                self._note_end(reading)
            if reading.messages:
                await self._hand_over()
        self._reading = False
        self._work.set()

    def _note_end(self, reading: Reading) -> None:
        """Corrects the number of settled messages at the end of the stream, where all messages are settled or deleted."""
        if reading.messages and reading.added is not None:
            self._settled = self._settled._replace(messages=reading.added)

    async def _settle(self, message: Message, stop: asyncio.Event) -> None:
        """Settles a message; after `stop` possibly only a part of it."""
        contents = self._decode(partial(Contents, message, DECODER))
        if message.replay_of:
            await self._settle_replay(message, contents)
            return
        position = self._settled.settled_of(message.stream_id)
        if position >= contents.size:
            self._pass(message)
        while position < contents.size:
            room = min(RUN_EVENTS, self._bound.room(self._pool.draft))
            events = self._decode(partial(contents.run, position, room))
            position = await self._exclusive.run(partial(self._settle_slice, message, contents, position, events))
            if self._is_due():
                await self._hand_over()
                if stop.is_set() and not self._steps:
                    return

    def _settle_slice(self, message: Message, contents: Contents, position: int, events: Sequence[Event | Rejection]) -> int:
        """Settles events from a position on until the slice ends; returns the position of the first unsettled event."""
        started, first, stream_id = time.perf_counter(), position, message.stream_id
        stream_ms = time_of_id(stream_id)
        for event in events:
            try:
                if self._refused and self._steps is None:
                    self._check_refused(EventPlace(stream_id, position))
                if not self._apply(event, stream_id, stream_ms):
                    break
            except Rejection as rejection:
                self._steps = None
                self._reject(message, contents.raw(position), EventPlace(stream_id, position), rejection, event)
            position += 1
            if time.perf_counter() >= self._slice_ends:
                break
        if position > first:
            self._count(EventPlace(stream_id, position - 1), position - first)
        if position >= contents.size:
            self._pass(message)
        elif position:
            self._settled = self._settled._replace(events=position, partial_id=stream_id)
        self._settle_seconds += time.perf_counter() - started
        return position

    def _apply(self, event: Event | Rejection, stream_id: str, stream_ms: int) -> bool:
        """Applies an event, or continues with it; returns whether it is applied. It is not when the slice ends first."""
        pool = self._pool
        before = pool.ledger.seq
        if self._steps is None and not pool.is_cutoff_due(event):
            pool.apply(event, stream_ms)
        elif not self._continue(self._steps or pool.steps(event, stream_ms)):
            return False
        if self._open and pool.ledger.seq != before:
            self._note_applied(pool.ledger.seq, stream_id)
        return True

    def _continue(self, steps: Iterator[None]) -> bool:
        """Takes steps until the slice ends; returns whether all are taken."""
        self._steps = steps
        for _ in steps:
            if time.perf_counter() >= self._slice_ends:
                return False
        self._steps = None
        return True

    def _note_applied(self, seq: int, stream_id: str) -> None:
        """Records that a later event had the sequence of a rejected one."""
        if seq in self._open:
            self._open.discard(seq)
            self._applied.append(Applied(None, None, seq, stream_id))

    async def _settle_replay(self, message: Message, contents: Contents) -> None:
        """Applies a rejected event that was sent again, unless it or its sequence was applied already."""
        match = REPLAY_KEY.fullmatch(message.replay_of)
        place = EventPlace(message.stream_id, 0)
        if match is None:
            rejection = Rejection(Reason.UNDECODABLE, f"replayOf {message.replay_of[:60]!r} is not a stream id/position")
            self._reject(message, contents.raw(0), place, rejection)
        else:
            await self._until_committed()
            key = EventPlace(match[1], int(match[2]))
            if await self._ledger.is_open(*key):
                await self._replay(message, contents, key)
        self._count(place, 1)
        self._pass(message)

    async def _replay(self, message: Message, contents: Contents, key: EventPlace) -> None:
        try:
            self._check_refused(EventPlace(message.stream_id, 0))
            event = _only(contents.run(0, contents.size))
            seq = getattr(event, "seq", None)
            is_late = seq is not None and seq <= self._pool.ledger.seq
            apply = self._pool.steps_late if is_late else self._pool.steps
            steps = apply(event, time_of_id(message.stream_id))
            while not await self._exclusive.run(partial(self._continue, steps)):
                await asyncio.sleep(0)
                self._begin_slice()
            self._open.discard(seq)
            self._applied.append(Applied(*key, seq, message.stream_id))
        except Rejection as rejection:
            self._steps = None
            self._reject(message, contents.raw(0), key, rejection)

    def _check_refused(self, place: EventPlace) -> None:
        """Raises Rejection if the database refused the event at a place."""
        if place in self._refused:
            raise Rejection(Reason.DATABASE_REFUSED, self._refused[place])

    def _reject(self, message: Message, body: bytes, key: EventPlace, rejection: Rejection, event: object = None) -> None:
        # A Rejection raised while decoding has a traceback, which would keep the whole message alive in a cycle.
        rejection.__traceback__ = None
        identity = identity_of(event)
        if identity and identity[1] > self._pool.ledger.seq:
            self._note_open(identity[1])
        rejected = Rejected(*key, rejection.reason, rejection.detail, message.codec, body, identity)
        self._pool.draft.reject(rejected)

    def _note_open(self, seq: int) -> None:
        if len(self._open) >= OPEN_MAX:
            self._open = {one for one in self._open if one > self._pool.ledger.seq}
        self._open.add(seq)

    def _count(self, place: EventPlace, events: int) -> None:
        self._pool.draft.events += events
        self._place = place

    def _pass(self, message: Message) -> None:
        self._settled = Offset(message.stream_id, self._settled.messages + 1)

    def _decode(self, decode: Callable[[], _Decoded]) -> _Decoded:
        started = time.perf_counter()
        decoded = decode()
        self._decode_seconds += time.perf_counter() - started
        return decoded

    def _begin_slice(self) -> None:
        self._slice_ends = time.perf_counter() + self._slice_seconds

    def _is_due(self) -> bool:
        return time.perf_counter() >= self._slice_ends or self._bound.is_reached(self._pool.draft)

    async def _hand_over(self) -> None:
        """Wakes the writer; waits while a full batch is not yet taken. In the middle of an event it only yields to the loop."""
        self.progress += 1
        self._work.set()
        await asyncio.sleep(0)
        while self._steps is None and self._bound.is_reached(self._pool.draft):
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

    def _take(self) -> tuple[Writing, Offset] | None:
        """Returns the batch since the last transaction, and the offset after it; None in the middle of an event."""
        if self._steps is not None:
            return None
        register = self._pool.register
        totals = Totals(len(register.policies), len(register.distribution), register.distribution.caps_left)
        applied, self._applied = self._applied, []
        return Writing(self._pool.take(), totals, applied, self._place), self._settled

    async def _write(self) -> None:
        while self._reading or self._settled != self._committed:
            await self._work.wait()
            self._work.clear()
            taken = await self._exclusive.run(self._take, is_long=self._pool.draft.rows() > TAKE_ROWS_MAX)
            if taken is None:
                continue
            writing, after = taken
            decode, settle = self._decode_seconds, self._settle_seconds
            self._decode_seconds = self._settle_seconds = 0.0
            self._handed_over.set()
            if after == self._committed:
                continue
            started = time.perf_counter()
            self.writing = writing
            await self._ledger.commit(writing.batch, writing.totals, writing.applied, self._committed, after)
            self.writing = None
            self._bound.grow(writing)
            self._committed = after
            self.progress += 1
            self.settled += 1
            self._handed_over.set()
            await self._announce(Committed(writing, after, Durations(decode, settle, time.perf_counter() - started)))


def _only(events: Sequence[Event | Rejection]) -> Event | Rejection:
    """Returns the only event of a replay; raises Rejection if there are several."""
    if len(events) != 1:
        raise Rejection(Reason.UNDECODABLE, f"{len(events)} events: send rejected events again one by one")
    return events[0]


def identity_of(event: object) -> tuple[str, int, bytes] | None:
    """Returns the pool, the sequence and the digest under which a rejected event is stored; None without a sequence."""
    if isinstance(event, Numbered):
        return event.pool, event.seq, sha256(msgspec.msgpack.encode(event)).digest()
    return None
