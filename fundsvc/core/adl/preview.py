"""Previews a liquidation fill: the entry, the ADL order and the allocations of its first round. Changes no stored state."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fundsvc.core.adl.book import Book
from fundsvc.core.adl.desk import AdlDesk
from fundsvc.core.adl.order import AdlOrder, RoundTerms, order_for
from fundsvc.core.events import Fill
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.market import waits_for_adl

RequestSize = Callable[[int], int]
"""Returns the lots that a round requests, given the lots that the order needs."""


class Preview(NamedTuple):
    """The entry that the fill would write; the order and its first round if the uncovered part escalates, else None."""

    entry: Entry
    order: AdlOrder | None
    first: RoundTerms | None


def preview(fund: Fund, book: Book, open_orders: Iterable[AdlOrder], fill: Fill, request_size: RequestSize = int) -> Preview:
    """Settles a fill on `fund`, which it changes, and computes the first round from `book`, which it does not change.

    The lots that the rounds of `open_orders` still request are not available. `request_size` maps the lots that the order needs
    to those that the first round requests. Raises Rejection if the fill cannot be settled.
    """
    desk = AdlDesk(fund.contract, fund.policy)
    desk.book = book
    with _promised(desk, [*open_orders]):
        return _preview(fund, desk, fill, request_size)


def _preview(fund: Fund, desk: AdlDesk, fill: Fill, request_size: RequestSize) -> Preview:
    adl_comes_first = fund.policy.waterfall == "adl_then_fund"
    entry, _ = fund.settle(fill, waits_for_adl(fund, desk, fill) if adl_comes_first else None)
    if entry.uncovered < max(1, fund.escalate_min(entry.bankruptcy_price)):
        return Preview(entry, None, None)
    order = order_for(entry, fund.adl + 1, fund.policy_version)
    request = order.next_request(fund.policy.rounds_max)
    return Preview(entry, order, desk.terms(request._replace(lots=request_size(request.lots)), fund.policy))


@contextmanager
def _promised(desk: AdlDesk, orders: list[AdlOrder]) -> Iterator[None]:
    """Promises lots to open orders, and withdraws the promises at the end. Empties the list.

    Releases one order at a time: freeing all orders with their positions in one call would block other threads.
    """
    for order in orders:
        desk.reopen(order)
    try:
        yield
    finally:
        while orders:
            order = orders.pop()
            desk.withdraw(order)
            desk.close(order)
