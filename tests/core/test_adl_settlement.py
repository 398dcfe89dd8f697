"""ADL orders from the shortfall to their end, in a partition that applies the events."""

import cProfile
import math
import pstats
from collections import Counter
from decimal import Decimal

import msgspec
import numpy as np
import pytest
from builders import INVERSE, ONE, UNIT, a_fund, adl_end, adl_fill, fill, listing, mark, partition, position, worth
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core import partition as partition_module
from fundsvc.core.adl.book import Book
from fundsvc.core.adl.book_parts import NOTHING_KNOWN, BookPart
from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.adl.records import terms_of
from fundsvc.core.adl.valuation import Valuation
from fundsvc.core.batch import Batch, Draft, Round, StoredBook
from fundsvc.core.events import AdlAck, AdlEnd, AdlFill, AdlTimeout, Fill, Reason, Rejection, Snapshot
from fundsvc.core.fund.settlement import Fund, FundState
from fundsvc.core.fund.verification import OrderTotals, Replay
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.partition import Partition
from fundsvc.core.policy import DrawdownGuard, Policy


def desk(policy: Policy = Policy(), *events, balance: int = 0, **fields) -> tuple[Partition, Fund]:  # noqa: B008 - frozen
    fund = a_fund(UNIT, policy=policy, balance=balance * ONE, **fields)
    settling = partition(fund)
    for event in (mark("50"), *events):
        settling.apply(event)
    return settling, fund


def shortfall(seq: int, lots: int = 10, **fields) -> Fill:
    """A long closed at 50 with the bankruptcy price 60: a deficit of 10 USDT per lot, which reduces shorts."""
    return fill(seq, lots=lots, price="50", bankruptcy_price="60", **fields)


def requested(batch: Batch, adl: int = 1) -> list[dict[str, int]]:
    """Returns the requested lots by account, for each round of the batch."""
    rounds: dict[int, dict[str, int]] = {}
    for record, *_ in batch.records:
        if record.adl == adl and record.kind in ("order", "round", "part"):
            terms = terms_of(record.kind, record.body)
            rounds.setdefault(record.round, {}).update(zip(terms.accounts, terms.requested, strict=True))
    return [*rounds.values()]


def executions(batch: Batch) -> list[tuple[int, str, int]]:
    """Returns round, account and lots of each execution."""
    return [(record.round, record.account, record.lots) for record, *_ in batch.records if record.kind == "execution"]


def refused(settling: Partition, event) -> Reason:
    before = settling.market(UNIT.symbol).fund.state()
    with pytest.raises(Rejection) as rejection:
        settling.apply(event)
    assert settling.market(UNIT.symbol).fund.state() == before
    return rejection.value.reason


def stored_book(book: Book, saved: BookPart | None = None) -> StoredBook:
    return StoredBook(UNIT.symbol, "0-0", 0, book.mark, book.mark_ts, book.mark_seq, [saved or next(book.save())])


def decoded(parts: list[bytes]) -> list[BookPart]:
    return [msgspec.msgpack.decode(part, type=BookPart) for part in parts]


def restore(settling: Partition, stored: StoredBook) -> None:
    for _ in settling.restore(stored):
        pass


