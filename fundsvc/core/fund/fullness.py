"""How full a fund is beside its target, and what leverage that bears: a signal for people, nothing acts on it."""

import math
from fractions import Fraction
from typing import Annotated, Literal, NamedTuple

import msgspec

RuleName = Literal["value_at_risk", "cover", "open_interest", "none"]

LEVERAGE_STEPS = 100
"""A recommended leverage is rounded down to hundredths, which is finer than any exchange offers."""

_HOURS_PER_DAY = 24


class TargetPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the target size of a contract's fund is found; see section "Target size" of the handbook."""

    rule: RuleName = "value_at_risk"
    period_hours: Annotated[int, msgspec.Meta(ge=1, le=168)] = 24
    history_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 365
    cost_of_capital: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.0003
    cost_of_loss: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0
    positions: Annotated[int, msgspec.Meta(ge=1, le=100)] = 2
    move: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.10
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01
    fullness_low: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.5
    fullness_high: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1.0
    leverage_min: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0

    def __post_init__(self) -> None:
        if self.cost_of_capital >= self.cost_of_loss:
            raise ValueError(
                f"cost_of_capital {self.cost_of_capital} is not below cost_of_loss {self.cost_of_loss}: no fund is worth it"
            )
        if self.fullness_low >= self.fullness_high:
            raise ValueError(f"fullness_low {self.fullness_low} is not below fullness_high {self.fullness_high}")
        if self.history_days * _HOURS_PER_DAY < self.period_hours:
            raise ValueError(f"history_days {self.history_days} is less than one period of {self.period_hours} hours")

    @property
    def level(self) -> Fraction:
        """The level of the value at risk: 1 - cost of capital / cost of loss, above 0 and below 1."""
        return 1 - exact(self.cost_of_capital) / exact(self.cost_of_loss)

    @property
    def periods_max(self) -> int:
        """How many periods of history count."""
        return self.history_days * _HOURS_PER_DAY // self.period_hours


class Target(NamedTuple):
    """The target size of a fund, and what the recommended leverage goes by.

    `amount` is in atoms, None where it could not be found; `leverage_max` is the contract's own, None where its listing names
    none.
    """

    rule: RuleName
    amount: int | None
    fullness_low: float
    fullness_high: float
    leverage_min: float
    leverage_max: float | None

    def is_above(self, balance: int) -> bool:
        """Whether a fund with this balance is below its target."""
        return self.amount is not None and balance < self.amount

    def fullness(self, balance: int) -> float | None:
        """Balance / target; None where there is no target, or nothing is needed."""
        return balance / self.amount if self.amount else None

    def leverage_cap(self, balance: int) -> float | None:
        """The recommended highest leverage: linear in the fullness, from `leverage_min` at `fullness_low` to the contract's own
        at `fullness_high`. Exact, then rounded down to hundredths; None where there is no target or no highest leverage.
        """
        if self.amount is None or self.leverage_max is None:
            return None
        highest = exact(self.leverage_max)
        lowest = min(exact(self.leverage_min), highest)
        low, high = exact(self.fullness_low), exact(self.fullness_high)
        progress = (Fraction(balance, self.amount) - low) / (high - low) if self.amount else Fraction(1)
        cap = lowest + (highest - lowest) * min(Fraction(1), max(Fraction(0), progress))
        return math.floor(cap * LEVERAGE_STEPS) / LEVERAGE_STEPS


def exact(number: float) -> Fraction:
    """The number that somebody wrote: 0.1 is a tenth, not the float nearest to it."""
    return Fraction(str(number))
