import math
from fractions import Fraction

import pytest
from builders import INVERSE, LINEAR, ONE, UNIT
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.adl.book import Book
from fundsvc.core.fund.fullness import TargetPolicy, exact
from fundsvc.core.fund.target_sizing import (
    Deficits,
    largest_rows,
    quantile_rank,
    size_by_cover,
    size_by_deficits,
    size_by_open_interest,
    stressed_price,
    stressed_sides,
    value_at_risk,
)

LEVELS = st.fractions(Fraction(1, 1000), Fraction(999, 1000))
DEFICITS = st.lists(st.integers(0, 20), min_size=1, max_size=60)
POSITIONS = st.lists(
    st.tuples(st.booleans(), st.integers(1, 20), st.integers(50, 150), st.integers(0, 300)), min_size=1, max_size=30
)
MOVES = st.floats(0.001, 0.999)


def falling(deficits):
    return sorted((deficit for deficit in deficits if deficit), reverse=True)


@pytest.mark.parametrize(
    ("deficits", "level", "expected"),
    [
        ([10, 40, 30, 20], Fraction(1, 2), 20),
        ([10, 40, 30, 20], Fraction(51, 100), 30),
        ([10, 40, 30, 20], Fraction(3, 4), 30),
        ([10, 40, 30, 20], Fraction(999, 1000), 40),
        ([0, 0, 0, 7], Fraction(3, 4), 0),
        ([0, 0, 0, 7], Fraction(76, 100), 7),
        ([5, 5, 5, 9], Fraction(1, 2), 5),
        ([3], Fraction(1, 1000), 3),
        ([0] * 99 + [1000], Fraction(99, 100), 0),
        ([0] * 100 + [1000], Fraction(99, 100), 0),
        ([0] * 98 + [1000, 2000], Fraction(99, 100), 1000),
    ],
)
def test_value_at_risk_of_examples(deficits, level, expected):
    assert value_at_risk(falling(deficits), len(deficits), level) == expected


def brute_force(deficits, level):
    """The smallest deficit that at least a share `level` of the deficits do not exceed."""
    return min(bound for bound in deficits if Fraction(sum(deficit <= bound for deficit in deficits), len(deficits)) >= level)


@given(DEFICITS, LEVELS)
def test_value_at_risk_is_the_empirical_quantile(deficits, level):
    assert value_at_risk(falling(deficits), len(deficits), level) == brute_force(deficits, level)


@given(DEFICITS, LEVELS)
def test_value_at_risk_needs_only_the_largest_deficits(deficits, level):
    needed = falling(deficits)[: quantile_rank(len(deficits), level)]
    assert value_at_risk(needed, len(deficits), level) == brute_force(deficits, level)


@given(DEFICITS, LEVELS, LEVELS)
def test_higher_level_never_lowers_the_value_at_risk(deficits, one, other):
    low, high = sorted((one, other))
    assert value_at_risk(falling(deficits), len(deficits), low) <= value_at_risk(falling(deficits), len(deficits), high)


@given(DEFICITS, st.integers(1, 50), st.integers(51, 200))
def test_size_minimises_the_cost(deficits, capital, loss):
    """The newsvendor rule: r K + kappa E[max(0, D - K)] is smallest at its K."""

    def cost(size):
        return capital * size * len(deficits) + loss * sum(max(0, deficit - size) for deficit in deficits)

    best = value_at_risk(falling(deficits), len(deficits), 1 - Fraction(capital, loss))
    assert cost(best) == min(cost(size) for size in range(max(deficits) + 1))


def test_value_at_risk_has_an_explanation():
    policy = TargetPolicy(period_hours=24, cost_of_capital=0.25, cost_of_loss=1.0)
    size = size_by_deficits(UNIT, policy, Deficits(0, 8 * 86_400_000, 8, 3, [9 * ONE, 4 * ONE, 2 * ONE]))
    assert size.amount == 2 * ONE
    explained = size.explanation
    assert (explained.rank, explained.periods, explained.deficits, explained.level) == (3, 8, 3, 0.75)
    assert (explained.largest_deficit, explained.start, explained.end) == ("9", 0, 8 * 86_400_000)


