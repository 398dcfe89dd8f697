"""The fullness of a fund relative to its target, and the leverage recommended for it. The service does not act on either."""

import math
from fractions import Fraction
from typing import Annotated, Literal, NamedTuple

import msgspec

RuleName = Literal["value_at_risk", "cover", "open_interest", "none"]

LEVERAGE_STEPS = 100
"""A recommended leverage is rounded down to hundredths. No exchange offers finer steps."""

PeriodHours = Annotated[int, msgspec.Meta(ge=1, le=168)]
HistoryDays = Annotated[int, msgspec.Meta(ge=1, le=3650)]
CostOfCapital = Annotated[float, msgspec.Meta(gt=0, le=1)]
CostOfLoss = Annotated[float, msgspec.Meta(gt=0, le=1000)]
Positions = Annotated[int, msgspec.Meta(ge=1, le=100)]
Move = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
"""The parameters of the rules."""

_HOURS_PER_DAY = 24


class TargetPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rule and the parameters of a target size; see section "Target size" of the handbook.

    With the defaults the value at risk is that of 99 of 100 days: the fourth largest deficit of the days of a year.
    """

    rule: RuleName = "value_at_risk"
    period_hours: PeriodHours = 24
    history_days: HistoryDays = 365
    cost_of_capital: CostOfCapital = 0.0003
    cost_of_loss: CostOfLoss = 0.03
    positions: Positions = 2
    move: Move = 0.10
    share: Share = 0.01
    fullness_low: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.5
    fullness_high: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1.0
    leverage_min: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0

    def __post_init__(self) -> None:
        if self.cost_of_capital >= self.cost_of_loss:
            raise ValueError(f"cost_of_capital {self.cost_of_capital} must be below cost_of_loss {self.cost_of_loss}")
        if self.fullness_low >= self.fullness_high:
            raise ValueError(f"fullness_low {self.fullness_low} must be below fullness_high {self.fullness_high}")
        if self.history_days * _HOURS_PER_DAY < self.period_hours:
            raise ValueError(f"history_days {self.history_days} must be at least one period of {self.period_hours} hours")

    @property
    def level(self) -> Fraction:
        """The level of the value at risk: 1 - cost of capital / cost of loss, above 0 and below 1."""
        return 1 - exact(self.cost_of_capital) / exact(self.cost_of_loss)

    @property
    def periods_needed(self) -> int:
        """The number of periods from which on the value at risk is not always the largest deficit."""
        return math.ceil(1 / (1 - self.level))

    @property
    def periods_max(self) -> int:
        """The number of periods in the history."""
        return self.history_days * _HOURS_PER_DAY // self.period_hours


class Target(NamedTuple):
    """The target size of a fund, and the parameters of the recommended leverage.

    `amount` is in atoms, None if it could not be computed. `leverage_max` is the contract's `maxLeverage`, None if its listing
    has none.
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
        """Returns balance / target; None without a target, or if the target is 0."""
        return balance / self.amount if self.amount else None

    def leverage_cap(self, balance: int) -> float | None:
        """Returns the recommended leverage, exact, then rounded down to hundredths; None without a target or `leverage_max`.

        It rises linearly with the fullness, from `leverage_min` at `fullness_low` to `leverage_max` at `fullness_high`.
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
    """Returns the decimal number that a float was written as: 0.1 gives 1/10, not the nearest float."""
    return Fraction(str(number))
