"""Reuse of a symbol: each life of it is a generation with a fund and a chain of its own."""

from decimal import Decimal

import pytest
from builders import ONE, UNIT, fill, listing, mark, partition, position, settle, takeover, worth
from hypothesis import given
from hypothesis import strategies as st
from test_settling import Ran

from fundsvc.core.contracts import partition_of
from fundsvc.core.events import AdlAck, AdlTimeout, Reason, Rejection
from fundsvc.core.fund.chain import GENESIS, link
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.generations import Generation, generation_of, is_reserved, named_generation, public_symbol
from fundsvc.core.partition import Partition

FIRST, SECOND, THIRD = UNIT.symbol, f"{UNIT.symbol}@2", f"{UNIT.symbol}@3"
OPEN = listing(status="Open")
BEGINNING = worth(10, 1), settle(3), OPEN
SHORT = position("w", -30, "60")


def fund_of(ran, key):
    return ran.partition.market(key).fund


def refused(ran, event):
    with pytest.raises(Rejection) as rejection:
        ran.partition.apply(event, 5000)
    return rejection.value.reason


def test_a_listing_with_status_open_begins_a_generation_with_its_own_fund_and_chain():
    ran = Ran(*BEGINNING, worth(7, 4), worth(-2, 5))
    first, second = fund_of(ran, FIRST), fund_of(ran, SECOND)
    assert (first.balance, first.entry, first.seq) == (110 * ONE, 1, 1)
    assert (second.balance, second.entry, second.seq) == (5 * ONE, 2, 5)
    assert [(one.symbol, one.entry) for one in ran.kept] == [(FIRST, 1), (SECOND, 1), (SECOND, 2)]
    head = GENESIS
    for entry in ran.kept[1:]:
        head = link(head, entry)
    assert head == second.head
    assert ran.partition.key_of(FIRST) == SECOND


def test_a_generation_has_the_terms_of_its_listing():
    ran = Ran(worth(10, 1), settle(2), listing(status="Open", multiplier=2.0, settleCurrency="USDC", maxPrice=10**9))
    second = ran.partition.contract(SECOND)
    assert (second.multiplier, second.settle_currency) == (Decimal(2), "USDC")
    assert ran.partition.contract(FIRST) == UNIT
    ran.apply(worth(7, 3))
    assert fund_of(ran, SECOND).balance == 14 * ONE


def test_sequences_continue_over_generations():
    ran = Ran(*BEGINNING)
    assert refused(ran, worth(7, 2)) == Reason.CONTRACT_CLOSED
    assert fund_of(ran, SECOND).entry == 0
    assert ran.apply(worth(7, 4)).entries[-1] == ("surplus", 7, 7, 0)
    assert refused(ran, worth(8, 4)) == Reason.CONFLICT


def test_events_of_an_earlier_generation_stay_duplicates():
    earlier = [worth(10, 1), takeover(2, 3), settle(4)]
    ran = Ran(*earlier, listing(status="Open", maxPrice=10**12), worth(7, 5), settle(6), OPEN, worth(1, 7))
    states = [fund_of(ran, key).state() for key in (FIRST, SECOND, THIRD)]
    ran.apply(*earlier, worth(7, 5), settle(6), worth(1, 7))
    assert ran.duplicates == 6
    assert refused(ran, worth(9, 1)) == Reason.CONFLICT
    assert refused(ran, settle(4, "51")) == Reason.CONFLICT
    assert [fund_of(ran, key).state() for key in (FIRST, SECOND, THIRD)] == states


def test_previous_sequence_of_the_first_event_of_a_generation_is_that_of_the_one_before():
    ran = Ran(*BEGINNING)
    ran.partition.apply(fill(4, prev_seq=3), 5000)
    assert not ran.partition.take().gaps
    ran.partition.apply(fill(6, prev_seq=5), 5000)
    assert [gap.symbol for gap in ran.partition.take().gaps] == [SECOND]


def test_late_replay_of_an_event_of_an_earlier_generation_is_rejected():
    ran = Ran(*BEGINNING)
    with pytest.raises(Rejection) as rejection:
        ran.partition.apply_late(worth(7, 2))
    assert rejection.value.reason == Reason.CONTRACT_CLOSED
    assert fund_of(ran, SECOND).entry == 0


def test_late_listing_does_not_begin_a_generation():
    ran = Ran(worth(10, 1), settle(3))
    ran.partition.apply_late(OPEN)
    assert ran.partition.key_of(FIRST) == FIRST
    with pytest.raises(Rejection):
        ran.partition.apply_late(listing(status="Open", multiplier=2.0))


def test_listing_from_before_the_end_does_not_begin_a_generation():
    ran = Ran()
    ended_ms = 1_700_000_000_000
    ran.partition.apply(settle(2, ts=ended_ms), ended_ms)
    ran.partition.apply(OPEN, ended_ms - 1)
    assert ran.partition.key_of(FIRST) == FIRST
    ran.partition.apply(OPEN, ended_ms)
    assert ran.partition.key_of(FIRST) == SECOND


