"""Accounts of a pool: money, cover intervals, losses and profits so far, and the trades that the activity test counts."""

from array import array
from bisect import bisect_right

from fundsvc.core.numbers import INT64_MAX
from fundsvc.mutual.core.rows import AccountRow

COVERED_PARITY = 1


class Account:
    """One account; see `AccountRow` for the stored fields. `number` counts accounts from 0 in the order of their first event.

    `live` are the places of its live policies, see `policies`. `check_at` is the cut-off at which its fitness is to be checked
    next, 0 if no cut-off can find it changed. `is_noted` marks an account that the current batch stores.
    """

    __slots__ = (
        "accumulated",
        "activity",
        "arrears",
        "balance",
        "check_at",
        "cover",
        "day",
        "enabled",
        "is_noted",
        "live",
        "name",
        "number",
        "paid_out",
        "payable",
        "profits",
        "unfit_since",
        "unfunded",
    )

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.balance = self.arrears = self.payable = self.paid_out = self.accumulated = 0
        self.enabled = self.unfunded = self.is_noted = False
        self.cover: list[int] = []
        self.day = self.profits = 0
        self.activity: list[int] = []
        self.unfit_since = self.check_at = 0
        self.live = array("I")

    @classmethod
    def restore(cls, number: int, row: AccountRow) -> "Account":
        """Returns an account from its stored state, without its policies."""
        account = cls(number, row.account)
        account.balance, account.arrears, account.payable = row.balance, row.arrears, row.payable
        account.paid_out, account.accumulated = row.paid_out, row.accumulated
        account.enabled, account.unfunded = row.enabled, row.unfunded
        account.cover, account.activity = list(row.cover), list(row.activity)
        account.day, account.profits, account.unfit_since = row.day, row.profits, row.unfit_since
        return account

    def row(self) -> AccountRow:
        """Returns the current state, which later events do not change."""
        return AccountRow(
            self.name,
            self.balance,
            self.arrears,
            self.payable,
            self.paid_out,
            self.accumulated,
            self.enabled,
            self.unfunded,
            tuple(self.cover),
            self.day,
            self.profits,
            tuple(self.activity),
            self.unfit_since,
        )

    @property
    def is_covered(self) -> bool:
        """Whether the account is covered now (rule 1)."""
        return len(self.cover) & 1 == COVERED_PARITY

    def was_covered(self, ts: int) -> bool:
        """Whether the account was covered at a time, in one of its intervals [from, to) (rule 1)."""
        return bisect_right(self.cover, ts) & 1 == COVERED_PARITY

    def turn_cover(self, ts: int) -> None:
        """Begins a cover interval at a time, or ends the current one. An empty interval or gap leaves no boundaries."""
        if self.cover and self.cover[-1] == ts:
            self.cover.pop()
        else:
            self.cover.append(ts)

    def is_funded(self, min_funding: int) -> bool:
        """Whether the account may be covered: no arrears, and `min_funding` (rules 1 and 3)."""
        return not self.arrears and self.balance >= min_funding

    def profits_of(self, day: int) -> int:
        """Returns the insured profits so far of a UTC day that is not before the last one (rule 3)."""
        return self.profits if day == self.day else 0

    def note_trade(self, counts_until: int, volume: int, next_cutoff: int) -> None:
        """Adds a trade to the activity test: it counts at cut-offs up to `counts_until` (rule 5a).

        Trades that no cut-off from `next_cutoff` on counts are dropped. Trades that count equally long form one group. A volume
        is limited to 64 bits, which `activity_volume` cannot exceed.
        """
        activity = self.activity
        while activity and activity[0] < next_cutoff:
            del activity[:2]
        if activity and activity[-2] >= counts_until:
            activity[-1] = min(INT64_MAX, activity[-1] + volume)
        else:
            activity += (counts_until, min(INT64_MAX, volume))

    def inactive_from(self, cutoff: int, volume_min: int, cycle_ms: int) -> int:
        """Returns the first cut-off from `cutoff` on that finds too few trades, if none follows (rule 5a)."""
        groups = [
            (until, volume) for until, volume in zip(self.activity[::2], self.activity[1::2], strict=True) if until >= cutoff
        ]
        total = sum(volume for _, volume in groups)
        for until, volume in groups:
            if total < volume_min:
                break
            total -= volume
            cutoff = until + cycle_ms
        return cutoff
