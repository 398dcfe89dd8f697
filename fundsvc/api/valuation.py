"""Values a fund in other currencies and relative to its past and its market, in exact arithmetic."""

import math
from fractions import Fraction
from typing import NamedTuple

from fundsvc.core.fund.fullness import Target
from fundsvc.core.numbers import PRICE_DECIMALS_MAX, format_units
from fundsvc.store.reader import FundRow
from fundsvc.store.statistics import Past

EQUIVALENT_DECIMALS = 8
"""The decimals of converted amounts, as USDT has. Converted amounts are rounded down; balances are exact."""


class FundValuation(NamedTuple):
    """The inputs of a fund's valuation.

    `rate` is USDT per unit of the settlement currency in units of 10**-PRICE_DECIMALS_MAX; if it is None, `rate_missing` is
    the reason. `mark` is in the contract's units, None before the first mark. `open_interest` is in lots, None until books are
    loaded. `target` is None until it is computed.
    """

    rate: int | None
    rate_missing: str
    mark: int | None
    open_interest: int | None
    past: Past
    target: Target | None = None


def in_usdt(amount: Fraction, rate: int) -> Fraction:
    """Converts an amount in whole units of its currency at a rate, exactly."""
    return amount * Fraction(rate, 10**PRICE_DECIMALS_MAX)


def balance_usdt(fund: FundRow, valuation: FundValuation) -> str | None:
    """Returns the balance in USDT, or None without a rate."""
    if valuation.rate is None:
        return None
    worth = in_usdt(Fraction(fund.balance, 10**fund.settle_decimals), valuation.rate)
    return format_units(math.floor(worth * 10**EQUIVALENT_DECIMALS), EQUIVALENT_DECIMALS)


def base_currency(fund: FundRow) -> str | None:
    """Returns the base currency of the listing; of an inverse contract without one, its settlement currency."""
    return fund.base_currency or (fund.settle_currency if fund.contract.is_inverse else None)


def balance_base(fund: FundRow, valuation: FundValuation) -> str | None:
    """Returns the balance in the base currency at the mark, or the balance itself if the contract settles in that currency.

    Returns None for a quanto contract, because its mark does not price the base in the settlement currency, and without a mark
    or a base currency.
    """
    contract, mark = fund.contract, valuation.mark
    if contract.is_inverse or fund.base_currency == fund.settle_currency:
        return format_units(fund.balance, fund.settle_decimals)
    if mark is None or fund.base_currency is None or fund.is_quanto:
        return None
    scale = 10 ** (contract.price_decimals + EQUIVALENT_DECIMALS)
    return format_units(fund.balance * scale // (10**fund.settle_decimals * mark), EQUIVALENT_DECIMALS)


def base_missing(fund: FundRow) -> str:
    """Returns the reason why `balance_base` is None."""
    if fund.is_quanto:
        return f"{fund.symbol} is a quanto contract: its mark does not price {fund.base_currency} in {fund.settle_currency}"
    if fund.base_currency:
        return f"no mark price of {fund.symbol} is known yet"
    return f"the listing of {fund.symbol} has no baseCurrency"


def balance_to_open_interest(fund: FundRow, valuation: FundValuation) -> float | None:
    """Returns the balance divided by the value of the open interest at the mark; None without mark or open interest."""
    mark, lots = valuation.mark, valuation.open_interest
    if mark is None or not lots:
        return None
    numerator, denominator = fund.contract.value_factor()
    if fund.contract.is_inverse:
        return fund.balance * denominator * mark / (lots * numerator)
    return fund.balance * denominator / (mark * lots * numerator)
