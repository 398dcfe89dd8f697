"""A market of insured accounts, drawn from a seed: the same market gives the same events.

Each account closes no, one or two positions a day, half of them at a loss. Sizes are log-normal. Pairs of further accounts
farm: one is long and the other short, so one loses what the other gains. They do so once a day for `FARM_DAYS` days, then
trade without gain or loss, which keeps them active.
"""

from collections.abc import Iterator, Sequence
from math import log
from random import Random
from typing import Annotated, Literal, NamedTuple

import msgspec

from fundsvc.core.numbers import format_units
from fundsvc.mutual.core.events import Enable, Event, Tick, Trade, Transfer
from fundsvc.mutual.core.terms import DAY_MS, Rules

Size = Literal["threshold", "market"]

POOL = "SIMULATION"
SYMBOL = "XBTUSDTM"

START_MS = 20_454 * DAY_MS
"""Midnight of UTC, 2026-01-01."""

TRADES_A_DAY_MAX = 2
"""At one trade a day on average, some account pauses for a week now and then, so that its policies freeze."""

LOSS_MEAN = 0.3
"""The mean loss, in thresholds: several losses make a policy. With it, the first policies wait for days, as in a new pool."""

SIGMA = 1.0
"""The spread of sizes: the largest of a hundred is about ten times the median."""

FUNDING_ATOMS = 10**16
"""What each account has: enough for all premiums, so that none is left unpaid."""

FARM_DAYS = 10

PAIRS: dict[Size, int] = {"threshold": 1, "market": 5}
"""Pairs that farm at the same time by the size of a day's loss: exactly a threshold, or like those of the market."""


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """A market. `ratio` is that of insured profits to insured losses, on average."""

    accounts: Annotated[int, msgspec.Meta(ge=1)] = 200
    days: Annotated[int, msgspec.Meta(ge=1)] = 365
    ratio: Annotated[float, msgspec.Meta(ge=0, le=100)] = 1.0
    seed: int = 1


class Farm(NamedTuple):
    """Pairs that farm from a day on (from 0). A loser and the winner opposite it have the same place in both lists."""

    first_day: int
    size: Size
    losers: Sequence[str]
    winners: Sequence[str]


def farms_from(first_day: int) -> Iterator[Farm]:
    """Yields pairs that farm from a day on, for each size of losses."""
    for size, pairs in PAIRS.items():
        names = [f"{size} {first_day} {pair}" for pair in range(pairs)]
        yield Farm(first_day, size, [f"{name} long" for name in names], [f"{name} short" for name in names])


class Trader:
    """Draws the events of a market, day by day."""

    def __init__(self, market: Market, rules: Rules, farms: Sequence[Farm]) -> None:
        self._market = market
        self._rules = rules
        self._farms = farms
        self._random = Random(market.seed)  # noqa: S311 - a simulation, to be repeated
        self._accounts = [f"account {number}" for number in range(market.accounts)]
        self._seq = 0

    def opening(self) -> Iterator[Event]:
        """Yields the events that fund and enable all accounts."""
        funding = format_units(FUNDING_ATOMS, self._rules.decimals)
        for account in (*self._accounts, *(name for farm in self._farms for name in (*farm.losers, *farm.winners))):
            yield Transfer(POOL, START_MS, self._next(), account, funding, "funding")
            yield Enable(POOL, START_MS, self._next(), account)

    def day(self, day: int) -> Iterator[Event]:
        """Yields the events of a day, by time. The last one is a tick at its end."""
        start = START_MS + day * DAY_MS
        closed = [(start + self._random.randrange(1, DAY_MS), account, pnl) for account, pnl in self._results(day)]
        for ts, account, pnl in sorted(closed):
            yield self._trade(ts, account, pnl)
        yield Tick(POOL, start + DAY_MS - 1)

    def _results(self, day: int) -> Iterator[tuple[str, int]]:
        """Yields accounts and the results of their trades of a day, in atoms."""
        draw = self._random
        for account in self._accounts:
            for _ in range(draw.randint(0, TRADES_A_DAY_MAX)):
                size = self._size()
                yield account, -size if draw.random() < 1 / 2 else round(size * self._market.ratio)
        for farm in self._farms:
            for loser, winner in zip(farm.losers, farm.winners, strict=True):
                size = self._farmed(farm, day)
                yield loser, -size
                yield winner, size

    def _farmed(self, farm: Farm, day: int) -> int:
        """Returns the loss that a pair brings about on a day, in atoms."""
        if not 0 <= day - farm.first_day < FARM_DAYS:
            return 0
        return self._rules.threshold if farm.size == "threshold" else self._size()

    def _size(self) -> int:
        """Returns the size of a loss in atoms."""
        mean = LOSS_MEAN * self._rules.threshold
        return round(self._random.lognormvariate(log(mean) - SIGMA**2 / 2, SIGMA))

    def _trade(self, ts: int, account: str, pnl: int) -> Trade:
        """Returns a trade that was opened and closed at a time, large enough for the activity test."""
        pnl_text, volume = (format_units(amount, self._rules.decimals) for amount in (pnl, self._rules.activity_volume))
        return Trade(POOL, ts, self._next(), account, SYMBOL, f"t{self._seq}", ts, pnl_text, volume)

    def _next(self) -> int:
        self._seq += 1
        return self._seq
