"""Takeovers, unwinds and the relief of an inventory through a partition."""

import msgspec
import pytest
from builders import ONE, UNIT, a_fund, adl_end, adl_fill, fill, listing, mark, partition, position, takeover, unwind
from hypothesis import given, settings
from hypothesis import strategies as st
from retraced import resealed
from takeover_world import POLICIES, World

from fundsvc.core.adl.preview import preview_takeover
from fundsvc.core.adl.records import AdlRecord
from fundsvc.core.events import AdlAck, AdlTimeout, Reason, Rejection
from fundsvc.core.fund.chain import Entry
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import DrawdownGuard, Policy, TakeoverPolicy


@given(POLICIES, st.sampled_from([0, 30, 100, 1000]), st.data())
@settings(deadline=None)
def test_no_lot_is_lost_and_entries_give_the_inventory(policy, balance, data):
    world = World(policy, balance)
    for _ in range(data.draw(st.integers(5, 40))):
        world.apply(world.draw(data))
        world.check()


@given(POLICIES, st.sampled_from([30, 100]), st.data())
@settings(deadline=None)
def test_a_partition_restored_from_its_rows_continues_identically(policy, balance, data):
    world, other = World(policy, balance), World(policy, balance)
    for _ in range(data.draw(st.integers(5, 30))):
        event = world.draw(data, resends=False)
        if data.draw(st.integers(0, 4)) == 0:
            other.restart()
            assert funds_of(other) == funds_of(world)
        assert world.apply(event) == other.apply(event)
        assert other.stored.orders == world.stored.orders
        assert other.stored.entries == world.stored.entries
        assert funds_of(other) == funds_of(world)
        assert other.stored.holdings == world.stored.holdings
        assert other.stored.tranches == world.stored.tranches


@given(POLICIES, st.sampled_from([0, 30, 100]), st.data())
@settings(deadline=None)
def test_the_audit_finds_no_difference(policy, balance, data):
    world = World(policy, balance)
    for _ in range(data.draw(st.integers(5, 40))):
        world.apply(world.draw(data))
    assert world.audit() == []
    assert world.audit(parts=3) == []


def funds_of(world):
    """The funds but their guards, which a partition stores with their next change."""
    return [fund.state() for fund in world.partition.funds()]


SHORT = position("w", -30, "60")
"""A short that profits at marks below 60."""


class Settled:
    """A partition with one contract and its results so far."""

    def __init__(self, *events, balance=100, reserve_line=0, **policy):
        fund = a_fund(UNIT, Policy(escalate_min=0, **policy), balance=balance * ONE, reserve_line=reserve_line * ONE)
        self.fund = fund
        self.partition = partition(fund)
        self.entries, self.orders, self.rounds = [], {}, []
        self.apply(*events)

    def apply(self, *events):
        for event in events:
            self.partition.apply(event)
        batch = self.partition.take()
        self.entries += [(entry.kind, entry.lots, entry.closes, entry.forced) for entry in batch.entries]
        self.rounds += batch.rounds
        self.orders |= {adl: order for (_, adl), order in batch.orders.items()}
        return self

    def reason(self, event):
        with pytest.raises(Rejection) as rejection:
            self.partition.apply(event)
        return rejection.value.reason

    def held(self, side="long"):
        """The tranches of a side: entry, lots, promised."""
        inventory = self.fund.inventory
        return [(one.entry, one.lots, one.promised) for one in inventory.of(side).tranches.values()] if inventory else []

    def summary(self):
        """The orders: origin, cause, lots, executed, state."""
        return [(o.origin, o.cause, o.lots, o.executed, o.state) for o in self.orders.values()]


def takeover_policy(**terms):
    return {"takeover": TakeoverPolicy(**terms)}


