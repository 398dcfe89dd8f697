"""What must become of each event, by a partition in memory: an entry, a change of state, known already, or refused."""

from collections import Counter
from collections.abc import Iterable

from fundsvc.core.events import Fill, Reason, Rejection
from fundsvc.core.partition import Partition
from fundsvc.core.times import time_of_id
from fundsvc.wire.codec import REPLAY_KEY, Message, decode
from tests.crash.oracle import empty_partition

EventId = tuple[str, int]
"""Where an event stands: the id of its message, and its position there."""


class Oracle:
    """Follows one partition. `events` counts what messages held, `outcomes` what must become of it, `reasons` why not.

    `entries` counts the entries that the ledger must have; `rejected` may be emptied once it is compared.
    """

    def __init__(self) -> None:
        self.events = self.entries = 0
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[Reason] = Counter()
        self.rejected: dict[EventId, Reason] = {}
        self._partition: Partition = empty_partition(0, 1)

    def settle(self, messages: Iterable[Message]) -> None:
        """Takes messages in, in the order of the stream."""
        for message in messages:
            if message.replay_of:
                self._replay(message)
            else:
                self._events(message)
        self.entries += self._partition.take().count()

    def _replay(self, message: Message) -> None:
        """No message here replays anything that was kept: it is refused when it names no event_id, else it is over already."""
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
                assert not isinstance(event, Fill), f"a fill without a trace: {event}"
                self.outcomes["state"] += 1

    def _reject(self, event_id: EventId, reason: Reason) -> None:
        self.outcomes["rejected"] += 1
        self.reasons[reason] += 1
        self.rejected[event_id] = reason
