"""The settlement pipeline of one partition: read, decode, settle, write, commit, announce.

Two tasks share a `Partition` in memory; see `fundsvc.engine.settling`.

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
from typing import Protocol

from fundsvc.core.awaited_books import BookAwaited
from fundsvc.core.batch import Batch, Draft, EventPlace, Offset, Replayed
from fundsvc.core.checkpoints import Saving
from fundsvc.core.events import Event, Reason, Rejected, Rejection, check_replayable
from fundsvc.core.partition import Partition
from fundsvc.core.sequence_lookup import look_up
from fundsvc.core.sequences import Facts, identity_of
from fundsvc.core.times import time_of_id
from fundsvc.engine.settling import Committed, Settling, SettlingContext, Source
from fundsvc.wire.codec import REPLAY_KEY, RUN_EVENTS, Contents, Message


class Ledger(Protocol):
    """A partition's ledger. It refuses commits of an old epoch."""

    async def is_open(self, stream_id: str, position: int) -> bool:
        """Whether the event at this place is stored as rejected and not settled since."""

    async def facts(self, wanted: Mapping[str, Sequence[int]]) -> Facts:
        """Returns the ledger's facts of the first of some ascending sequences of each contract, at least of one each."""

    def prepare(self, batch: Draft) -> None:
        """Called after more events are settled into the batch: the ledger may encode rows while they are in cache."""

    async def commit(self, batch: Batch, before: Offset, after: Offset, saving: Saving | None) -> None:
        """Writes a batch, moves the offset, and stores a checkpoint if one is given, in one transaction."""


LoadBook = Callable[[str], Awaitable[None]]
"""Loads the book of a contract, by ledger key, that an event needs."""


class Pipeline(Settling[Batch]):
    """Settles one partition's stream into its ledger; see `Settling` for the other arguments.

    `load_book` is required if the partition awaits books.
    """

    def __init__(
        self,
        partition: Partition,
        source: Source,
        ledger: Ledger,
        announce: Callable[[Committed[Batch]], Awaitable[None]],
        context: SettlingContext,
        load_book: LoadBook | None = None,
    ) -> None:
        super().__init__(source, announce, context)
        self._partition = partition
        self._ledger = ledger
        self._load_book = load_book
        self._awaited = ""
        self._committed_mark = self._taken_mark = 0

    @property
    def _draft(self) -> Draft:
        return self._partition.batch

    @property
    def _is_divided(self) -> bool:
        return self._partition.batch.uncut and self._settled.events > 0

    async def request_books(self) -> None:
        """Saves the ADL books with the next batches, or with an empty batch if no event comes.

        Does nothing while `takes_books` is false: a large book may have caused the failure.
        """
        if self._bound.takes_books:
            await self._exclusive.run(self._partition.request_books)
            self._work.set()

    async def _settle(self, messages: Sequence[Message], stop: asyncio.Event) -> None:
        group = deque(self._decode(lambda: [Contents(message) for message in messages]))
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
            if self._awaited:
                await self._load_awaited(self._awaited)
                is_long = self._partition.are_long(events)
            if group and self._is_due():
                await self._hand_over()
                if stop.is_set() and not self._partition.batch.uncut:
                    return False
        return True

    async def _load_awaited(self, symbol: str) -> None:
        """Loads the book that the next event needs; meanwhile the writer writes what is settled before it."""
        self._awaited = ""
        await self._hand_over()
        if self._load_book is None:
            raise RuntimeError(f"nothing loads the book of {symbol}, which is awaited")
        await self._load_book(symbol)
        self._begin_slice()

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
            if self._awaited:
                break
            if not self._settled.partial_id:
                group.popleft()
            if time.perf_counter() >= self._slice_ends:
                break
        self._settle_seconds += time.perf_counter() - started
        return settled

    def _settle_part(self, contents: Contents, first: int, part: Sequence[Event | Rejection]) -> int:
        """Settles events of a message from the position `first` on; returns their number.

        Ends when the slice ends, or before an event that awaits a book.
        """
        stream_id, position, apply = contents.message.stream_id, first, self._partition.apply
        stream_ms = time_of_id(stream_id)
        for event in part:
            try:
                if self._refused:
                    self._check_refused(EventPlace(stream_id, position), [event])
                apply(event, stream_ms)
            except Rejection as rejection:
                self._reject(contents, position, EventPlace(stream_id, position), rejection, event)
            except BookAwaited as awaited:
                self._awaited = awaited.symbol
                break
            position += 1
            if time.perf_counter() >= self._slice_ends:
                break
        if self._awaited and position == first:
            return 0
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
        while True:
            try:
                await self._exclusive.run(settle, is_long=self._partition.are_long(events))
            except BookAwaited as awaited:
                await self._load_awaited(awaited.symbol)
            else:
                return

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

    async def _hand_over(self) -> None:
        """Also lets the running COPY of the writer continue."""
        self._ledger.prepare(self._partition.batch)
        await super()._hand_over()

    def _take(self) -> Batch:
        self._partition.sequences.forget(self._committed_mark)
        batch = self._partition.take(with_books=not self._settled.events)
        self._taken_mark = self._partition.sequences.mark()
        return batch

    def _is_long_to_take(self) -> bool:
        return self._partition.keeping_is_long()

    async def _commit(self, written: Batch, after: Offset, saving: Saving | None) -> None:
        await self._ledger.commit(written, self._committed, after, saving)

    def _note_committed(self, written: Batch) -> None:
        self._committed_mark = self._taken_mark
        if written.books and self._partition.owes_books:
            self._work.set()  # Otherwise the remaining books would wait for the next event.
