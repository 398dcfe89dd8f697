"""The settlement pipeline of one partition: read, decode, settle, write, commit, announce.

Two tasks share a `Partition` in memory. The reader reads messages and settles them in slices of bounded time. The writer writes
everything settled since its last transaction in one transaction. Commit N therefore overlaps with the settling of N+1, a single
fill is committed at once, and a backlog is written in batches of the maximum size. A slice or a batch may end inside a message:
the offset counts the settled events of the message. Memory is ahead of the ledger by the uncommitted events. If a commit fails,
memory is dropped; the partition is loaded and read again from the stored offset.

An event of a contract with a large book may take longer than a slice, because all positions are ranked. A thread settles such
events and saves large books. Each task therefore takes exclusive access to the partition for its work.

Replayed events do not overlap with commits: everything before them is committed first, so that the ledger determines whether
they were settled meanwhile. Operators replay few events.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.core.batch import Batch, Draft, Durations, EventPlace, Offset, Replayed
from fundsvc.core.events import Event, Reason, Rejected, Rejection, check_replayable
from fundsvc.core.partition import Partition
from fundsvc.core.sequence_lookup import look_up
from fundsvc.core.sequences import Facts, identity_of
from fundsvc.core.times import time_of_id
from fundsvc.wire.codec import REPLAY_KEY, RUN_EVENTS, WHOLE_BYTES_MAX, Contents, Message

BLOCK_MS = 500
"""How long one read waits for messages. The reader checks `stop` between reads."""

SLICE_SHARE = 0.25
"""A slice's share of the longest time that the loop may be held. Its last event and the encoding of rows use the rest."""

GROUP_BYTES_MAX = WHOLE_BYTES_MAX
"""The size of messages that are decoded together, in half a millisecond."""

EVENTS_PER_BATCH_MAX = 100_000
"""Bounds the work that a failed commit repeats if events write no rows, such as marks."""

REFUSED_PARTS = 16
"""Parts into which a refused batch is divided. Each refusal loads the partition again, which takes as long as about ten small
transactions. With this number, one refused event among a hundred costs two or three loads; halves would cost seven.
"""

BATCH_BYTES_MAX = 8_000_000
"""Writing this much takes the database a tenth of a second; its encoding needs a few times as much memory."""


class Reading(NamedTuple):
    """The messages of one read; `added` is the number of messages that the stream ever had, if the read reached its end."""

    messages: Sequence[Message]
    added: int | None


class Source(Protocol):
    """A partition's stream."""

    async def read(self, after: Offset, block_ms: int) -> Reading:
        """Returns messages after an offset, of bounded total size. Waits up to `block_ms` for the first."""


class Ledger(Protocol):
    """A partition's ledger. It refuses commits of an old epoch."""

    async def is_open(self, stream_id: str, position: int) -> bool:
        """Whether the event at this place is stored as rejected and not settled since."""

    async def facts(self, wanted: Mapping[str, Sequence[int]]) -> Facts:
        """Returns the ledger's facts of the first of some ascending sequences of each contract, at least of one each."""

    def prepare(self, batch: Draft) -> None:
        """Called after more events are settled into the batch: the ledger may encode rows while they are in cache."""

    async def commit(self, batch: Batch, before: Offset, after: Offset) -> None:
        """Writes a batch and moves the offset in one transaction."""


class Committed(NamedTuple):
    """A committed batch, its offset, and its durations."""

    batch: Batch
    offset: Offset
    durations: Durations


class Filling(Protocol):
    """A batch that takes events."""

    events: int

    def rows(self) -> int:
        """The number of rows that the batch writes."""

    def size(self) -> int:
        """The approximate size of the batch in bytes."""


class Written(Protocol):
    """A batch that is written; see `Batch`."""

    @property
    def events(self) -> int:
        """The number of its events."""

    @property
    def books(self) -> Sequence[object]:
        """The books that it saves."""

    @property
    def uncut(self) -> bool:
        """Whether it must not be divided."""

    @property
    def place(self) -> EventPlace | None:
        """The place of its last event."""


