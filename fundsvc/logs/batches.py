"""What a durable batch tells an operator: its ADL orders and its rejected events, alike ones in one line.

A batch may hold ten thousand of either; a line names the first of its kind and how many there were. No account is named.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from structlog.typing import FilteringBoundLogger

from fundsvc.core.adl import OrderState
from fundsvc.core.batch import Batch, Offset
from fundsvc.core.events import Reason, Rejected

Course = Literal["opened", "advanced", "done", "uncovered"]
"""What has become of an ADL order with a batch."""


def log_batch(log: FilteringBoundLogger, batch: Batch, offset: Offset) -> None:
    """Logs what a batch did up to an offset, if there is anything of note."""
    for course, orders in _by_course(batch.orders.values()):
        _log_orders(log, course, orders, offset)
    for reason, events in _by_reason(batch.rejected):
        first = events[0]
        log.warning("events rejected", reason=reason, count=len(events), stream_id=first.stream_id, position=first.position)


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


def _by_reason(events: Iterable[Rejected]) -> Iterator[tuple[Reason, list[Rejected]]]:
    found: dict[Reason, list[Rejected]] = {}
    for event in events:
        found.setdefault(event.reason, []).append(event)
    return iter(found.items())
