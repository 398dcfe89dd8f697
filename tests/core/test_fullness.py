from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.fund.fullness import Target, TargetPolicy, exact

BALANCES = st.integers(0, 10**18)


def target(amount, *, low=0.5, high=1.0, least=1.0, most=100.0):
    return Target("cover", amount, low, high, least, most)


@pytest.mark.parametrize(
    ("balance", "fullness", "cap"),
    [
        (0, 0.0, 1.0),
        (100, 0.5, 1.0),
        (101, 0.505, 1.99),
        (150, 0.75, 50.5),
        (151, 0.755, 51.49),
        (200, 1.0, 100.0),
        (500, 2.5, 100.0),
    ],
)
def test_leverage_cap_is_linear_in_the_fullness(balance, fullness, cap):
    known = target(200)
    assert (known.fullness(balance), known.leverage_cap(balance)) == (fullness, cap)
    assert known.is_above(balance) == (fullness < 1)


def test_leverage_cap_is_rounded_down_to_hundredths():
    assert target(3, low=0.0, least=1.0, most=2.0).leverage_cap(1) == 1.33
    assert target(3, low=0.0, least=1.0, most=2.0).leverage_cap(2) == 1.66


def test_exact_gives_the_written_decimal_number():
    assert exact(0.1) == Fraction(1, 10)
    assert exact(1e-7) == Fraction(1, 10**7)
    assert target(10, low=0.1, high=0.3, least=10.0, most=20.0).leverage_cap(2) == 15.0


def test_no_target_gives_no_fullness_and_no_cap():
    unknown = target(None)
    assert (unknown.fullness(5), unknown.leverage_cap(5), unknown.is_above(5)) == (None, None, False)


def test_target_of_zero_gives_the_highest_cap():
    nothing = target(0)
    assert (nothing.fullness(0), nothing.leverage_cap(0), nothing.is_above(0)) == (None, 100.0, False)


def test_contract_without_max_leverage_has_no_cap():
    assert target(10, most=None).leverage_cap(5) is None
    assert target(10, most=None).fullness(5) == 0.5


def test_leverage_cap_never_exceeds_max_leverage():
    assert target(10, least=5.0, most=3.0).leverage_cap(0) == 3.0


@given(
    BALANCES, BALANCES, st.integers(1, 10**18), st.floats(0, 1), st.floats(1.01, 100), st.floats(0.1, 50), st.floats(50, 200)
)
def test_higher_balance_never_lowers_the_cap(one, other, amount, low, high, least, most):
    known = target(amount, low=low, high=high, least=least, most=most)
    caps = [known.leverage_cap(balance) for balance in sorted((one, other))]
    assert caps == sorted(caps)
    assert all(least - 0.01 < cap <= most for cap in caps)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"cost_of_capital": 1, "cost_of_loss": 1}, "cost_of_loss"),
        ({"fullness_low": 1.0}, "fullness_low"),
        ({"period_hours": 48, "history_days": 1}, "history_days"),
        ({"rule": "luck"}, "luck"),
        ({"move": 1.0}, "move"),
        ({"positions": 0}, "positions"),
        ({"share": 0}, "share"),
        ({"shares": 1}, "shares"),
    ],
)
def test_error_of_an_illegal_policy_names_the_field(fields, named):
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert(fields, TargetPolicy)


def test_level_is_exact():
    assert TargetPolicy(cost_of_capital=0.1, cost_of_loss=0.3).level == Fraction(2, 3)
    assert TargetPolicy(period_hours=36, history_days=10).periods_max == 6
