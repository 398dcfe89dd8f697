"""Brings saved ADL books up to date: applies the events that the stream received since, to the books alone.

Only events that were settled are applied; rejected events and duplicates are skipped. Ranks after a restart, and ranks that
another process shows, therefore equal those of a process that never stopped.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.batch import EventPlace, Offset, StoredBook
from fundsvc.core.events import AdlFill, Event, Fill, Listing, Rejection
from fundsvc.core.partition import Partition
from fundsvc.store.writer import STREAM_START
from fundsvc.streams.source import Source, id_order
from fundsvc.wire.codec import REPLAY_KEY, RUN_EVENTS, Contents, Message

RejectedPlaces = Callable[[Sequence[str]], Awaitable[Mapping[EventPlace, str | None]]]
"""Maps the rejected events of some messages to the message that settled them later, or None."""

OrderKey = tuple[str, int]
"""The symbol and the number of an ADL order."""

ReducedSides = Callable[[Iterable[OrderKey]], Awaitable[Mapping[OrderKey, SideName]]]
"""Maps some orders, at least one, to the sides that they reduce."""


class BookRecovery:
    """Applies to each book the events after it was saved, up to the message that each call names.

    `read_to` is the last applied message. Between awaits the books include all events up to it, and of a large next message
    possibly the first ones. `messages` counts the messages read, `progress` the steps.
    `exclusive` gives access to the partition. `after` and `seq` are the last applied message and sequence of each book, by
    ledger key. `listed` is set when a message lists or updates a contract; the caller handles that.
    """

    def __init__(
        self,
        partition: Partition,
        exclusive: Exclusive,
        source: Source,
        kept: Sequence[StoredBook],
        rejected: RejectedPlaces,
        reduced_sides: ReducedSides,
    ) -> None:
        self.read_to = min((book.last_id for book in kept), key=id_order, default=STREAM_START)
        self.messages = 0
        self.progress = 0
        self.listed = False
        self._partition = partition
        self._exclusive = exclusive
        self._source = source
        self._rejected = rejected
        self._reduced_sides = reduced_sides
        self._sides: dict[OrderKey, SideName] = {}
        self._replayed: set[tuple[str, int]] = set()  # executions that a replay settled before their sequence passed
        self.after = {book.symbol: id_order(book.last_id) for book in kept}
        self.seq = {book.symbol: book.seq for book in kept}

    async def run(self, until: str) -> None:
        """Applies all messages up to `until`, which was settled."""
        end = id_order(until)
        while id_order(self.read_to) < end:
            messages = await self._source.read(self.read_to)
            settled = [message for message in messages if id_order(message.stream_id) <= end]
            await self._apply_all(settled)
            if len(settled) < len(messages) or not messages:
                self.read_to = until

    async def run_part(self, offset: Offset) -> None:
        """Applies all messages up to an offset, and the settled events of the message after it. No call may follow this one."""
        await self.run(offset.last_id)
        if offset.events:
            messages = await self._source.read(offset.last_id, 1)
            await self._apply_all([message for message in messages if offset.settled_of(message.stream_id)], offset.events)

    async def include(self, kept: Sequence[StoredBook]) -> None:
        """Adds further books, and brings them to the state of the others."""
        others = BookRecovery(self._partition, self._exclusive, self._source, kept, self._rejected, self._reduced_sides)
        await others.run(self.read_to)
        self.after |= others.after
        self.seq |= others.seq

    async def _apply_all(self, messages: Sequence[Message], events_max: int | None = None) -> None:
        """Applies all events of some messages, or the first `events_max` of each."""
        replayed = (place[0] for message in messages if (place := _replayed_place(message)))
        rejected = await self._rejected([*(message.stream_id for message in messages), *replayed])
        self._sides.clear()
        events = 0
        for message in messages:
            contents = Contents(message)
            upto = contents.size if events_max is None else events_max
            position = 0
            while position < upto:
                run = contents.run(position, min(RUN_EVENTS, upto - position))
                await self._look_up_sides(run)
                apply = partial(self._apply, message, position, run, rejected)
                await self._exclusive.run(apply, is_long=self._partition.are_long(run))
                position += len(run)
                events += len(run)
                if events >= RUN_EVENTS:
                    events = 0
                    self.progress += 1
                    await asyncio.sleep(0)
            self.read_to = message.stream_id
            self.messages += 1

    async def _look_up_sides(self, events: Sequence[Event | Rejection]) -> None:
        """Queries the sides that executed orders reduce. Results are kept for the current messages only.

        Queries only orders of listed contracts: another symbol may be text that PostgreSQL does not accept.
        """
        found = ((self._key_of(event), event.adl) for event in events if isinstance(event, AdlFill))
        orders = {(key, adl) for key, adl in found if key in self.after}
        if unknown := orders - self._sides.keys():
            self._sides |= await self._reduced_sides(unknown)

    def _apply(
        self, message: Message, first: int, events: Sequence[Event | Rejection], rejected: Mapping[EventPlace, str | None]
    ) -> None:
        if message.replay_of:
            self._apply_replay(message, events, rejected)
            return
        at = id_order(message.stream_id)
        for position, event in enumerate(events, first):
            if isinstance(event, Rejection) or (message.stream_id, position) in rejected:
                continue
            self.listed = self.listed or isinstance(event, Listing)
            if self._is_later(at, event) and self._is_new(event):
                self._apply_to_book(event, at[0])

    def _apply_replay(
        self, message: Message, events: Sequence[Event | Rejection], rejected: Mapping[EventPlace, str | None]
    ) -> None:
        """Applies a replayed event if this message settled it. Later replays of the same event were not settled."""
        place = _replayed_place(message)
        if place is None or rejected.get(place) != message.stream_id:
            return
        (event,) = events
        self.listed = self.listed or isinstance(event, Listing)
        at = id_order(message.stream_id)
        if not isinstance(event, Rejection) and self._is_later(at, event):
            if isinstance(event, AdlFill) and event.seq > self.seq[self._key_of(event)]:
                self._replayed.add((event.symbol, event.seq))
            self._apply_to_book(event, at[0])

    def _apply_to_book(self, event: Event, stream_ms: int) -> None:
        """Applies an event. Ignores a Rejection: a later listing changed the terms under which the event was settled."""
        side = self._sides.get((self._key_of(event), event.adl)) if isinstance(event, AdlFill) else None
        with suppress(Rejection):
            self._partition.apply_to_book(event, side, stream_ms)

    def _is_later(self, at: tuple[int, int], event: Event) -> bool:
        """Whether an event belongs to one of the books and came after the book was saved."""
        key = self._key_of(event)
        return key in self.after and at > self.after[key]

    def _key_of(self, event: Event) -> str:
        """Returns the ledger key of an event's contract: its current generation. Earlier ones have no positions."""
        return self._partition.key_of(getattr(event, "symbol", "")) or ""

    def _is_new(self, event: Event) -> bool:
        """Whether an event was settled, and not dropped as a duplicate, judged by its sequence.

        Ignores the sequences of AdlEnd: they change no book, and the end of a closed order does not move the fund's sequence.
        """
        if not isinstance(event, Fill | AdlFill):
            return True
        key = self._key_of(event)
        if event.seq <= self.seq[key] or (event.symbol, event.seq) in self._replayed:
            return False
        self.seq[key] = event.seq
        return True


def _replayed_place(message: Message) -> EventPlace | None:
    """Returns the place of the rejected event that a message replays, or None."""
    match = REPLAY_KEY.fullmatch(message.replay_of)
    return EventPlace(match[1], int(match[2])) if match else None
