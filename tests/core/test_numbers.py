from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.events import Reason, Rejection
from fundsvc.core.numbers import INT64_MAX, format_units, parse_price, to_units


@pytest.mark.parametrize(
    ("text", "decimals", "units"),
    [
        ("1", 0, 1),
        ("84478.9", 1, 844789),
        ("84478.9", 12, 84478_900000000000),
        ("0.000000000001", 12, 1),
        ("0084478.90", 2, 8447890),
        ("9223372036854775807", 0, INT64_MAX),
        ("9223372.036854775807", 12, INT64_MAX),
    ],
)
def test_price_is_exact(text, decimals, units):
    assert parse_price(text, decimals) == units


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.INVALID_NUMBER),
        (".", Reason.INVALID_NUMBER),
        (".5", Reason.INVALID_NUMBER),
        ("5.", Reason.INVALID_NUMBER),
        ("1.2.3", Reason.INVALID_NUMBER),
        ("-1", Reason.INVALID_NUMBER),
        ("+1", Reason.INVALID_NUMBER),
        (" 1", Reason.INVALID_NUMBER),
        ("1_000", Reason.INVALID_NUMBER),
        ("1e5", Reason.INVALID_NUMBER),
        ("NaN", Reason.INVALID_NUMBER),
        ("Infinity", Reason.INVALID_NUMBER),
        ("٣", Reason.INVALID_NUMBER),
        ("²", Reason.INVALID_NUMBER),
        ("1\0", Reason.INVALID_NUMBER),
        ("0", Reason.OUT_OF_RANGE),
        ("0.00", Reason.OUT_OF_RANGE),
        ("9223372036854775.808", Reason.OUT_OF_RANGE),
        ("9" * 40, Reason.OUT_OF_RANGE),
        ("1.2345", Reason.TOO_MANY_DECIMALS),
        ("1.0000", Reason.TOO_MANY_DECIMALS),
    ],
)
def test_text_without_an_exact_positive_price_is_rejected(text, reason):
    with pytest.raises(Rejection) as rejection:
        parse_price(text, 3)
    assert rejection.value.reason == reason


@given(st.integers(1, INT64_MAX), st.integers(0, 12))
def test_price_equals_its_parsed_text(units, decimals):
    assert parse_price(format_units(units, decimals), decimals) == units


@given(st.text(max_size=40), st.integers(0, 12))
def test_every_text_is_a_price_or_rejected(text, decimals):
    try:
        price = parse_price(text, decimals)
    except Rejection:
        return
    assert Fraction(text) * 10**decimals == price


@pytest.mark.parametrize(
    ("units", "decimals", "text"),
    [(0, 8, "0"), (-15000, 2, "-150"), (1, 8, "0.00000001"), (-1, 8, "-0.00000001"), (1234, 0, "1234"), (100, 1, "10")],
)
def test_units_have_the_shortest_text(units, decimals, text):
    assert format_units(units, decimals) == text


@given(st.integers(-(10**30), 10**30), st.integers(0, 18))
def test_units_equal_their_parsed_text(units, decimals):
    assert to_units(Decimal(format_units(units, decimals)), decimals) == units


def test_more_digits_than_the_default_decimal_context_are_exact():
    assert to_units(Decimal("123456789012345678901234567890.12345678"), 8) == 12345678901234567890123456789012345678


@pytest.mark.parametrize(
    "text", ["0.001", "NaN", "sNaN", "Infinity", "-Infinity", "1E+999", "1E-999", "1E+999999999", "0." + "1" * 200]
)
def test_amount_that_is_too_fine_or_too_large_raises_an_error(text):
    with pytest.raises(ValueError, match="decimals"):
        to_units(Decimal(text), 2)
