"""Finds the events because of which the database refuses a batch, by writing the batch in smaller and smaller parts."""

from typing import NamedTuple

from fundsvc.core.batch import EventPlace
from fundsvc.engine.batch_bound import BatchBound, Written
from fundsvc.streams.source import id_order


class RefusedBatch(NamedTuple):
    """A batch in which the database refused something, and its error."""

    batch: Written
    error: BaseException


class Refusals:
    """The refused events of a partition that are not settled yet. `messages` maps their places to the database's messages."""

    def __init__(self, bound: BatchBound) -> None:
        self.messages: dict[EventPlace, str] = {}
        self._bound = bound

    def narrow(self, refused: RefusedBatch) -> None:
        """Has the batch written in smaller parts, or notes the refused event if the batch cannot be divided.

        Raises the error of the database if no event of the batch can be the cause.
        """
        batch, error = refused
        may_be_a_book = batch.books and self._bound.takes_books
        may_be_cut = batch.events > 1 and not (batch.uncut and self._bound.is_least)
        if may_be_a_book or may_be_cut:
            self._bound.narrow(batch)
            return
        suspects = [place for place in _places(batch) if place not in self.messages]
        if not suspects:
            raise error
        # In a batch that cannot be cut, all events after the first are rejected together; the first one only if that fails.
        self.messages |= dict.fromkeys(suspects[1:] or suspects, str(error))

    def forget(self, settled_id: str) -> None:
        """Drops the events up to a settled message, because the pipeline looks up each event among the refused ones."""
        settled = id_order(settled_id)
        for place in [place for place in self.messages if id_order(place.stream_id) <= settled]:
            del self.messages[place]


def _places(batch: Written) -> list[EventPlace]:
    """Returns the places of a batch's events, which are all of one message."""
    if batch.place is None:
        return []
    stream_id, last = batch.place
    return [EventPlace(stream_id, position) for position in range(last - batch.events + 1, last + 1)]
