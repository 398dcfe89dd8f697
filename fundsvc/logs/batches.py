"""What durable batches tell an operator: their ADL orders and their rejected events, alike ones in one line.

A batch may hold ten thousand of either, and a storm has hundreds of batches. So the first of a kind is logged at once, and
those that follow are counted and logged together every few seconds. No account is named.
"""

import math
import time
from collections.abc import Hashable, Iterable
from itertools import groupby
from operator import attrgetter
from typing import Generic, Literal, NamedTuple, TypeVar

from structlog.typing import FilteringBoundLogger

from fundsvc.core.adl import OrderState
from fundsvc.core.batch import Batch, Offset
from fundsvc.core.events import Reason, Rejected
from fundsvc.logs.faults import SELDOM_SECONDS

Course = Literal["opened", "advanced", "done", "uncovered"]
"""What has become of an ADL order with a batch."""

Kind = TypeVar("Kind", bound=Hashable)
Item = TypeVar("Item")


class OrderCourse(NamedTuple):
    """The orders of a contract that took the same course."""

    symbol: str
    course: Course


class _Notices(Generic[Kind, Item]):
    """The first item of a kind is logged at once, those that follow every few seconds with their number."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._unsaid: dict[Kind, tuple[Item, int]] = {}
        self._said_at: dict[Kind, float] = {}

    def say_due(self) -> None:
        """Logs what has not been logged, of kinds of which nothing was logged lately."""
        latest = time.monotonic() - SELDOM_SECONDS
        self._say([kind for kind in self._unsaid if self._said_at.get(kind, -math.inf) <= latest])

    def say_rest(self) -> None:
        """Logs all that has not been logged, as nothing will come after it."""
        self._say(list(self._unsaid))

    def _add(self, kind: Kind, item: Item) -> None:
        first, count = self._unsaid.get(kind, (item, 0))
        self._unsaid[kind] = first, count + 1

    def _say(self, kinds: Iterable[Kind]) -> None:
        for kind in kinds:
            first, count = self._unsaid.pop(kind)
            self._said_at[kind] = time.monotonic()
            self._write(kind, first, count)

    def _write(self, kind: Kind, first: Item, count: int) -> None:
        raise NotImplementedError


class Orders(_Notices[OrderCourse, tuple[OrderState, Offset]]):
    """What becomes of the ADL orders of a partition, by contract and course."""

    def note(self, orders: Iterable[OrderState], offset: Offset) -> None:
        """Takes in orders of a batch that goes up to an offset; `say_due` logs them."""
        for order in orders:
            self._add(OrderCourse(order.symbol, _course(order)), (order, offset))

    def _write(self, kind: OrderCourse, first: tuple[OrderState, Offset], count: int) -> None:
        order, offset = first
        say = {"opened": self._log.warning, "uncovered": self._log.error}.get(kind.course, self._log.info)
        say(
            f"adl order {kind.course}",
            symbol=order.symbol,
            adl=order.adl,
            entry=order.cause,
            round=order.round,
            lots=order.lots,
            executed=order.executed,
            count=count,
            stream_id=offset.last_id,
        )


class Rejections(_Notices[Reason, Rejected]):
    """The rejected events of a partition, by reason."""

    def note(self, events: Iterable[Rejected]) -> None:
        """Takes in what a batch rejected."""
        for event in events:
            self._add(event.reason, event)
        self.say_due()

    def _write(self, kind: Reason, first: Rejected, count: int) -> None:
        self._log.warning("events rejected", reason=kind, count=count, stream_id=first.stream_id, position=first.position)


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


def _course(order: OrderState) -> Course:
    if order.state != "open":
        return order.state
    return "advanced" if order.executed or order.round > 1 else "opened"
