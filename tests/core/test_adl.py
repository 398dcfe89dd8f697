import pytest
from builders import UNIT, adl_fill, fill
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.adl import AdlOrder, Allocation, opposite, order_for
from fundsvc.core.book import Standing
from fundsvc.core.events import Reason, Rejection
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.settlement import Fund

AMOUNTS = st.integers(1, INT64_MAX) | st.integers(1, 1000)


def order(deficit: int, lots: int, uncovered: int, side: str = "sell") -> AdlOrder:
    """The order of a shortfall of which a part is uncovered."""
    entry, _ = Fund(UNIT).settle(fill(lots=lots, side=side))
    amounts = {"kind": "shortfall", "change": uncovered - deficit, "uncovered": uncovered}
    return order_for(type(entry)(**{name: getattr(entry, name) for name in entry.__struct_fields__} | amounts), 1)


def asked(account: str, lots: int) -> Allocation:
    return Allocation(Standing(account, lots, 1, 1, 1, 1, 1.0, 1.0, 1.0), 1, 1, lots)


@given(AMOUNTS, AMOUNTS, st.data())
def test_an_order_never_takes_a_whole_lot_more_than_it_needs(deficit, lots, data):
    uncovered = data.draw(st.integers(1, deficit))
    made = order(deficit, lots, uncovered)
    assert 1 <= made.lots <= lots
    assert 0 <= deficit * made.lots - uncovered * lots < deficit
    assert 0 <= made.refund * lots < deficit
    made.begin_round([asked("a", made.lots)])
    before = 0
    for part in (data.draw(st.integers(1, made.lots)), made.lots):
        if made.needed:
            made.execute(adl_fill(1, "a", min(part, made.needed)))
            assert before <= made.recovered == min(uncovered, deficit * made.executed // lots)
            assert made.recovered + made.rest == uncovered
            before = made.recovered
    assert (made.state, made.recovered, made.needed) == ("done", uncovered, 0)


@pytest.mark.parametrize(("side", "reduce"), [("sell", "short"), ("buy", "long")])
def test_an_order_reduces_the_side_that_was_not_liquidated(side, reduce):
    assert order(10, 2, 5, side).reduce == opposite(side) == reduce


@pytest.mark.parametrize(
    ("account", "lots", "reason"),
    [("b", 1, Reason.ADL_NOT_ASKED), ("a", 5, Reason.ADL_TOO_MANY_LOTS), ("a", INT64_MAX, Reason.ADL_TOO_MANY_LOTS)],
)
def test_an_execution_that_was_not_asked_for_is_refused(account, lots, reason):
    made = order(100, 10, 70)
    made.begin_round([asked("a", 4), asked("c", 3)])
    with pytest.raises(Rejection) as rejection:
        made.execute(adl_fill(1, account, lots))
    assert rejection.value.reason == reason
    assert (made.executed, made.recovered, made.state) == (0, 0, "open")


def test_a_position_cannot_give_its_lots_twice():
    made = order(100, 10, 70)
    made.begin_round([asked("a", 4), asked("c", 3)])
    made.execute(adl_fill(1, "a", 3))
    with pytest.raises(Rejection, match="asks 1 more"):
        made.execute(adl_fill(2, "a", 2))
    made.execute(adl_fill(2, "a", 1))
    made.execute(adl_fill(3, "c", 3))
    assert (made.state, made.recovered, made.refund) == ("done", 70, 0)


def test_what_is_written_explains_the_allocation():
    made = order(100, 10, 70)
    made.begin_round([Allocation(Standing("a", 9, 8, 7, 6, 5, 0.4, 3.0, 1.2), 2, 10, 4, 1)])
    written = made.allocation_written(made.allocations["a"])
    assert written._asdict() == {
        "symbol": "UNITUSDTM",
        "adl": 1,
        "round": 1,
        "account": "a",
        "side": "short",
        "lots": 9,
        "entry_price": 8,
        "margin": 7,
        "mark_price": 6,
        "unrealised_pnl": 5,
        "return_on_entry": 0.4,
        "leverage": 3.0,
        "score": 1.2,
        "rank": 2,
        "ranked": 10,
        "lights": 5,
        "asked": 4,
        "executed": 1,
    }
    assert made.written().lots == 7
