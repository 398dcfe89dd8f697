"""Visibility of positions by caller, and rounding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.api.http.tokens import Caller
from fundsvc.api.visibility import OPERATOR, PUBLIC, Visibility, rough, rough_total, visibility_of


@pytest.mark.parametrize(
    ("caller", "visibility"),
    [
        (None, PUBLIC),
        (Caller("engine", "", ""), PUBLIC),
        (Caller("risk", "", ""), OPERATOR),
        (Caller("trader", "anna", ""), Visibility(account="anna")),
    ],
)
def test_risk_sees_all_accounts_and_a_trader_its_own(caller, visibility):
    assert visibility_of(caller) == visibility


def test_positions_without_an_account_are_exact_only_for_risk():
    assert not PUBLIC.is_exact("")
    assert not Visibility(account="anna").is_exact("bert")
    assert Visibility(account="anna").is_exact("anna")
    assert OPERATOR.is_exact("")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("39123.75", "39000"),
        ("0.0012345", "0.0012"),
        ("-147.5", "-150"),
        ("0", "0"),
        ("99.6", "100"),
        ("100", "100"),
        ("2.04", "2"),
        (1357, 1400),
        (-1345, -1300),
        (99, 99),
        (0, 0),
        (2**63 - 1, 92 * 10**17),
        (0.123456, 0.12),
        (-0.0, 0.0),
    ],
)
def test_numbers_are_rounded_to_two_significant_digits(value, shown):
    assert rough(value) == shown
    assert type(rough(value)) is type(value)


@given(st.integers(1, 10**12), st.integers(1, 999))
def test_totals_are_rounded_to_tens_and_two_digits(lots, more):
    shown = rough_total(lots)
    assert shown % 10 == 0
    assert abs(shown - lots) <= max(10, lots * 0.06)
    assert rough_total(lots + more) >= shown