def test_worked_case_of_the_design():
    ran = Settled(mark("45"), SHORT, takeover(1, 10), mark("38"))
    assert ran.summary() == [("inventory", 1, 3, 0, "open")]
    ran.apply(adl_fill(2, "w", 3))
    assert (ran.fund.equity, ran.held()) == (16 * ONE, [(1, 7, 0)])
    ran.apply(unwind(3, 5, "40"), unwind(4, 2, "55"))
    assert (ran.fund.balance, ran.held()) == (60 * ONE, [])
    assert ran.summary() == [("inventory", 1, 3, 3, "done")]


def test_without_a_mark_everything_is_accepted_and_nothing_is_too_heavy():
    ran = Settled(takeover(1, 10), balance=0)
    assert (ran.held(), ran.fund.equity, ran.orders) == ([(1, 10, 0)], 0, {})


def test_mode_adl_accepts_nothing_at_first():
    ran = Settled(mark("45"), SHORT, takeover(1, 10), **takeover_policy(mode="adl"))
    assert (ran.entries, ran.summary()) == ([], [("takeover", 0, 10, 0, "open")])
    ran.apply(adl_fill(2, "w", 4), adl_end(3), adl_end(4), adl_end(5), adl_end(6))
    assert ran.entries == [("deleverage", 4, 0, False), ("takeover", 6, 0, True)]
    assert ran.summary() == [("takeover", 0, 10, 4, "returned")]


def test_takeover_without_entry_still_moves_the_sequence():
    ran = Settled(mark("45"), SHORT, takeover(1, 10), takeover(1, 10), **takeover_policy(mode="adl"))
    assert (ran.fund.seq, len(ran.orders)) == (1, 1)
    assert ran.reason(takeover(1, 9)) == Reason.CONFLICT


def test_mode_fund_accepts_everything_and_relieves_at_once():
    ran = Settled(mark("30"), SHORT, takeover(1, 10), balance=0, **takeover_policy(mode="fund"))
    assert (ran.held(), ran.summary()) == ([(1, 10, 10)], [("inventory", 1, 10, 0, "open")])


@pytest.mark.parametrize(("relief", "lots"), [(0, 2), (0.05, 3), (1, 10)])
def test_relief_is_the_share_of_the_balance_that_orders_restore(relief, lots):
    ran = Settled(mark("45"), SHORT, takeover(1, 10), mark("38"), **takeover_policy(relief=relief))
    assert ran.summary() == [("inventory", 1, lots, 0, "open")]


@pytest.mark.parametrize(("value_max", "accepted"), [(None, 10), (100, 2), (149, 2), (150, 3), (49, 0), (0, 0), (10**9, 10)])
def test_value_max_limits_the_accepted_lots(value_max, accepted):
    ran = Settled(mark("50"), takeover(1, 10), **takeover_policy(value_max=value_max))
    assert [lots for _, lots, _, forced in ran.entries if not forced] == [accepted] * bool(accepted)


def test_loss_is_compared_with_the_capacity_above_the_reserve_line_less_losing_sides():
    ran = Settled(mark("50"), takeover(1, 5), mark("48"), takeover(2, 10, "55", "buy"), reserve_line=40)
    assert ran.fund.capacity(2000) == 50 * ONE  # 100 - 40 - 10; the profit of the short does not count
    ran.apply(takeover(3, 10, "54"))
    assert ran.held()[1] == (3, 8, 0)


def test_a_position_event_and_an_older_mark_do_not_relieve():
    ran = Settled(mark("45", ts=5000), takeover(1, 10, ts=5000), mark("38", ts=4999), SHORT)
    assert ran.orders == {}
    assert ran.fund.inventory.mark == 38 * 10**12
    ran.apply(mark("38", ts=4999))
    assert ran.orders == {}
    ran.apply(mark("38", ts=5000))
    assert len(ran.orders) == 1


