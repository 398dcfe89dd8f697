"""Which lots of a takeover a fund accepts: those whose expected loss it can bear, within a limit of their value.

D = max(0, -worth of Q lots at the mark)          accepted = Q if D <= capacity, else floor(capacity x Q / D)
never more lots than value_max / value of one lot at the bankruptcy price, in USDT
"""

from typing import NamedTuple

from fundsvc.core.contracts import Contract
from fundsvc.core.events import Takeover
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.numbers import PRICE_DECIMALS_MAX

QUOTE = "USDT"
"""The currency of `value_max` and of rates."""


class Acceptance(NamedTuple):
    """The lots that a fund accepts of a takeover, the expected loss of all its lots, and the fund's capacity, in atoms."""

    lots: int
    loss: int
    capacity: int


def accept(fund: Fund, takeover: Takeover, price: int, mark: int | None, rate: int | None) -> Acceptance:
    """Returns what a fund accepts of a takeover at a bankruptcy price and a mark, both in the contract's units.

    `rate` is that of the settlement currency in units of 10**-PRICE_DECIMALS_MAX USDT; without one, `value_max` does not bind.
    No loss is expected without a mark.
    """
    loss = max(0, -fund.worth(takeover.side, takeover.lots, mark, price)) if mark is not None else 0
    capacity, terms = fund.capacity(takeover.ts), fund.policy.takeover
    match terms.mode:
        case "fund":
            lots = takeover.lots
        case "adl":
            lots = 0
        case "capacity":
            lots = takeover.lots if loss <= capacity else capacity * takeover.lots // loss
    if terms.value_max is not None:
        lots = min(lots, lots_worth(terms.value_max, fund.contract, price, rate, lots))
    return Acceptance(lots, loss, capacity)


def lots_worth(value: int, contract: Contract, price: int, rate: int | None, lots_max: int) -> int:
    """Returns how many lots are worth at most `value` USDT at a price; without a rate, or at price 0, `lots_max`."""
    if contract.settle_currency == QUOTE:
        rate = 10**PRICE_DECIMALS_MAX
    if rate is None or not price:
        return lots_max
    numerator, denominator = contract.value_factor()
    if contract.is_inverse:
        denominator *= price
    else:
        numerator *= price
    units = 10 ** (contract.settle_decimals + PRICE_DECIMALS_MAX)
    return int(value * units * denominator // (numerator * rate))