def test_default_level_is_that_of_99_days_in_100_and_a_year_is_long_enough_for_it():
    policy = TargetPolicy()
    assert (policy.level, policy.periods_needed) == (Fraction(99, 100), 100)
    year = Deficits(0, 365 * 86_400_000, 365, 5, [9 * ONE, 7 * ONE, 5 * ONE, 4 * ONE])
    size = size_by_deficits(UNIT, policy, year)
    assert (size.amount, size.explanation.rank, size.reason) == (4 * ONE, 4, "")


@pytest.mark.parametrize(("periods", "is_short"), [(1, True), (99, True), (100, False), (365, False)])
def test_history_that_is_too_short_for_its_level_is_reported(periods, is_short):
    size = size_by_deficits(UNIT, TargetPolicy(), Deficits(0, periods, periods, 2, [9 * ONE, 4 * ONE]))
    assert size.explanation.periods_needed == 100
    assert bool(size.reason) == is_short
    if is_short:
        assert size.amount == 9 * ONE
        assert f"it has {periods} of the 100 periods" in size.reason


@given(LEVELS, st.integers(1, 300))
def test_target_is_always_the_largest_deficit_while_the_history_is_too_short(level, periods):
    policy = TargetPolicy(cost_of_capital=float(1 - level), cost_of_loss=1.0)
    assert (quantile_rank(periods, policy.level) == 1) == (periods < policy.periods_needed)


def test_no_history_gives_no_value_at_risk():
    size = size_by_deficits(UNIT, TargetPolicy(), None)
    assert (size.amount, size.explanation) == (None, None)
    assert UNIT.symbol in size.reason


def test_history_without_deficits_gives_zero():
    assert size_by_deficits(UNIT, TargetPolicy(), Deficits(0, 1, 5, 0, [])).amount == 0


def book_of(contract, mark, *positions):
    """A book of positions (lots, entry price, margin); prices in whole quote units, margins in whole settlement units."""
    scale, unit = 10**contract.price_decimals, 10**contract.settle_decimals
    book = Book(contract)
    book.mark = mark * scale
    for number, (lots, entry_price, margin) in enumerate(positions):
        book.set(f"account-{number}", lots, entry_price * scale, margin * unit)
    return book


def covered(contract, book, **fields):
    policy = TargetPolicy(rule="cover", **fields)
    sides = stressed_sides(book, book.mark, exact(policy.move))
    return size_by_cover(contract, policy, book, sides, [largest_rows(side, policy.positions) for side in sides])


def test_cover_of_a_linear_contract():
    # At 100 - 20 %: the long of 10 lots from 110 loses 300 with a margin of 100, the long of 5 from 100 loses 100 with 120.
    book = book_of(UNIT, 100, (10, 110, 100), (5, 100, 120), (1, 500, 0), (-12, 100, 50))
    size = covered(UNIT, book, positions=2, move=0.2)
    assert size.amount == 200 * ONE
    explained = size.explanation
    assert (explained.side, explained.stressed_price, explained.mark_price) == ("long", "80", "100")
    assert [(held.lots, held.unrealised_pnl, held.margin, held.loss) for held in explained.positions] == [
        (10, "-300", "100", "200"),
        (5, "-100", "120", "0"),
    ]
    # At 100 + 20 %, the short of 12 lots from 100 loses 240 with a margin of 50.
    assert explained.loss_of_other_side == "190"


def test_larger_loss_of_both_sides_counts():
    book = book_of(UNIT, 100, (10, 110, 100), (-12, 100, 10))
    size = covered(UNIT, book, positions=1, move=0.2)
    assert (size.amount, size.explanation.side, size.explanation.stressed_price) == (230 * ONE, "short", "120")
    assert size.explanation.loss_of_other_side == "200"


def test_cover_of_an_inverse_contract():
    # A long of 3 lots of 1 USD from 100 at 75 without margin: 3 x (1/100 - 1/75) = -0.01 XBT.
    size = covered(INVERSE, book_of(INVERSE, 100, (3, 100, 0)), positions=5, move=0.25)
    assert size.amount == 10**8
    assert size.explanation.positions[0].loss == "0.01"


def test_losses_are_rounded_up():
    # 1 lot of 1 USD from 3 at 1.5: 1/3 - 2/3 = -0.33333333333..., rounded to ten decimals.
    assert covered(INVERSE, book_of(INVERSE, 3, (1, 3, 0)), positions=1, move=0.5).amount == 3_333_333_334


def test_equal_positions_are_ordered_by_loss():
    book = book_of(UNIT, 100, (4, 100, 30), (4, 100, 0), (4, 120, 50), (4, 100, 200))
    assert [held.loss for held in covered(UNIT, book, positions=2, move=0.1).explanation.positions] == ["70", "40"]