@pytest.mark.parametrize("event", [fill(2), adl_end(2), takeover(2, 1, "38"), unwind(2, 1, "45")])
def test_numbered_events_relieve(event):
    ran = Settled(mark("45", ts=5000), SHORT, takeover(1, 10), mark("38", ts=4000))
    if event.__struct_config__.tag == "adlEnd":
        ran = Settled(
            mark("45", ts=5000), SHORT, takeover(1, 10), fill(2, lots=1, price="1", bankruptcy_price="200", account="z")
        )
        assert ran.summary()[0][0] == "shortfall"
        return
    ran.apply(event)
    assert [order for order in ran.summary() if order[0] == "inventory"]


def test_end_of_a_closed_order_does_not_relieve():
    ran = Settled(mark("45", ts=5000), SHORT, takeover(1, 10), mark("38", ts=5000), adl_fill(2, "w", 3), mark("30", ts=4000))
    ran.apply(adl_end(3))
    assert len(ran.orders) == 1


def test_jitter_of_marks_begins_one_order():
    ran = Settled(mark("45"), SHORT, takeover(1, 10), mark("38"))
    for price in ("38", "38.5", "39", "38", "38.2", "45", "38"):
        ran.apply(mark(price))
    assert len(ran.orders) == 1


def test_no_inventory_order_without_a_position_to_reduce():
    ran = Settled(mark("45"), takeover(1, 10), *[mark("30", ts=1000 + n) for n in range(20)])
    assert (ran.orders, ran.held()) == ({}, [(1, 10, 0)])


def test_an_order_without_candidates_is_retried_after_its_time():
    ran = Settled(mark("45"), SHORT, takeover(1, 10), mark("38"), rounds_max=1)
    ran.apply(adl_end(2, ts=5000))
    assert ran.summary() == [("inventory", 1, 3, 0, "returned")]
    ran.apply(mark("38", ts=64_999))
    assert len(ran.orders) == 1
    ran.apply(mark("38", ts=65_000))
    assert len(ran.orders) == 2


def test_a_forced_takeover_holds_back_inventory_orders_of_its_side_only():
    ran = Settled(mark("45"), takeover(1, 10), takeover(2, 10), balance=30)
    assert ran.held() == [(1, 6, 0), (2, 4, 0), (4, 10, 0)] or ran.entries[-1][3]
    ran.apply(SHORT, mark("40", ts=2000))
    assert all(order[0] == "takeover" for order in ran.summary())


def test_a_stuck_engine_makes_no_storm():
    ran = Settled(mark("45"), SHORT, takeover(1, 10), mark("38"))
    for round_number in range(1, 5):
        ran.apply(AdlTimeout(UNIT.symbol, 1, round_number, 2000), *[mark("38", ts=2000 + n) for n in range(5)])
    assert ran.summary() == [("inventory", 1, 3, 0, "returned")]


def test_an_inventory_order_takes_no_further_round_once_its_tranche_gains():
    ran = Settled(mark("45"), SHORT, takeover(1, 10), mark("38"), adl_fill(2, "w", 1), mark("50"), adl_end(3))
    assert ran.summary() == [("inventory", 1, 3, 1, "returned")]
    assert ran.held() == [(1, 9, 0)]
    ran.apply(mark("38"))
    assert len(ran.orders) == 2, "this end does not hold back a further order"


def test_orders_max_limits_open_inventory_orders():
    events = [takeover(number, 1, "50") for number in (1, 2, 3)]
    ran = Settled(mark("50"), SHORT, *events, mark("1"), balance=10, **takeover_policy(orders_max=2))
    assert [order[:3] for order in ran.summary()] == [("inventory", 1, 1), ("inventory", 2, 1)]
    ran.apply(adl_fill(4, "w", 1, 1))
    assert len(ran.orders) == 3


def test_the_largest_loss_per_lot_is_relieved_first_on_either_side():
    lot = position("l", 30, "20")
    ran = Settled(mark("50"), SHORT, lot, takeover(1, 5, "52"), takeover(2, 5, "40", "buy"), balance=100)
    ran.apply(mark("46"), fill(3, lots=1, price="1", bankruptcy_price="96"))
    found = [(order.origin, order.reduce, order.cause) for order in ran.orders.values()]
    assert found[0] == ("inventory", "short", 1)


