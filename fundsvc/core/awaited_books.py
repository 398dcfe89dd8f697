"""Books that are not loaded yet: the events that arrive for them meanwhile, and the events that must wait for them.

After a restart, most events settle without the positions of their contract. Marks, positions and snapshots of a contract whose
saved book is not loaded yet are accepted and postponed; an event that reads or ranks positions waits for that book alone. What
an event does therefore never depends on whether its book was loaded when it arrived.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from fundsvc.core.adl.valuation import SideName
from fundsvc.core.events import Event, Mark, Position, Snapshot

POSTPONED_MAX = 200_000
"""Postponed events of a partition: about 60 MB. Further ones wait for the book of their contract, which then takes its own."""

Postponable = Mark | Position | Snapshot
"""Events that change a book only, and whose effect may come later."""


class BookAwaited(Exception):
    """An event needs a book that is not loaded yet; nothing has changed. `symbol` is the ledger key of the book's contract."""

    def __init__(self, symbol: str) -> None:
        super().__init__(f"the book of {symbol} is not loaded yet")
        self.symbol = symbol


class Postponed(NamedTuple):
    """An event that a book has yet to get, and the time (ms) in the id of its message; see `Partition.apply_to_book`."""

    event: Event
    side: SideName | None
    stream_ms: int


@dataclass(slots=True)
class Journal:
    """The events that an unloaded book has yet to get, in order.

    `earlier` are those that were settled after the book was saved and before the partition was loaded, `later` those settled
    since. `rows_left` is the number of accounts that each side has room for. Once `restored`, the book has the saved positions
    and takes further `earlier` events at once.
    """

    rows_left: int
    restored: bool = False
    earlier: deque[Postponed] = field(default_factory=deque)
    later: deque[Postponed] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.earlier) + len(self.later)
