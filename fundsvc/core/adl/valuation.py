"""What a position is worth at a price, and where that puts it among the positions of its side."""

import math
from typing import Literal, NamedTuple

from fundsvc.core.contracts import Contract
from fundsvc.core.numbers import INT64_MAX

SideName = Literal["long", "short"]

LIGHTS = 5
"""Five lights lit: deleveraged first."""

NO_LIMIT = 2**64
"""Above every price."""


class Rank(NamedTuple):
    """Where a position stands among the `ranked` of its side, 1 first."""

    rank: int
    ranked: int

    @property
    def lights(self) -> int:
        """5 - floor((rank - 1) x 5 / n): five lights are deleveraged first."""
        return LIGHTS - (self.rank - 1) * LIGHTS // self.ranked

    @property
    def percentile(self) -> float:
        """Rank / n, above 0 and at most 1."""
        return self.rank / self.ranked


class ValuedPosition(NamedTuple):
    """A position with every number that its rank comes from, so that it can be recomputed by hand.

    Prices are in the contract's units, `margin` and `unrealised_pnl` (rounded down, and at most 64 bits) in atoms;
    `return_on_entry` is uPnL / entry value, `leverage` mark value / equity, infinite where there is no equity.
    """

    account: str
    lots: int
    entry_price: int
    margin: int
    mark_price: int
    unrealised_pnl: int
    return_on_entry: float
    leverage: float
    score: float


class Valuation:
    """What positions of one side of a contract are worth at a price; exact but for the floats of a `ValuedPosition`."""

    __slots__ = ("_denominator", "_numerator", "direction", "gains_when_rising", "is_inverse")

    def __init__(self, contract: Contract, name: SideName) -> None:
        self.is_inverse = contract.is_inverse
        self.gains_when_rising = name == "long"
        self.direction = 1 if self.gains_when_rising != contract.is_inverse else -1
        self._numerator, self._denominator = contract.value_factor()

    def lot_value(self, price: int) -> float:
        """What a lot is worth at a price, in atoms; the quotient of integers is the float nearest to it."""
        if self.is_inverse:
            return self._numerator / (self._denominator * price)
        return price * self._numerator / self._denominator

    def equity(self, lots: int, entry_price: int, margin: int, price: int) -> tuple[int, int]:
        """Margin + PnL of a position at a price in atoms, as a fraction (numerator, positive denominator)."""
        move, unit = self._move(entry_price, price)
        return margin * unit + move * lots * self._numerator, unit

    def survives(self, limit: int, price: int) -> bool:
        """Whether closing a position with this limit at a price leaves no deficit."""
        return price >= limit if self.gains_when_rising else price <= limit

    def limit(self, lots: int, entry_price: int, margin: int) -> int:
        """The last price at which closing a position leaves no deficit: its bankruptcy price, rounded to its safe side.

        From margin + PnL >= 0; a short whose margin covers any rise has no limit, which is a price beyond all.
        """
        worth, cover = lots * self._numerator, margin * self._denominator
        if self.is_inverse:
            worth, cover = worth * entry_price, cover * entry_price
            divisor = lots * self._numerator + (cover if self.gains_when_rising else -cover)
            if divisor <= 0:
                return NO_LIMIT
            return -(-worth // divisor) if self.gains_when_rising else worth // divisor
        if self.gains_when_rising:
            return -((cover - entry_price * worth) // worth)
        return (cover + entry_price * worth) // worth

    def valued(self, account: str, lots: int, entry_price: int, margin: int, mark: int) -> ValuedPosition:
        """A position at a mark, with the numbers of its rank."""
        move, unit = self._move(entry_price, mark)
        worth = move * lots * self._numerator
        equity = (margin * unit + worth) / unit
        returned = move / (mark if self.is_inverse else entry_price)
        leverage = self.lot_value(mark) * lots / equity if equity > 0 else math.inf
        score = returned * leverage if move > 0 else returned / leverage
        pnl = max(-INT64_MAX, min(INT64_MAX, worth // unit))
        return ValuedPosition(account, lots, entry_price, margin, mark, pnl, returned, leverage, score)

    def _move(self, entry_price: int, price: int) -> tuple[int, int]:
        """The gain of a price over an entry price, and what gain x lots x numerator is to be divided by for atoms."""
        move = price - entry_price if self.gains_when_rising else entry_price - price
        return move, self._denominator * price * entry_price if self.is_inverse else self._denominator