def test_unwound_lots_leave_the_newest_order_first_and_end_it():
    terms = takeover_policy(relief=0)
    ran = Settled(mark("45"), SHORT, takeover(1, 10), mark("38"), mark("34"), **terms)
    assert ran.summary() == [("inventory", 1, 2, 0, "open"), ("inventory", 1, 2, 0, "open")]
    ran.apply(unwind(2, 7, "50"))
    assert ran.summary() == [("inventory", 1, 2, 0, "open"), ("inventory", 1, 2, 0, "open")]
    assert (ran.held(), ran.orders[2].unwound) == ([(1, 3, 3)], 1)
    ran.apply(unwind(3, 2, "50"))
    assert ran.summary() == [("inventory", 1, 2, 0, "open"), ("inventory", 1, 2, 0, "returned")]
    assert ran.reason(adl_fill(4, "w", 1, 2)) == Reason.ADL_ORDER_CLOSED
    ran.apply(adl_fill(4, "w", 1, 1))
    assert ran.held() == []
    side = ran.partition.book(UNIT.symbol).sides["short"]
    assert side.promised_at(side.row_of("w")) == 0


def test_timeouts_and_acknowledgements_of_such_orders():
    ran = Settled(mark("45"), SHORT, takeover(1, 10), mark("38"))
    ran.apply(AdlAck(UNIT.symbol, 1, 1, 2000))
    assert ran.orders[1].acknowledged
    ran.apply(AdlTimeout(UNIT.symbol, 1, 1, 2000))
    assert (ran.orders[1].round, ran.orders[1].acknowledged) == (2, False)
    assert ran.fund.seq == 1


def test_lots_beyond_63_bits_are_rejected_with_those_of_open_orders():
    ran = Settled(mark("50"), takeover(1, INT64_MAX - 5))
    assert ran.reason(takeover(2, 6)) == Reason.OUT_OF_RANGE
    ran.apply(takeover(2, 5), takeover(3, INT64_MAX, side="buy"))
    ordered = Settled(mark("50"), SHORT, takeover(1, INT64_MAX - 5), **takeover_policy(mode="adl"))
    assert ordered.reason(takeover(2, 6)) == Reason.OUT_OF_RANGE
    holding = ordered.apply(takeover(2, 5)).fund.inventory.long
    assert (holding.lots, holding.in_orders) == (5, INT64_MAX - 5), "no position is left for the second order"


def test_an_unwind_whose_amounts_do_not_fit_is_rejected_whole():
    ran = Settled(takeover(1, 5, "1"), takeover(2, 2**40, "1"))
    assert ran.reason(unwind(3, 2**40, "1000")) == Reason.OUT_OF_RANGE
    assert (ran.held(), ran.fund.seq) == ([(1, 5, 0), (2, 2**40, 0)], 2)


def test_long_and_short_are_not_netted():
    ran = Settled(mark("50"), takeover(1, 4, "48"), takeover(2, 4, "52", "buy"), mark("50"))
    assert (ran.held("long"), ran.held("short")) == ([(1, 4, 0)], [(2, 4, 0)])
    assert ran.reason(unwind(3, 5, "50", "buy")) == Reason.INVENTORY_SHORT


def test_guard_on_equity_sees_marks():
    guard = DrawdownGuard(on="equity")
    ran = Settled(mark("50"), takeover(1, 10, "50"), mark("46.5"), drawdown_guard=guard)
    assert ran.fund.guard.active
    assert ran.fund.payable(2000) == 25 * ONE
    plain = Settled(mark("50"), takeover(1, 10, "50"), mark("46.5"), drawdown_guard=DrawdownGuard())
    assert not plain.fund.guard.active


def test_guard_raises_the_lines_of_relief():
    ran = Settled(mark("50"), SHORT, takeover(1, 10, "50"), mark("46.9"), drawdown_guard=DrawdownGuard())
    assert ran.summary() == [("inventory", 1, 2, 0, "open")]  # E = 69 is below 70; closing 2 lots brings it to 75.2