def test_listing_of_an_earlier_generation_that_is_read_again_does_not_suspend_the_current_one():
    ran = Ran(worth(10, 1))
    ended_ms = 1_700_000_000_000
    ran.partition.apply(settle(2, ts=ended_ms), ended_ms)
    ran.partition.apply(listing(status="Open", multiplier=5.0), ended_ms + 1)
    ran.apply(worth(7, 3))
    ran.partition.apply(listing(status="Open", note=1), ended_ms - 1)
    assert not fund_of(ran, SECOND).suspended
    assert [*ran.partition.take().listings] == [FIRST]
    assert ran.partition.key_of(FIRST) == SECOND


@pytest.mark.parametrize("status", ["Init", "Paused", "Settled", None])
def test_listing_with_another_status_does_not_begin_a_generation(status):
    ran = Ran(worth(10, 1), settle(3), listing(status=status))
    assert ran.partition.key_of(FIRST) == FIRST


def test_a_generation_without_entries_may_be_listed_with_other_terms():
    ran = Ran(*BEGINNING, listing(status="Open", multiplier=3.0), worth(7, 4))
    assert ran.partition.key_of(FIRST) == SECOND
    assert fund_of(ran, SECOND).balance == 21 * ONE
    assert refused(ran, listing(status="Open", multiplier=4.0)) == Reason.CONTRACT_FIXED


def test_a_generation_begins_with_an_empty_book_which_the_commit_saves():
    ran = Ran(mark("45"), SHORT, settle(2))
    ran.partition.apply(OPEN, 5000)
    batch = ran.partition.take(with_books=False)
    assert batch.uncut
    assert ran.partition.book(SECOND).open == 0
    (book, *_) = ran.partition.take().books
    assert (book.symbol, book.positions, book.parts is None) == (SECOND, 0, False)
    ran.apply(mark("50"), SHORT)
    assert (ran.partition.book(SECOND).open, ran.partition.book(FIRST).open) == (1, 0)


def test_time_outs_name_the_generation_of_their_order():
    ran = Ran(mark("45"), SHORT, fill(1, lots=10, price="35", bankruptcy_price="50", account="x"), settle(2), OPEN)
    ran.apply(mark("45"), SHORT, fill(3, lots=10, price="35", bankruptcy_price="50", account="x"))
    (order,) = ran.partition.market(SECOND).orders.values()
    ran.apply(AdlTimeout(FIRST, 1, 1, 1))
    assert order.round == 1
    ran.apply(AdlAck(FIRST, 1, 1, 1))
    assert order.acknowledged
    ran.apply(AdlTimeout(SECOND, 1, 1, 1))
    assert order.round == 2


def test_restart_restores_all_generations():
    events = [*BEGINNING, worth(7, 4), settle(5), OPEN, worth(1, 6)]
    ran = Ran(*events)
    funds = [
        Fund(ran.partition.contract(key), fund_of(ran, key).state(), ran.policy, closing=fund_of(ran, key).closing)
        for key in (THIRD, FIRST, SECOND)
    ]
    again = partition(*funds)
    assert again.key_of(FIRST) == THIRD
    again.apply(worth(2, 7))
    assert fund_of(ran, THIRD).balance + 2 * ONE == again.market(THIRD).fund.balance
    assert again.lacking([worth(10, 1), worth(7, 4), worth(1, 6), worth(3, 8)], {}) == {FIRST: {1}, SECOND: {4}, THIRD: {6}}
    assert [market.since for market in map(again.market, (FIRST, SECOND, THIRD))] == [0, 3, 5]


def test_partition_counts_generations_as_contracts():
    ran = Ran()
    ran.partition = Partition(0, 1, [Fund(UNIT)], {"USDT": 8}, 10, contracts_max=2)
    ran.apply(*BEGINNING, settle(4))
    assert refused(ran, OPEN) == Reason.TOO_MANY_CONTRACTS


@given(st.text("AB@1", min_size=1, max_size=8), st.integers(1, 10**9 - 1))
def test_keys_and_names_of_generations(symbol, number):
    generation = Generation(symbol, number)
    if is_reserved(symbol):
        return
    assert generation_of(generation.key) == generation
    assert public_symbol(generation.key) == symbol
    assert partition_of(generation.key, 7) == partition_of(symbol, 7)
    assert named_generation(f"{symbol}@{number}") == generation
    assert named_generation(symbol) is None
    assert generation.next.previous == generation


@pytest.mark.parametrize("name", ["A@", "A@x", "A@01", "A@0", "A@1000000000", "A@²", "A@-1", "A@1.0"])
def test_other_names_name_no_generation(name):
    assert named_generation(name) is None
    assert public_symbol(name) == name
