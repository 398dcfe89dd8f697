"""What a fund is worth elsewhere and how it has done: arithmetic on integers over what others have looked up."""

import math
from fractions import Fraction
from typing import NamedTuple

from fundsvc.core.fund.fullness import Target
from fundsvc.core.numbers import PRICE_DECIMALS_MAX, format_units
from fundsvc.store.reader import FundRow
from fundsvc.store.statistics import Past

EQUIVALENT_DECIMALS = 8
"""What a balance is worth in another currency is rounded down to so many decimals, as USDT has; balances never are."""


class FundValuation(NamedTuple):
    """What a fund is valued by. Two that are equal give equal answers.

    `rate` is USDT per unit of the settlement currency in units of 10**-PRICE_DECIMALS_MAX; where there is none, `unrated` says
    why. `mark` is in the contract's units, None until one came; `open_interest` is in lots, None until books are loaded;
    `target` is None until one was looked for.
    """

    rate: int | None
    unrated: str
    mark: int | None
    open_interest: int | None
    past: Past
    target: Target | None = None


def in_usdt(amount: Fraction, rate: int) -> Fraction:
    """An amount in whole units of its currency at a rate, exact."""
    return amount * Fraction(rate, 10**PRICE_DECIMALS_MAX)


def balance_usdt(fund: FundRow, valuation: FundValuation) -> str | None:
    """The balance in USDT, if there is a rate."""
    if valuation.rate is None:
        return None
    worth = in_usdt(Fraction(fund.balance, 10**fund.settle_decimals), valuation.rate)
    return format_units(math.floor(worth * 10**EQUIVALENT_DECIMALS), EQUIVALENT_DECIMALS)


def base_currency(fund: FundRow) -> str | None:
    """What the contract is about: as its listing says, and for an inverse one at least what it settles in."""
    return fund.base_currency or (fund.settle_currency if fund.contract.is_inverse else None)


def balance_base(fund: FundRow, valuation: FundValuation) -> str | None:
    """The balance in the base currency at the mark; of a contract that settles in it, the balance itself.

    None for a quanto contract: its mark does not price the base in the settlement currency.
    """
    contract, mark = fund.contract, valuation.mark
    if contract.is_inverse or fund.base_currency == fund.settle_currency:
        return format_units(fund.balance, fund.settle_decimals)
    if mark is None or fund.base_currency is None or fund.is_quanto:
        return None
    scale = 10 ** (contract.price_decimals + EQUIVALENT_DECIMALS)
    return format_units(fund.balance * scale // (10**fund.settle_decimals * mark), EQUIVALENT_DECIMALS)


def why_no_base(fund: FundRow) -> str:
    """What a balance in the base currency lacks."""
    if fund.is_quanto:
        return f"{fund.symbol} is a quanto contract: its mark does not price {fund.base_currency} in {fund.settle_currency}"
    if fund.base_currency:
        return f"no mark price of {fund.symbol} has come yet"
    return f"the listing of {fund.symbol} names no baseCurrency"


def drawdown(balance: int, peak: int) -> float:
    """1 - balance / peak: what share of its peak a fund has lost."""
    return (peak - balance) / peak if peak else 0.0


def balance_to_open_interest(fund: FundRow, valuation: FundValuation) -> float | None:
    """The balance over what the open interest is worth at the mark; None without either."""
    mark, lots = valuation.mark, valuation.open_interest
    if mark is None or not lots:
        return None
    numerator, denominator = fund.contract.value_factor()
    if fund.contract.is_inverse:
        return fund.balance * denominator * mark / (lots * numerator)
    return fund.balance * denominator / (mark * lots * numerator)