@pytest.mark.parametrize("sign", [1, -1])
def test_events_that_may_copy_a_large_side_are_long(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    monkeypatch.setattr("fundsvc.core.adl.book.LARGE_ROWS", 100)
    settling = partition(Fund(UNIT))
    settling.apply(position("a", sign, "100"))
    side = settling.book(UNIT.symbol).sides["long" if sign > 0 else "short"]
    copied = 0
    for number in range(1, 200):
        event = position(f"b{number}", sign, "100")
        is_long, room = settling.are_long([event]), side.room
        settling.apply(event)
        assert is_long == (side.room > room and number >= 100)
        copied += is_long
    assert copied
    assert settling.are_long([position(f"c{number}", -sign, "100") for number in range(101)])


def entries(batch: Batch) -> list[tuple[str, int, int, int]]:
    return [(entry.kind, entry.change // ONE, entry.uncovered // ONE, entry.repaid // ONE) for entry in batch.entries]


# Gains of 50, 40 and 30 per lot at the mark. The leverage is equal, so it does not change their order.
THREE = (position("a", -10, "100"), position("b", -10, "90"), position("c", -10, "80"))


def test_order_is_requested_executed_and_done():
    settling, fund = desk(Policy(), *THREE)
    settling.apply(shortfall(1, lots=15))
    assert (fund.open_in_adl, fund.outstanding) == (150 * ONE, 0)
    settling.apply(adl_fill(2, "b", 5))
    settling.apply(adl_fill(3, "a", 10))
    batch = settling.take()
    assert requested(batch) == [{"a": 10, "b": 5}]
    order = batch.orders[UNIT.symbol, 1]
    assert (order.state, order.recovered, order.executed) == ("done", 150 * ONE, 15)
    assert executions(batch) == [(1, "b", 5), (1, "a", 10)]
    assert (fund.open_in_adl, fund.outstanding, fund.seq) == (0, 0, 3)
    (announced,) = batch.rounds
    assert (announced.accounts, announced.lots) == (["a", "b"], [10, 5])


def test_round_uses_accounts_without_failures_first():
    settling, fund = desk(Policy(), *THREE)
    settling.apply(shortfall(1, lots=15))
    settling.apply(adl_fill(2, "a", 2))
    settling.apply(position("a", 0))
    settling.apply(adl_end(3))
    settling.apply(adl_fill(4, "b", 3))
    settling.apply(adl_end(5))
    batch = settling.take()
    assert requested(batch) == [{"a": 10, "b": 5}, {"c": 10, "b": 3}, {"b": 7, "c": 3}]
    assert [len(round_.accounts) for round_ in batch.rounds] == [2, 2, 2]
    assert (fund.open_in_adl, fund.outstanding) == (100 * ONE, 0)


def test_account_that_executed_nothing_is_used_last():
    settling, _ = desk(Policy(), position("a", -10, "100"), position("b", -10, "90"))
    settling.apply(shortfall(1, lots=10))
    settling.apply(adl_end(2))
    settling.apply(adl_fill(3, "b", 10))
    batch = settling.take()
    assert requested(batch) == [{"a": 10}, {"b": 10}]
    assert batch.orders[UNIT.symbol, 1].state == "done"


def test_rounds_continue_while_unused_accounts_remain():
    accounts = [position(f"p{number}", -10, f"{100 - number}") for number in range(6)]
    settling, fund = desk(Policy(rounds_max=1), *accounts)
    settling.apply(shortfall(1, lots=10))
    for seq in range(2, 8):
        settling.apply(adl_end(seq))
    batch = settling.take()
    assert requested(batch) == [{f"p{number}": 10} for number in range(6)] + [{}]
    assert (batch.orders[UNIT.symbol, 1].state, fund.outstanding) == ("uncovered", 100 * ONE)


@pytest.mark.parametrize("rounds_max", [1, 2, 3])
def test_account_is_in_at_most_rounds_max_rounds(rounds_max):
    settling, _ = desk(Policy(rounds_max=rounds_max), position("a", -10, "100"), position("b", -10, "90"))
    settling.apply(shortfall(1, lots=10))
    for seq in range(2, 2 + 2 * rounds_max):
        settling.apply(adl_end(seq))
    assert requested(settling.take()) == [{"a": 10}, {"b": 10}] * rounds_max + [{}]


@pytest.mark.parametrize("allocation", ["queue", "capped", "pro_rata"])
def test_every_allocation_uses_accounts_with_fewer_failures_first(allocation):
    settling, _ = desk(Policy(allocation=allocation, cap_share=1.0), *THREE)
    settling.apply(shortfall(1, lots=30))
    settling.apply(adl_fill(2, "c", 10))
    settling.apply(position("c", -12, "80"))
    settling.apply(adl_end(3))
    expected = {"c": 12, "a": 8} if allocation != "pro_rata" else {"c": 12, "a": 4, "b": 4}
    assert requested(settling.take())[1] == expected


def test_liquidated_account_is_never_a_candidate():
    settling, fund = desk(Policy(eligible="all"), position("broke", -10, "100"), position("other", -4, "40"))
    settling.apply(shortfall(1, lots=10, account="broke"))
    assert requested(settling.take()) == [{"other": 4}]
    settling.apply(adl_end(2))
    settling.apply(adl_end(3))
    settling.apply(adl_end(4))
    assert "broke" not in {account for round_ in requested(settling.take()) for account in round_}
    assert fund.outstanding == 100 * ONE


def test_order_without_further_candidates_is_uncovered():
    settling, fund = desk(Policy(), THREE[0])
    settling.apply(shortfall(1, lots=15))
    settling.apply(adl_fill(2, "a", 10))
    settling.apply(adl_end(3))
    batch = settling.take()
    assert requested(batch) == [{"a": 10}, {}]
    assert (batch.orders[UNIT.symbol, 1].state, fund.outstanding) == ("uncovered", 50 * ONE)


def test_excess_of_the_last_lot_is_refunded():
    settling, fund = desk(Policy(), *THREE, balance=95)
    settling.apply(shortfall(1))
    settling.apply(adl_fill(2, "a", 1))
    batch = settling.take()
    assert entries(batch) == [("shortfall", -95, 5, 0), ("refund", 5, 0, 0)]
    refund = batch.entries[1]
    assert (refund.seq, refund.lots, refund.order_id, refund.side, refund.ts) == (2, 1, "adl/1", "sell", 1002)
    assert fund.balance == 5 * ONE


def test_execution_whose_refund_overflows_is_rejected():
    settling, fund = desk(Policy(), *THREE, balance=95)
    settling.apply(shortfall(1))
    fund.balance = INT64_MAX - ONE
    assert refused(settling, adl_fill(2, "a", 1)) == Reason.OUT_OF_RANGE


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (adl_fill(5, "a", 1, adl=2), Reason.ADL_ORDER_UNKNOWN),
        (adl_end(5, adl=2), Reason.ADL_ORDER_UNKNOWN),
        (adl_fill(5, "c", 1), Reason.ADL_NOT_ASKED),
        (adl_fill(5, "nobody", 1), Reason.ADL_NOT_ASKED),
        (adl_fill(5, "a", 11), Reason.ADL_TOO_MANY_LOTS),
    ],
)
def test_unrequested_execution_is_rejected_and_changes_nothing(event, reason):
    settling, _ = desk(Policy(), *THREE)
    settling.apply(shortfall(1, lots=15))
    assert refused(settling, event) == reason
    settling.apply(adl_fill(5, "a", 10))
    settling.apply(adl_fill(6, "b", 5))
    assert refused(settling, adl_fill(7, "a", 1)) == Reason.ADL_ORDER_CLOSED
    settling.apply(adl_end(7))
    assert settling.market(UNIT.symbol).fund.seq == 6  # the end of a closed order changes nothing


def test_lots_of_an_open_round_are_not_used_by_other_orders():
    settling, _ = desk(Policy(), *THREE)
    settling.apply(shortfall(1, lots=12))
    settling.apply(shortfall(2, lots=12))
    settling.apply(shortfall(3, lots=12))
    settling.apply(fill(4, side="buy", lots=1, price="70", bankruptcy_price="60"))
    batch = settling.take()
    assert [requested(batch, adl)[0] for adl in (1, 2, 3)] == [{"a": 10, "b": 2}, {"b": 8, "c": 4}, {"c": 6}]
    settling.apply(adl_end(5, adl=1))
    assert requested(settling.take()) == [{"a": 10, "b": 2}]
    settling.apply(position("b", -1, "90"))
    settling.apply(adl_end(6, adl=2))
    assert requested(settling.take(), 2) == [{"c": 4}]


def calls(settling: Partition, event: Fill) -> int:
    """Returns the number of function calls for an event: a cost that does not depend on other processes."""
    profile = cProfile.Profile()
    profile.runcall(settling.apply, event)
    return pstats.Stats(profile).total_calls


@pytest.mark.parametrize(
    "policy", [Policy(), Policy(allocation="capped"), Policy(allocation="pro_rata"), Policy(eligible="all")]
)
def test_escalation_among_ten_thousand_open_orders_costs_at_most_twice_the_first(policy):
    settling, _ = desk(policy, *(position(f"p{number:05d}", -10, "100") for number in range(10_500)))
    settling.apply(shortfall(1))
    first = calls(settling, shortfall(2))
    for seq in range(3, 10_003):
        settling.apply(shortfall(seq))
        if seq % 1000 == 0:
            settling.take()
    assert calls(settling, shortfall(10_003)) <= 2 * first
    assert len(settling.market(UNIT.symbol).orders) == 10_003


@pytest.mark.parametrize(
    ("policy", "round_"),
    [
        (Policy(), {"a": 10, "b": 10, "c": 5}),
        (Policy(allocation="pro_rata"), {"a": 10, "b": 9, "c": 6}),
        (Policy(allocation="capped"), {"a": 5, "b": 5, "c": 5}),
        (Policy(allocation="capped", cap_share=0.99, eligible="all"), {"a": 9, "b": 9, "c": 7}),
        (Policy(eligible="all"), {"a": 10, "b": 10, "c": 5}),
    ],
)
def test_allocation_of_a_round_follows_the_policy(policy, round_):
    settling, _ = desk(policy, *THREE, position("loser", -10, "40"))
    settling.apply(shortfall(1, lots=25))
    assert requested(settling.take()) == [round_]


@pytest.mark.parametrize("allocation", ["queue", "pro_rata", "capped"])
def test_losers_follow_gainers_only_if_all_are_eligible(allocation):
    losers = (position("l1", -10, "45"), position("l2", -10, "40"), position("broke", -10, "40", "100"))
    for eligible, also in (("profitable", set()), ("all", {"l1", "l2"})):
        settling, _ = desk(Policy(allocation=allocation, eligible=eligible, cap_share=1.0), *losers, *THREE)
        settling.apply(shortfall(1, lots=60))
        (round_,) = requested(settling.take())
        assert set(round_) == {"a", "b", "c"} | also
        assert set(round_.values()) == {10}


def test_round_uses_many_small_positions():
    settling, _ = desk(Policy(), *(position(f"p{number:03d}", -1, f"{60 + number}") for number in range(500)))
    settling.apply(shortfall(1, lots=300))
    (round_,) = requested(settling.take())
    assert len(round_) == 300
    settling.apply(shortfall(2, lots=300))
    (second,) = requested(settling.take(), 2)
    assert len(second) == 200
    assert not set(second) & set(round_)


@pytest.mark.parametrize(
    ("contract", "side", "price", "bankruptcy_price", "lots"),
    [
        (UNIT, "sell", "50", "60", -10),
        (UNIT, "buy", "60", "50", 10),
        (INVERSE, "sell", "50", "60", -10),
        (INVERSE, "buy", "60", "50", 10),
    ],
)
def test_linear_and_inverse_orders_reduce_the_opposite_side(contract, side, price, bankruptcy_price, lots):
    settling = partition(Fund(contract, policy=Policy(escalate_min=0)))
    entry_price = "100" if lots < 0 else "10"
    settling.apply(mark("55", symbol=contract.symbol))
    settling.apply(position("same", -lots, "55", symbol=contract.symbol))
    settling.apply(position("gains", lots, entry_price, symbol=contract.symbol))
    settling.apply(fill(1, symbol=contract.symbol, side=side, lots=5, price=price, bankruptcy_price=bankruptcy_price))
    batch = settling.take()
    (record, *_) = batch.records[0]
    assert (terms_of("order", record.body).accounts, terms_of("order", record.body).requested) == (["gains"], [5])
    assert batch.orders[contract.symbol, 1].reduce == ("short" if lots < 0 else "long")


ADL_FIRST = Policy(waterfall="adl_then_fund", rounds_max=1)
ONLY_A = THREE[:1]


def test_adl_then_fund_pays_what_adl_did_not_recover():
    settling, fund = desk(ADL_FIRST, *ONLY_A, balance=1000)
    settling.apply(shortfall(1, lots=20))
    settling.apply(adl_fill(2, "a", 10))
    assert fund.balance == 1000 * ONE
    settling.apply(adl_end(3))
    batch = settling.take()
    assert entries(batch) == [("shortfall", 0, 200, 0), ("cover", -100, 0, 100)]
    cover = batch.entries[1]
    assert (cover.seq, cover.lots, cover.order_id, cover.account) == (3, 10, "adl/1", "")
    assert (fund.balance, fund.outstanding, fund.open_in_adl) == (900 * ONE, 0, 0)
    assert batch.orders[UNIT.symbol, 1].state == "uncovered"


def test_adl_then_fund_pays_at_once_without_candidates():
    settling, fund = desk(ADL_FIRST, balance=150)
    settling.apply(shortfall(1, lots=20))
    batch = settling.take()
    assert entries(batch) == [("shortfall", -150, 50, 0)]
    assert (batch.orders[UNIT.symbol, 1].state, fund.outstanding) == ("uncovered", 50 * ONE)


def test_cover_is_limited_to_the_payable_amount():
    settling, fund = desk(ADL_FIRST, *ONLY_A, balance=100, reserve_line=70 * ONE)
    settling.apply(shortfall(1, lots=20))
    settling.apply(adl_end(2))
    assert entries(settling.take())[1] == ("cover", -30, 0, 30)
    assert (fund.balance, fund.outstanding) == (70 * ONE, 170 * ONE)
    settling.apply(shortfall(3, lots=1))
    settling.apply(adl_end(4, adl=2))
    assert entries(settling.take()) == [("shortfall", 0, 10, 0)]


def test_fund_covers_an_uncovered_order_at_once_under_both_waterfalls():
    settling, fund = desk(Policy(rounds_max=1), *ONLY_A, balance=50)
    settling.apply(shortfall(1, lots=10))
    settling.apply(worth(30, 2))
    settling.apply(adl_end(3))
    assert entries(settling.take())[-1] == ("cover", -30, 0, 30)
    assert (fund.balance, fund.outstanding, fund.open_in_adl) == (0, 20 * ONE, 0)


def test_fund_covers_an_order_that_a_timeout_ended():
    settling, fund = desk(Policy(rounds_max=1), *ONLY_A, balance=50)
    settling.apply(shortfall(1, lots=10))
    settling.apply(worth(80, 2))
    settling.apply(AdlTimeout(UNIT.symbol, 1, 1, 3000))
    batch = settling.take()
    assert entries(batch)[-1] == ("cover", -50, 0, 50)
    assert (batch.entries[-1].seq, fund.balance, fund.outstanding) == (2, 30 * ONE, 0)


@pytest.mark.parametrize("balance", [0, 5])
def test_amount_below_escalate_min_is_outstanding_until_the_next_surplus(balance):
    settling, fund = desk(Policy(escalate_min=10.5), *THREE, balance=balance)
    settling.apply(shortfall(1, lots=1))
    batch = settling.take()
    assert (batch.orders, batch.records, fund.adl) == ({}, [], 0)
    assert (fund.outstanding, fund.open_in_adl) == ((10 - balance) * ONE, 0)
    settling.apply(shortfall(2, lots=2))
    assert settling.take().orders[UNIT.symbol, 1].lots == 2
    settling.apply(worth(30, 3))
    assert (fund.outstanding, fund.balance) == (0, (20 + balance) * ONE)


def test_deficit_of_one_atom_creates_no_order():
    settling, fund = desk(Policy(), position("w", -1_000_000, "450", "1000000"))
    settling.apply(fill(1, lots=1_000_000, price="390", bankruptcy_price="390"))
    settling.apply(fill(2, lots=1_000_000, price="390", bankruptcy_price="390.000000000001"))
    batch = settling.take()
    assert [entry.uncovered for entry in batch.entries] == [0, 100]
    assert (batch.orders, fund.outstanding) == ({}, 100)


def test_default_escalate_min_of_an_inverse_contract_is_one_unit_of_quote_at_the_bankruptcy_price():
    fund = Fund(INVERSE)
    assert fund.escalate_min(50 * 10**12) == 10**10 // 50
    assert fund.escalate_min(3 * 10**12) == -(-(10**10) // 3)
    assert Fund(UNIT).escalate_min(5) == ONE
    assert Fund(UNIT, policy=Policy(escalate_min=0.1)).escalate_min(5) == ONE // 10


def test_surplus_repays_what_adl_did_not_recover():
    settling, fund = desk(Policy(rounds_max=1), *ONLY_A)
    settling.apply(shortfall(1))
    settling.apply(worth(30, 2))
    assert (fund.balance, fund.outstanding) == (30 * ONE, 0)
    settling.apply(adl_end(3))
    assert (fund.balance, fund.outstanding) == (0, 70 * ONE)
    settling.apply(worth(130, 4))
    assert (fund.balance, fund.outstanding) == (60 * ONE, 0)


def test_open_amounts_count_towards_the_64_bit_limit():
    settling, fund = desk(Policy(), position("a", -(2**40), "100"))
    half = INT64_MAX // ONE // 10 * 6 // 10
    settling.apply(shortfall(1, lots=half))
    assert refused(settling, shortfall(2, lots=half)) == Reason.OUT_OF_RANGE
    settling.apply(shortfall(2, lots=half // 2))
    for seq in range(3, 6):
        settling.apply(adl_end(seq, adl=1))
    for seq in range(6, 9):
        settling.apply(adl_end(seq, adl=2))
    assert 0 < fund.outstanding <= INT64_MAX


def test_late_executions_of_open_orders_count():
    settling, fund = desk(Policy(), *THREE)
    settling.apply(shortfall(1, lots=15))
    settling.apply(worth(0, 9))
    settling.apply_late(adl_fill(2, "a", 10))
    settling.apply_late(adl_end(3))
    batch = settling.take()
    assert requested(batch) == [{"a": 10, "b": 5}, {"c": 5}]
    assert (fund.seq, fund.open_in_adl) == (9, 50 * ONE)
    entry = settling.apply_late(adl_fill(4, "c", 5))
    assert entry is None
    assert settling.take().orders[UNIT.symbol, 1].state == "done"


def test_reopened_order_is_announced_again_and_continues():
    settling, fund = desk(Policy(), *THREE)
    settling.apply(shortfall(1, lots=15))
    settling.apply(adl_fill(2, "a", 4))
    (order,) = settling.market(UNIT.symbol).orders.values()
    book = settling.book(UNIT.symbol)
    again = a_fund(UNIT, seq=2, adl=1, entry=1, head=fund.head)
    other = partition(again)
    restore(other, stored_book(book))
    announced = other.reopen(order)
    assert (announced.accounts, announced.lots) == (["a", "b"], [6, 5])
    assert again.open_in_adl == 110 * ONE
    other.apply(adl_fill(3, "a", 6))
    other.apply(adl_fill(4, "b", 5))
    assert (other.take().orders[UNIT.symbol, 1].state, again.open_in_adl) == ("done", 0)


def test_relisting_with_other_terms_starts_an_empty_book():
    settling, _ = desk(Policy(), *THREE)
    settling.apply(listing())
    assert settling.book(UNIT.symbol).open == 3
    settling.take()
    settling.apply(listing(multiplier=2.0))
    assert settling.book(UNIT.symbol).open == 0
    (stored,) = settling.take().books
    assert stored.parts == [msgspec.msgpack.encode(part) for part in Book(UNIT).save()]


def test_batch_contains_a_contract_once():
    settling, _ = desk(Policy(), position("a", 0), position("a", 0), listing(), listing(), position("a", 1))
    assert [stored.symbol for stored in settling.take().books] == [UNIT.symbol]


def test_closed_position_does_not_release_promised_lots_of_others():
    settling, _ = desk(Policy(), *THREE)
    settling.apply(shortfall(1, lots=12))
    settling.apply(position("a", 0))
    settling.apply(shortfall(2, lots=12))
    assert requested(settling.take(), 2) == [{"b": 8, "c": 4}]


def test_books_are_saved_on_request_and_positions_only_if_changed():
    settling, _ = desk(Policy(), *THREE)
    (first,) = settling.take().books
    assert (first.symbol, first.seq, first.mark, first.positions) == (UNIT.symbol, 0, 50 * 10**12, 3)
    assert settling.take().books == []
    settling.apply(mark("60"))
    settling.apply(worth(0, 4))
    settling.request_books()
    (second,) = settling.take().books
    assert (second.seq, second.mark, second.parts, second.positions) == (4, 60 * 10**12, None, 0)
    again = partition(Fund(UNIT))
    restore(again, StoredBook(UNIT.symbol, "0-0", 4, second.mark, second.mark_ts, 0, decoded(first.parts)))
    restore(again, StoredBook(UNIT.symbol, "0-0", 4, None, 0, 0, None))
    assert list(again.book(UNIT.symbol).save()) == decoded(first.parts)
    assert again.book(UNIT.symbol).mark == 60 * 10**12
    assert [(contract, book.open) for contract, book in again.books()] == [(UNIT, 3)]


def test_contract_without_a_book_is_saved_as_an_empty_book():
    settling = partition()
    settling.admit(Fund(UNIT))
    settling.request_books()
    assert settling.take().books == [(UNIT.symbol, 0, None, 0, 0, None, 0, 0, 0)]
    restore(settling, StoredBook(UNIT.symbol, "0-0", 0, None, 0, 0, None))
    assert settling.book(UNIT.symbol) is None
    assert settling.price_decimals(UNIT.symbol) == 12
    assert (settling.contract(UNIT.symbol), settling.contract("OTHER")) == (UNIT, None)
    restore(settling, StoredBook(UNIT.symbol, "0-0", 0, 7, 0, 0, None))
    assert settling.book(UNIT.symbol).mark == 7


def test_books_are_saved_in_bounded_parts(monkeypatch):
    monkeypatch.setattr(partition_module, "BOOK_POSITIONS_MAX", 2)
    contracts = [msgspec.structs.replace(UNIT, symbol=symbol) for symbol in "ABCD"]
    settling = partition(*map(Fund, contracts))
    for contract in contracts:
        settling.apply(position("a", 1, symbol=contract.symbol))
    parts = []
    while books := settling.take().books:
        parts.append([stored.symbol for stored in books])
    assert parts == [["D", "C"], ["B", "A"]]


def test_apply_to_book_changes_only_books():
    settling = partition(Fund(UNIT))
    for event in (mark("50"), *THREE, shortfall(1), adl_fill(2, "a", 4), adl_end(3)):
        settling.apply_to_book(event, "short")
    batch = settling.take()
    assert (batch.entries, batch.orders, batch.funds) == ([], {}, [])
    assert next(settling.book(UNIT.symbol).save()).short.lots == b"".join(lots.to_bytes(8, "little") for lots in (6, 10, 10))


# Case C01: at 100, `thin` has a loss of 50 and a margin of 10, and `rich` has a gain.
THIN, RICH = position("thin", -10, "95", "10"), position("rich", -10, "150", "100")
OVERPRICED = {"lots": 10, "price": "80", "bankruptcy_price": "100"}


@pytest.mark.parametrize("allocation", ["queue", "capped", "pro_rata"])
def test_position_that_the_price_would_bankrupt_is_no_candidate(allocation):
    settling, fund = desk(Policy(allocation=allocation, cap_share=1.0), mark("80"), THIN, RICH)
    settling.apply(fill(1, **OVERPRICED))
    settling.apply(fill(2, **OVERPRICED))
    batch = settling.take()
    assert (requested(batch), requested(batch, 2)) == ([{"rich": 10}], [{}])
    assert fund.outstanding == 200 * ONE


@pytest.mark.parametrize("allocation", ["queue", "capped", "pro_rata"])
def test_bankrupt_position_follows_losers_if_all_are_eligible(allocation):
    loser = position("loser", -10, "79", "1000")
    settling, _ = desk(Policy(allocation=allocation, eligible="all", cap_share=1.0), mark("80"), THIN, RICH, loser)
    settling.apply(fill(1, **OVERPRICED))
    settling.apply(fill(2, **OVERPRICED))
    settling.apply(fill(3, **OVERPRICED))
    batch = settling.take()
    assert [requested(batch, adl) for adl in (1, 2, 3)] == [[{"rich": 10}], [{"loser": 10}], [{"thin": 10}]]


def test_position_is_a_candidate_down_to_its_bankruptcy_price():
    for margin, expected in (("50", {"thin": 10}), ("49.99999999", {})):
        settling, _ = desk(Policy(), mark("80"), position("thin", -10, "95", margin))
        settling.apply(fill(1, **OVERPRICED))
        assert requested(settling.take()) == [expected]


def test_position_with_zero_equity_has_no_rank():
    contract = msgspec.structs.replace(INVERSE, symbol="UNITUSDTM")
    settling = partition(Fund(contract, policy=Policy(eligible="all", escalate_min=0)))
    for event in (mark("63000"), position("carol", 63, "70000", "0.0001"), position("dave", 63, "70000", "0.0001000001")):
        settling.apply(event)
    settling.apply(fill(1, side="buy", lots=10, price="64000", bankruptcy_price="63000"))
    (round_,) = requested(settling.take())
    assert round_ == {"dave": 10}
    side = settling.book("UNITUSDTM").sides["long"]
    assert side.rank_of("carol", 63000 * 10**12) is None
    assert side.rank_of("dave", 63000 * 10**12) == (1, 1)


def test_both_legs_of_a_hedged_account_are_ranked():
    settling, _ = desk(
        Policy(eligible="all"),
        mark("80"),
        position("h", 10, "70", "100", position_side="LONG"),
        position("h", -4, "95", "100", position_side="SHORT"),
    )
    book = settling.book(UNIT.symbol)
    assert [(name, side.lots) for name, side in book.sides.items()] == [("long", 10), ("short", 4)]
    settling.apply(fill(1, lots=3, price="80", bankruptcy_price="85"))
    assert requested(settling.take()) == [{"h": 3}]
    settling.apply(adl_fill(2, "h", 3))
    assert [(name, side.lots) for name, side in book.sides.items()] == [("long", 10), ("short", 1)]
    settling.apply(position("h", 0, "70", "0", position_side="LONG"))
    assert [(name, side.open) for name, side in book.sides.items()] == [("long", 0), ("short", 1)]
    settling.apply(position("h", 7, "70", "100"))
    assert [(name, side.lots) for name, side in book.sides.items()] == [("long", 7), ("short", 0)]


ALLOCATIONS = [
    Policy(allocation=allocation, eligible=eligible)
    for allocation in ("queue", "pro_rata", "capped")
    for eligible in ("profitable", "all")
]


@pytest.mark.parametrize("policy", ALLOCATIONS)
def test_accounts_of_the_liquidated_owner_are_no_candidates(policy):
    settling, _ = desk(
        policy,
        position("long", 10, owner="ann"),
        position("a", -10, "100", owner="ann"),
        position("b", -10, "90", owner="bob"),
        position("c", -10, "80"),
        position("long", 0),
    )
    settling.apply(shortfall(1, lots=30, account="long"))
    (round_,) = requested(settling.take())
    assert round_
    assert "a" not in round_
    settling.apply(shortfall(2, lots=30, account="c"))
    assert "a" in requested(settling.take(), 2)[0]


def test_account_that_gets_the_liquidated_owner_is_not_in_later_rounds():
    settling, _ = desk(Policy(), position("long", 10, owner="ann"), *THREE)
    settling.apply(shortfall(1, account="long"))
    assert list(requested(settling.take())[0]) == ["a"]
    settling.apply(position("a", -10, "100", owner="ann"))
    for seq, expected in enumerate((["b"], ["c"], ["b"], ["c"], ["b"], ["c"]), 2):
        settling.apply(adl_end(seq))
        assert [list(round_) for round_ in requested(settling.take())] == [expected]


@pytest.mark.parametrize("events", [[], [position("long", 0)], [position("long", 3), position("a", -9, "100")]])
def test_owners_with_positions_are_known_after_a_restart(events):
    first, _ = desk(Policy(), position("long", 10, owner="ann"), position("a", -10, "100", owner="ann"), *THREE[1:], *events)
    saved = next(first.book(UNIT.symbol).save())
    other = partition(Fund(UNIT))
    restore(other, stored_book(first.book(UNIT.symbol), msgspec.msgpack.decode(msgspec.msgpack.encode(saved), type=BookPart)))
    for settling in (first, other):
        settling.apply(shortfall(1, account="long"))
        assert list(requested(settling.take())[0]) == ["b"]


CLOSED = [
    [position("long", 0), position("a", 0)],
    [position("a", 0), position("long", 0)],
    [Snapshot("UNITUSDTM", "begin", 1), Snapshot("UNITUSDTM", "end", 1)],
    [position("long", -1), position("long", 0), position("a", 0)],
    [position("long", 10, owner="bob"), position("long", 0), position("a", 0)],
]


@pytest.mark.parametrize("saves", [False, True])
@pytest.mark.parametrize("events", CLOSED)
def test_saving_a_book_changes_no_later_round(events, saves):
    """Ann's accounts close, and one opens again without an owner, so it is in the round of her former account."""
    settling, _ = desk(Policy(), position("long", 10, owner="ann"), position("a", -10, "100", owner="ann"), *THREE[1:])
    for event in events:
        settling.apply(event)
    if saves:
        settling.request_books()
        settling.take()
    for event in (position("a", -10, "100"), *THREE[1:]):
        settling.apply(event)
    settling.apply(shortfall(1, account="long"))
    assert list(requested(settling.take())[0]) == ["a"]


def test_owner_without_positions_is_removed():
    settling, _ = desk(Policy(), *(position(name, 5, owner=name) for name in "abc"), *(position(name, 0) for name in "ab"))
    assert next(settling.book(UNIT.symbol).save()).owners == {"c": "c"}


def test_owner_of_an_account_can_change():
    settling, _ = desk(Policy(), position("long", 10, owner="ann"), position("a", -10, "100", owner="ann"), *THREE[1:])
    settling.apply(position("a", -10, "100", owner="bob"))
    settling.apply(shortfall(1, account="long"))
    assert list(requested(settling.take())[0]) == ["a"]


@pytest.mark.parametrize(("leg", "lots"), [("LONG", -1), ("SHORT", 1)])
def test_lots_that_contradict_their_leg_are_rejected(leg, lots):
    settling, _ = desk(Policy(), *THREE)
    assert refused(settling, position("h", lots, position_side=leg)) == Reason.INVALID_FIELD


def test_position_with_a_known_sequence_is_a_duplicate():
    settling, _ = desk(
        Policy(), position("a", -5, seq=7), position("a", -9, seq=7), position("a", 0, seq=9), position("a", -9, seq=8)
    )
    settling.apply(position("b", -3, seq=2))
    book = settling.book(UNIT.symbol)
    assert (book.open, book.sides["short"].lots) == (1, 3)
    assert settling.take().duplicates == {UNIT.symbol: 2}
    again = partition(Fund(UNIT))
    restore(again, stored_book(book))
    again.apply(position("a", -9, seq=8))
    again.apply(position("a", -9, seq=10))
    assert again.book(UNIT.symbol).sides["short"].lots == 12


def test_mark_with_a_known_sequence_is_a_duplicate():
    settling, _ = desk(Policy(), mark("60", seq=3), mark("70", seq=2), mark("80", seq=3))
    assert settling.book(UNIT.symbol).mark == 60 * 10**12
    settling.apply(mark("90", ts=77))
    assert (settling.book(UNIT.symbol).mark, settling.book(UNIT.symbol).mark_ts) == (90 * 10**12, 77)


@pytest.mark.parametrize("restarts", [False, True])
def test_snapshot_closes_positions_that_it_omits(restarts):
    settling, _ = desk(Policy(), *THREE, position("long", 5, "40"))
    settling.make_stale(NOTHING_KNOWN)
    settling.apply(Snapshot(UNIT.symbol, "begin", 1))
    settling.apply(position("b", -4, "90"))
    assert settling.book(UNIT.symbol).stale
    if restarts:
        again = partition(Fund(UNIT))
        saved = msgspec.msgpack.decode(msgspec.msgpack.encode(next(settling.book(UNIT.symbol).save())), type=BookPart)
        restore(again, stored_book(settling.book(UNIT.symbol), saved))
        settling = again
    settling.apply(position("new", -2, "90"))
    settling.apply(Snapshot(UNIT.symbol, "end", 2))
    book = settling.book(UNIT.symbol)
    assert {
        account: book.sides[side].valued(row, 1).lots
        for account in ("a", "b", "c", "new", "long")
        for side, row in book.positions(account)
    } == {"b": 4, "new": 2}
    assert not book.stale


def test_snapshot_end_without_begin_closes_nothing():
    settling, _ = desk(Policy(), *THREE)
    settling.apply(Snapshot(UNIT.symbol, "end", 2))
    assert settling.book(UNIT.symbol).open == 3


@pytest.mark.parametrize(("stale_books", "round_"), [("ask", {"a": 10}), ("skip", {})])
def test_adl_uses_a_stale_book_only_under_the_policy_ask(stale_books, round_):
    settling, _ = desk(Policy(stale_books=stale_books), *THREE)
    settling.make_stale(NOTHING_KNOWN)
    settling.apply(shortfall(1))
    batch = settling.take()
    assert requested(batch) == [round_]
    assert terms_of("order", batch.records[0].record.body).is_stale == bool(round_)


def test_rows_of_closed_accounts_are_reused():
    settling, _ = desk(Policy())
    side = settling.book(UNIT.symbol).sides["short"]
    for generation in range(20):
        for number in range(100):
            settling.apply(position(f"g{generation}-{number}", -1, "90"))
        for number in range(100):
            settling.apply(position(f"g{generation}-{number}", 0))
    assert (side.open, side.used, len(side.accounts)) == (0, 0, 0)


def test_account_with_promised_lots_keeps_its_row_until_the_round_ends():
    settling, _ = desk(Policy(rounds_max=1), *THREE)
    settling.apply(shortfall(1))
    settling.apply(position("a", 0))
    settling.apply(position("z", -3, "99"))
    settling.apply(position("a", -12, "100"))
    settling.apply(shortfall(2, lots=5))
    assert requested(settling.take(), 2) == [{"a": 2, "b": 3}]
    settling.apply(adl_end(3))
    settling.apply(adl_end(4, adl=2))
    settling.apply(position("a", 0))
    side = settling.book(UNIT.symbol).sides["short"]
    assert not side.has_row("a") or side.promised(np.array([side.accounts.index("a")]))[0] > 0


def test_acknowledgement_applies_to_one_round():
    settling, _ = desk(Policy(), *THREE)
    settling.apply(shortfall(1))
    for event, acknowledged in (
        (AdlAck(UNIT.symbol, 1, 2, 5), False),
        (AdlAck(UNIT.symbol, 1, 1, 5), True),
        (AdlTimeout(UNIT.symbol, 1, 9, 5), True),
        (AdlTimeout(UNIT.symbol, 1, 1, 5), False),
    ):
        settling.apply(event)
        (order,) = settling.market(UNIT.symbol).orders.values()
        assert order.acknowledged is acknowledged
    assert order.round == 2
    assert requested(settling.take()) == [{"a": 10}, {"b": 10}]
    assert refused(settling, AdlAck(UNIT.symbol, 2, 1, 5)) == Reason.ADL_ORDER_UNKNOWN
    assert refused(settling, AdlTimeout(UNIT.symbol, 2, 1, 5)) == Reason.ADL_ORDER_UNKNOWN


POLICIES = st.builds(
    Policy,
    waterfall=st.sampled_from(["fund_then_adl", "adl_then_fund"]),
    eligible=st.sampled_from(["profitable", "all"]),
    allocation=st.sampled_from(["queue", "pro_rata", "capped"]),
    cap_share=st.sampled_from([0.1, 0.5, 1.0]),
    rounds_max=st.integers(1, 3),
    drawdown_guard=st.none() | st.just(DrawdownGuard()),
)
CONTRACTS = st.sampled_from([UNIT, msgspec.structs.replace(INVERSE, multiplier=Decimal(10**12))])
NAMES = st.sampled_from("abcdefgh")
SIDES = st.sampled_from(["sell", "buy"])
PRICES = st.integers(40, 160).map(str)
POSITIONS = st.tuples(st.just("position"), NAMES, st.integers(-30, 30), PRICES, st.integers(0, 3000).map(str))
FILLS = st.tuples(st.just("fill"), SIDES, st.integers(1, 30), PRICES, PRICES)
STEPS = st.one_of(
    POSITIONS,
    POSITIONS,
    FILLS,
    FILLS,
    st.tuples(st.just("mark"), PRICES),
    st.tuples(st.just("adlFill"), st.integers(0, 20), st.integers(0, 20), st.integers(1, 30)),
    st.tuples(st.just("adlFill"), st.integers(0, 20), st.integers(0, 20), st.integers(1, 30)),
    st.tuples(st.just("adlEnd"), st.integers(0, 20)),
)
STREAMS = st.lists(STEPS, max_size=60)


class Engine:
    """A matching engine that answers orders and checks all rules after each event."""

    def __init__(self, contract, policy: Policy) -> None:
        self.symbol = contract.symbol
        self.fund = Fund(contract, policy=policy)
        self.partition = partition(self.fund)
        self.whole = Draft()
        self.events: list = []
        self.settled: list = []
        self.refused = 0
        self.batches: list[Batch] = []

    def step(self, kind: str, *numbers) -> None:
        event = getattr(self, f"_{kind}")(*numbers)
        self.events.append(event)
        try:
            self.partition.apply(event)
        except Rejection:
            self.refused += 1
        batch = self.partition.take()
        self.batches.append(batch)
        if batch.changed:  # the end of a closed order changes nothing and uses no sequence
            self.settled.append(event)
        for round_ in batch.rounds:
            self._check_round(round_)
        self.whole.entries += batch.entries
        self.whole.hashes += batch.hashes
        self.whole.orders |= batch.orders
        self.whole.records += batch.records
        self.check()

    @property
    def open(self) -> list[AdlOrder]:
        return [*self.partition.market(self.symbol).orders.values()]

    @property
    def seq(self) -> int:
        return self.fund.seq + 1

    def _mark(self, price):
        return mark(price, symbol=self.symbol)

    def _position(self, account, lots, entry_price, margin):
        return position(account, lots, entry_price, margin, symbol=self.symbol)

    def _fill(self, side, lots, price, bankruptcy_price):
        return fill(self.seq, symbol=self.symbol, side=side, lots=lots, price=price, bankruptcy_price=bankruptcy_price)

    def _adlFill(self, which, whose, lots):  # noqa: N802 - the event's name
        if not self.open:
            return adl_fill(self.seq, "a", lots, adl=which + 1, symbol=self.symbol)
        order = self.open[which % len(self.open)]
        account = order.progress.accounts[whose % len(order.progress)]
        return adl_fill(self.seq, account, lots, adl=order.adl, symbol=self.symbol)

    def _adlEnd(self, which):  # noqa: N802 - the event's name
        adl = self.open[which % len(self.open)].adl if self.open else which + 1
        return adl_end(self.seq, adl=adl, symbol=self.symbol)

    def _check_round(self, round_: Round) -> None:
        """Checks that all orders together request no more lots than an account has, and none that would bankrupt it."""
        order, policy = round_.order, self.fund.policy
        record = next(one for one, *_ in reversed(self.batches[-1].records) if one.kind in ("order", "round"))
        terms = terms_of(record.kind, record.body)
        assert (terms.accounts, terms.requested) == (list(round_.accounts), list(round_.lots))
        assert 0 < sum(terms.requested) <= order.lots - order.executed
        assert terms.ranks == sorted(terms.ranks)
        promised = Counter()
        for other in self.open:
            for account, rest in other.progress.rests():
                promised[other.reduce, account] += rest
        valuation = Valuation(self.fund.contract, order.reduce)
        for account, lots, entry_price, margin, requested in zip(
            terms.accounts, terms.lots, terms.entry_prices, terms.margins, terms.requested, strict=True
        ):
            standing = valuation.valued(account, lots, entry_price, margin, terms.mark)
            assert promised[order.reduce, account] <= lots
            assert standing.leverage < math.inf
            if policy.eligible == "profitable":
                assert standing.score > 0
                assert valuation.equity(lots, entry_price, margin, order.price)[0] >= 0
            if policy.allocation == "capped":
                assert requested <= max(1, lots * policy.cap_share)

    def check(self) -> None:
        fund, orders = self.fund, self.whole.orders.values()
        assert min(fund.balance, fund.outstanding, fund.open_in_adl) >= 0
        recovered = sum(order.recovered for order in orders)
        still_open = sum(order.uncovered - order.recovered for order in orders if order.state == "open")
        assert fund.open_in_adl == still_open
        assert {order.adl for order in orders if order.state == "open"} == {order.adl for order in self.open}
        uncovered = sum(entry.uncovered for entry in self.whole.entries)
        repaid = sum(entry.repaid for entry in self.whole.entries)
        assert uncovered == recovered + repaid + fund.outstanding + still_open
        for order in orders:
            assert 0 <= order.deficit * order.lots - order.uncovered * order.deficit_lots < order.deficit
            assert 0 <= order.executed <= order.lots

    def audit(self) -> list[str]:
        replay = Replay(self.fund.contract, policies={0: self.fund.policy})
        for batch in self.batches:
            lines = [*zip(batch.entries, batch.hashes, strict=True)]
            own = [line for line in lines if line[0].kind not in ("refund", "cover")]
            for entry, digest in own:
                replay.follow(entry, digest)
            for record, digest, _ in batch.records:
                replay.follow_record(record, digest)
            for entry, digest in lines[len(own) :]:
                replay.follow(entry, digest)
        orders = self.whole.orders.values()
        recovered, last = sum(order.recovered for order in orders), max((order.seq for order in orders), default=0)
        replay.finish(self.fund.state(), OrderTotals(recovered, self.fund.open_in_adl, last, len(orders)))
        return replay.differences


@given(CONTRACTS, POLICIES, STREAMS)
def test_amounts_are_conserved_from_shortfall_to_end(contract, policy, stream):
    engine = Engine(contract, policy)
    for step in stream:
        engine.step(*step)
    assert engine.audit() == []
    executed = Counter()
    for record, *_ in engine.whole.records:
        if record.kind == "execution":
            executed[record.adl] += record.lots
    assert executed == Counter({order.adl: order.executed for order in engine.whole.orders.values()})


@given(CONTRACTS, POLICIES, STREAMS, st.data())
def test_duplicates_change_nothing(contract, policy, stream, data):
    engine = Engine(contract, policy)
    for step in stream:
        engine.step(*step)
    settled = [event for event in engine.settled if isinstance(event, Fill | AdlFill | AdlEnd)]
    if settled:
        before = engine.fund.state()
        again = data.draw(st.lists(st.sampled_from(settled), min_size=1, max_size=5))
        for event in again:
            engine.partition.apply(event)
        batch = engine.partition.take()
        assert (batch.entries, batch.orders, batch.records) == ([], {}, [])
        assert batch.duplicates.total() == len(again)
        assert engine.fund.state() == before


@given(CONTRACTS, POLICIES, st.lists(POSITIONS, unique_by=lambda step: step[1]), st.lists(FILLS, max_size=8), PRICES, st.data())
def test_order_of_positions_does_not_affect_adl(contract, policy, positions, fills, price, data):
    outcomes = []
    for arrived in (positions, data.draw(st.permutations(positions))):
        engine = Engine(contract, policy)
        for step in (("mark", price), *arrived, *fills):
            engine.step(*step)
        outcomes.append((engine.whole.orders, engine.whole.records, engine.whole.hashes))
    assert outcomes[0] == outcomes[1]


@given(CONTRACTS, POLICIES, st.lists(POSITIONS | FILLS | st.tuples(st.just("mark"), PRICES), max_size=40), st.data())
def test_more_fund_never_means_more_adl(contract, policy, stream, data):
    policy = msgspec.structs.replace(policy, drawdown_guard=None)
    balance, more = data.draw(st.integers(0, 10**12)), data.draw(st.integers(0, 10**12))
    uncovered = []
    for start in (balance, balance + more):
        engine = Engine(contract, policy)
        engine.fund.balance = start
        for step in stream:
            engine.step(*step)
        uncovered.append(sum(entry.uncovered for entry in engine.whole.entries))
    assert uncovered[1] <= uncovered[0]


@given(CONTRACTS, POLICIES, STREAMS, st.integers(0, 60))
def test_partition_restored_from_its_rows_continues_identically(contract, policy, stream, at):
    engine, other = Engine(contract, policy), Engine(contract, policy)
    for step in stream[:at]:
        engine.step(*step)
        other.step(*step)
    fund = engine.fund.state()
    fields = {name: getattr(fund, name) for name in FundState._fields if name != "symbol"}
    engine.fund = a_fund(contract, policy=policy, **fields)
    book, open_orders = engine.partition.book(contract.symbol), engine.open
    engine.partition = partition(engine.fund)
    if book:
        saved = msgspec.msgpack.decode(msgspec.msgpack.encode(next(book.save())), type=BookPart)
        restore(engine.partition, stored_book(book, saved)._replace(symbol=contract.symbol))
    for order in open_orders:
        assert engine.partition.reopen(order).order == order.state_row()
    for step in stream[at:]:
        engine.step(*step)
        other.step(*step)
    assert engine.fund.state() == other.fund.state()
    assert engine.whole.orders == other.whole.orders
    assert engine.whole.records == other.whole.records


def test_execution_applied_to_the_book_keeps_the_other_leg():
    settling = partition(Fund(UNIT))
    legs = [position("a", 10), position("a", -4)]
    for event, leg in zip(legs, ("LONG", "SHORT"), strict=True):
        settling.apply_to_book(msgspec.structs.replace(event, position_side=leg))
    settling.apply_to_book(adl_fill(1, "a", 3), "short")
    book = settling.book(UNIT.symbol)
    assert [(side, book.sides[side].valued(row, 1).lots) for side, row in book.positions("a")] == [("long", 10), ("short", 1)]


@given(CONTRACTS, STREAMS)
def test_book_rebuilt_from_events_equals_the_original(contract, stream):
    engine = Engine(contract, Policy())
    rebuilt = partition(Fund(contract))
    for step in stream:
        refused_before = engine.refused
        engine.step(*step)
        event = engine.events[-1]
        if engine.refused == refused_before:
            order = engine.whole.orders.get((contract.symbol, getattr(event, "adl", 0)))
            rebuilt.apply_to_book(event, order and order.reduce)
    assert positions_of(rebuilt, contract.symbol) == positions_of(engine.partition, contract.symbol)


def positions_of(settling: Partition, symbol: str) -> BookPart:
    book = settling.book(symbol)
    return next((book or Book(UNIT)).save())


HUGE = st.integers(1, INT64_MAX) | st.sampled_from([1, INT64_MAX, INT64_MAX - 1, 2**53 + 1])
TEXT_PRICES = HUGE.map(lambda units: f"{units // 10**12}.{units % 10**12:012d}").filter(lambda text: float(text) > 0)
MARGINS = st.integers(0, INT64_MAX).map(lambda atoms: f"{atoms // 10**8}.{atoms % 10**8:08d}") | st.sampled_from(
    ["0", "92233720368"]
)


@given(
    CONTRACTS,
    POLICIES,
    st.lists(
        st.tuples(st.just("position"), NAMES, HUGE | HUGE.map(lambda lots: -lots), TEXT_PRICES, MARGINS)
        | st.tuples(st.just("mark"), TEXT_PRICES)
        | st.tuples(st.just("fill"), SIDES, HUGE, TEXT_PRICES, TEXT_PRICES)
        | st.tuples(st.just("adlFill"), st.integers(0, 9), st.integers(0, 9), HUGE)
        | st.tuples(st.just("adlEnd"), st.integers(0, 9)),
        max_size=25,
    ),
)
def test_numbers_at_the_limits_are_settled_or_rejected(contract, policy, stream):
    engine = Engine(contract, policy)
    for step in stream:
        engine.step(*step)
    records = [msgspec.structs.astuple(record) for record, *_ in engine.whole.records]
    for record in (*engine.whole.orders.values(), *records, engine.fund.state()):
        assert all(-(2**63) <= field <= INT64_MAX for field in record if isinstance(field, int))
    assert engine.audit() == []
