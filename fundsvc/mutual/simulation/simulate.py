"""Applies a market to the core, and measures what policies are paid of their face over their life."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from fundsvc.core.numbers import format_units
from fundsvc.mutual.core.events import Event
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import CycleRow, PolicyRow, PoolRow, State
from fundsvc.mutual.core.terms import DAY_MS, Rules, Terms, farming_warning
from fundsvc.mutual.simulation.market import FARM_DAYS, POOL, START_MS, Farm, Market, Size, Trader, farms_from

FIRST_DAYS = 10
"""The days in which few policies share the pool."""

RATIO_CYCLES = 30
"""Cycles of the ratio that the service shows, too."""


class Day(NamedTuple):
    """The pool at the end of a day: its balance in atoms, its live policies by state, and the ratio of the last 30 cycles.

    The ratio is what was distributed in them, as a share of the face of the policies issued in them; None without policies.
    """

    day: int
    balance: int
    waiting: int
    active: int
    frozen: int
    ratio: float | None


class Cohort(msgspec.Struct, frozen=True):
    """Policies by days of issue, from and to (from 0, without the last): their number, face and what they are paid, in atoms.

    `open` counts those that have not ended; they may be paid more.
    """

    first_day: int
    end_day: int
    policies: int
    open: int
    face: int
    paid: int

    @property
    def ratio(self) -> float | None:
        """What is paid as a share of the face; None without policies."""
        return self.paid / self.face if self.face else None


class Farmed(msgspec.Struct, frozen=True):
    """What pairs that farmed from a day on have lost on one side, paid as premiums on the other, and got back; in atoms."""

    first_day: int
    size: Size
    lost: int
    premiums: int
    paid: int

    @property
    def cost(self) -> float:
        """Premiums as a share of the losses."""
        return self.premiums / self.lost

    @property
    def back(self) -> float:
        """What came back as a share of the losses."""
        return self.paid / self.lost


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of a simulation. `losses` are all qualifying ones, `premiums` what the pool received of them, in atoms.

    `life_days` are the days that a policy lives at most, if its account is fit. `cohorts` are those of the first ten days, of
    the days until the first policies expire, and of the later days whose policies have ended. `by_day` has one for each day.
    """

    market: Market
    terms: Terms
    rules: Rules
    life_days: int
    losses: int
    premiums: int
    days: Sequence[Day]
    by_day: Sequence[Cohort]
    cohorts: Sequence[Cohort]
    farms: Sequence[Farmed]
    warning: str | None

    @property
    def expected(self) -> float | None:
        """What a policy would be paid of its face if all inflow were shared by all losses; None without losses."""
        return self.premiums / self.losses if self.losses else None

    def amount(self, atoms: int) -> str:
        """Returns an amount in whole units."""
        return format_units(atoms, self.rules.decimals)


def simulate(market: Market, terms: Terms, advance: Callable[[], object] = lambda: None) -> Outcome:
    """Simulates a pool under terms; calls `advance` after each day. Takes about 30 s per million trades.

    Raises ValueError if the money does not add up, which no terms can cause.
    """
    rules = terms.rules()
    life_days = -(-(rules.waiting_ms + rules.expiry_ms + 2 * rules.cycle_ms) // DAY_MS)
    starts = [day for day in (0, life_days) if day + FARM_DAYS + life_days <= market.days]
    farms = [farm for day in starts for farm in farms_from(day)]
    trader, observed = Trader(market, rules, farms), _Observed(rules)
    observed.apply(trader.opening())
    for day in range(market.days):
        observed.apply(trader.day(day))
        observed.end_day(day)
        advance()
    by_day = [observed.cohort(day, day + 1) for day in range(market.days)]
    ends = [min(end, market.days) for end in (0, FIRST_DAYS, life_days, market.days - life_days)]
    return Outcome(
        market,
        terms,
        rules,
        life_days,
        observed.losses,
        observed.pool.row().inflow,
        observed.days,
        by_day,
        [observed.cohort(start, end) for start, end in pairwise(ends) if start < end],
        [observed.farmed(farm) for farm in farms],
        farming_warning(rules),
    )


class _Observed:
    """A pool with its history: all policies by number, all cut-offs, losses and premiums by account."""

    def __init__(self, rules: Rules) -> None:
        self.pool = Pool(PoolRow(POOL), {1: rules})
        self.days: list[Day] = []
        self.losses = 0
        self._policies: dict[int, PolicyRow] = {}
        self._cycles: list[CycleRow] = []
        self._issued: list[int] = []
        self._lost: dict[str, int] = {}
        self._premiums: dict[str, int] = {}

    def apply(self, events: Iterable[Event]) -> None:
        """Applies events, and notes their effects."""
        for event in events:
            self.pool.apply(event)
        batch = self.pool.take()
        if batch.identity_error:
            raise ValueError(f"the money of the pool differs from the sum of its parts by {batch.identity_error}")
        for kind, sums in (("loss", self._lost), ("premium", self._premiums)):
            for entry in batch.entries:
                if entry.kind == kind:
                    sums[entry.account] = sums.get(entry.account, 0) + entry.amount
        self._policies.update((policy.policy, policy) for policy in batch.policies)
        self._cycles += batch.cycles
        self.losses = sum(self._lost.values())

    def end_day(self, day: int) -> None:
        """Notes the state of the pool at the end of a day."""
        state = self.pool.register.policies.state
        waiting, active, frozen = map(state.count, (State.WAITING, State.ACTIVE, State.FROZEN))
        self.days.append(Day(day, self.pool.row().balance, waiting, active, frozen, self._ratio()))

    def _ratio(self) -> float | None:
        """Returns what the last cycles distributed, as a share of the face of the policies issued in them."""
        cycles = self._cycles[-RATIO_CYCLES:]
        if not cycles:
            return None
        since = cycles[0].at - self.pool.rules.cycle_ms
        face = sum(policy.face for policy in self._policies.values() if policy.issued_at >= since)
        return sum(cycle.budget - cycle.returned for cycle in cycles) / face if face else None

    def cohort(self, first_day: int, end_day: int) -> Cohort:
        """Returns the policies issued from a day on, before another day."""
        start, end = (START_MS + day * DAY_MS for day in (first_day, end_day))
        found = [policy for policy in self._policies.values() if start <= policy.issued_at < end]
        still_open = sum(policy.state <= State.FROZEN for policy in found)
        face, paid = sum(policy.face for policy in found), sum(map(self._paid, found))
        return Cohort(first_day, end_day, len(found), still_open, face, paid)

    def farmed(self, farm: Farm) -> Farmed:
        """Returns what pairs have lost, paid and got back."""
        losers = set(farm.losers)
        paid = sum(self._paid(policy) for policy in self._policies.values() if policy.account in losers)
        premiums = sum(self._premiums.get(name, 0) for name in farm.winners)
        return Farmed(farm.first_day, farm.size, sum(self._lost.get(name, 0) for name in losers), premiums, paid)

    def _paid(self, policy: PolicyRow) -> int:
        """Returns what a policy has accrued in all."""
        return self.pool.standing(policy).accrued
