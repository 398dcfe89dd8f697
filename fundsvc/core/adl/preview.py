"""Previews a liquidation fill or a takeover: what the fund does, the ADL order and the allocations of its first round.

Changes no stored state.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fundsvc.core.adl.book import Book
from fundsvc.core.adl.desk import AdlDesk
from fundsvc.core.adl.order import AdlOrder, RoundTerms, order_for, order_of_lots
from fundsvc.core.checks import check_takeover
from fundsvc.core.escalation import waits_for_adl
from fundsvc.core.events import Fill, Takeover
from fundsvc.core.fund.acceptance import Acceptance, accept
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import Fund

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


class TakeoverPreview(NamedTuple):
    """What the fund accepts of a takeover; the order for the rest and its first round, None without a rest.

    `forced` are the lots that the fund takes over because no position can be requested, `equity` is that after the takeover in
    atoms, before any execution of the order.
    """

    acceptance: Acceptance
    order: AdlOrder | None
    first: RoundTerms | None
    forced: int
    equity: int


def preview_takeover(
    fund: Fund,
    book: Book,
    open_orders: Iterable[AdlOrder],
    takeover: Takeover,
    rate: int | None,
    request_size: RequestSize = int,
) -> TakeoverPreview:
    """Computes what a takeover would do to `fund`, whose guard it changes, and to `book`, which it does not change.

    `rate` is that of the settlement currency in units of 10**-PRICE_DECIMALS_MAX USDT, None if it is not known. For the other
    parameters, see `preview`. Raises Rejection if the takeover cannot be settled.
    """
    price = check_takeover(takeover, fund.contract)
    fund.begin_inventory(book.mark)
    acceptance = accept(fund, takeover, price, book.mark, rate)
    rest, order, first = takeover.lots - acceptance.lots, None, None
    if rest:
        order, first = _rest_order(fund, book, open_orders, takeover, rest, price, request_size)
    forced = rest if first is not None and not first.accounts else 0
    held = [fund.worth(takeover.side, lots, book.mark, price) for lots in (acceptance.lots, forced) if book.mark is not None]
    return TakeoverPreview(acceptance, order, first, forced, fund.equity + sum(held))


def _rest_order(
    fund: Fund,
    book: Book,
    open_orders: Iterable[AdlOrder],
    takeover: Takeover,
    rest: int,
    price: int,
    request_size: RequestSize,
) -> tuple[AdlOrder, RoundTerms]:
    """Returns the order for the lots that the fund does not accept, and its first round."""
    cause = 0 if rest == takeover.lots else fund.entry + 1
    of_event = takeover.side, rest, price, takeover.ts, takeover.seq, takeover.account
    order = order_of_lots("takeover", takeover.symbol, fund.adl + 1, cause, *of_event, fund.policy_version)
    request = order.next_request(fund.policy.rounds_max)
    desk = AdlDesk(fund.contract, fund.policy)
    desk.book = book
    with _promised(desk, [*open_orders]):
        return order, desk.terms(request._replace(lots=request_size(request.lots)), fund.policy)


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
