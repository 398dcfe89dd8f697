"""The settlement pipeline of one partition: read, decode, settle, write, commit, announce.

Two tasks share a `Partition` in memory; see `fundsvc.engine.settling`.

An event of a contract with a large book may take longer than a slice, because all positions are ranked. A thread settles such
events and saves large books. Each task therefore takes exclusive access to the partition for its work.

Replayed events do not overlap with commits: everything before them is committed first, so that the ledger determines whether
they were settled meanwhile. Operators replay few events.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.core.batch import Batch, Draft, EventPlace, Offset, Replayed
from fundsvc.core.events import Event, Reason, Rejected, Rejection, check_replayable
from fundsvc.core.partition import Partition
from fundsvc.core.sequence_lookup import look_up
from fundsvc.core.sequences import Facts, identity_of
from fundsvc.core.times import time_of_id
from fundsvc.engine.batch_bound import BatchBound
from fundsvc.engine.settling import Committed, Settling, Source
from fundsvc.wire.codec import REPLAY_KEY, RUN_EVENTS, Contents, Message


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


class Pipeline(Settling[Batch]):
    """Settles one partition's stream into its ledger; see `Settling` for the arguments."""

    def __init__(
        self,
        partition: Partition,
        source: Source,
        ledger: Ledger,
        announce: Callable[[Committed[Batch]], Awaitable[None]],
        *,
        exclusive: Exclusive,
        stored: Offset,
        start: Offset,
        bound: BatchBound,
        slice_seconds: float,
        refused: Mapping[EventPlace, str],
    ) -> None:
        super().__init__(
            source,
            announce,
            exclusive=exclusive,
            stored=stored,
            start=start,
            bound=bound,
            slice_seconds=slice_seconds,
            refused=refused,
        )
        self._partition = partition
        self._ledger = ledger
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

    async def _settle(self, message: Message, stop: asyncio.Event) -> None:
        contents = self._decode(partial(Contents, message))
        events = await self._with_lookups(contents, self._settled.settled_of(message.stream_id))
        if message.replay_of:
            await self._settle_replay(message, contents, events)
        elif not await self._settle_events(message, contents, events, stop):
            return
        if self._is_due():
            await self._hand_over()

    async def _with_lookups(self, contents: Contents, position: int) -> Sequence[Event | Rejection]:
        """Returns the events of a message from a position on, after looking up what the partition needs to apply them.

        Queries the ledger at most once a message, for sequences that the contracts have passed. Uncommitted ones are in memory.
        """
        self._partition.sequences.trim()
        wanted: defaultdict[str, set[int]] = defaultdict(set)
        events: list[Event | Rejection] = []
        while position + len(events) < contents.size:
            started = time.perf_counter()
            run = contents.run(position + len(events), RUN_EVENTS)
            for symbol, seqs in self._partition.lacking(run).items():
                wanted[symbol] |= seqs
            events += run
            self._decode_seconds += time.perf_counter() - started
            if self._is_due():
                await self._hand_over()
        if wanted:
            await look_up(self._partition.sequences, wanted, self._ledger, self._hand_over)
        return events

    async def _settle_events(
        self, message: Message, contents: Contents, events: Sequence[Event | Rejection], stop: asyncio.Event
    ) -> bool:
        """Settles the remaining events of a message; returns whether it reached the end of the message."""
        if not events:
            self._pass(message)
        first = position = contents.size - len(events)
        is_long = self._partition.are_long(events)
        while position < contents.size:
            start = position - first
            run = events[start : start + min(RUN_EVENTS, self._bound.room(self._partition.batch))]
            settle = partial(self._settle_run, message, contents, position, run)
            position = await self._exclusive.run(settle, is_long=is_long)
            if position < contents.size and self._is_due():
                await self._hand_over()
                if stop.is_set() and not self._partition.batch.uncut:
                    return False
        return True

    def _settle_run(self, message: Message, contents: Contents, position: int, run: Sequence[Event | Rejection]) -> int:
        """Settles events from a position on until the slice ends, at least one; returns the position after them."""
        started = now = time.perf_counter()
        batch, first, apply = self._partition.batch, position, self._partition.apply
        self._partition.prefetch(run)
        stream_ms = time_of_id(message.stream_id)
        for event in run:
            try:
                if self._refused:
                    self._check_refused(EventPlace(message.stream_id, position), [event])
                apply(event, stream_ms)
            except Rejection as rejection:
                self._reject(message, contents.raw(position), EventPlace(message.stream_id, position), rejection, event)
            position += 1
            now = time.perf_counter()
            if now >= self._slice_ends:
                break
        self._count(batch, EventPlace(message.stream_id, position - 1), position - first)
        if position < contents.size:
            self._settled = self._settled._replace(events=position, partial_id=message.stream_id)
        else:
            self._pass(message)
        self._settle_seconds += now - started
        return position

    def _check_refused(self, place: EventPlace, events: Iterable[Event | Rejection]) -> None:
        """Raises Rejection if the database refused the events at a place."""
        if place in self._refused:
            for event in events:
                self._partition.pass_over(event)
            raise Rejection(Reason.DATABASE_REFUSED, self._refused[place])

    def _count(self, batch: Draft, place: EventPlace, events: int) -> None:
        batch.events += events
        batch.place = place

    async def _settle_replay(self, message: Message, contents: Contents, events: Sequence[Event | Rejection]) -> None:
        """Settles a rejected event that was sent again, unless it is settled already."""
        match = REPLAY_KEY.fullmatch(message.replay_of)
        if match is None:
            rejection = Rejection(Reason.UNDECODABLE, f"replayOf {message.replay_of[:60]!r} is not a stream id/position")
            self._reject(message, contents.raw(0), EventPlace(message.stream_id, 0), rejection)
            self._pass(message)
            return
        key = EventPlace(match[1], int(match[2]))
        await self._until_committed()
        is_open = await self._ledger.is_open(*key)
        settle = partial(self._settle_replayed, message, contents, events, key, is_open=is_open)
        await self._exclusive.run(settle, is_long=self._partition.are_long(events))

    def _settle_replayed(
        self, message: Message, contents: Contents, events: Sequence[Event | Rejection], key: EventPlace, *, is_open: bool
    ) -> None:
        place = EventPlace(message.stream_id, 0)
        if is_open:
            try:
                self._check_refused(place, events)
                self._settle_late(message, key, events)
            except Rejection as rejection:
                self._reject(message, contents.raw(0), key, rejection)
        self._count(self._partition.batch, place, 1)
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

    def _reject(self, message: Message, body: bytes, key: EventPlace, rejection: Rejection, event: object = None) -> None:
        # A Rejection raised while decoding has a traceback, which would keep the whole message alive in a cycle.
        rejection.__traceback__ = None
        rejected = Rejected(*key, rejection.reason, rejection.detail, message.codec, body, identity_of(event))
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

    async def _commit(self, written: Batch, after: Offset) -> None:
        await self._ledger.commit(written, self._committed, after)

    def _note_committed(self, written: Batch) -> None:
        self._committed_mark = self._taken_mark
        if written.books and self._partition.owes_books:
            self._work.set()  # Otherwise the remaining books would wait for the next event.
