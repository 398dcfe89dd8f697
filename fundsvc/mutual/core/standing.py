"""What the stored rows of a policy, its account and its pool give together: readers need no pool in memory."""

from typing import NamedTuple

from fundsvc.mutual.core.rows import PolicyRow, PoolRow, State
from fundsvc.mutual.core.terms import Rules

SCALE = 10**18
"""The index is what a weight of one atom has accrued, in atoms times SCALE (rule 6)."""


class Standing(NamedTuple):
    """What a policy has accrued in all, what of it was not moved to payable, both in atoms, and until when it waits (ms)."""

    accrued: int
    due: int
    active_at: int


def standing(policy: PolicyRow, unfit_since: int, pool: PoolRow, rules: Rules) -> Standing:
    """Returns the standing of a policy whose account is unfit since a cut-off, 0 if it is fit; `rules` are those in force."""
    due = active_at = 0
    if policy.state == State.ACTIVE:
        room = policy.cap - policy.paid + policy.moved
        due = min(room, policy.face * (pool.share_index - policy.entered) // SCALE) - policy.moved
    active_at = policy.active_at
    if policy.state == State.WAITING and unfit_since:
        active_at = delayed(active_at, policy.issued_at, unfit_since, pool.next_cutoff, rules)
    return Standing(policy.paid + due, due, active_at)


def delayed(active_at: int, issued_at: int, unfit_since: int, cutoff: int, rules: Rules) -> int:
    """Returns `active_at` with one cycle more for each cut-off before `cutoff` that found the account unfit (rule 5a).

    `unfit_since` is the first of these cut-offs. Those before the policy was issued do not count.
    """
    return active_at + max(0, cutoff - max(unfit_since, rules.cutoff_after(issued_at)))
