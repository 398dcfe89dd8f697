from dataclasses import FrozenInstanceError

import msgspec
import pytest
from any_event import BY_TYPE, EVENTS
from builders import LINEAR, ONE, UNIT, a_fund, fill, listing, mark, partition, position, specification, worth
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.adl.order import AdlOrder, OrderState
from fundsvc.core.batch import Batch, RateState
from fundsvc.core.contracts import partition_of
from fundsvc.core.events import AdlEnd, AdlFill, Listing, Mark, Position, Rate, Reason, Rejection
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.partition import RUN_MIN, Partition


def rejected(settling: Partition, event) -> Rejection:
    """Applies an event that must be rejected; returns the rejection."""
    with pytest.raises(Rejection) as rejection:
        settling.apply(event)
    return rejection.value


def unit() -> Partition:
    return partition(Fund(UNIT))


def test_listing_creates_an_empty_fund():
    settling = partition()
    settling.apply(listing(baseCurrency="UNI"))
    batch = settling.take()
    assert batch.listings == {"UNITUSDTM": (UNIT, specification(baseCurrency="UNI"))}
    assert batch.funds == [Fund(UNIT).state()]
    settling.apply(worth(5))
    assert settling.take().entries[0].balance == 5 * ONE


def test_relisting_keeps_the_fund_and_the_terms_of_its_entries():
    settling = partition(Fund(UNIT))
    settling.apply(worth(5))
    settling.take()
    settling.apply(listing(maxPrice=1e6, markPrice=7, multiplier="1.0"))
    batch = settling.take()
    assert batch.listings["UNITUSDTM"][0] == UNIT
    assert batch.listings["UNITUSDTM"][1]["markPrice"] == 7
    assert (batch.funds[0].balance, batch.funds[0].entry) == (5 * ONE, 1)


def test_relisting_before_the_first_entry_may_change_the_terms():
    settling = unit()
    settling.apply(listing(multiplier=0.1, maxPrice=1e8))
    settling.apply(worth(5))
    batch = settling.take()
    assert batch.entries[0].change == 5 * ONE // 10
    assert batch.listings["UNITUSDTM"][0].price_decimals == 10


def test_relisting_unchanged_before_the_first_entry_keeps_the_fund_as_it_is():
    settling = partition(a_fund(UNIT, balance=3 * ONE, reserve_line=2 * ONE))
    settling.apply(listing())
    settling.apply(worth(-5))
    assert settling.take().entries[0].change == -ONE


@pytest.mark.parametrize("fields", [{"multiplier": 2.0}, {"settleCurrency": "USDC"}, {"isInverse": True}])
def test_listing_with_other_terms_suspends_a_contract_with_entries(fields):
    settling = unit()
    settling.apply(worth(0))
    settling.take()
    assert rejected(settling, listing(**fields)).reason == Reason.CONTRACT_FIXED
    assert settling.take() == Batch(suspensions={"UNITUSDTM": True})
    assert rejected(settling, worth(0, 2)).reason == Reason.TERMS_IN_DOUBT
    settling.apply(listing())
    settling.apply(worth(0, 2))
    assert settling.take().suspensions == {"UNITUSDTM": False}


@pytest.mark.parametrize("max_price", [1e7, 1e9, "9223372.0368547758071"])
def test_max_price_beyond_the_scale_of_entries_is_rejected(max_price):
    settling = unit()
    settling.apply(worth(0))
    settling.take()
    assert rejected(settling, listing(maxPrice=max_price)).reason == Reason.CONTRACT_FIXED
    assert settling.take() == Batch()
    settling.apply(worth(0, 2))
    assert settling.take().count() == 1


@pytest.mark.parametrize(
    "event",
    [
        worth(1),
        Mark("UNITUSDTM", "1", 1),
        Position("UNITUSDTM", "a", 1, "1", "1", 1),
        AdlFill("UNITUSDTM", 1, 1, "a", 1, 1),
        AdlEnd("UNITUSDTM", 1, 1, 1),
    ],
)
def test_event_of_an_unlisted_contract_is_rejected_as_unknown_or_misrouted(event):
    home = partition_of("UNITUSDTM", 8)
    assert rejected(partition(number=home, partitions=8), event).reason == Reason.UNKNOWN_SYMBOL
    assert rejected(partition(number=(home + 1) % 8, partitions=8), event).reason == Reason.WRONG_PARTITION


