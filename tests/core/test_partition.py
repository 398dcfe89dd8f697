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


def refused(settling: Partition, event) -> Rejection:
    """The rejection of an event, after which the partition is as if the event had never been."""
    with pytest.raises(Rejection) as rejection:
        settling.apply(event)
    return rejection.value


def unit() -> Partition:
    return partition(Fund(UNIT))


def test_listing_makes_an_empty_fund_that_is_written():
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
def test_the_terms_of_a_contract_with_entries_cannot_change(fields):
    settling = unit()
    settling.apply(worth(0))
    settling.take()
    assert refused(settling, listing(**fields)).reason == Reason.CONTRACT_FIXED
    assert settling.take() == Batch(suspensions={"UNITUSDTM": True})
    assert refused(settling, worth(0, 2)).reason == Reason.TERMS_IN_DOUBT
    settling.apply(listing())
    settling.apply(worth(0, 2))
    assert settling.take().suspensions == {"UNITUSDTM": False}


@pytest.mark.parametrize("max_price", [1e7, 1e9, "9223372.0368547758071"])
def test_a_scale_that_entries_have_cannot_widen(max_price):
    settling = unit()
    settling.apply(worth(0))
    settling.take()
    assert refused(settling, listing(maxPrice=max_price)).reason == Reason.CONTRACT_FIXED
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
def test_a_contract_that_is_not_listed_is_unknown_at_home_and_misrouted_elsewhere(event):
    home = partition_of("UNITUSDTM", 8)
    assert refused(partition(number=home, partitions=8), event).reason == Reason.UNKNOWN_SYMBOL
    assert refused(partition(number=(home + 1) % 8, partitions=8), event).reason == Reason.WRONG_PARTITION


def test_a_contract_is_listed_only_where_its_stream_is():
    home = partition_of("UNITUSDTM", 8)
    assert refused(partition(number=(home + 1) % 8, partitions=8), listing()).reason == Reason.WRONG_PARTITION
    partition(number=home, partitions=8).apply(listing())


def test_an_invalid_contract_is_refused_and_its_symbol_stays_unknown():
    settling = partition()
    assert refused(settling, listing(multiplier=-1)).reason == Reason.CONTRACT_INVALID
    assert refused(settling, Listing({})).reason == Reason.CONTRACT_INVALID
    assert refused(settling, worth(1)).reason == Reason.UNKNOWN_SYMBOL
    assert settling.take() == Batch()


def test_an_uncovered_shortfall_is_an_order_in_the_same_batch():
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


def test_a_covered_shortfall_escalates_nothing():
    settling = partition(a_fund(UNIT, balance=10 * ONE))
    settling.apply(worth(-10))
    assert settling.take().orders == {}


@pytest.mark.parametrize("report", [AdlFill("UNITUSDTM", 5, 1, "a", 1, 1), AdlEnd("UNITUSDTM", 5, 1, 1)])
def test_a_report_of_an_order_that_never_was_is_refused(report):
    settling = unit()
    assert refused(settling, report).reason == Reason.ADL_ORDER_UNKNOWN
    settling.apply(worth(-1, 4))
    assert refused(settling, msgspec.structs.replace(report, adl=2)).reason == Reason.ADL_ORDER_UNKNOWN
    settling.take()
    assert refused(settling, msgspec.structs.replace(report, seq=4)).reason == Reason.CONFLICT
    assert settling.take() == Batch()


def test_an_execution_of_an_order_that_is_over_is_refused():
    settling = unit()
    settling.apply(worth(-1, 4))
    assert refused(settling, AdlFill("UNITUSDTM", 5, 1, "a", 1, 1)).reason == Reason.ADL_ORDER_CLOSED


def test_the_end_of_an_order_that_is_over_says_nothing_new():
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
def test_what_cannot_be_kept_is_refused(event, reason):
    settling = unit()
    assert refused(settling, event).reason == reason
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
def test_events_that_were_expected_do_what_they_would_have_done(messages):
    expecting, other = unit(), unit()
    for events in messages:
        expecting.expect(events)
        for event in events:
            outcomes = [attempt(settling, event) for settling in (expecting, other)]
            assert outcomes[0] == outcomes[1]
    expected, batch = expecting.take(), other.take()
    assert (expected.entries, expected.funds, expected.books) == (batch.entries, batch.funds, batch.books)
    assert [book.save() for _, book in expecting.books()] == [book.save() for _, book in other.books()]


