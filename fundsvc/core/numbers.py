"""Exact numbers: money as integer atoms, prices as integers at a contract's own scale.

Nothing here rounds. Text that has no exact representation is rejected with the reason.
"""

from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow

from fundsvc.core.events import Reason, Rejection

PRICE_DECIMALS_MAX = 12
"""A bankruptcy price is computed, so it is often finer than the tick. More decimals than this are rejected."""

CURRENCY_DECIMALS_MAX = 18
"""More than any settlement currency has."""

INT64_MAX = 2**63 - 1
"""The ledger stores 64-bit integers. An event with a larger amount is rejected."""

EXACT = Context(prec=100, Emax=100, Emin=-100, traps=[Inexact, InvalidOperation, Overflow])
"""Arithmetic that raises an error instead of rounding; wide enough for every amount that a ledger can hold."""

_POWERS: list[int] = [10**exponent for exponent in range(CURRENCY_DECIMALS_MAX + 1)]


def parse_price(text: str, decimals: int) -> int:
    """Returns the price in units of 10**-decimals; raises Rejection unless it is positive, exact and 64-bit."""
    price = parse_amount(text, decimals)
    if not price:
        raise Rejection(Reason.OUT_OF_RANGE, f"price {text!r} is not above 0")
    return price


def parse_amount(text: str, decimals: int) -> int:
    """Returns the amount in units of 10**-decimals; raises Rejection unless it is exact, 64-bit and not negative."""
    whole, point, fraction = text.partition(".")
    digits = whole + fraction
    if not (digits.isascii() and digits.isdigit() and whole) or (point and not fraction):
        raise Rejection(Reason.INVALID_NUMBER, f"{text!r} is not a plain decimal number such as 84478.9")
    missing = decimals - len(fraction)
    if missing < 0:
        raise Rejection(Reason.TOO_MANY_DECIMALS, f"{text!r} has more than {decimals} decimals")
    amount = int(digits) * _POWERS[missing]
    if amount > INT64_MAX:
        raise Rejection(Reason.OUT_OF_RANGE, f"{text!r} is above {format_units(INT64_MAX, decimals)}")
    return amount


def format_units(units: int, decimals: int) -> str:
    """Formats an integer of 10**-decimals as the shortest exact decimal text: (-15000, 2) gives '-150'."""
    sign = "-" if units < 0 else ""
    digits = str(abs(units)).rjust(decimals + 1, "0")
    whole, fraction = digits[: len(digits) - decimals], digits[len(digits) - decimals :].rstrip("0")
    return f"{sign}{whole}.{fraction}" if fraction else sign + whole


def to_units(amount: Decimal, decimals: int) -> int:
    """Returns the exact integer of 10**-decimals; raises ValueError if the amount is finer, too large or not finite."""
    try:
        return int(EXACT.to_integral_exact(EXACT.scaleb(amount, decimals)))
    except (ArithmeticError, ValueError):
        raise ValueError(f"{amount} is not a number with at most {decimals} decimals") from None
