import pytest
from builders import ONE, UNIT, fill, mark, partition, position

from fundsvc.core.events import Rejection
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy
from fundsvc.core.preview import preview
from fundsvc.core.settlement import Fund


def settling(policy: Policy, balance: int) -> Partition:
    made = partition(fund(policy, balance))
    for event in (mark("50"), position("a", -10, "100"), position("b", -10, "90")):
        made.apply(event)
    return made


def fund(policy: Policy, balance: int) -> Fund:
    return Fund(UNIT, policy=policy, balance=balance * ONE)


def shortfall(seq: int, lots: int):
    return fill(seq, lots=lots, price="50", bankruptcy_price="60")


@pytest.mark.parametrize("policy", [Policy(), Policy(waterfall="adl_then_fund"), Policy(allocation="pro_rata")])
@pytest.mark.parametrize("balance", [0, 35, 1000])
def test_a_preview_is_what_then_happens(policy, balance):
    made = settling(policy, balance)
    shown = preview(fund(policy, balance), made.book(UNIT.symbol), (), shortfall(1, 12))
    made.apply(shortfall(1, 12))
    batch = made.take()
    assert [shown.entry] == batch.entries
    assert ([shown.order.written()] if shown.order else []) == [*batch.orders.values()]
    allocations = shown.order.allocations.values() if shown.order else ()
    assert [shown.order.allocation_written(one) for one in allocations] == [*batch.allocations.values()]


def test_a_preview_touches_nothing_and_keeps_promises():
    made = settling(Policy(), 0)
    made.apply(shortfall(1, 12))
    made.take()
    orders = [*made._desks[UNIT.symbol].orders.values()]
    before = made.book(UNIT.symbol).save()
    shown = preview(Fund(UNIT, adl=1), made.book(UNIT.symbol), orders, shortfall(2, 12))
    assert {account: one.asked for account, one in shown.order.allocations.items()} == {"b": 8}
    assert made.book(UNIT.symbol).save() == before
    assert [order.written() for order in orders] == [order.written() for order in made._desks[UNIT.symbol].orders.values()]


def test_what_could_not_be_settled_has_no_preview():
    with pytest.raises(Rejection):
        preview(fund(Policy(), 0), settling(Policy(), 0).book(UNIT.symbol), (), fill(1, price="0"))
