"""Determines the positions that a caller sees exactly. Numbers of all other positions are rounded to two significant digits."""

from decimal import ROUND_HALF_UP, Context
from typing import NamedTuple, TypeVar

from msgspec import UNSET, UnsetType

from fundsvc.api.http.errors import BadParameter, Forbidden
from fundsvc.api.http.tokens import Caller

Number = TypeVar("Number", int, float, str)

_ROUGH = Context(prec=2, rounding=ROUND_HALF_UP)


class Visibility(NamedTuple):
    """Exact visibility of all accounts, or of one account; "" is none. `names` is whether answers name the accounts."""

    all_accounts: bool = False
    account: str = ""
    names: bool = False

    def is_exact(self, account: str) -> bool:
        """Returns whether positions of an account are shown exactly."""
        return self.all_accounts or (account == self.account != "")


PUBLIC = Visibility()
"""The visibility without a token."""

OPERATOR = Visibility(all_accounts=True)
"""The visibility of risk and of the command line."""

EXECUTOR = Visibility(all_accounts=True, names=True)
"""The visibility of what executes an order."""


def visibility_of(caller: Caller | None) -> Visibility:
    """Returns the visibility of a caller: all accounts for risk, its own account for a trader."""
    if caller is None or caller.role == "engine":
        return PUBLIC
    return OPERATOR if caller.role == "risk" else Visibility(account=caller.account)


def account_of(given: str | UnsetType, caller: Caller) -> str:
    """Returns the requested account, by default the caller's; raises Forbidden for another account than a trader's own."""
    account = caller.account if given is UNSET else given
    if not account:
        raise BadParameter("account is required: this token may read any account")
    if caller.role == "trader" and account != caller.account:
        raise Forbidden("a trader's token reads only its own account: omit `account`")
    return account


def rough(value: Number) -> Number:
    """Rounds a number or decimal text to two significant digits."""
    if isinstance(value, str):
        return format(_ROUGH.create_decimal(value).normalize(), "f")
    if isinstance(value, int):
        return int(_ROUGH.create_decimal(value))
    return float(_ROUGH.create_decimal_from_float(value))


def rough_or_none(value: Number | None) -> Number | None:
    """Rounds a number to two significant digits; None stays None."""
    return None if value is None else rough(value)


def rough_total(lots: int) -> int:
    """Rounds the lots of several positions up to tens, then to two significant digits.

    Otherwise the difference of two small totals would be the exact change of one position.
    """
    return rough(-(-lots // 10) * 10)
