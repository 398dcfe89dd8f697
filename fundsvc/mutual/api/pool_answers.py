"""Answers about pools of the mutual, their terms and their cut-offs."""

from typing import Any, Generic, Literal, TypeVar

from fundsvc.api.answers import Answer, milliseconds
from fundsvc.core.numbers import format_units
from fundsvc.mutual.core.rows import CycleRow
from fundsvc.mutual.core.standing import SCALE
from fundsvc.mutual.core.terms import DAY_MS, HOUR_MS, PPM, SECOND_MS, XT_SHAPE, Rules, Tag, TierMode
from fundsvc.mutual.store.reader import Payouts, PoolView

T = TypeVar("T")

Whose = Literal["XT", "ours"]

RATE_DECIMALS = 6
"""Rates and shares are integers of ppm."""

SPAN_DECIMALS = 6

INDEX_DECIMALS = len(str(SCALE)) - 1


class PayoutsAnswer(Answer, frozen=True):
    """What the last `cycles` cut-offs released, and the `faces` of the policies issued in the same time.

    `ratio` is released / faces, rounded down to six decimals: about the share of its face that a policy was paid. It is null
    if no policies were issued. It describes the past and promises nothing.
    """

    ratio: str | None
    released: str
    faces: str
    cycles: int


class PoolAnswer(Answer, frozen=True, kw_only=True):
    """A pool after its last commit. Nothing is guaranteed: amount and time of all payouts depend on the pool.

    Amounts are in the pool's asset. `available` is balance - reserveFloor. `health` is available / capsLeft, rounded down to
    six decimals, where `capsLeft` is the most that the active policies can still be paid; null without such policies. A cut-off
    now would release the share `release` of `available`, and at most `capsLeft`: `budget`. `nextCutoff` is the time of the next
    cut-off, 0 before the first event. `weight` is the sum of the faces of the active policies.

    `inflow` (premiums less `fees`, and top-ups) is `released` + `balance`. `settled` is the part of `released` that was
    moved to accounts, and `paidOut` the part of that which the exchange has fetched.

    `state` is `settling`; `waiting` if no engine owns the pool at present; or `halted` with the reason in `halted`. `entry` and
    `head` (hex) are the number and hash of the last entry of the pool's ledger. The answer includes every commit before `asOf`
    by the database's clock.
    """

    pool: str
    state: Literal["settling", "waiting", "halted"]
    halted: str
    balance: str
    available: str
    caps_left: str
    health: str | None
    release: str
    budget: str
    next_cutoff: int
    cycle: int
    accounts: int
    policies: int
    live_policies: int
    active_policies: int
    weight: str
    inflow: str
    fees: str
    released: str
    settled: str
    paid_out: str
    payouts: PayoutsAnswer
    terms_version: int
    time: int
    seq: int
    entry: int
    head: str
    updated_at: int
    as_of: int


class Term(Answer, Generic[T], frozen=True):
    """The value of a term, and whose number it is: XT Exchange has published it, or it is ours."""

    value: T
    whose: Whose


class Step(Answer, frozen=True, rename={"start": "from"}):
    """A rate that applies from an amount or from a health on."""

    start: str
    rate: str


class TermsAnswer(Answer, frozen=True, kw_only=True):
    """The terms of a pool in force. Amounts are in the pool's asset, rates are shares of 1, times are as named.

    XT Exchange has published one number, `minFunding` of 10 USDT. All others are ours, also where XT has published that there
    is such a term. `symbols` null means all symbols. `cap` is the share of its face that a policy is paid at most.
    """

    version: int
    decimals: Term[int]
    min_funding: Term[str]
    threshold: Term[str]
    face: Term[str]
    min_loss: Term[str]
    exclude: Term[list[Tag]]
    exclude_losses: Term[list[Tag]]
    symbols: Term[list[str] | None]
    waiting_hours: Term[str]
    cycle_seconds: Term[str]
    cycle_anchor: Term[str]
    premium_tiers: Term[list[Step]]
    tier_mode: Term[TierMode]
    platform_fee: Term[str]
    reserve_floor: Term[str]
    release: Term[list[Step]]
    cap: Term[str]
    expiry_days: Term[str]
    live_max: Term[int]
    activity_days: Term[str]
    activity_volume: Term[str]


class PoolDetailAnswer(PoolAnswer, frozen=True, kw_only=True):
    """A pool as in the list of pools, with the terms in force."""

    terms: TermsAnswer


class CycleAnswer(Answer, frozen=True, kw_only=True):
    """A cut-off. `balance` and `weight` are before its distribution.

    `rate` is the share of the available balance that it released, `budget` the amount, of which `returned` went back to the
    pool because too few policies were active; `released` is the difference. `shareIndex` is what each unit of face has accrued
    since the pool began, after this cut-off, and `remainder` what is left to distribute, in units of 10^-18 of the smallest
    amount.
    """

    pool: str
    cycle: int
    at: int
    balance: str
    caps_left: str
    rate: str
    budget: str
    returned: str
    released: str
    weight: str
    completed: int
    share_index: str
    remainder: str
    terms_version: int
    entry: int


def pool_answer(view: PoolView, as_of: int) -> PoolAnswer:
    """Returns the answer for a pool."""
    return PoolAnswer(**_pool_fields(view, as_of))