def test_contract_is_listed_only_in_its_partition():
    home = partition_of("UNITUSDTM", 8)
    assert rejected(partition(number=(home + 1) % 8, partitions=8), listing()).reason == Reason.WRONG_PARTITION
    partition(number=home, partitions=8).apply(listing())


def test_invalid_listing_is_rejected_and_lists_nothing():
    settling = partition()
    assert rejected(settling, listing(multiplier=-1)).reason == Reason.CONTRACT_INVALID
    assert rejected(settling, Listing({})).reason == Reason.CONTRACT_INVALID
    assert rejected(settling, worth(1)).reason == Reason.UNKNOWN_SYMBOL
    assert settling.take() == Batch()


def test_uncovered_shortfall_creates_an_order_in_the_same_batch():
    settling = partition(a_fund(UNIT, balance=25 * ONE, adl=6))
    settling.apply(fill(lots=10, price="50", bankruptcy_price="60", side="sell"))
    settling.apply(fill(2, lots=4, price="70", bankruptcy_price="60", side="buy"))
    settling.apply(worth(30, 3))
    batch = settling.take()
    first = OrderState(
        symbol="UNITUSDTM",
        adl=7,
        cause=1,
        reduce="short",
        lots=8,
        price=60 * 10**12,
        deficit=100 * ONE,
        deficit_lots=10,
        uncovered=75 * ONE,
        recovered=0,
        executed=0,
        state="uncovered",
        round=1,
        ts=1001,
        seq=1,
        account="",
        acknowledged=False,
        round_ms=0,
        policy_version=0,
    )
    second = first._replace(
        adl=8, cause=2, reduce="long", lots=4, deficit=40 * ONE, deficit_lots=4, uncovered=40 * ONE, ts=1002, seq=2
    )
    assert batch.orders == {("UNITUSDTM", 7): first, ("UNITUSDTM", 8): second}
    assert [record.kind for record, *_ in batch.records] == ["order", "end", "order", "end"]
    assert batch.rounds == []
    assert [(entry.uncovered, entry.repaid) for entry in batch.entries] == [(75 * ONE, 0), (40 * ONE, 0), (0, 30 * ONE)]
    assert (batch.funds[0].outstanding, batch.funds[0].adl) == (85 * ONE, 8)


def test_covered_shortfall_does_not_escalate():
    settling = partition(a_fund(UNIT, balance=10 * ONE))
    settling.apply(worth(-10))
    assert settling.take().orders == {}


@pytest.mark.parametrize("report", [AdlFill("UNITUSDTM", 5, 1, "a", 1, 1), AdlEnd("UNITUSDTM", 5, 1, 1)])
def test_event_of_an_unknown_order_is_rejected(report):
    settling = unit()
    assert rejected(settling, report).reason == Reason.ADL_ORDER_UNKNOWN
    settling.apply(worth(-1, 4))
    assert rejected(settling, msgspec.structs.replace(report, adl=2)).reason == Reason.ADL_ORDER_UNKNOWN
    settling.take()
    assert rejected(settling, msgspec.structs.replace(report, seq=4)).reason == Reason.CONFLICT
    assert settling.take() == Batch()


def test_execution_of_a_closed_order_is_rejected():
    settling = unit()
    settling.apply(worth(-1, 4))
    assert rejected(settling, AdlFill("UNITUSDTM", 5, 1, "a", 1, 1)).reason == Reason.ADL_ORDER_CLOSED


def test_end_of_a_closed_order_changes_nothing():
    settling = unit()
    settling.apply(worth(-1, 4))
    settling.take()
    settling.apply(AdlEnd("UNITUSDTM", 5, 1, 1))
    batch = settling.take()
    assert (batch.entries, batch.orders, batch.funds, batch.duplicates.total()) == ([], {}, [], 0)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Mark("UNITUSDTM", "0", 1), Reason.OUT_OF_RANGE),
        (Mark("UNITUSDTM", "1e5", 1), Reason.INVALID_NUMBER),
        (Mark("UNITUSDTM", "1.0000000000001", 1), Reason.TOO_MANY_DECIMALS),
        (Mark("UNITUSDTM", "1", 1, "-1"), Reason.INVALID_NUMBER),
        (Rate("XBT", "none", 1), Reason.INVALID_NUMBER),
        (Rate("XBT", "0", 1), Reason.OUT_OF_RANGE),
        (Rate("X\0", "1", 1), Reason.INVALID_FIELD),
        (fill(price="abc"), Reason.INVALID_NUMBER),
        (Position("UNITUSDTM", "a\0b", 1, "1", "1", 1), Reason.INVALID_FIELD),
        (Position("UNITUSDTM", "a", 1, "0", "1", 1), Reason.OUT_OF_RANGE),
        (Position("UNITUSDTM", "a", 1, "1", "-1", 1), Reason.INVALID_NUMBER),
        (Position("UNITUSDTM", "a", 1, "1", "1.000000001", 1), Reason.TOO_MANY_DECIMALS),
        (fill(account="a\0b"), Reason.INVALID_FIELD),
        (fill(trade_id="\n"), Reason.INVALID_FIELD),
        (fill(order_id="\ud800"), Reason.INVALID_FIELD),
    ],
)
def test_illegal_field_is_rejected(event, reason):
    settling = unit()
    assert rejected(settling, event).reason == reason
    assert settling.take() == Batch()


