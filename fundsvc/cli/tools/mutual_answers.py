"""What the commands on the mutual print: pools, accounts and cut-offs, with amounts as decimal text and rates as shares."""

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from fundsvc.config.settings import MutualConfig
from fundsvc.core.numbers import format_units
from fundsvc.mutual.core.rows import CycleRow, PolicyRow, State
from fundsvc.mutual.core.standing import standing
from fundsvc.mutual.core.terms import DAY_MS, PPM, Rules, farming_warning
from fundsvc.mutual.store.reader import AccountState, Payouts, PoolState


class Answer(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """The base of the answers; their names in JSON are camelCase. Times are in ms."""


class PoolStatus(Answer, frozen=True, kw_only=True):
    """A pool. `ratio` is what the last `ratio_cycles` cut-offs released of the face issued in the same time.

    `release` is the share of the available balance that a cut-off would release now. `state` is `running`, `halted` or
    `not owned`. `warnings` are sentences about its terms and its configuration.
    """

    pool: str
    state: str
    halted: str
    balance: str
    health: float | None
    release: float
    active: int
    live: int
    ratio: float | None
    ratio_cycles: int
    paid_out: str
    accounts: int
    unfunded: int
    next_cutoff: int
    terms: int
    warnings: list[str]


class PolicyStatus(Answer, frozen=True, kw_only=True):
    """A live policy: what it has accrued in all, and what of it is due. `active_at` is set while it waits."""

    policy: int
    state: str
    face: str
    cap: str
    accrued: str
    due: str
    active_at: int | None
    expires_at: int


class AccountStatus(Answer, frozen=True, kw_only=True):
    """An account of a pool, its live policies, and what its owner should do."""

    pool: str
    account: str
    covered: bool
    balance: str
    arrears: str
    accumulated: str
    threshold: str
    due: str
    payable: str
    paid_out: str
    advice: list[str]
    policies: list[PolicyStatus]


class CycleStatus(Answer, frozen=True, kw_only=True):
    """A cut-off. `balance` is before it, `released` what it distributed; `completed` counts policies that reached their cap."""

    cycle: int
    at: int
    balance: str
    health: float | None
    rate: float
    released: str
    share: float | None
    completed: int


def pool_status(state: PoolState, payouts: Payouts, unfunded: int, configured: MutualConfig) -> PoolStatus:
    """Returns the answer for a pool."""
    row, decimals = state.row, state.rules.decimals
    farming = farming_warning(state.rules)
    return PoolStatus(
        pool=row.pool,
        state="halted" if state.halted else "running" if state.is_owned else "not owned",
        halted=state.halted,
        balance=format_units(row.balance, decimals),
        health=None if state.health is None else state.health / PPM,
        release=state.release_rate / PPM,
        active=state.totals.active,
        live=state.totals.live,
        ratio=payouts.ratio,
        ratio_cycles=payouts.cycles,
        paid_out=format_units(row.paid_out, decimals),
        accounts=state.accounts,
        unfunded=unfunded,
        next_cutoff=row.next_cutoff,
        terms=row.terms,
        warnings=[*([farming] if farming else []), *configured.missing([row.pool]).values()],
    )


def account_status(state: AccountState) -> AccountStatus:
    """Returns the answer for an account."""
    account, rules = state.account, state.pool.rules
    policies = [_policy(policy, state) for policy in state.live]
    amounts = {
        "balance": account.balance,
        "arrears": account.arrears,
        "accumulated": account.accumulated,
        "threshold": rules.threshold,
        "due": sum(standing(policy, account.unfit_since, state.pool.row, rules).due for policy in state.live),
        "payable": account.payable,
        "paid_out": account.paid_out,
    }
    return AccountStatus(
        pool=state.pool.row.pool,
        account=account.account,
        covered=account.is_covered,
        advice=list(_advice(state)),
        policies=policies,
        **{name: format_units(amount, rules.decimals) for name, amount in amounts.items()},
    )


def cycle_status(row: CycleRow, rules: Rules) -> CycleStatus:
    """Returns the answer for a cut-off. `share` is what an active policy accrued of its face."""
    released, available = row.budget - row.returned, row.pool - rules.reserve_floor
    return CycleStatus(
        cycle=row.cycle,
        at=row.at,
        balance=format_units(row.pool, rules.decimals),
        health=available / row.caps_left if row.caps_left > 0 else None,
        rate=row.rate / PPM,
        released=format_units(released, rules.decimals),
        share=released / row.weight if row.weight else None,
        completed=row.completed,
    )


def at_minute(ms: int) -> str:
    """Returns a time of UTC by the minute; "" for 0."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}" if ms else ""


def _policy(policy: PolicyRow, state: AccountState) -> PolicyStatus:
    rules = state.pool.rules
    found = standing(policy, state.account.unfit_since, state.pool.row, rules)
    amounts = {"face": policy.face, "cap": policy.cap, "accrued": found.accrued, "due": found.due}
    return PolicyStatus(
        policy=policy.policy,
        state=policy.state.name,
        active_at=found.active_at if policy.state == State.WAITING else None,
        expires_at=policy.expires_at,
        **{name: format_units(amount, rules.decimals) for name, amount in amounts.items()},
    )


def _advice(state: AccountState) -> Iterator[str]:
    """Yields what an account lacks for cover and for the next cut-off."""
    account, rules = state.account, state.pool.rules
    if not account.enabled:
        yield "disabled: enable the account, so that trades opened from then on are insured"
    missing = account.lacking(rules.min_funding)
    if missing and not account.is_covered:
        yield f"not funded: transfer {format_units(missing, rules.decimals)} to the insurance account"
    if account.unfit_since and state.live:
        volume, days = format_units(rules.activity_volume, rules.decimals), rules.activity_ms / DAY_MS
        yield f"frozen since {at_minute(account.unfit_since)}: be covered, and trade a volume of {volume} within {days:g} days"
