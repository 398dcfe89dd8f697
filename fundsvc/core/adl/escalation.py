"""What becomes of a shortfall that a fund could not pay: an ADL order, its rounds, and its end.

Each step changes the fund, the contract's ADL desk and the order, and puts into the batch what is to be written: the order as
it now stands, and the sealed record of what happened. A step that cannot be taken raises Rejection, having changed nothing.
"""

from typing import NamedTuple

from fundsvc.core.adl.desk import Deleveraging
from fundsvc.core.adl.order import AdlOrder, RoundTerms, Want, opposite, order_for
from fundsvc.core.adl.records import reduced_body, round_bodies
from fundsvc.core.batch import Batch, Round
from fundsvc.core.events import AdlAck, AdlEnd, AdlFill, AdlTimeout, Fill, Reason, Rejection
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import Fund, WaitsForAdl
from fundsvc.core.numbers import INT64_MAX


class Cause(NamedTuple):
    """The event that moves an order: its sequence (0 if it has none), the engine's time, and the stream's time (both ms)."""

    seq: int
    ts: int
    now_ms: int


def waits_for_adl(fund: Fund, desk: Deleveraging, fill: Fill) -> WaitsForAdl:
    """How `adl_then_fund` decides: the fund pays nothing now where the deficit escalates and somebody can be deleveraged."""

    def waits(deficit: int, bankruptcy_price: int) -> bool:
        want = Want(opposite(fill.side), 1, bankruptcy_price, fill.account)
        return deficit >= fund.escalate_min(bankruptcy_price) and desk.anybody(want)

    return waits


def escalate(batch: Batch, fund: Fund, desk: Deleveraging, shortfall: Entry, now_ms: int) -> None:
    """Writes the ADL order of a shortfall and asks the first positions; with nobody to ask, its rest is outstanding.

    An amount below the contract's least one is outstanding at once.
    """
    if shortfall.uncovered < fund.escalate_min(shortfall.bankruptcy_price):
        fund.outstanding += shortfall.uncovered
        return
    fund.adl += 1
    fund.open_in_adl += shortfall.uncovered
    order = order_for(shortfall, fund.adl, fund.policy_version)
    batch.open(order)
    _ask(batch, fund, desk, order, Cause(shortfall.seq, shortfall.ts, now_ms))


def execute(batch: Batch, fund: Fund, desk: Deleveraging, event: AdlFill) -> None:
    """Counts an execution against its order, and off the position; a completed order may refund."""
    order = _open_order(fund, desk, event.adl)
    if order.refund > INT64_MAX - fund.balance:
        raise Rejection(Reason.OUT_OF_RANGE, "the order's refund does not fit the fund's 64-bit balance")
    before = order.rest
    reduced = order.execute(event)
    fund.open_in_adl -= before - order.rest
    desk.reduce(order, event.account, event.lots)
    _pass(batch, fund, order, event.seq)
    batch.seal(fund.record("execution", order, event.seq, event.ts, event.account, event.lots, reduced_body(reduced)))
    if order.state == "done":
        desk.close(order)
        if order.refund:
            batch.record(fund, fund.refund(order, event))
    batch.note(order)


def end_round(batch: Batch, fund: Fund, desk: Deleveraging, event: AdlEnd, now_ms: int) -> None:
    """Asks again for what is missing, or ends the order as uncovered.

    An order that is over has nothing more to end: the event moves nothing, not even the sequence.
    """
    order = desk.orders.get(event.adl)
    if order is None and event.adl > fund.adl:
        raise _unknown_order(fund, event.adl)
    if order is None:
        return
    _pass(batch, fund, order, event.seq)
    desk.end_round(order)
    _ask(batch, fund, desk, order, Cause(event.seq, event.ts, now_ms))


def time_out(batch: Batch, fund: Fund, desk: Deleveraging, event: AdlTimeout, now_ms: int) -> None:
    """Ends a round that went unanswered. A round that is over by now has nothing more to end."""
    order = _order_in_round(fund, desk, event)
    if order is not None:
        desk.end_round(order)
        batch.changed[event.symbol] = fund
        _ask(batch, fund, desk, order, Cause(0, event.ts, now_ms))


def acknowledge(batch: Batch, fund: Fund, desk: Deleveraging, event: AdlAck) -> None:
    """Notes that the engine has a round, unless that is known or the round is over."""
    order = _order_in_round(fund, desk, event)
    if order is not None and not order.acknowledged:
        order.acknowledged = True
        batch.changed[event.symbol] = fund
        batch.note(order)


def _ask(batch: Batch, fund: Fund, desk: Deleveraging, order: AdlOrder, cause: Cause) -> None:
    """Begins another round of an order; ends the order where there is nobody to ask."""
    terms = desk.begin_round(order, cause.now_ms)
    _seal_round(batch, fund, order, terms, cause)
    if terms.accounts:
        batch.rounds.append(Round(batch.note(order), terms.accounts, terms.asked))
    else:
        _end_uncovered(batch, fund, desk, order, cause)


def _seal_round(batch: Batch, fund: Fund, order: AdlOrder, terms: RoundTerms, cause: Cause) -> None:
    for kind, body, first_rank in round_bodies(order, terms):
        batch.seal(fund.record(kind, order, cause.seq, cause.ts, body=body, first_rank=first_rank))


def _end_uncovered(batch: Batch, fund: Fund, desk: Deleveraging, order: AdlOrder, cause: Cause) -> None:
    """The rest is outstanding; the fund pays of it at once what it can."""
    order.state = "uncovered"
    fund.open_in_adl -= order.rest
    fund.outstanding += order.rest
    desk.close(order)
    batch.note(order)
    batch.seal(fund.record("end", order, cause.seq, cause.ts, lots=order.needed))
    covered = fund.cover(order, cause.seq, cause.ts)
    if covered:
        batch.record(fund, covered)


def _pass(batch: Batch, fund: Fund, order: AdlOrder, seq: int) -> None:
    """Notes that an event without an entry of its own was settled, and on which order, so that the audit knows it."""
    fund.seq = max(fund.seq, seq)
    order.seq = max(order.seq, seq)
    batch.changed[fund.contract.symbol] = fund


def _order_in_round(fund: Fund, desk: Deleveraging, event: AdlAck | AdlTimeout) -> AdlOrder | None:
    """The order whose present round an event is about; None where that round is over."""
    if event.adl > fund.adl:
        raise _unknown_order(fund, event.adl)
    order = desk.orders.get(event.adl)
    return order if order is not None and order.round == event.round else None


def _open_order(fund: Fund, desk: Deleveraging, number: int) -> AdlOrder:
    order = desk.orders.get(number)
    if order is not None:
        return order
    if number > fund.adl:
        raise _unknown_order(fund, number)
    raise Rejection(Reason.ADL_ORDER_CLOSED, f"ADL order {number} of {fund.contract.symbol} is no longer open")


def _unknown_order(fund: Fund, number: int) -> Rejection:
    return Rejection(Reason.ADL_ORDER_UNKNOWN, f"{fund.contract.symbol} has no ADL order {number}")
