import pytest
from builders import ONE, UNIT, a_fund, fill, mark, partition, position

from fundsvc.core.adl.preview import preview
from fundsvc.core.adl.records import terms_of
from fundsvc.core.events import Rejection
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy


def settling(policy: Policy, balance: int) -> Partition:
    made = partition(fund(policy, balance))
    for event in (mark("50"), position("a", -10, "100"), position("b", -10, "90")):
        made.apply(event)
    return made


def fund(policy: Policy, balance: int) -> Fund:
    return a_fund(UNIT, policy=policy, balance=balance * ONE)


def shortfall(seq: int, lots: int):
    return fill(seq, lots=lots, price="50", bankruptcy_price="60")


@pytest.mark.parametrize("policy", [Policy(), Policy(waterfall="adl_then_fund"), Policy(allocation="pro_rata")])
@pytest.mark.parametrize("balance", [0, 35, 1000])
def test_preview_equals_the_settlement(policy, balance):
    made = settling(policy, balance)
    shown = preview(fund(policy, balance), made.book(UNIT.symbol), (), shortfall(1, 12))
    made.apply(shortfall(1, 12))
    batch = made.take()
    assert [shown.entry] == batch.entries
    assert bool(shown.order) == bool(batch.orders)
    for order in batch.orders.values():
        assert shown.order.state_row()._replace(round=1) == order
    for record, *_ in batch.records:
        assert shown.first == terms_of(record.kind, record.body)


def test_preview_changes_nothing_and_excludes_promised_lots():
    made = settling(Policy(), 0)
    made.apply(shortfall(1, 12))
    made.take()
    orders = [*made.market(UNIT.symbol).orders.values()]
    followed = settling(Policy(), 0).book(UNIT.symbol)
    before = list(followed.save())
    shown = preview(a_fund(UNIT, adl=1), followed, orders, shortfall(2, 12))
    assert dict(zip(shown.first.accounts, shown.first.requested, strict=True)) == {"b": 8}
    made.apply(shortfall(2, 12))
    assert terms_of("order", made.take().records[0].record.body) == shown.first
    assert list(followed.save()) == before
    assert preview(a_fund(UNIT, adl=1), followed, orders, shortfall(2, 12)).first == shown.first
    assert [order.round for order in orders] == [1]


def test_preview_rejects_invalid_fills():
    with pytest.raises(Rejection):
        preview(fund(Policy(), 0), settling(Policy(), 0).book(UNIT.symbol), (), fill(1, price="0"))
