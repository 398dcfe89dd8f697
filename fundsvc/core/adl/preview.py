"""What a liquidation fill would do now: to the fund, and to the positions that an order would ask. Nothing is changed."""

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
"""How many lots a round asks for where so many are needed."""


class Preview(NamedTuple):
    """The entry that the fill would write, and the order with its first round, if the fund could not pay it all."""

    entry: Entry
    order: AdlOrder | None
    first: RoundTerms | None


def preview(fund: Fund, book: Book, open_orders: Iterable[AdlOrder], fill: Fill, request_size: RequestSize = int) -> Preview:
    """Settles a fill on a fund that the caller gives away, over a book that is left as it is.

    Lots that open orders wait for are promised to them; orders of an iterator are let go afterwards. The first round asks for
    `request_size` the lots that the order needs. Raises Rejection when the fill could not be settled.
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
    """Promises lots to open orders, and takes the promises back. The list is empty then.

    Orders are let go one by one: to do it at once with all their positions would keep other threads waiting.
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
