import pytest
from builders import UNIT, adl_fill, fill
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.adl.order import POSITIONS_PER_RECORD_MAX, AdlOrder, RoundProgress, RoundTerms, opposite, order_for
from fundsvc.core.events import Reason, Rejection
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.numbers import INT64_MAX

AMOUNTS = st.integers(1, INT64_MAX) | st.integers(1, 1000)


def order(deficit: int, lots: int, uncovered: int, side: str = "sell") -> AdlOrder:
    """Returns the order of a shortfall that is partly uncovered."""
    entry, _ = Fund(UNIT).settle(fill(lots=lots, side=side))
    amounts = {"kind": "shortfall", "change": uncovered - deficit, "uncovered": uncovered}
    return order_for(type(entry)(**{name: getattr(entry, name) for name in entry.__struct_fields__} | amounts), 1)


def terms(**requested: int) -> RoundTerms:
    """Returns a round that requests these lots, by account."""
    lots, ones = [*requested.values()], [1] * len(requested)
    return RoundTerms(7, False, 9, len(requested), sum(lots), [*requested], [*range(2, 2 + len(lots))], lots, ones, ones, lots)


@given(AMOUNTS, AMOUNTS, st.data())
def test_order_takes_less_than_one_lot_beyond_its_need(deficit, lots, data):
    uncovered = data.draw(st.integers(1, deficit))
    made = order(deficit, lots, uncovered)
    assert 1 <= made.lots <= lots
    assert 0 <= deficit * made.lots - uncovered * lots < deficit
    assert 0 <= made.refund * lots < deficit
    made.begin_round(terms(a=made.lots), 5)
    before = 0
    for part in (data.draw(st.integers(1, made.lots)), made.lots):
        if made.needed:
            made.execute(adl_fill(1, "a", min(part, made.needed)))
            assert before <= made.recovered == min(uncovered, deficit * made.executed // lots)
            assert made.recovered + made.rest == uncovered
            before = made.recovered
    assert (made.state, made.recovered, made.needed) == ("done", uncovered, 0)


@pytest.mark.parametrize(("side", "reduce"), [("sell", "short"), ("buy", "long")])
def test_order_reduces_the_opposite_side(side, reduce):
    assert order(10, 2, 5, side).reduce == opposite(side) == reduce


@pytest.mark.parametrize(
    ("account", "lots", "reason"),
    [("b", 1, Reason.ADL_NOT_ASKED), ("a", 5, Reason.ADL_TOO_MANY_LOTS), ("a", INT64_MAX, Reason.ADL_TOO_MANY_LOTS)],
)
def test_execution_beyond_the_request_is_rejected(account, lots, reason):
    made = order(100, 10, 70)
    made.begin_round(terms(a=4, c=3), 5)
    with pytest.raises(Rejection) as rejection:
        made.execute(adl_fill(1, account, lots))
    assert rejection.value.reason == reason
    assert (made.executed, made.recovered, made.state) == (0, 0, "open")


def test_executions_of_a_position_are_limited_to_its_allocation():
    made = order(100, 10, 70)
    made.begin_round(terms(a=4, c=3), 5)
    made.execute(adl_fill(1, "a", 3))
    with pytest.raises(Rejection, match="requests 1 more"):
        made.execute(adl_fill(2, "a", 2))
    made.execute(adl_fill(2, "a", 1))
    made.execute(adl_fill(3, "c", 3))
    assert (made.state, made.recovered, made.refund) == ("done", 70, 0)


def test_execution_returns_the_position_that_it_reduces():
    made = order(100, 10, 70)
    made.begin_round(terms(a=4, c=3), 5)
    reduced = made.execute(adl_fill(1, "c", 2))
    assert (reduced.mark, reduced.ranked, reduced.rank, reduced.lots, reduced.requested) == (7, 9, 3, 3, 3)
    assert dict(made.progress.rests()) == {"a": 4, "c": 1}
    assert (made.acknowledged, made.round_ms, made.state_row().lots) == (True, 5, 7)


def test_ended_round_counts_failures_and_requests():
    made = order(100, 10, 70)
    made.begin_round(terms(a=4, c=3), 5)
    made.execute(adl_fill(1, "c", 3))
    made.execute(adl_fill(2, "a", 1))
    made.end_round()
    assert (made.failures, made.times_requested) == ({"a": 1}, {"a": 1, "c": 1})
    assert len(made.progress) == 0
    request = made.next_request(1)
    assert (request.lots, request.exhausted, request.failures) == (3, {"a", "c"}, {"a": 1})
    assert made.next_request(2).exhausted == set()


@pytest.mark.parametrize("positions", [0, 1, POSITIONS_PER_RECORD_MAX, POSITIONS_PER_RECORD_MAX + 1, 2500])
def test_parts_of_a_round_combine_to_the_round(positions):
    whole = terms(**{f"a{number}": number + 1 for number in range(positions)})
    parts = [*whole.parts()]
    assert all(len(part.accounts) <= POSITIONS_PER_RECORD_MAX for part in parts)
    assert {(part.positions, part.lots_requested) for part in parts} == {(positions, sum(whole.requested))}
    again = RoundProgress(parts[0])
    for part in parts[1:]:
        again.extend(part)
    assert [*again.rests()] == [*RoundProgress(whole).rests()]