def attempt(settling: Partition, event) -> str:
    """What became of an event."""
    try:
        settling.apply(event)
    except Rejection as rejection:
        return rejection.detail
    return "applied"


def test_marks_positions_and_rates_move_no_money():
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


def test_of_the_rates_of_a_batch_the_newest_counts_and_of_the_same_age_the_last():
    settling = unit()
    for rate in (Rate("XBT", "2.5", 5), Rate("XBT", "1", 4), Rate("USDC", "1", 1), Rate("USDC", "0.9998", 1)):
        settling.apply(rate)
    assert settling.take().rates == {
        "XBT": RateState("XBT", 2_500_000_000_000, 5),
        "USDC": RateState("USDC", 999_800_000_000, 1),
    }
    assert settling.take().rates == {}


def test_what_was_not_decodable_is_refused_with_its_own_reason():
    rejection = Rejection(Reason.UNDECODABLE, "why")
    assert refused(unit(), rejection) is rejection


def test_a_refused_fill_does_not_use_up_its_sequence():
    settling = unit()
    refused(settling, fill(7, price="0"))
    settling.apply(worth(1, 7))
    assert settling.take().entries[0].seq == 7


def test_a_fill_refused_before_is_settled_late_behind_what_came_since():
    settling = unit()
    settling.apply(worth(5, 9))
    entry = settling.apply_late(worth(3, 2))
    assert (entry.entry, entry.seq, entry.balance) == (2, 2, 8 * ONE)
    settling.apply(worth(5, 9))
    assert refused(settling, worth(1, 9)).reason == Reason.CONFLICT
    batch = settling.take()
    assert [line.seq for line in batch.entries] == [9, 2]
    assert batch.funds[0].seq == 9
    assert batch.duplicates == {"UNITUSDTM": 1}


def test_a_late_fill_may_be_the_newest():
    settling = unit()
    settling.apply_late(worth(3, 2))
    assert settling.take().funds[0].seq == 2


def test_late_events_that_write_no_entry_are_applied_as_ever():
    settling = partition()
    assert settling.apply_late(listing()) is None
    assert settling.take().listings
    with pytest.raises(Rejection):
        settling.apply_late(Mark("OTHER", "1", 1))
    with pytest.raises(Rejection):
        settling.apply_late(worth(1, symbol="OTHER"))


def test_taking_leaves_nothing_behind():
    settling = unit()
    settling.apply(worth(1))
    assert len(settling.take().entries) == 1
    assert settling.take() == Batch()


def test_entries_are_packed_as_they_come_and_counted_all_the_same():
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
    assert batch.kinds() == {("UNITUSDTM", "surplus"): 2, ("UNITUSDTM", "shortfall"): 1}


def test_a_batch_is_not_moved_by_what_comes_after_it():
    settling = unit()
    settling.apply(worth(1))
    batch = settling.take()
    settling.apply(worth(5, 2))
    assert batch.funds[0].balance == ONE


SCENE = (
    *(mark("50", symbol=contract.symbol) for contract in (UNIT, LINEAR)),
    *(position(name, -10, price) for name, price in (("a", "100"), ("b", "90"), ("c", "80"))),
    fill(1, lots=5, price="50", bankruptcy_price="60"),
)
"""A mark, three shorts, and a shortfall whose ADL order is open, so that events of orders meet one."""


def everything(settling: Partition) -> object:
    """All that a rejection must not change: funds, books, orders, rates, policies, and what the next commit writes."""
    batch, funds = settling.batch, settling.funds()
    return (
        [(fund.state(), fund.open_in_adl, fund.credited, fund.repaid, fund.policy, fund.policy_version) for fund in funds],
        [(contract, book.save(), book.mark, book.mark_ts, book.mark_seq, book.stale) for contract, book in settling.books()],
        [(order.written(), [*order.asked.rests()]) for fund in funds for order in orders_of(settling, fund)],
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