class BatchBound:
    """Limits the size of transactions. It survives the pipeline, so that a failed batch is not repeated whole."""

    def __init__(self, rows_max: int) -> None:
        self.rows_max = rows_max
        self.events_max = EVENTS_PER_BATCH_MAX
        self._refused_left = 0
        self._books_failed = False

    @property
    def takes_books(self) -> bool:
        """Whether a batch may contain books. It may not after a batch with books failed, until batches have their full size."""
        return not self._books_failed

    @property
    def is_least(self) -> bool:
        """Whether a batch takes a single event, unless it must not be cut."""
        return self.events_max == 1

    def room(self, batch: Filling) -> int:
        """Returns how many more events a batch may take if each writes a row, at least one."""
        return max(1, min(self.events_max - batch.events, self.rows_max - batch.rows()))

    def is_reached(self, batch: Filling) -> bool:
        """Whether a batch must be written before it takes more events."""
        return batch.events >= self.events_max or batch.rows() >= self.rows_max or batch.size() >= BATCH_BYTES_MAX

    def shrink(self, batch: Written) -> None:
        """Halves the number of events of the next batch, down to one, after the transaction of a batch failed."""
        self._cut(batch, 2)

    def narrow(self, batch: Written) -> None:
        """Divides a batch in which the database refused something into a few parts.

        Parts do not grow before the whole batch is written. A refused part is divided in turn.
        """
        self._refused_left = batch.events
        self._cut(batch, REFUSED_PARTS)

    def grow(self, batch: Written) -> None:
        """Doubles the size of the next batch after a commit."""
        if self._refused_left > 0:
            self._refused_left -= batch.events
            return
        self.events_max = min(EVENTS_PER_BATCH_MAX, 2 * self.events_max)
        self._books_failed = self._books_failed and self.events_max < EVENTS_PER_BATCH_MAX

    def _cut(self, batch: Written, parts: int) -> None:
        self.events_max = max(1, min(batch.events, self.events_max) // parts)
        self._books_failed = self._books_failed or bool(batch.books)


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


class Pipeline:
    """Settles one partition's stream into its ledger.

    `exclusive` gives access to the partition; all other tasks must use the same object. `stored` is the offset in the ledger.
    `start` is the offset from which to read; it differs from `stored` if the stream lost its tail. `announce` is called after
    each commit. `refused` maps events that the database refused to its messages.
    `writing` is the batch of the current transaction. `progress` counts steps. `settled` counts commits, and reads after which
    nothing was left to commit.
    """

    def __init__(
        self,
        partition: Partition,
        source: Source,
        ledger: Ledger,
        announce: Callable[[Committed], Awaitable[None]],
        *,
        exclusive: Exclusive,
        stored: Offset,
        start: Offset,
        bound: BatchBound,
        slice_seconds: float,
        refused: Mapping[EventPlace, str],
    ) -> None:
        self.writing: Batch | None = None
        self.progress = self.settled = 0
        self._partition = partition
        self._source = source
        self._ledger = ledger
        self._announce = announce
        self._exclusive = exclusive
        self._committed = stored
        self._committed_mark = 0
        self._settled = start
        self._bound = bound
        self._slice_seconds = slice_seconds
        self._refused = refused
        self._slice_ends = 0.0
        self._work = asyncio.Event()
        self._handed_over = asyncio.Event()
        self._reading = True
        self._decode_seconds = self._settle_seconds = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set, then commits what is settled. Raises errors of the source, the ledger and `announce`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(stop))
            tasks.create_task(self._write())

    async def request_books(self) -> None:
        """Saves the ADL books with the next batches, or with an empty batch if no event comes.

        Does nothing while `takes_books` is false: a large book may have caused the failure.
        """
        if self._bound.takes_books:
            await self._exclusive.run(self._partition.request_books)
            self._work.set()

    async def _read(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            reading = await self._source.read(self._settled, BLOCK_MS)
            self.progress += 1
            self.settled += self.writing is None and not self._partition.batch.events
            self._begin_slice()
            for messages in groups_of(reading.messages):
                await self._settle(messages, stop)
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

    async def _settle(self, messages: Sequence[Message], stop: asyncio.Event) -> None:
        """Settles a group of messages; after `stop` possibly only a part of it."""
        started = time.perf_counter()
        group = deque(map(Contents, messages))
        self._decode_seconds += time.perf_counter() - started
        events = await self._with_lookups(group)
        if messages[0].replay_of:
            await self._settle_replay(group[0], events)
        elif not await self._settle_events(group, events, stop):
            return
        if self._is_due():
            await self._hand_over()

    async def _with_lookups(self, group: Iterable[Contents]) -> Sequence[Event | Rejection]:
        """Returns the unsettled events of a group, after looking up what the partition needs to apply them.

        Queries the ledger at most once a group, for sequences that the contracts have passed. Uncommitted ones are in memory.
        """
        self._partition.sequences.trim()
        wanted: defaultdict[str, set[int]] = defaultdict(set)
        events: list[Event | Rejection] = []
        passed: dict[str, int] = {}
        started = time.perf_counter()
        for portion in self._portions(group):
            for symbol, seqs in self._partition.lacking(portion, passed).items():
                wanted[symbol] |= seqs
            events += portion
            self._decode_seconds += time.perf_counter() - started
            if self._is_due():
                await self._hand_over()
            started = time.perf_counter()
        if wanted:
            await look_up(self._partition.sequences, wanted, self._ledger, self._hand_over)
        return events

    def _portions(self, group: Iterable[Contents]) -> Iterator[list[Event | Rejection]]:
        """Yields the unsettled events of a group; each portion is decoded and examined in a short time."""
        portion: list[Event | Rejection] = []
        for contents in group:
            position = self._settled.settled_of(contents.message.stream_id)
            while position < contents.size:
                run = contents.run(position, RUN_EVENTS)
                position += len(run)
                portion += run
                if len(portion) >= RUN_EVENTS:
                    yield portion
                    portion = []
        if portion:
            yield portion

    async def _settle_events(self, group: deque[Contents], events: Sequence[Event | Rejection], stop: asyncio.Event) -> bool:
        """Settles the unsettled events of a group; returns whether it reached the end of the group."""
        first, is_long = 0, self._partition.are_long(events)
        while group:
            run = events[first : first + min(RUN_EVENTS, self._bound.room(self._partition.batch))]
            first += await self._exclusive.run(partial(self._settle_run, group, run), is_long=is_long)
            if group and self._is_due():
                await self._hand_over()
                if stop.is_set() and not self._partition.batch.uncut:
                    return False
        return True

    def _settle_run(self, group: deque[Contents], run: Sequence[Event | Rejection]) -> int:
        """Settles events of a group until the slice ends, at least one, and removes the messages that it completes.

        Returns the number of events.
        """
        started, settled = time.perf_counter(), 0
        self._partition.prefetch(run)
        while group and (settled < len(run) or not group[0].size):
            contents = group[0]
            position = self._settled.settled_of(contents.message.stream_id)
            settled += self._settle_part(contents, position, run[settled : settled + contents.size - position])
            if not self._settled.partial_id:
                group.popleft()
            if time.perf_counter() >= self._slice_ends:
                break
        self._settle_seconds += time.perf_counter() - started
        return settled

    def _settle_part(self, contents: Contents, first: int, part: Sequence[Event | Rejection]) -> int:
        """Settles events of a message from the position `first` on until the slice ends; returns their number."""
        stream_id, position, apply = contents.message.stream_id, first, self._partition.apply
        stream_ms = time_of_id(stream_id)
        for event in part:
            try:
                if self._refused:
                    self._check_refused(EventPlace(stream_id, position), [event])
                apply(event, stream_ms)
            except Rejection as rejection:
                self._reject(contents, position, EventPlace(stream_id, position), rejection, event)
            position += 1
            if time.perf_counter() >= self._slice_ends:
                break
        if part:
            self._count(EventPlace(stream_id, position - 1), position - first)
        if position < contents.size:
            self._settled = self._settled._replace(events=position, partial_id=stream_id)
        else:
            self._pass(contents.message)
        return position - first

    def _check_refused(self, place: EventPlace, events: Iterable[Event | Rejection]) -> None:
        """Raises Rejection if the database refused the events at a place."""
        if place in self._refused:
            for event in events:
                self._partition.pass_over(event)
            raise Rejection(Reason.DATABASE_REFUSED, self._refused[place])

    def _pass(self, message: Message) -> None:
        self._settled = Offset(message.stream_id, self._settled.messages + 1)

    def _count(self, place: EventPlace, events: int) -> None:
        self._partition.batch.events += events
        self._partition.batch.place = place

    async def _settle_replay(self, contents: Contents, events: Sequence[Event | Rejection]) -> None:
        """Settles a rejected event that was sent again, unless it is settled already."""
        message = contents.message
        match = REPLAY_KEY.fullmatch(message.replay_of)
        if match is None:
            rejection = Rejection(Reason.UNDECODABLE, f"replayOf {message.replay_of[:60]!r} is not a stream id/position")
            self._reject(contents, 0, EventPlace(message.stream_id, 0), rejection)
            self._pass(message)
            return
        key = EventPlace(match[1], int(match[2]))
        await self._until_committed()
        is_open = await self._ledger.is_open(*key)
        settle = partial(self._settle_replayed, contents, events, key, is_open=is_open)
        await self._exclusive.run(settle, is_long=self._partition.are_long(events))

    def _settle_replayed(
        self, contents: Contents, events: Sequence[Event | Rejection], key: EventPlace, *, is_open: bool
    ) -> None:
        message = contents.message
        place = EventPlace(message.stream_id, 0)
        if is_open:
            try:
                self._check_refused(place, events)
                self._settle_late(message, key, events)
            except Rejection as rejection:
                self._reject(contents, 0, key, rejection)
        self._count(place, 1)
        self._pass(message)

    def _settle_late(self, message: Message, key: EventPlace, events: Sequence[Event | Rejection]) -> None:
        """Settles the only event of a replay. If the event is already applied, records only that it is settled."""
        if len(events) != 1:
            raise Rejection(Reason.UNDECODABLE, f"{len(events)} events: send rejected events again one by one")
        (event,) = events
        check_replayable(event)
        known = self._partition.is_applied(event)
        entry = None if known else self._partition.apply_late(event, time_of_id(message.stream_id))
        self._partition.batch.replayed.append(Replayed(*key, None if known else message.stream_id, entry))

    def _reject(self, contents: Contents, position: int, key: EventPlace, rejection: Rejection, event: object = None) -> None:
        """Keeps a rejected event under the place `key` with its bytes, those at a position of its message."""
        # A Rejection raised while decoding has a traceback, which would keep the whole message alive in a cycle.
        rejection.__traceback__ = None
        body = contents.raw(position)
        rejected = Rejected(*key, rejection.reason, rejection.detail, contents.message.codec, body, identity_of(event))
        self._partition.batch.reject(rejected)

    def _begin_slice(self) -> None:
        self._slice_ends = time.perf_counter() + self._slice_seconds

    def _is_due(self) -> bool:
        return time.perf_counter() >= self._slice_ends or self._bound.is_reached(self._partition.batch)

    async def _hand_over(self) -> None:
        """Wakes the writer, or lets its running COPY continue; waits while a full batch is not yet taken."""
        self.progress += 1
        self._ledger.prepare(self._partition.batch)
        self._work.set()
        await asyncio.sleep(0)
        while self._bound.is_reached(self._partition.batch) and not self._waits_for_message_end():
            await self._next_hand_over()
        self._begin_slice()

    def _waits_for_message_end(self) -> bool:
        """Whether the batch must wait for the end of its message."""
        return self._partition.batch.uncut and self._settled.events > 0

    async def _until_committed(self) -> None:
        """Waits until everything settled is committed."""
        while self._settled != self._committed:
            self._work.set()
            await self._next_hand_over()

    async def _next_hand_over(self) -> None:
        self._handed_over.clear()
        await self._handed_over.wait()

    def _take(self) -> tuple[Batch, Offset, int] | None:
        """Returns the batch since the last transaction, the offset after it, and a mark in the sequences.

        None while the batch must not be written.
        """
        if self._waits_for_message_end():
            return None
        self._partition.sequences.forget(self._committed_mark)
        batch, after = self._partition.take(with_books=not self._settled.events), self._settled
        return batch, after, self._partition.sequences.mark()

    async def _write(self) -> None:
        while self._reading or self._settled != self._committed:
            await self._work.wait()
            self._work.clear()
            taken = await self._exclusive.run(self._take, is_long=self._partition.keeping_is_long())
            if taken is None:
                continue
            batch, after, mark = taken
            decode, settle = self._decode_seconds, self._settle_seconds
            self._decode_seconds = self._settle_seconds = 0.0
            self._handed_over.set()
            if after == self._committed and not batch.books:
                continue
            started = time.perf_counter()
            self.writing = batch
            await self._ledger.commit(batch, self._committed, after)
            self.writing = None
            self._bound.grow(batch)
            self._committed, self._committed_mark = after, mark
            self.progress += 1
            self.settled += 1
            self._handed_over.set()
            if batch.books and self._partition.owes_books:
                self._work.set()  # Otherwise the remaining books would wait for the next event.
            await self._announce(Committed(batch, after, Durations(decode, settle, time.perf_counter() - started)))