HOLDINGS = st.builds(
    Position,
    st.just("UNITUSDTM"),
    st.text("abc", min_size=1, max_size=2),
    st.integers(-3, 3),
    st.sampled_from(["1", "2.5", "none"]),
    st.sampled_from(["0", "7", "-1"]),
    st.just(1),
)
OTHERS = st.sampled_from([Rejection(Reason.UNDECODABLE, "why"), Rate("XBT", "1", 1), worth(1), Mark("OTHER", "1", 1)])


@given(st.lists(st.lists(HOLDINGS, min_size=RUN_MIN, max_size=40) | st.lists(HOLDINGS | OTHERS, max_size=40), max_size=4))
def test_prefetch_does_not_change_the_effect_of_events(messages):
    prefetching, other = unit(), unit()
    for events in messages:
        prefetching.prefetch(events)
        for event in events:
            outcomes = [outcome_of(settling, event) for settling in (prefetching, other)]
            assert outcomes[0] == outcomes[1]
    expected, batch = prefetching.take(), other.take()
    assert (expected.entries, expected.funds, expected.books) == (batch.entries, batch.funds, batch.books)
    assert [list(book.save()) for _, book in prefetching.books()] == [list(book.save()) for _, book in other.books()]


def outcome_of(settling: Partition, event) -> str:
    """The detail of an event's rejection, or "applied"."""
    try:
        settling.apply(event)
    except Rejection as rejection:
        return rejection.detail
    return "applied"


def test_marks_positions_and_rates_do_not_change_funds():
    settling = unit()
    for event in (
        Mark("UNITUSDTM", "1", 1),
        Mark("UNITUSDTM", "1.5", 1, "1.25"),
        Position("UNITUSDTM", "a", -5, "1", "1", 1),
        Rate("XBT", "84478.9", 1),
    ):
        settling.apply(event)
    batch = settling.take()
    assert (batch.entries, batch.funds, batch.orders, batch.duplicates.total()) == ([], [], {}, 0)


def test_batch_contains_the_newest_rate_of_each_currency():
    settling = unit()
    for rate in (Rate("XBT", "2.5", 5), Rate("XBT", "1", 4), Rate("USDC", "1", 1), Rate("USDC", "0.9998", 1)):
        settling.apply(rate)
    assert settling.take().rates == {
        "XBT": RateState("XBT", 2_500_000_000_000, 5),
        "USDC": RateState("USDC", 999_800_000_000, 1),
    }
    assert settling.take().rates == {}


def test_undecodable_event_is_rejected_with_its_own_reason():
    rejection = Rejection(Reason.UNDECODABLE, "why")
    assert rejected(unit(), rejection) is rejection


def test_rejected_fill_does_not_use_its_sequence():
    settling = unit()
    rejected(settling, fill(7, price="0"))
    settling.apply(worth(1, 7))
    assert settling.take().entries[0].seq == 7


def test_rejected_fill_can_be_settled_late():
    settling = unit()
    settling.apply(worth(5, 9))
    entry = settling.apply_late(worth(3, 2))
    assert (entry.entry, entry.seq, entry.balance) == (2, 2, 8 * ONE)
    settling.apply(worth(5, 9))
    assert rejected(settling, worth(1, 9)).reason == Reason.CONFLICT
    batch = settling.take()
    assert [line.seq for line in batch.entries] == [9, 2]
    assert batch.funds[0].seq == 9
    assert batch.duplicates == {"UNITUSDTM": 1}