def test_preview_equals_the_takeover():
    for balance, book in ((1000, True), (30, True), (30, False), (0, True)):
        events = [mark("45"), *([SHORT] if book else [])]
        ran, copy = Settled(*events, balance=balance), Settled(*events, balance=balance)
        shown = preview_takeover(copy.fund, ran.partition.book(UNIT.symbol), (), takeover(1, 10), None)
        ran.apply(takeover(1, 10))
        accepted = sum(lots for kind, lots, _, forced in ran.entries if kind == "takeover" and not forced)
        assert (shown.acceptance.lots, shown.acceptance.loss) == (accepted, 50 * ONE)
        assert shown.equity == ran.fund.equity
        assert shown.forced == sum(lots for _, lots, _, forced in ran.entries if forced)
        assert bool(shown.order) == bool(ran.orders)
        for order in ran.orders.values():
            assert (shown.order.lots, shown.order.cause, shown.order.price) == (order.lots, order.cause, order.price)


def test_contract_with_an_open_takeover_order_cannot_change_its_terms():
    ran = Settled(mark("45"), SHORT, takeover(1, 10), **takeover_policy(mode="adl"))
    assert ran.reason(listing(multiplier=2.0)) == Reason.CONTRACT_FIXED


@pytest.fixture(scope="module")
def ledger():
    """A ledger with every kind of entry and record of takeovers."""
    world = World(Policy(escalate_min=0), 100)
    events = [
        *(mark("45"), SHORT, takeover(1, 10), mark("38"), adl_fill(2, "w", 1), unwind(3, 9, "40")),
        *(takeover(4, 20, "60"), adl_fill(5, "w", 2, 2), position("w", 0), adl_end(6, 2), adl_end(7, 2), adl_end(8, 2)),
        unwind(9, 3, "59"),
    ]
    for event in events:
        world.apply(event)
    assert {entry.kind for entry in world.stored.entries[UNIT.symbol]} >= {"takeover", "deleverage", "shortfall"}
    assert any(entry.forced for entry in world.stored.entries[UNIT.symbol])
    assert {record.kind for record in world.stored.records} >= {"order", "execution", "unwind", "end"}
    return world


UNSEEN = {Entry: {"trade_id", "order_id", "ts", "account", "seq", "seal"}, AdlRecord: {"ts", "seq"}}
"""Fields on which nothing else depends, in some entries and records."""


def test_altered_fields_of_resealed_entries_are_found(ledger):
    assert ledger.audit() == []
    unnoticed = []
    for number, (item, digest) in enumerate(ledger.stored.lines):
        for name in type(item).__struct_fields__:
            value = getattr(item, name)
            if name in UNSEEN[type(item)] or not isinstance(value, int):
                continue
            altered = msgspec.structs.replace(item, **{name: not value if isinstance(value, bool) else value + 1})
            lines = [*ledger.stored.lines[:number], (altered, digest), *ledger.stored.lines[number + 1 :]]
            if len(ledger.audit(resealed(lines)[0])) == 0:
                unnoticed.append((number, type(item).__name__, getattr(item, "kind", ""), name))
    assert unnoticed == []


def test_altered_rows_of_an_inventory_are_found(ledger):
    rows = ledger.stored
    for key, row in [*rows.tranches.items()]:
        for name in ("lots", "price", "ts", "forced"):
            value = getattr(row, name)
            rows.tranches[key] = row._replace(**{name: not value if isinstance(value, bool) else value + 1})
            assert ledger.audit(), name
        rows.tranches[key] = row
    for key, row in [*rows.holdings.items()]:
        for name in ("taken", "unwound", "deleveraged", "held", "in_orders"):
            rows.holdings[key] = row._replace(**{name: getattr(row, name) + 1})
            assert ledger.audit(), name
        rows.holdings[key] = row
    assert ledger.audit() == []
