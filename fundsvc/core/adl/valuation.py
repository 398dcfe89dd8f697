"""Values positions at a price: PnL, equity, leverage, score and bankruptcy price."""

import math
from typing import Literal, NamedTuple

from fundsvc.core.contracts import Contract
from fundsvc.core.numbers import INT64_MAX

SideName = Literal["long", "short"]

LIGHTS = 5
"""The highest number of lights; ADL reduces positions with five lights first."""

NO_LIMIT = 2**64
"""The limit of a short that no price can bankrupt; it is above every price."""


class Rank(NamedTuple):
    """The rank of a position, from 1, among the `ranked` positions of its side with a rank."""

    rank: int
    ranked: int

    @property
    def lights(self) -> int:
        """5 - floor((rank - 1) x 5 / n); ADL reduces five lights first."""
        return LIGHTS - (self.rank - 1) * LIGHTS // self.ranked

    @property
    def percentile(self) -> float:
        """Rank / n, above 0 and at most 1."""
        return self.rank / self.ranked


class ValuedPosition(NamedTuple):
    """A position at a mark price, with the numbers that determine its rank.

    Prices are in the contract's units, `margin` and `unrealised_pnl` (rounded down, limited to 64 bits) in atoms.
    `return_on_entry` is uPnL / entry value; `leverage` is mark value / equity, infinite without positive equity.
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
    """Values the positions of one side of a contract. Exact, except `lot_value` and the floats of `ValuedPosition`."""

    __slots__ = ("_denominator", "_numerator", "direction", "gains_when_rising", "is_inverse")

    def __init__(self, contract: Contract, name: SideName) -> None:
        self.is_inverse = contract.is_inverse
        self.gains_when_rising = name == "long"
        self.direction = 1 if self.gains_when_rising != contract.is_inverse else -1
        self._numerator, self._denominator = contract.value_factor()

    def lot_value(self, price: int) -> float:
        """Returns the value of a lot at a price, in atoms, rounded to the nearest float."""
        if self.is_inverse:
            return self._numerator / (self._denominator * price)
        return price * self._numerator / self._denominator

    def equity(self, lots: int, entry_price: int, margin: int, price: int) -> tuple[int, int]:
        """Returns margin + PnL at a price in atoms, as an exact fraction (numerator, positive denominator)."""
        move, unit = self._move(entry_price, price)
        return margin * unit + move * lots * self._numerator, unit

    def survives(self, limit: int, price: int) -> bool:
        """Returns whether closing a position with this `limit` at a price leaves no deficit."""
        return price >= limit if self.gains_when_rising else price <= limit

    def limit(self, lots: int, entry_price: int, margin: int) -> int:
        """Returns the last price at which closing a position leaves no deficit: the bankruptcy price, rounded to the safe side.

        The formula solves margin + PnL >= 0. An inverse short whose margin covers any rise has the limit NO_LIMIT.
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
        """Returns a position valued at a mark."""
        move, unit = self._move(entry_price, mark)
        worth = move * lots * self._numerator
        equity = (margin * unit + worth) / unit
        returned = move / (mark if self.is_inverse else entry_price)
        leverage = self.lot_value(mark) * lots / equity if equity > 0 else math.inf
        score = returned * leverage if move > 0 else returned / leverage
        pnl = max(-INT64_MAX, min(INT64_MAX, worth // unit))
        return ValuedPosition(account, lots, entry_price, margin, mark, pnl, returned, leverage, score)

    def _move(self, entry_price: int, price: int) -> tuple[int, int]:
        """Returns the gain from the entry price to a price, and the divisor that turns gain x lots x numerator into atoms."""
        move = price - entry_price if self.gains_when_rising else entry_price - price
        return move, self._denominator * price * entry_price if self.is_inverse else self._denominator
