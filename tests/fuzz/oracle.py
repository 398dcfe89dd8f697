"""Computes the expected outcome of each event with a partition in memory: entry, state, duplicate or rejected."""

from collections import Counter
from collections.abc import Iterable

from fundsvc.core.events import Fill, Reason, Rejection
from fundsvc.core.partition import Partition
from fundsvc.core.times import time_of_id
from fundsvc.wire.codec import REPLAY_KEY, Message, decode
from tests.crash.oracle import empty_partition

EventId = tuple[str, int]
"""The id of a message, and the position of an event in it."""


class Oracle:
    """Follows one partition. `events`, `outcomes` and `reasons` count the events, their outcomes and rejection reasons.

    `entries` is the number of entries that the ledger must have. The caller may clear `rejected` after comparing it.
    """

    def __init__(self) -> None:
        self.events = self.entries = 0
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[Reason] = Counter()
        self.rejected: dict[EventId, Reason] = {}
        self._partition: Partition = empty_partition(0, 1)

    def settle(self, messages: Iterable[Message]) -> None:
        """Settles messages in the order of the stream."""
        for message in messages:
            if message.replay_of:
                self._replay(message)
            else:
                self._events(message)
        self.entries += self._partition.take().count()

    def _replay(self, message: Message) -> None:
        """Counts a replay. No message replays a kept event, so it is rejected without a valid id, and else has no effect."""
        if REPLAY_KEY.fullmatch(message.replay_of) is None:
            self.events += 1
            self._reject((message.stream_id, 0), Reason.UNDECODABLE)

    def _events(self, message: Message) -> None:
        for position, event in enumerate(decode(message)):
            self.events += 1
            entries, duplicates = self._partition.batch.count(), self._partition.batch.duplicates.total()
            try:
                self._partition.apply(event, time_of_id(message.stream_id))
            except Rejection as rejection:
                self._reject((message.stream_id, position), rejection.reason)
                continue
            if self._partition.batch.count() > entries:
                self.outcomes["entry"] += 1
            elif self._partition.batch.duplicates.total() > duplicates:
                self.outcomes["duplicate"] += 1
            else:
                assert not isinstance(event, Fill), f"a fill without outcome: {event}"
                self.outcomes["state"] += 1

    def _reject(self, event_id: EventId, reason: Reason) -> None:
        self.outcomes["rejected"] += 1
        self.reasons[reason] += 1
        self.rejected[event_id] = reason
