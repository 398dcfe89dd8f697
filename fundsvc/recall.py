"""Bringing kept ADL books up to date: what the stream says since they were kept, applied to the books alone.

Only what was settled then may be applied: not what was rejected, nor what was known by its sequence already. So ranks after a
restart are those of a service that never stopped.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from fundsvc.core.events import AdlEnd, AdlFill, Event, Fill, Rejection
from fundsvc.core.partition import Partition
from fundsvc.store.writer import KeptBook
from fundsvc.streams.source import Source, id_order
from fundsvc.wire import Message, decode

MESSAGES_PER_READ = 1000
"""Enough to read a backlog quickly, few enough to keep the loop alive."""

CLOCK_SLACK = timedelta(minutes=1)
"""Rejections are looked up by time; the database's clock may step back by so much."""

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def oldest(kept: Sequence[KeptBook]) -> datetime:
    """Since when rejections matter to these books."""
    times = [book.kept_at or _BEGINNING for book in kept]
    return max(_BEGINNING, min(times, default=_BEGINNING) - CLOCK_SLACK) if times else _BEGINNING


class Recall:
    """Applies to each book what came after it was kept."""

    def __init__(self, partition: Partition, kept: Sequence[KeptBook], rejected: Collection[tuple[str, int]]) -> None:
        self._partition = partition
        self._after = {book.symbol: id_order(book.last_id) for book in kept}
        self._seq = {book.symbol: book.seq for book in kept}
        self._rejected = rejected
        self._start = min((book.last_id for book in kept), key=id_order, default=None)

    async def run(self, source: Source, until: str) -> None:
        """Reads the stream from the oldest book to the message `until`, which was the last one settled."""
        last, end = self._start, id_order(until)
        while last is not None and id_order(last) < end:
            messages = await source.read(last, MESSAGES_PER_READ)
            for message in messages:
                if id_order(message.stream_id) <= end:
                    self._apply(message)
            last = messages[-1].stream_id if messages else None

    def _apply(self, message: Message) -> None:
        if message.replay_of:
            return
        place = id_order(message.stream_id)
        for position, event in enumerate(decode(message)):
            if isinstance(event, Rejection) or (message.stream_id, position) in self._rejected:
                continue
            symbol = getattr(event, "symbol", None)
            if symbol in self._after and place > self._after[symbol] and self._is_new(event):
                self._partition.recall(event)

    def _is_new(self, event: Event) -> bool:
        """Whether an event with a sequence was settled then, and not dropped as a duplicate."""
        if not isinstance(event, Fill | AdlFill | AdlEnd):
            return True
        if event.seq <= self._seq[event.symbol]:
            return False
        self._seq[event.symbol] = event.seq
        return True
