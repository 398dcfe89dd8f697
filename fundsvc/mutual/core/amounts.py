"""Signed decimal text as exact integers of 10**-decimals."""

from fundsvc.core.events import Reason, Rejection
from fundsvc.core.numbers import INT64_MAX, format_units


def parse_exact(text: str, decimals: int) -> int:
    """Returns the amount in atoms; raises Rejection unless it is a plain number, exact and 64-bit."""
    sign, whole, fraction = _parts(text)
    if len(fraction) > decimals:
        raise Rejection(Reason.TOO_MANY_DECIMALS, f"{text!r} has more than {decimals} decimals")
    return _atoms(text, sign, whole, fraction, decimals)


def parse_cut(text: str, decimals: int) -> int:
    """Returns the amount in atoms, cut towards 0; raises Rejection unless it is a plain number and 64-bit."""
    sign, whole, fraction = _parts(text)
    return _atoms(text, sign, whole, fraction[:decimals], decimals)


def _parts(text: str) -> tuple[int, str, str]:
    """Returns the sign, the whole digits and the digits of the fraction."""
    sign, digits = (-1, text[1:]) if text[:1] == "-" else (1, text)
    whole, point, fraction = digits.partition(".")
    together = whole + fraction
    if not (together.isdigit() and together.isascii() and whole) or (point and not fraction):
        raise Rejection(Reason.INVALID_NUMBER, f"{text!r} is not a plain decimal number such as -12.5")
    return sign, whole, fraction


def _atoms(text: str, sign: int, whole: str, fraction: str, decimals: int) -> int:
    atoms = int(whole + fraction.ljust(decimals, "0"))
    if atoms > INT64_MAX:
        raise Rejection(Reason.OUT_OF_RANGE, f"{text!r} is beyond {format_units(INT64_MAX, decimals)}")
    return sign * atoms