def test_late_fill_may_have_the_highest_sequence():
    settling = unit()
    settling.apply_late(worth(3, 2))
    assert settling.take().funds[0].seq == 2


def test_late_events_without_an_entry_are_applied():
    settling = partition()
    assert settling.apply_late(listing()) is None
    assert settling.take().listings
    with pytest.raises(Rejection):
        settling.apply_late(Mark("OTHER", "1", 1))
    with pytest.raises(Rejection):
        settling.apply_late(worth(1, symbol="OTHER"))


def test_take_empties_the_draft():
    settling = unit()
    settling.apply(worth(1))
    assert len(settling.take().entries) == 1
    assert settling.take() == Batch()


def test_packed_entries_are_counted():
    settling = unit()
    settling.apply(worth(1))
    settling.apply(worth(-1, 2))
    batch = settling.batch
    packed = []
    for _ in range(2):
        batch.pack(lambda entries, hashes: packed.append((len(entries), len(hashes))) or b"rows")
    settling.apply(worth(2, 3))
    assert packed == [(2, 2)]
    assert (batch.packed, len(batch.entries), len(batch.hashes), batch.count()) == ([b"rows"], 1, 1, 3)
    taken = settling.take()
    assert (taken.packed, taken.count(), batch.count()) == ([b"rows"], 3, 0)
    assert taken.kinds() == {("UNITUSDTM", "surplus"): 2, ("UNITUSDTM", "shortfall"): 1}


def test_later_events_do_not_change_a_taken_batch():
    settling = unit()
    settling.apply(worth(1))
    batch = settling.take()
    settling.apply(worth(5, 2))
    assert batch.funds[0].balance == ONE
    assert [entry.seq for entry in batch.entries] == [1]
    with pytest.raises(FrozenInstanceError):
        batch.entries = []


SCENE = (
    *(mark("50", symbol=contract.symbol) for contract in (UNIT, LINEAR)),
    *(position(name, -10, price) for name, price in (("a", "100"), ("b", "90"), ("c", "80"))),
    fill(1, lots=5, price="50", bankruptcy_price="60"),
)
"""Marks, three shorts, and a shortfall with an open ADL order, to which generated ADL events may belong."""


def everything(settling: Partition) -> object:
    """Everything that a rejection must not change: funds, books, orders, rates, policies, and the rows of the next commit.

    A listing with other terms suspends its contract although it is rejected; `suspended` is therefore not included.
    """
    batch, funds = settling.batch, settling.funds()
    return (
        [(fund.state(), fund.open_in_adl, fund.credited, fund.repaid, fund.policy, fund.policy_version) for fund in funds],
        [
            (contract, list(book.save()), book.mark, book.mark_ts, book.mark_seq, book.stale)
            for contract, book in settling.books()
        ],
        [(order.state_row(), [*order.progress.rests()]) for fund in funds for order in orders_of(settling, fund)],
        (settling.policy_version, batch.policies[:], dict(batch.rates), dict(batch.listings), sorted(batch.changed)),
        (batch.entries[:], batch.hashes[:], dict(batch.orders), batch.records[:], batch.rounds[:], batch.duplicates.copy()),
    )


def orders_of(settling: Partition, fund: Fund) -> list[AdlOrder]:
    return [*settling.market(fund.contract.symbol).orders.values()]


@pytest.mark.parametrize("kind", BY_TYPE, ids=lambda kind: kind.__name__)
@given(st.data())
def test_a_rejected_event_of_any_type_changes_nothing(kind, data):
    settling = partition(Fund(UNIT), Fund(LINEAR))
    for event in (
        *SCENE,
        *data.draw(st.lists(EVENTS, max_size=4)),
        *data.draw(st.lists(BY_TYPE[kind], min_size=1, max_size=3)),
    ):
        before = everything(settling)
        try:
            settling.apply(event)
        except Rejection:
            assert everything(settling) == before


def test_sequence_below_that_of_an_earlier_event_of_the_group_is_looked_up():
    settling, symbol = unit(), UNIT.symbol
    eighth, passed = worth(5, seq=8), {}
    assert settling.lacking([eighth, worth(5, seq=2), worth(5, seq=9)], passed) == {symbol: {2}}
    assert settling.lacking([worth(5, seq=9), worth(5, seq=10)], passed) == {symbol: {9}}
    assert settling.lacking([msgspec.structs.replace(eighth, symbol="NEW", seq=seq) for seq in (3, 1)], passed) == {"NEW": {1}}
