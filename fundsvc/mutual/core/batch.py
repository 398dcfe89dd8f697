"""The effects of a run of events on a pool, which one transaction writes or does not write."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from fundsvc.core.events import Rejected
from fundsvc.mutual.core.accounts import Account
from fundsvc.mutual.core.chain import Entry
from fundsvc.mutual.core.rows import AccountRow, CycleRow, PolicyRow, PoolRow
from fundsvc.mutual.core.terms import Rules

ROW_BYTES = 300
"""The approximate size of a row in memory and on the wire."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The effects of a run of events, which one transaction writes.

    `pool` is the pool's state after them. `hashes[i]` belongs to `entries[i]`. `accounts` and `policies` are those that
    changed, in their last state; `opened` names the new accounts, and policies with numbers above `issued_before` are new.
    `cycles` are the cut-offs that happened, `terms` the versions that came into force. `rejected` are the rejected events,
    `duplicates` counts events that were known. `identity_error` is 0 unless the money does not add up (rule 7).
    """

    pool: PoolRow
    entries: Sequence[Entry]
    hashes: Sequence[bytes]
    accounts: Sequence[AccountRow]
    opened: AbstractSet[str]
    policies: Sequence[PolicyRow]
    issued_before: int
    cycles: Sequence[CycleRow]
    terms: Mapping[int, Rules]
    rejected: Sequence[Rejected]
    duplicates: int
    identity_error: int
    events: int


@dataclass(slots=True)
class Draft:
    """The batch that a pool fills; see `Batch`.

    `changed` are the places of policies that changed, of which those with a mark are live, see `Policies.mark`. `accounts` are
    those with a mark. `ended` are the last states of policies that ended. `events` is counted by the engine, which also adds
    rejected events, with `reject`. Marks take the place of sets, whose growth would hold the event loop.
    """

    issued_before: int = 0
    entries: list[Entry] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)
    opened: set[str] = field(default_factory=set)
    changed: "array[int]" = field(default_factory=lambda: array("I"))
    ended: list[PolicyRow] = field(default_factory=list)
    cycles: list[CycleRow] = field(default_factory=list)
    terms: dict[int, Rules] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    duplicates: int = 0
    identity_error: int = 0
    events: int = 0
    rejected_bytes: int = 0

    def size(self) -> int:
        """The approximate size of the batch in bytes."""
        return ROW_BYTES * self.rows() + self.rejected_bytes

    def reject(self, event: Rejected) -> None:
        """Adds a rejected event."""
        self.rejected.append(event)
        self.rejected_bytes += len(event.body)

    def rows(self) -> int:
        """The number of rows that the batch writes."""
        states = len(self.accounts) + len(self.changed) + len(self.ended)
        return len(self.entries) + states + len(self.cycles) + len(self.rejected)

    def note(self, account: Account) -> None:
        """Adds an account that changes, once."""
        if not account.is_noted:
            account.is_noted = True
            self.accounts.append(account)

    def finish(self, pool: PoolRow, rows: Iterable[PolicyRow]) -> Batch:
        """Returns the batch to commit; `rows` are the states of changed live policies.

        Takes two microseconds for each account and policy that changed.
        """
        for account in self.accounts:
            account.is_noted = False
        return Batch(
            pool,
            self.entries,
            self.hashes,
            [account.row() for account in self.accounts],
            self.opened,
            [*self.ended, *rows],
            self.issued_before,
            self.cycles,
            self.terms,
            self.rejected,
            self.duplicates,
            self.identity_error,
            self.events,
        )
