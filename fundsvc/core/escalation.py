"""What becomes of a shortfall that a fund could not pay: an ADL order, its rounds, and its end.

Each step changes the fund, the contract's ADL desk and the order, and puts into the batch what is to be written. A step that
cannot be taken raises Rejection, having changed nothing.
"""

from fundsvc.core.adl import AdlOrder, order_for
from fundsvc.core.batch import Batch, Round
from fundsvc.core.chain import Entry
from fundsvc.core.deleveraging import Deleveraging
from fundsvc.core.events import AdlAck, AdlEnd, AdlFill, AdlTimeout, Reason, Rejection
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.settlement import Fund


def escalate(batch: Batch, fund: Fund, desk: Deleveraging, shortfall: Entry) -> None:
    """Writes the ADL order of a shortfall and asks the first positions; with nobody to ask, its rest is outstanding."""
    fund.adl += 1
    fund.open_in_adl += shortfall.uncovered
    order = order_for(shortfall, fund.adl)
    if not _next_round(batch, desk, order):
        _end_uncovered(batch, fund, desk, order)


def execute(batch: Batch, fund: Fund, desk: Deleveraging, event: AdlFill) -> None:
    """Counts an execution against its order, and off the position; a completed order may refund."""
    order = _open_order(fund, desk, event.adl)
    if order.refund > INT64_MAX - fund.balance:
        raise Rejection(Reason.OUT_OF_RANGE, "the order's refund does not fit the fund's 64-bit balance")
    before = order.rest
    allocation = order.execute(event)
    fund.open_in_adl -= before - order.rest
    desk.changed = True
    desk.book.sides[order.reduce].reduce(event.account, event.lots)
    _pass(batch, fund, order, event.seq)
    batch.note(order, (allocation,))
    if order.state == "done":
        desk.close(order)
        if order.refund:
            batch.record(fund, fund.refund(order, event))


def end_round(batch: Batch, fund: Fund, desk: Deleveraging, event: AdlEnd) -> None:
    """Asks again for what is missing, or ends the order as uncovered. An order that is over has nothing more to end:
    the event moves nothing, not even the sequence.
    """
    order = desk.orders.get(event.adl)
    if order is None and event.adl > fund.adl:
        raise _unknown_order(fund, event.adl)
    if order is None:
        return
    _pass(batch, fund, order, event.seq)
    _next(batch, fund, desk, order, event)


def time_out(batch: Batch, fund: Fund, desk: Deleveraging, event: AdlTimeout) -> None:
    """Ends a round that nobody ended; one that is over has nothing more to end."""
    order = desk.orders.get(event.adl)
    if order is not None and order.round == event.round:
        batch.changed[fund.contract.symbol] = fund
        _next(batch, fund, desk, order, event)


def acknowledge(batch: Batch, desk: Deleveraging, event: AdlAck) -> None:
    """Notes that the engine has a round."""
    order = desk.orders.get(event.adl)
    if order is not None and order.round == event.round:
        order.acknowledged = True
        batch.note(order, ())


def _next(batch: Batch, fund: Fund, desk: Deleveraging, order: AdlOrder, event: AdlEnd | AdlTimeout) -> None:
    if order.round < fund.policy.rounds_max and _next_round(batch, desk, order):
        return
    _end_uncovered(batch, fund, desk, order)
    covered = fund.cover(order, event) if fund.policy.waterfall == "adl_then_fund" and isinstance(event, AdlEnd) else None
    if covered:
        batch.record(fund, covered)


def _next_round(batch: Batch, desk: Deleveraging, order: AdlOrder) -> bool:
    """Begins another round of an order; False when there is nobody to ask."""
    if not desk.begin_round(order):
        return False
    state = batch.note(order, order.allocations.values())
    batch.rounds.append(Round(state, tuple(map(order.allocation_written, order.allocations.values()))))
    return True


def _end_uncovered(batch: Batch, fund: Fund, desk: Deleveraging, order: AdlOrder) -> None:
    order.state = "uncovered"
    fund.open_in_adl -= order.rest
    fund.outstanding += order.rest
    desk.close(order)
    batch.note(order, ())


def _pass(batch: Batch, fund: Fund, order: AdlOrder, seq: int) -> None:
    """Notes that an event without an entry of its own was settled, and on which order, so that the audit knows it."""
    fund.seq = max(fund.seq, seq)
    order.seq = max(order.seq, seq)
    batch.changed[fund.contract.symbol] = fund


def _open_order(fund: Fund, desk: Deleveraging, number: int) -> AdlOrder:
    order = desk.orders.get(number)
    if order is not None:
        return order
    if number > fund.adl:
        raise _unknown_order(fund, number)
    raise Rejection(Reason.ADL_ORDER_CLOSED, f"ADL order {number} of {fund.contract.symbol} is no longer open")


def _unknown_order(fund: Fund, number: int) -> Rejection:
    return Rejection(Reason.ADL_ORDER_UNKNOWN, f"{fund.contract.symbol} has no ADL order {number}")
