"""Limits the size of transactions, and finds the event that the database refuses by dividing batches."""

from collections.abc import Sequence
from typing import Protocol

from fundsvc.core.batch import EventPlace

EVENTS_PER_BATCH_MAX = 100_000
"""Bounds the work that a failed commit repeats if events write no rows, such as marks."""

REFUSED_PARTS = 16
"""Parts into which a refused batch is divided. Each refusal loads the partition again, which takes as long as about ten small
transactions. With this number, one refused event among a hundred costs two or three loads; halves would cost seven.
"""

BATCH_BYTES_MAX = 8_000_000
"""Writing this much takes the database a tenth of a second; its encoding needs a few times as much memory."""


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
