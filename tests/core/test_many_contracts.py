"""The cost of an event or a commit does not depend on the number of contracts. The tests count function calls."""

import sys
from collections import Counter

import pytest
from builders import ONE, a_fund, fill, listing, partition, specification

from fundsvc.core.contracts import contract_of
from fundsvc.core.events import Mark, Reason, Rejection
from fundsvc.core.partition import BOOKS_MAX, Partition
from fundsvc.metrics import Metrics

FEW, MANY = 250, 1000
"""The compared numbers of contracts: linear work grows four times, quadratic work sixteen times."""


def symbols(count):
    return [f"M{number}USDTM" for number in range(count)]


def listed(count):
    found = partition()
    for symbol in symbols(count):
        found.apply(listing(symbol=symbol))
    while found.owes_books:
        found.take()
    return found


def work_of(action):
    """The number of Python and C functions that an action calls."""
    calls = Counter()
    sys.setprofile(lambda _frame, event, _argument: calls.update([event]))
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls["call"] + calls["c_call"]


def settle_one(state):
    state.apply(fill(1, symbol=symbols(1)[0], price="101"))
    state.take()


def list_all(count):
    state = partition()
    for number, symbol in enumerate(symbols(count)):
        state.apply(listing(symbol=symbol))
        if number % 10 == 0:
            state.take()


def save_all(state):
    state.request_books()
    while state.owes_books:
        state.take()


def render_all(count):
    metrics = Metrics()
    contract = specification()
    funds = [a_fund(contract_of(contract | {"symbol": symbol}, {"USDT": 8}, 8), balance=ONE) for symbol in symbols(count)]
    metrics.loaded(funds, [])
    metrics.render()


def test_cost_of_a_commit_does_not_depend_on_the_number_of_contracts():
    few, many = listed(FEW), listed(MANY)
    assert work_of(lambda: settle_one(few)) == work_of(lambda: settle_one(many))


@pytest.mark.parametrize("work", [list_all, render_all])
def test_work_for_all_contracts_is_linear_in_their_number(work):
    work(FEW)  # Imports and other work that is done once is not counted.
    assert work_of(lambda: work(MANY)) <= 4.2 * work_of(lambda: work(FEW))


def test_saving_all_books_is_linear_in_the_number_of_contracts():
    few, many = listed(FEW), listed(MANY)
    assert work_of(lambda: save_all(many)) <= 4.2 * work_of(lambda: save_all(few))


def test_batch_saves_a_bounded_number_of_books_each_once():
    state = listed(2 * BOOKS_MAX + 1)
    state.request_books()
    kept = []
    while state.owes_books:
        kept.append([book.symbol for book in state.take().books])
    assert [len(part) for part in kept] == [BOOKS_MAX, BOOKS_MAX, 1]
    assert len({symbol for part in kept for symbol in part}) == 2 * BOOKS_MAX + 1


def test_listing_beyond_contracts_max_is_rejected_and_others_continue():
    state = Partition(0, 1, [], {"USDT": 8}, 10, contracts_max=2)
    for symbol in symbols(2):
        state.apply(listing(symbol=symbol))
    with pytest.raises(Rejection, match="contracts_max") as rejection:
        state.apply(listing(symbol="ONEMOREUSDTM"))
    assert rejection.value.reason == Reason.TOO_MANY_CONTRACTS
    state.apply(listing(symbol=symbols(1)[0], maxLeverage=20))  # A listing of a known contract needs no room.
    state.apply(Mark(symbols(2)[1], "100", 1000))
    assert set(state.take().listings) == set(symbols(2))
