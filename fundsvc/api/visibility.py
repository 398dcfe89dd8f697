"""Whose positions a caller sees as they are. Those of others are shown with their numbers rounded to two significant digits."""

from decimal import ROUND_HALF_UP, Context
from typing import NamedTuple, TypeVar

from fundsvc.api.http.tokens import Caller

Number = TypeVar("Number", int, float, str)

_ROUGH = Context(prec=2, rounding=ROUND_HALF_UP)


class Visibility(NamedTuple):
    """`everything`, or the positions of one account; "" is none."""

    everything: bool = False
    account: str = ""

    def is_exact(self, account: str) -> bool:
        """Whether the position of an account is shown as it is."""
        return self.everything or (account == self.account != "")


PUBLIC = Visibility()
"""The visibility of a client without a token."""

OPERATOR = Visibility(everything=True)
"""The visibility of risk and of the command line."""


def visibility_of(viewer: Caller | None) -> Visibility:
    """What a caller sees: risk everything, a trader its own positions."""
    if viewer is None or viewer.role == "engine":
        return PUBLIC
    return OPERATOR if viewer.role == "risk" else Visibility(account=viewer.account)


def rough(value: Number) -> Number:
    """A number, or decimal text, rounded to two significant digits."""
    if isinstance(value, str):
        return format(_ROUGH.create_decimal(value).normalize(), "f")
    if isinstance(value, int):
        return int(_ROUGH.create_decimal(value))
    return float(_ROUGH.create_decimal_from_float(value))


def rough_or_none(value: Number | None) -> Number | None:
    """The same of a number that there may be none of."""
    return None if value is None else rough(value)


def rough_total(lots: int) -> int:
    """The lots of several positions, rounded to two significant digits and to tens.

    Two totals of small numbers would else differ by exactly what one position changed.
    """
    return rough(-(-lots // 10) * 10)
