"""Logs the ADL orders, takeovers and rejected events of durable batches, equal kinds in one line.

A batch may contain ten thousand of each, and a storm has hundreds of batches. So the first of a kind is logged at once; the
following ones are counted and logged together every few seconds. No line names an account.
"""

import math
import time
from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import groupby
from operator import attrgetter
from typing import Generic, Literal, NamedTuple, TypeVar

from structlog.typing import FilteringBoundLogger

from fundsvc.core.adl.order import OrderState, Origin
from fundsvc.core.batch import Batch, Offset
from fundsvc.core.events import Reason, Rejected
from fundsvc.core.fund.inventory import Outcome
from fundsvc.logs.faults import REPEAT_SECONDS

Course = Literal["opened", "advanced", "done", "uncovered", "returned"]
"""The change of an ADL order by a batch."""

Kind = TypeVar("Kind", bound=Hashable)
Item = TypeVar("Item")


class OrderCourse(NamedTuple):
    """The orders of a contract for the same reason that took the same course."""

    symbol: str
    origin: Origin
    course: Course


class TakeoverOutcome(NamedTuple):
    """The lots of a contract's takeovers that had the same outcome."""

    symbol: str
    outcome: Outcome


class _Notices(Generic[Kind, Item]):
    """Logs the first item of a kind at once, and the following ones every few seconds with their count."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._pending: dict[Kind, tuple[Item, int]] = {}
        self._logged_at: dict[Kind, float] = {}

    def log_due(self) -> None:
        """Logs the pending kinds that were not logged in the last few seconds."""
        latest = time.monotonic() - REPEAT_SECONDS
        self._log_kinds([kind for kind in self._pending if self._logged_at.get(kind, -math.inf) <= latest])

    def log_rest(self) -> None:
        """Logs all pending kinds, at the end."""
        self._log_kinds(list(self._pending))

    def _add(self, kind: Kind, item: Item, number: int = 1) -> None:
        first, count = self._pending.get(kind, (item, 0))
        self._pending[kind] = first, count + number

    def _log_kinds(self, kinds: Iterable[Kind]) -> None:
        for kind in kinds:
            first, count = self._pending.pop(kind)
            self._logged_at[kind] = time.monotonic()
            self._write(kind, first, count)

    def _write(self, kind: Kind, first: Item, count: int) -> None:
        raise NotImplementedError


class Orders(_Notices[OrderCourse, tuple[OrderState, Offset]]):
    """Logs the changes of a partition's ADL orders, by contract, origin and course."""

    def note(self, orders: Iterable[OrderState], offset: Offset) -> None:
        """Adds orders of a batch that ends at an offset; `log_due` logs them."""
        for order in orders:
            self._add(OrderCourse(order.symbol, order.origin, _course(order)), (order, offset))

    def _write(self, kind: OrderCourse, first: tuple[OrderState, Offset], count: int) -> None:
        order, offset = first
        log_at = {"opened": self._log.warning, "uncovered": self._log.error}.get(kind.course, self._log.info)
        log_at(
            f"adl order {kind.course}",
            symbol=order.symbol,
            origin=order.origin,
            adl=order.adl,
            entry=order.cause,
            round=order.round,
            lots=order.lots,
            executed=order.executed,
            count=count,
            stream_id=offset.last_id,
        )


class Outcomes(_Notices[TakeoverOutcome, Offset]):
    """Logs the outcomes of a partition's takeovers, by contract and outcome."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__(log)
        self._lots: Counter[TakeoverOutcome] = Counter()

    def note(self, batch: Batch, offset: Offset) -> None:
        """Logs the outcomes of a batch that ends at an offset."""
        for (symbol, outcome), number in batch.outcomes.items():
            kind = TakeoverOutcome(symbol, outcome)
            self._lots[kind] += batch.outcome_lots[kind]
            self._add(kind, offset, number)
        self.log_due()

    def _write(self, kind: TakeoverOutcome, first: Offset, count: int) -> None:
        log_at = {"accepted_in_part": self._log.warning, "forced": self._log.error}.get(kind.outcome, self._log.info)
        lots, stream_id = self._lots.pop(kind), first.last_id
        log_at(f"takeover {kind.outcome.replace('_', ' ')}", symbol=kind.symbol, lots=lots, count=count, stream_id=stream_id)


class Rejections(_Notices[Reason, Rejected]):
    """Logs the rejected events of a partition, by reason."""

    def note(self, events: Iterable[Rejected]) -> None:
        """Adds the rejected events of a batch."""
        for event in events:
            self._add(event.reason, event)
        self.log_due()

    def _write(self, kind: Reason, first: Rejected, count: int) -> None:
        self._log.warning("events rejected", reason=kind, count=count, stream_id=first.stream_id, position=first.position)


class Anomalies:
    """Logs settled events with an anomaly: old times, sequence gaps, repeated trade ids, suspensions; and ends of contracts."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._old: set[str] = set()

    def note(self, batch: Batch, offset: Offset) -> None:
        """Logs the anomalies of a batch that ends at an offset; old events are logged once per contract."""
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
            log_at = self._log.error if suspended else self._log.info
            log_at("contract suspended" if suspended else "contract resumed", symbol=symbol, stream_id=offset.last_id)
        for symbol, closing in batch.closings.items():
            self._log.info("contract closed", symbol=symbol, seq=closing.seq, stream_id=offset.last_id)
        for symbol, successor, reason in batch.uncarried:
            self._log.warning(
                "balance not carried", symbol=symbol, successor=successor, detail=reason, stream_id=offset.last_id
            )


def _course(order: OrderState) -> Course:
    if order.state != "open":
        return order.state
    return "advanced" if order.executed or order.round > 1 else "opened"
