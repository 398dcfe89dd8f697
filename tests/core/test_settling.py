"""Settlement and closing of contracts through a partition."""

import pytest
from builders import (
    ONE,
    UNIT,
    a_fund,
    adl_end,
    adl_fill,
    fill,
    listing,
    mark,
    partition,
    position,
    settle,
    takeover,
    unwind,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from takeover_world import POLICIES, PRICES, World

from fundsvc.core.batch import StoredBook
from fundsvc.core.events import AdlAck, AdlTimeout, Reason, Rejection, Snapshot
from fundsvc.core.fund.settlement import Closing, Fund
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import DrawdownGuard, Policy, TakeoverPolicy

SHORT = position("w", -30, "60")
"""A short that profits at marks below 60."""


class Ran:
    """A partition with one contract and what its batches contain."""

    def __init__(self, *events, balance=100, **policy):
        self.policy = Policy(escalate_min=0, **policy)
        self.fund = a_fund(UNIT, self.policy, balance=balance * ONE)
        self.partition = partition(self.fund)
        self.entries, self.orders, self.closings, self.duplicates, self.kept = [], {}, {}, 0, []
        self.apply(*events)

    def apply(self, *events):
        for event in events:
            self.partition.apply(event, 5000)
        return self.keep()

    def keep(self):
        batch = self.partition.take()
        self.entries += [(one.kind, one.lots, one.change // ONE, one.closes) for one in batch.entries]
        self.kept += batch.entries
        self.orders |= {adl: order.state for (_, adl), order in batch.orders.items()}
        self.closings |= batch.closings
        self.duplicates += batch.duplicates.total()
        return self

    def reason(self, event):
        before = self.fund.state(), self.fund.closing
        with pytest.raises(Rejection) as rejection:
            self.partition.apply(event, 5000)
        assert (self.fund.state(), self.fund.closing) == before
        return rejection.value.reason


@given(POLICIES, st.sampled_from([0, 30, 100]), PRICES, st.data())
@settings(deadline=None)
def test_a_settled_contract_holds_nothing_and_its_audit_finds_no_difference(policy, balance, price, data):
    world = World(policy, balance)
    for _ in range(data.draw(st.integers(5, 25))):
        world.apply(world.draw(data))
    world.apply(settle(world.seq + 1, price, ts=world.ts))
    world.check()
    market = world.partition.market(UNIT.symbol)
    inventory = market.fund.inventory
    assert market.fund.closing
    assert not market.orders
    assert not (inventory and (inventory.lots or inventory.long.in_orders or inventory.short.in_orders))
    assert market.fund.open_in_adl == 0
    assert world.audit() == []
    assert world.audit(parts=3) == []
    for _ in range(data.draw(st.integers(0, 10))):
        world.apply(world.draw(data))
        world.check()


def test_settlement_closes_tranches_of_both_sides_oldest_first():
    ran = Ran(takeover(1, 10), takeover(2, 4, "40", "buy"), takeover(3, 5, "60"), settle(4, "55"))
    pieces = [("surplus", 10, 50, 1), ("shortfall", 4, -60, 2), ("shortfall", 5, -25, 3)]
    assert ran.entries == [("takeover", 10, 0, 0), ("takeover", 4, 0, 0), ("takeover", 5, 0, 0), *pieces]
    assert (ran.fund.balance, ran.fund.outstanding, ran.fund.inventory.lots) == (65 * ONE, 0, 0)
    assert {one.order_id for one in ran.kept[3:]} == {"settlement"}
    assert ran.closings == {UNIT.symbol: Closing(1004, 4, 55 * 10**12)}


@pytest.mark.parametrize("waterfall", ["fund_then_adl", "adl_then_fund"])
def test_shortfall_of_a_settlement_beyond_the_fund_becomes_outstanding(waterfall):
    ran = Ran(mark("50"), SHORT, takeover(1, 10), settle(2, "35"), waterfall=waterfall)
    assert (ran.fund.balance, ran.fund.outstanding, ran.orders) == (0, 50 * ONE, {})


def test_settlement_pays_only_to_the_reserve_of_the_guard():
    guard = DrawdownGuard(minimum_balance=60)
    ran = Ran(takeover(1, 10), settle(2, "40"), drawdown_guard=guard)
    assert (ran.fund.balance, ran.fund.outstanding) == (70 * ONE, 70 * ONE)


def test_settlement_takes_the_lots_of_inventory_orders():
    ran = Ran(mark("45"), SHORT, takeover(1, 10), mark("38"), settle(2, "45"))
    assert ran.orders == {1: "returned"}
    assert ran.entries == [("takeover", 10, 0, 0), ("shortfall", 10, -50, 1)]


def test_settlement_takes_over_and_closes_the_lots_of_open_takeover_orders():
    ran = Ran(mark("45"), SHORT, takeover(1, 10), takeover=TakeoverPolicy(mode="adl"))
    ran.apply(adl_fill(2, "w", 4), settle(3, "45"))
    assert ran.orders == {1: "returned"}
    assert ran.entries == [("deleverage", 4, 0, 0), ("takeover", 6, 0, 0), ("shortfall", 6, -30, 2)]


def test_settlement_ends_orders_of_shortfalls_as_uncovered():
    ran = Ran(mark("45"), SHORT, fill(1, lots=10, price="35", bankruptcy_price="50", account="x"))
    assert ran.orders == {1: "open"}
    ran.apply(settle(2))
    assert (ran.orders, ran.fund.outstanding, ran.fund.open_in_adl) == ({1: "uncovered"}, 50 * ONE, 0)
    assert [kind for kind, *_ in ran.entries] == ["shortfall"]


CLOSED = [
    fill(9),
    takeover(9, 1),
    unwind(9, 1),
    settle(9),
    mark("40"),
    SHORT,
    Snapshot(UNIT.symbol, "begin", 1),
    adl_fill(9, "w", 1),
    adl_end(9, 1),
]


@pytest.mark.parametrize("event", CLOSED, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("ending", [settle(2), listing(status="Settled"), listing(status="Closed")])
def test_closed_contract_takes_no_event(ending, event):
    ran = Ran(fill(1), mark("50"), SHORT, ending)
    assert ran.reason(event) == Reason.CONTRACT_CLOSED
    assert ran.partition.book(UNIT.symbol).open == 0


def test_acknowledgements_and_timeouts_of_ended_orders_change_nothing():
    ran = Ran(mark("45"), SHORT, takeover(1, 10), mark("38"), settle(2, "45"))
    state = ran.fund.state()
    ran.apply(AdlAck(UNIT.symbol, 1, 1, 1), AdlTimeout(UNIT.symbol, 1, 1, 1))
    assert ran.fund.state() == state


@pytest.mark.parametrize("price", ["50", "60"])
def test_earlier_events_of_a_closed_contract_stay_duplicates(price):
    earlier = [fill(1), takeover(2, 10), unwind(3, 4), settle(4, price)]
    ran = Ran(*earlier)
    entries = [*ran.entries]
    ran.apply(*earlier)
    assert (ran.entries, ran.duplicates) == (entries, 4)


def test_settlement_without_inventory_is_recognised_as_a_duplicate():
    ran = Ran(fill(1), settle(3))
    assert (ran.fund.seq, ran.entries) == (1, [("flat", 1, 0, 0)])
    assert ran.apply(settle(3)).duplicates == 1
    assert ran.reason(settle(3, "51")) == Reason.CONFLICT
    assert ran.reason(settle(2)) == Reason.CONTRACT_CLOSED


@pytest.mark.parametrize("events", [[], [takeover(1, 10)]])
def test_restart_keeps_a_contract_closed(events):
    ran = Ran(*events, settle(2))
    fund = Fund(UNIT, ran.fund.state(), ran.policy, closing=ran.closings[UNIT.symbol])
    again = partition(fund)
    again.apply(settle(2))
    assert again.take().duplicates.total() == 1
    with pytest.raises(Rejection, match="closed"):
        again.apply(fill(3))


def test_late_event_of_a_closed_contract_is_rejected_once():
    ran = Ran(fill(5), settle(7))
    assert ran.reason(fill(3)) == Reason.CONTRACT_CLOSED
    assert ran.apply(fill(3)).duplicates == 1
    with pytest.raises(Rejection) as rejection:
        ran.partition.apply_late(fill(3))
    assert rejection.value.reason == Reason.CONTRACT_CLOSED


def test_late_settlement_closes_the_contract():
    ran = Ran(takeover(5, 10))
    assert ran.partition.apply_late(settle(3, "55")).kind == "surplus"
    assert ran.keep().closings == {UNIT.symbol: Closing(1003, 3, 55 * 10**12)}


def test_settlement_whose_amounts_do_not_fit_is_rejected_whole():
    ran = Ran(takeover(1, INT64_MAX, "1"), mark("1"), balance=10)
    assert ran.reason(settle(2, "9")) == Reason.OUT_OF_RANGE
    assert ran.fund.inventory.lots == INT64_MAX
    assert ran.reason(settle(2, "0")) == Reason.OUT_OF_RANGE


def test_listing_closes_a_contract_only_without_lots_and_orders():
    ran = Ran(takeover(1, 10), listing(status="Settled"))
    assert not ran.closings
    ran.apply(unwind(2, 10), listing(status="Settled"))
    assert ran.closings == {UNIT.symbol: Closing(5000)}
    ordered = Ran(mark("45"), SHORT, fill(1, lots=10, price="35", bankruptcy_price="50", account="x"), listing(status="Closed"))
    assert not ordered.closings


def test_listing_of_a_closed_contract_updates_its_object_only():
    ran = Ran(fill(1), settle(2))
    ran.partition.apply(listing(status="Closed", note=1))
    assert ran.partition.take().listings[UNIT.symbol][1]["note"] == 1
    assert ran.reason(listing(multiplier=2.0)) == Reason.CONTRACT_CLOSED
    assert not ran.fund.suspended


def test_other_status_does_not_close_a_contract():
    for status in ("Init", "Open", "Paused", "CancelOnly", "BeingSettled", "Delisted", None, 7):
        assert not Ran(fill(1), listing(status=status)).closings


def test_saved_positions_of_a_closed_contract_are_not_restored():
    ran = Ran(SHORT, mark("45"))
    ran.partition.request_books()
    (book,) = ran.partition.take().books
    fund = Fund(UNIT, ran.fund.state(), ran.policy, closing=Closing(1, 2, 3))
    again = partition(fund)
    assert not [*again.restore(StoredBook(UNIT.symbol, "1-0", 0, book.mark, 0, 0, [object()]))]
    again.apply_to_book(SHORT)
    assert again.book(UNIT.symbol).open == 0


def test_follower_of_the_books_empties_the_book_at_the_settlement():
    ran = Ran()
    for event in (mark("45"), SHORT, settle(1), SHORT):
        ran.partition.apply_to_book(event)
    assert ran.partition.book(UNIT.symbol).open == 0
