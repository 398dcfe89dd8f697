"""What durable batches tell an operator: their ADL orders and their rejected events, alike ones in one line.

A batch may hold ten thousand of either; a line names the first of its kind and how many there were. No account is named.
Orders are said with their batch. Of rejected events there may be some in every batch, as many batches as there are in a day.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Literal

from structlog.typing import FilteringBoundLogger

from fundsvc.core.adl import OrderState
from fundsvc.core.batch import Batch, Offset
from fundsvc.core.events import Reason, Rejected
from fundsvc.logs.faults import SELDOM_SECONDS

Course = Literal["opened", "advanced", "done", "uncovered"]
"""What has become of an ADL order with a batch."""


def log_orders(log: FilteringBoundLogger, batch: Batch, offset: Offset) -> None:
    """Logs what has become of ADL orders with a batch that goes up to an offset."""
    for course, orders in _by_course(batch.orders.values()):
        _log_orders(log, course, orders, offset)


class Rejections:
    """The rejected events of a partition: the first with a reason is said at once, those that follow every few seconds."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._unsaid: dict[Reason, tuple[Rejected, int]] = {}
        self._said_at: dict[Reason, float] = {}

    def note(self, events: Iterable[Rejected]) -> None:
        """Takes in what a batch rejected."""
        for event in events:
            first, count = self._unsaid.get(event.reason, (event, 0))
            self._unsaid[event.reason] = first, count + 1
        self.say_due()

    def say_due(self) -> None:
        """Says what has not been said, of reasons of which nothing was said lately."""
        latest = time.monotonic() - SELDOM_SECONDS
        self._say([reason for reason in self._unsaid if self._said_at.get(reason, -math.inf) <= latest])

    def say_rest(self) -> None:
        """Says all that has not been said: nobody will come back to it."""
        self._say(list(self._unsaid))

    def _say(self, reasons: Iterable[Reason]) -> None:
        for reason in reasons:
            first, count = self._unsaid.pop(reason)
            self._said_at[reason] = time.monotonic()
            self._log.warning("events rejected", reason=reason, count=count, stream_id=first.stream_id, position=first.position)


class Oddities:
    """What a partition settled although something about it is odd."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._old: set[str] = set()

    def note(self, batch: Batch, offset: Offset) -> None:
        """Logs what is odd about a batch that goes up to an offset; of old events only the first of each contract."""
        for symbol in batch.old.keys() - self._old:
            self._old.add(symbol)
            self._log.warning("old events", symbol=symbol, count=batch.old[symbol], stream_id=offset.last_id)
        for symbol, gaps in groupby(batch.gaps, attrgetter("symbol")):
            first, *more = gaps
            self._log.error(
                "sequence gap",
                symbol=symbol,
                seq=first.seq,
                prev_seq=first.prev_seq,
                last=first.last,
                count=1 + len(more),
                stream_id=offset.last_id,
            )
        for symbol, count in batch.repeated_trades.items():
            self._log.warning("trade ids repeated", symbol=symbol, count=count, stream_id=offset.last_id)
        for symbol, suspended in batch.suspensions.items():
            say = self._log.error if suspended else self._log.info
            say("contract suspended" if suspended else "contract resumed", symbol=symbol, stream_id=offset.last_id)


def _log_orders(log: FilteringBoundLogger, course: Course, orders: Sequence[OrderState], offset: Offset) -> None:
    first = orders[0]
    say = {"opened": log.warning, "uncovered": log.error}.get(course, log.info)
    say(
        f"adl order {course}",
        symbol=first.symbol,
        adl=first.adl,
        entry=first.cause,
        round=first.round,
        lots=first.lots,
        executed=first.executed,
        count=len(orders),
        stream_id=offset.last_id,
    )


def _by_course(orders: Iterable[OrderState]) -> Iterator[tuple[Course, list[OrderState]]]:
    """Orders of the same contract that took the same course."""
    found: dict[tuple[str, Course], list[OrderState]] = {}
    for order in orders:
        found.setdefault((order.symbol, _course(order)), []).append(order)
    return ((course, alike) for (_, course), alike in found.items())


def _course(order: OrderState) -> Course:
    if order.state != "open":
        return order.state
    return "advanced" if order.executed or order.round > 1 else "opened"
