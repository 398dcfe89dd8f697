"""The stored states of a pool, an account, a policy and a cut-off. A pool is restored from them without its history."""

from enum import IntEnum
from typing import NamedTuple

from fundsvc.mutual.core.chain import GENESIS


class State(IntEnum):
    """The state of a policy; the first three are live."""

    WAITING = 0
    ACTIVE = 1
    FROZEN = 2
    COMPLETED = 3
    EXPIRED = 4
    CANCELLED = 5


LIVE_MAX = State.FROZEN
"""Higher states have ended."""


class PoolRow(NamedTuple):
    """The state of a pool; the defaults are a new pool. Money is in atoms, times are in ms.

    `inflow` are premiums less fees and top-ups, `released` the budgets less what returned, `settled` what was moved to payable.
    `share_index`, `weight` and `rem` are those of the distribution (rule 6); index and rem have no bound. `time` is the
    pool's time, `next_cutoff` the next cut-off, 0 before the first event. `policies` counts all policies, `cycle` the cut-offs.
    `seq` is the last applied sequence, `entry` and `head` are the number and the hash of the last entry, `terms` is the version
    in force.
    """

    pool: str
    balance: int = 0
    fees: int = 0
    inflow: int = 0
    released: int = 0
    settled: int = 0
    paid_out: int = 0
    share_index: int = 0
    weight: int = 0
    rem: int = 0
    time: int = 0
    next_cutoff: int = 0
    cycle: int = 0
    policies: int = 0
    seq: int = 0
    entry: int = 0
    head: bytes = GENESIS
    terms: int = 1


class AccountRow(NamedTuple):
    """The state of an account. Money is in atoms, times are in ms.

    `cover` are the boundaries of the cover intervals, beginnings and ends in turn; an odd number means covered. `profits` are
    the insured profits of the UTC day `day` (days since the epoch). `activity` has two numbers for each group of trades: the
    last cut-off at which they count, and their volume. `unfit_since` is the cut-off since which the account is unfit, 0 if fit.
    """

    account: str
    balance: int
    arrears: int
    payable: int
    paid_out: int
    accumulated: int
    enabled: bool
    unfunded: bool
    cover: tuple[int, ...]
    day: int
    profits: int
    activity: tuple[int, ...]
    unfit_since: int

    @property
    def is_covered(self) -> bool:
        """Whether cover has begun and not ended (rule 1)."""
        return len(self.cover) % 2 == 1

    def lacking(self, min_funding: int) -> int:
        """Returns what a transfer must bring before the account can be covered: arrears, and the rest of `min_funding`."""
        return self.arrears + max(0, min_funding - self.balance)


class PolicyRow(NamedTuple):
    """The state of a policy. Money is in atoms, times are in ms.

    `terms` is the version of the terms of its issue. `active_at` does not include the cycles since the account is unfit, see
    `standing.standing`. `paid` is all that was moved to payable, `moved` the part since it entered the distribution at index
    `entered`; both are 0 unless it is active.
    """

    policy: int
    account: str
    state: State
    terms: int
    face: int
    cap: int
    issued_at: int
    active_at: int
    expires_at: int
    paid: int
    moved: int
    entered: int


class CycleRow(NamedTuple):
    """One cut-off: its number, its time, and what it distributed.

    `pool` and `weight` are before the distribution, `share_index` and `rem` after it.
    `rate` is the release rate in ppm, 0 if the budget is 0. `returned` went back to the pool because no weight was left.
    `terms` is the version in force, `entry` the number of the entry of kind `cycle`.
    """

    cycle: int
    at: int
    pool: int
    caps_left: int
    rate: int
    budget: int
    returned: int
    weight: int
    completed: int
    share_index: int
    rem: int
    terms: int
    entry: int
