"""What a liquidation fill would do: to the fund, and to whom, if it came now. Nothing is touched."""

from collections.abc import Iterable
from typing import NamedTuple

from fundsvc.core.adl import AdlOrder, opposite, order_for
from fundsvc.core.book import Book
from fundsvc.core.chain import Entry
from fundsvc.core.deleveraging import Deleveraging
from fundsvc.core.events import Fill
from fundsvc.core.settlement import Fund


class Preview(NamedTuple):
    """The entry that the fill would write, and the order with its first round, if the fund could not pay it all."""

    entry: Entry
    order: AdlOrder | None


def preview(fund: Fund, book: Book, open_orders: Iterable[AdlOrder], fill: Fill) -> Preview:
    """Settles a fill on a fund that the caller gives away, over a book that is only read.

    Lots that open orders wait for are promised to them. Raises Rejection when the fill could not be settled.
    """
    desk = Deleveraging(fund.contract, fund.policy)
    desk.book = book
    desk.orders = {order.adl: order for order in open_orders}
    deleverages_first = fund.policy.waterfall == "adl_then_fund"
    entry, _ = fund.settle(fill, (lambda: desk.anybody(opposite(fill.side))) if deleverages_first else None)
    if not entry.uncovered:
        return Preview(entry, None)
    order = order_for(entry, fund.adl + 1)
    desk.begin_round(order)
    return Preview(entry, order)