def pool_detail_answer(view: PoolView, as_of: int) -> PoolDetailAnswer:
    """Returns the answer for a pool with its terms."""
    return PoolDetailAnswer(**_pool_fields(view, as_of), terms=terms_answer(view.state.row.terms, view.state.rules))


def terms_answer(version: int, rules: Rules) -> TermsAnswer:
    """Returns the answer for terms, each with whose number it is."""
    money = rules.decimals

    def ours(value: T) -> Term[T]:
        return Term(value, "ours")

    def amount(atoms: int) -> str:
        return format_units(atoms, money)

    return TermsAnswer(
        version=version,
        decimals=ours(money),
        min_funding=Term(amount(rules.min_funding), _whose_min_funding(rules)),
        threshold=ours(amount(rules.threshold)),
        face=ours(amount(rules.face)),
        min_loss=ours(amount(rules.min_loss)),
        exclude=ours(list(rules.exclude)),
        exclude_losses=ours(list(rules.exclude_losses)),
        symbols=ours(None if rules.symbols is None else list(rules.symbols)),
        waiting_hours=ours(_span(rules.waiting_ms, HOUR_MS)),
        cycle_seconds=ours(_span(rules.cycle_ms, SECOND_MS)),
        cycle_anchor=ours(_span(rules.anchor_ms, SECOND_MS)),
        premium_tiers=ours([Step(amount(start), rate_text(rate)) for start, rate in rules.premium_tiers]),
        tier_mode=ours(rules.tier_mode),
        platform_fee=ours(rate_text(rules.platform_fee)),
        reserve_floor=ours(amount(rules.reserve_floor)),
        release=ours([Step(str(start), rate_text(rate)) for start, rate in rules.release]),
        cap=ours(rate_text(rules.cap_rate)),
        expiry_days=ours(_span(rules.expiry_ms, DAY_MS)),
        live_max=ours(rules.live_max),
        activity_days=ours(_span(rules.activity_ms, DAY_MS)),
        activity_volume=ours(amount(rules.activity_volume)),
    )


def cycle_answer(row: CycleRow, pool: str, decimals: int) -> CycleAnswer:
    """Returns the answer for a cut-off of a pool."""
    return CycleAnswer(
        pool=pool,
        cycle=row.cycle,
        at=row.at,
        balance=format_units(row.pool, decimals),
        caps_left=format_units(row.caps_left, decimals),
        rate=rate_text(row.rate),
        budget=format_units(row.budget, decimals),
        returned=format_units(row.returned, decimals),
        released=format_units(row.budget - row.returned, decimals),
        weight=format_units(row.weight, decimals),
        completed=row.completed,
        share_index=format_units(row.share_index, INDEX_DECIMALS),
        remainder=str(row.rem),
        terms_version=row.terms,
        entry=row.entry,
    )


def rate_text(ppm: int) -> str:
    """Formats a rate as a share of 1: 80,000 ppm is 0.08."""
    return format_units(ppm, RATE_DECIMALS)


def _pool_fields(view: PoolView, as_of: int) -> dict[str, Any]:
    state, row, rules, totals = view.state, view.state.row, view.state.rules, view.state.totals

    def amount(atoms: int) -> str:
        return format_units(atoms, rules.decimals)

    return {
        "pool": row.pool,
        "state": "halted" if state.halted else "settling" if state.is_owned else "waiting",
        "halted": state.halted,
        "balance": amount(row.balance),
        "available": amount(state.available),
        "caps_left": amount(totals.caps_left),
        "health": None if state.health is None else rate_text(state.health),
        "release": rate_text(state.release_rate),
        "budget": amount(min(state.release_rate * max(0, state.available) // PPM, max(0, totals.caps_left))),
        "next_cutoff": row.next_cutoff,
        "cycle": row.cycle,
        "accounts": state.accounts,
        "policies": row.policies,
        "live_policies": totals.live,
        "active_policies": totals.active,
        "weight": amount(row.weight),
        "inflow": amount(row.inflow),
        "fees": amount(row.fees),
        "released": amount(row.released),
        "settled": amount(row.settled),
        "paid_out": amount(row.paid_out),
        "payouts": _payouts(view.payouts, rules.decimals),
        "terms_version": row.terms,
        "time": row.time,
        "seq": row.seq,
        "entry": row.entry,
        "head": row.head.hex(),
        "updated_at": milliseconds(state.updated_at),
        "as_of": as_of,
    }


def _payouts(payouts: Payouts, decimals: int) -> PayoutsAnswer:
    return PayoutsAnswer(
        rate_text(payouts.released * PPM // payouts.faces) if payouts.faces else None,
        format_units(payouts.released, decimals),
        format_units(payouts.faces, decimals),
        payouts.cycles,
    )


def _whose_min_funding(rules: Rules) -> Whose:
    """XT has published 10 USDT. Another number is the operator's."""
    return "XT" if rules.min_funding == XT_SHAPE.min_funding * 10**rules.decimals else "ours"


def _span(span_ms: int, unit_ms: int) -> str:
    """Formats a time in a unit, rounded down to six decimals: pools of a demo have fractions of hours."""
    return format_units(span_ms * 10**SPAN_DECIMALS // unit_ms, SPAN_DECIMALS)
