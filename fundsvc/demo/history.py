"""The times of the demo's events. The first steps are the history: they are sent at once, with times in the past.

The history of the market is half a day, so that charts have one. That of the insured traders keeps the pace of the demo, in
which hours take seconds.
"""

from typing import NamedTuple

from fundsvc.demo.instruments import CYCLE_STEPS
from fundsvc.demo.market import STEP_SECONDS

HISTORY_STEPS = 2 * CYCLE_STEPS
"""The history has two storms. The next one begins 18 seconds after it."""

MARKET_STEP_MS, INSURED_STEP_MS = 30_000, round(STEP_SECONDS * 1000)
"""Milliseconds between two steps of the history: half a day for the market, as live for the insured traders."""


class Times(NamedTuple):
    """The times of a step's events, in ms: of the market, and of the insured traders."""

    market: int
    insured: int


def times_of(step: int, begun_ms: int, now_ms: int) -> Times:
    """Returns the times of a step that is sent at `now_ms` by a feed that began at `begun_ms`. History ends when it begins."""
    left = HISTORY_STEPS - step
    if left <= 0:
        return Times(now_ms, now_ms)
    return Times(begun_ms - left * MARKET_STEP_MS, begun_ms - left * INSURED_STEP_MS)
