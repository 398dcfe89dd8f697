"""Answers about an account of the mutual: its state, its policies and its entries. Only its owner and risk receive them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from fundsvc.api.answers import Answer, milliseconds
from fundsvc.core.commitment import seal_parts
from fundsvc.core.numbers import format_units
from fundsvc.mutual.core.chain import Kind
from fundsvc.mutual.core.rows import AccountRow, PolicyRow, State
from fundsvc.mutual.core.standing import Standing, standing
from fundsvc.mutual.core.terms import DAY_MS, HOUR_MS, Rules
from fundsvc.mutual.store.reader import AccountState, EntryRow, PoolState

POLICIES_MAX = 100
"""The live policies of an account that `account` shows; the path of policies pages through all."""

StateName = Literal["waiting", "active", "frozen", "completed", "expired", "cancelled"]
Coverage = Literal["covered", "inactive", "unfunded", "disabled"]

STATES: Sequence[StateName] = ("waiting", "active", "frozen", "completed", "expired", "cancelled")
"""The names of `State`, in its order."""


class PolicyAnswer(Answer, frozen=True, kw_only=True):
    """A policy: it is paid at most `cap`, and nothing is guaranteed.

    `accrued` is its share of all cut-offs so far, `paid` the part of it that was moved to the account's `payable`, and `due`
    the rest. A waiting policy waits until `waitingUntil`, and shares from the cut-off at `sharesFrom` on if the account is
    active then; both are null in other states. `termsVersion` are the terms of its issue.
    """

    policy: int
    state: StateName
    face: str
    cap: str
    issued_at: int
    waiting_until: int | None
    shares_from: int | None
    expires_at: int
    accrued: str
    due: str
    paid: str
    terms_version: int


class ActivityAnswer(Answer, frozen=True):
    """The trades that the cut-off at `at` counts so far: their `volume`, of which `needed` is required; `missing` is the rest.

    At least one trade is required even if `needed` is 0.
    """

    at: int
    volume: str
    needed: str
    missing: str
    has_traded: bool


class ActionAnswer(Answer, frozen=True):
    """What the owner can do for cover or for policies: transfer `amount` in, or trade the volume `amount` before `until`."""

    kind: Literal["transfer", "enable", "trade"]
    amount: str | None
    until: int | None
    text: str


class InsuranceAnswer(Answer, frozen=True, kw_only=True):
    """An account in a pool. Nothing is guaranteed: amount and time of all payouts depend on the pool.

    `state` is `covered`; `inactive` if it is covered but too few trades froze its policies; `unfunded` with arrears or too
    low a balance; or `disabled`. `actions` are what to do about it. `coveredSince` is null without cover: only trades opened
    while covered count.

    `accumulated` are the qualifying losses since the last policy; at `threshold` they become the next policy, `toNextPolicy` is
    what lacks. `insuredProfits` are those of the present UTC day. `payable` was moved from policies, `due` is what a payout
    would move from active policies; the exchange fetches both. `policies` are up to 100 live policies by number.
    """

    pool: str
    state: Coverage
    enabled: bool
    unfunded: bool
    covered_since: int | None
    balance: str
    arrears: str
    accumulated: str
    threshold: str
    to_next_policy: str
    insured_profits: str
    payable: str
    due: str
    paid_out: str
    live_policies: int
    live_max: int
    activity: ActivityAnswer
    actions: list[ActionAnswer]
    policies: list[PolicyAnswer]
    has_more_policies: bool
    time: int
    entry: int


class AccountAnswer(Answer, frozen=True):
    """An account in each pool that has it; the list is empty before its first event. It includes every commit before `asOf`."""

    account: str
    pools: list[InsuranceAnswer]
    as_of: int


class StatementAnswer(Answer, frozen=True, kw_only=True):
    """An entry of an account. `amount` is that of the account, `poolBalance` the pool's after the entry.

    `policy` is 0 if the entry concerns none. `insuredProfits` are those of the UTC day after a trade that owed a premium, else
    0. The hash covers `keyId` and `commitment` (hex) instead of the account; both are "" in entries without a commitment.
    """

    pool: str
    entry: int
    seq: int
    ts: int
    kind: Kind
    policy: int
    amount: str
    pool_balance: str
    insured_profits: str
    terms_version: int
    recorded_at: int
    hash: str
    key_id: str
    commitment: str


def insurance_answer(found: AccountState) -> InsuranceAnswer:
    """Returns the answer for an account in a pool."""
    account, pool, rules = found.account, found.pool, found.pool.rules
    decimals = rules.decimals
    standings = [_standing(policy, account, pool) for policy in found.live]
    activity = _activity(account, pool)
    shown = zip(found.live[:POLICIES_MAX], standings, strict=False)
    return InsuranceAnswer(
        pool=pool.row.pool,
        state=_state(found),
        enabled=account.enabled,
        unfunded=account.unfunded,
        covered_since=account.cover[-1] if account.is_covered else None,
        balance=format_units(account.balance, decimals),
        arrears=format_units(account.arrears, decimals),
        accumulated=format_units(account.accumulated, decimals),
        threshold=format_units(rules.threshold, decimals),
        to_next_policy=format_units(max(0, rules.threshold - account.accumulated), decimals),
        insured_profits=format_units(account.profits if account.day == pool.row.time // DAY_MS else 0, decimals),
        payable=format_units(account.payable, decimals),
        due=format_units(sum(one.due for one in standings), decimals),
        paid_out=format_units(account.paid_out, decimals),
        live_policies=len(found.live),
        live_max=rules.live_max,
        activity=activity,
        actions=list(_actions(found, activity)),
        policies=[_policy_answer(policy, one, pool) for policy, one in shown],
        has_more_policies=len(found.live) > POLICIES_MAX,
        time=pool.row.time,
        entry=pool.row.entry,
    )


def policy_answers(policies: Iterable[PolicyRow], account: AccountRow, pool: PoolState) -> list[PolicyAnswer]:
    """Returns the answers for policies of an account."""
    return [_policy_answer(policy, _standing(policy, account, pool), pool) for policy in policies]


def statement_answer(row: EntryRow, decimals: int) -> StatementAnswer:
    """Returns the answer for an entry of an account."""
    entry, seal = row.entry, seal_parts(row.entry.seal)
    return StatementAnswer(
        pool=entry.pool,
        entry=entry.entry,
        seq=entry.seq,
        ts=entry.ts,
        kind=entry.kind,
        policy=entry.policy,
        amount=format_units(entry.amount, decimals),
        pool_balance=format_units(entry.balance, decimals),
        insured_profits=format_units(entry.profits, decimals),
        terms_version=entry.terms,
        recorded_at=milliseconds(row.recorded_at),
        hash=row.hash.hex(),
        key_id=seal.key_id.hex(),
        commitment=seal.commitment.hex(),
    )


def _standing(policy: PolicyRow, account: AccountRow, pool: PoolState) -> Standing:
    return standing(policy, account.unfit_since, pool.row, pool.rules)


def _policy_answer(policy: PolicyRow, found: Standing, pool: PoolState) -> PolicyAnswer:
    decimals, is_waiting = pool.rules.decimals, policy.state == State.WAITING
    shares_from = pool.rules.cutoff_from(max(found.active_at, pool.row.next_cutoff))
    return PolicyAnswer(
        policy=policy.policy,
        state=STATES[policy.state],
        face=format_units(policy.face, decimals),
        cap=format_units(policy.cap, decimals),
        issued_at=policy.issued_at,
        waiting_until=found.active_at if is_waiting else None,
        shares_from=shares_from if is_waiting else None,
        expires_at=policy.expires_at,
        accrued=format_units(found.accrued, decimals),
        due=format_units(found.due, decimals),
        paid=format_units(policy.paid, decimals),
        terms_version=policy.terms,
    )


def _state(found: AccountState) -> Coverage:
    account = found.account
    if not account.enabled:
        return "disabled"
    if account.unfunded:
        return "unfunded"
    return "inactive" if found.live and account.unfit_since else "covered"


def _activity(account: AccountRow, pool: PoolState) -> ActivityAnswer:
    """Returns the trades that the next cut-off counts (rule 5a)."""
    rules, at = pool.rules, pool.row.next_cutoff
    volumes = [volume for until, volume in zip(account.activity[::2], account.activity[1::2], strict=True) if until >= at]
    missing = max(0, rules.activity_volume - sum(volumes))
    return ActivityAnswer(
        at,
        format_units(sum(volumes), rules.decimals),
        format_units(rules.activity_volume, rules.decimals),
        format_units(missing, rules.decimals),
        bool(volumes),
    )


def _actions(found: AccountState, activity: ActivityAnswer) -> Iterator[ActionAnswer]:
    """Yields what the owner can do, in the order in which to do it."""
    account, rules = found.account, found.pool.rules
    if not account.is_covered:
        yield from _to_be_covered(account, rules)
    if found.live and (activity.missing != "0" or not activity.has_traded):
        yield ActionAnswer("trade", activity.missing, activity.at, _trade_text(activity, rules))


def _to_be_covered(account: AccountRow, rules: Rules) -> Iterator[ActionAnswer]:
    lacking = account.lacking(rules.min_funding)
    if lacking:
        amount, arrears = format_units(lacking, rules.decimals), format_units(account.arrears, rules.decimals)
        pays = f"{arrears} of it pays arrears, " if account.arrears else ""
        least = format_units(rules.min_funding, rules.decimals)
        yield ActionAnswer(
            "transfer", amount, None, f"transfer {amount} to the insurance account: {pays}and cover needs a balance of {least}"
        )
    if not account.enabled:
        yield ActionAnswer("enable", None, None, "enable the insurance: only trades opened from then on count")


def _trade_text(activity: ActivityAnswer, rules: Rules) -> str:
    days = rules.activity_ms / DAY_MS
    window = f"{days:g} days" if days >= 1 else f"{rules.activity_ms / HOUR_MS:.2g} hours"
    much = f"a volume of {activity.missing}" if activity.missing != "0" else "at least one trade"
    return f"close trades with {much} more before the next cut-off, which counts the last {window}: else your policies freeze"