def test_explanation_contains_no_accounts():
    size = covered(UNIT, book_of(UNIT, 100, (4, 100, 0)), positions=2, move=0.1)
    assert "account" not in str(size)


def test_empty_book_gives_zero():
    size = covered(UNIT, book_of(UNIT, 100), positions=2, move=0.1)
    assert (size.amount, size.explanation.positions) == (0, [])


def test_position_closed_meanwhile_does_not_count():
    book = book_of(UNIT, 100, (4, 200, 0), (3, 100, 0))
    policy = TargetPolicy(positions=2, move=0.1)
    sides = stressed_sides(book, book.mark, exact(policy.move))
    rows = [largest_rows(side, 2) for side in sides]
    book.set("account-0", 0, 0, 0)
    assert size_by_cover(UNIT, policy, book, sides, rows).amount == 30 * ONE


@given(st.sampled_from([UNIT, LINEAR, INVERSE]), POSITIONS, st.integers(1, 20), MOVES)
def test_cover_equals_brute_force(contract, positions, count, move):
    book = book_of(contract, 100, *((lots if long else -lots, price, margin) for long, lots, price, margin in positions))
    size = covered(contract, book, positions=count, move=move)
    assert size.amount == max(side_loss(contract, positions, count, exact(move), long) for long in (True, False))


def side_loss(contract, positions, count, move, long):
    """The loss of one side in fractions; of equal positions, those that lose most count."""
    decimals, scale = contract.settle_decimals, 10**contract.price_decimals
    stressed = Fraction(stressed_price(100 * scale, "long" if long else "short", move), scale)
    side = []
    for is_long, lots, price, margin in positions:
        moved = (1 / Fraction(price) - 1 / stressed) if contract.is_inverse else stressed - price
        pnl = (1 if is_long else -1) * moved * lots * Fraction(contract.multiplier)
        if is_long == long:
            side.append((-lots, margin + pnl))
    return sum(max(0, math.ceil(-equity * 10**decimals)) for _, equity in sorted(side)[:count])


@given(POSITIONS, st.integers(1, 20), st.integers(1, 20), MOVES, MOVES)
def test_more_positions_or_a_wider_move_never_lower_the_cover(positions, one, other, move, wider):
    book = book_of(UNIT, 100, *((lots if long else -lots, price, margin) for long, lots, price, margin in positions))
    few, many = sorted((one, other))
    near, far = sorted((move, wider))
    assert covered(UNIT, book, positions=few, move=near).amount <= covered(UNIT, book, positions=many, move=near).amount
    # A wider move may select other positions of equal size, but never a smaller loss.
    assert covered(UNIT, book, positions=few, move=near).amount <= covered(UNIT, book, positions=few, move=far).amount


@pytest.mark.parametrize(("side", "expected"), [("long", 8), ("short", 12)])
def test_stressed_price_is_rounded_away_from_the_mark(side, expected):
    assert stressed_price(10, side, Fraction(11, 100)) == expected
    assert stressed_price(1, "long", Fraction(99, 100)) == 1


def test_open_interest_of_an_example():
    policy = TargetPolicy(rule="open_interest", share=0.01)
    size = size_by_open_interest(UNIT, policy, book_of(UNIT, 100, (7, 90, 5), (3, 95, 5), (-10, 90, 5)))
    assert (size.amount, size.explanation.lots, size.explanation.notional) == (10 * ONE, 10, "1000")
    inverse = size_by_open_interest(INVERSE, policy, book_of(INVERSE, 300, (10, 90, 5), (-10, 90, 5)))
    assert (inverse.amount, inverse.explanation.notional) == (3_333_334, "0.0333333334")


def test_no_mark_gives_no_open_interest():
    size = size_by_open_interest(UNIT, TargetPolicy(), Book(UNIT))
    assert (size.amount, size.reason) == (None, f"{UNIT.symbol} has no mark price yet")


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0.000001, 1))
def test_share_of_open_interest_is_exact_and_rounded_up(lots, mark, share):
    size = size_by_open_interest(LINEAR, TargetPolicy(share=share), book_of(LINEAR, mark, (lots, 1, 0)))
    assert 0 <= size.amount - lots * mark * Fraction(LINEAR.multiplier) * ONE * exact(share) < 1
