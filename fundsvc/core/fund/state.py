"""The state of a fund in one word, for people and alerts."""

from typing import Literal

from fundsvc.core.fund.fullness import Target
from fundsvc.core.policy import Guard, Policy, SavedGuard
from fundsvc.core.times import AHEAD_SECONDS_MAX

FundStateName = Literal["ok", "warning", "adl", "uncovered"]
"""`adl` while an ADL order is open; else `uncovered` while an amount is outstanding; else `warning` while the drawdown guard is
active, or the balance is below the guard's stop line or the fund's target; else `ok`."""


def guard_at(now_ms: int, policy: Policy, decimals: int, kept: SavedGuard | None, balance: int) -> Guard | None:
    """Returns the drawdown guard of a fund at a time; None if the policy has none.

    `decimals` are those of the settlement currency, `kept` is the stored guard.
    """
    terms = policy.drawdown_guard
    if terms is None or kept is None:
        return None
    guard = Guard(terms, decimals, kept)
    guard.forget_after(now_ms + int(AHEAD_SECONDS_MAX * 1000))
    guard.observe(now_ms, balance)
    return guard


def state_of(
    balance: int,
    outstanding: int,
    guard: Guard | None,
    target: Target | None,
    *,
    escalated: bool,
    watched: int | None = None,
) -> FundStateName:
    """Returns the state of a fund; `escalated` means that an ADL order is open.

    `watched` is the amount that the guard watches, by default the balance.
    """
    if escalated:
        return "adl"
    if outstanding:
        return "uncovered"
    if guard and (guard.active or guard.near(balance if watched is None else watched)):
        return "warning"
    return "warning" if target and target.is_above(balance) else "ok"


def drawdown(balance: int, peak: int) -> float:
    """Returns the share of its peak that a fund has lost: 1 - balance / peak; 0 without a peak."""
    return (peak - balance) / peak if peak else 0.0
