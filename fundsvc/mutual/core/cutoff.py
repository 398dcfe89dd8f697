"""Rule 5: the steps of a cut-off, with a pause after every few policies, so that a long one does not hold the event loop."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from heapq import merge
from typing import NamedTuple

from fundsvc.mutual.core.accounts import Account
from fundsvc.mutual.core.register import Register, is_live
from fundsvc.mutual.core.rows import CycleRow, State
from fundsvc.mutual.core.slices import CHECKS, SCAN, SLICE
from fundsvc.mutual.core.terms import PPM


class Budget(NamedTuple):
    """The budget of a cut-off in atoms, the release rate in ppm (0 if the budget is 0), and the caps left in atoms."""

    amount: int
    rate: int
    caps_left: int


def cut_off(register: Register) -> Iterator[None]:
    """Takes the steps of the next cut-off; each pause is at a few milliseconds of work after the one before."""
    at = register.ledger.time = register.next_cutoff
    yield from freeze_and_thaw(register, at)
    yield from activate(register, at)
    yield from expire(register, at)
    yield from share(register, at)
    register.next_cutoff = at + register.rules.cycle_ms


def freeze_and_thaw(register: Register, at: int) -> Iterator[None]:
    """Step a: policies of accounts that became unfit freeze, those of accounts that became fit thaw; waiting stands still."""
    turned: list[int] = []
    for count, number in enumerate(register.checks.take(at), 1):
        turned += _check(register, register.by_number[number], at)
        if not count % CHECKS:
            yield
    policies = register.policies

    def turn(place: int) -> None:
        (register.freeze if policies.state[place] == State.ACTIVE else register.thaw)(place)

    yield from _each(register, turned, lambda _: True, turn)


def activate(register: Register, at: int) -> Iterator[None]:
    """Step b: WAITING policies of fit accounts whose wait is over become ACTIVE."""
    policies, owner = register.policies, register.owner

    def is_due(place: int) -> bool:
        return policies.state[place] == State.WAITING and policies.active_at[place] <= at and not owner(place).unfit_since

    yield from _each(register, register.activations.take(at), is_due, register.activate)


def expire(register: Register, at: int) -> Iterator[None]:
    """Step c: live policies whose time is over end, without a share of this cycle."""
    policies = register.policies

    def is_due(place: int) -> bool:
        return is_live(policies.state[place]) and policies.expires_at[place] <= at

    def end(place: int) -> None:
        register.end(place, State.EXPIRED, "expire")

    yield from _each(register, register.expiries.take(at), is_due, end)


def budget_of(register: Register) -> Budget:
    """Step d: the part of the available money that is released to the active policies, at most their caps."""
    rules, caps_left = register.rules, register.distribution.caps_left
    available = register.ledger.balance - rules.reserve_floor
    if available <= 0 or caps_left <= 0:
        return Budget(0, 0, caps_left)
    rate = rules.release_rate(available, caps_left)
    amount = min(rate * available // PPM, caps_left)
    return Budget(amount, rate if amount else 0, caps_left)


def share(register: Register, at: int) -> Iterator[None]:
    """Steps d to f: distributes the budget, writes the cycle row, and ends the policies that completed."""
    ledger, distribution = register.ledger, register.distribution
    budget, pool, weight = budget_of(register), ledger.balance, distribution.weight
    completed: list[tuple[int, int]] = []
    returned = yield from distribution.distribute(budget.amount, completed)
    ledger.release(budget.amount - returned)
    ledger.write("cycle", amount=budget.amount - returned)
    register.cycle += 1
    ledger.draft.cycles.append(
        CycleRow(
            register.cycle,
            at,
            pool,
            budget.caps_left,
            budget.rate,
            budget.amount,
            returned,
            weight,
            len(completed),
            distribution.index,
            distribution.rem,
            ledger.terms,
            ledger.entry,
        )
    )
    for count, (place, due) in enumerate(completed, 1):
        register.complete(place, due)
        if not count % SLICE:
            yield


def _check(register: Register, account: Account, at: int) -> Sequence[int]:
    """Determines whether an account is fit at a cut-off; returns its policies that freeze or thaw (rule 5a).

    An account whose policies have ended since it was listed has no fitness, as after a restart, which does not list it.
    """
    if account.check_at != at:
        return ()
    account.check_at = 0
    if not account.live:
        return ()
    unfit_from = register.unfit_from(account, at)
    if unfit_from > at:
        register.check_at(account, unfit_from)
    if (unfit_from > at) != (account.unfit_since > 0):
        return ()
    register.ledger.draft.note(account)
    state = register.policies.state
    if unfit_from == at:
        account.unfit_since = at
        return [place for place in account.live if state[place] == State.ACTIVE]
    for place in account.live:
        if state[place] == State.WAITING:
            register.delay(place, at)
    account.unfit_since = 0
    return [place for place in account.live if state[place] == State.FROZEN]


def _each(
    register: Register, places: Iterable[int], applies: Callable[[int], bool], act: Callable[[int], None]
) -> Iterator[None]:
    """Acts on each policy of a list to which it applies, by policy number, with pauses. A list may name a policy twice."""
    chosen: list[int] = []
    for count, place in enumerate(places, 1):
        if applies(place):
            chosen.append(place)
        if not count % SCAN:
            yield
    ordered = yield from _by_number(register, chosen)
    for count, place in enumerate(ordered, 1):
        if applies(place):
            act(place)
        if not count % SLICE:
            yield


def _by_number(register: Register, places: list[int]) -> Generator[None, None, Iterator[int]]:
    """Sorts places by policy number, a part between two pauses; the parts are merged as they are read."""
    number = register.policies.number.__getitem__
    parts = []
    for start in range(0, len(places), SCAN):
        parts.append(sorted(places[start : start + SCAN], key=number))
        yield
    return merge(*parts, key=number)
