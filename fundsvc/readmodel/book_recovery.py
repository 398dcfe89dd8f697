"""Bringing ADL books up to date: what the stream says since they were kept, applied to the books alone.

Only what was settled then may be applied: not what was rejected, nor what was known by its sequence already. So ranks after a
restart, and those that another process shows, are those of a service that never stopped.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.batch import KeptBook, Offset, Place
from fundsvc.core.events import AdlEnd, AdlFill, Event, Fill, Listing, Rejection
from fundsvc.core.partition import Partition
from fundsvc.store.writer import STREAM_START
from fundsvc.streams.source import Source, id_order
from fundsvc.wire.codec import REPLAY_KEY, RUN_EVENTS, Contents, Message

RejectedPlaces = Callable[[Sequence[str]], Awaitable[Mapping[Place, str | None]]]
"""Which events of these messages were rejected, and the message that had them settled since."""

OrderKey = tuple[str, int]
"""An ADL order: its contract and its number."""

ReducedSides = Callable[[Iterable[OrderKey]], Awaitable[Mapping[OrderKey, SideName]]]
"""Which side each of these orders, at least one, reduces."""


class BookRecovery:
    """Applies to each book what came after it was kept, as far as it is told to go, and from there on when told again.

    `read_to` is the last message applied: between two of its awaits, the books are as they were after that one, or after some
    of the events of the next one where that is large.
    `messages` counts those read, `progress` the steps taken.
    `exclusive` gives access to the partition. `after` and `seq` are where each book stands, by symbol. `listed` says whether a
    contract was listed or updated on the way; what that means for the books is not its business.
    """

    def __init__(
        self,
        partition: Partition,
        exclusive: Exclusive,
        source: Source,
        kept: Sequence[KeptBook],
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
        self.after = {book.symbol: id_order(book.last_id) for book in kept}
        self.seq = {book.symbol: book.seq for book in kept}

    async def run(self, until: str) -> None:
        """Goes on to the message `until`, which was settled."""
        end = id_order(until)
        while id_order(self.read_to) < end:
            messages = await self._source.read(self.read_to)
            settled = [message for message in messages if id_order(message.stream_id) <= end]
            await self._apply_all(settled)
            if len(settled) < len(messages) or not messages:
                self.read_to = until

    async def run_part(self, offset: Offset) -> None:
        """Goes on to an offset, and applies the events of the next message that are settled: nothing may follow."""
        await self.run(offset.last_id)
        if offset.events:
            messages = await self._source.read(offset.last_id, 1)
            await self._apply_all([message for message in messages if offset.settled_of(message.stream_id)], offset.events)

    async def include(self, kept: Sequence[KeptBook]) -> None:
        """Takes in further books, and brings them to where the others are."""
        others = BookRecovery(self._partition, self._exclusive, self._source, kept, self._rejected, self._reduced_sides)
        await others.run(self.read_to)
        self.after |= others.after
        self.seq |= others.seq

    async def _apply_all(self, messages: Sequence[Message], events_max: int | None = None) -> None:
        """Applies messages, or only so many events of each."""
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
                await self._exclusive.run(partial(self._apply, message, position, run, rejected))
                position += len(run)
                events += len(run)
                if events >= RUN_EVENTS:
                    events = 0
                    self.progress += 1
                    await asyncio.sleep(0)
            self.read_to = message.stream_id
            self.messages += 1

    async def _look_up_sides(self, events: Sequence[Event | Rejection]) -> None:
        """Asks once which side each order that was executed reduces; forgotten with the messages at hand.

        Only orders of listed contracts: any other symbol may be text that the database does not take.
        """
        orders = {(event.symbol, event.adl) for event in events if isinstance(event, AdlFill) and event.symbol in self.after}
        if unknown := orders - self._sides.keys():
            self._sides |= await self._reduced_sides(unknown)

    def _apply(
        self, message: Message, first: int, events: Sequence[Event | Rejection], rejected: Mapping[Place, str | None]
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
        self, message: Message, events: Sequence[Event | Rejection], rejected: Mapping[Place, str | None]
    ) -> None:
        """Applies an event that was rejected, sent again and settled then; sent once more, it was not settled again."""
        place = _replayed_place(message)
        if place is None or rejected.get(place) != message.stream_id:
            return
        (event,) = events
        self.listed = self.listed or isinstance(event, Listing)
        at = id_order(message.stream_id)
        if not isinstance(event, Rejection) and self._is_later(at, event):
            self._apply_to_book(event, at[0])

    def _apply_to_book(self, event: Event, stream_ms: int) -> None:
        """Applies an event; one that the terms known here refuse came after a listing that changed them."""
        side = self._sides.get((event.symbol, event.adl)) if isinstance(event, AdlFill) else None
        with suppress(Rejection):
            self._partition.recall(event, side, stream_ms)

    def _is_later(self, at: tuple[int, int], event: Event) -> bool:
        """Whether an event is of one of the books, and came after that was kept."""
        symbol = getattr(event, "symbol", None)
        return symbol in self.after and at > self.after[symbol]

    def _is_new(self, event: Event) -> bool:
        """Whether an event with a sequence was settled then, and not dropped as a duplicate."""
        if not isinstance(event, Fill | AdlFill | AdlEnd):
            return True
        if event.seq <= self.seq[event.symbol]:
            return False
        self.seq[event.symbol] = event.seq
        return True


def _replayed_place(message: Message) -> Place | None:
    """The place that a message of an operator sends again, if it is one."""
    match = REPLAY_KEY.fullmatch(message.replay_of)
    return Place(match[1], int(match[2])) if match else None
