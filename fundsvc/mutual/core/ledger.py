"""The money of a pool and its entries. Every change of the pool's balance goes through here."""

from fundsvc.core.commitment import LedgerSecret
from fundsvc.core.events import Reason, Rejection
from fundsvc.core.numbers import INT64_MAX
from fundsvc.mutual.core.batch import Draft
from fundsvc.mutual.core.chain import Entry, Kind, link, seal_domain
from fundsvc.mutual.core.rows import PoolRow
from fundsvc.mutual.core.terms import PPM, Rules


class Ledger:
    """The money, the time and the last entry of a pool; see `PoolRow` for the stored fields.

    `secret` seals the accounts of new entries; without a secret, entries contain the accounts themselves.
    """

    def __init__(self, row: PoolRow, rules: Rules, secret: LedgerSecret | None) -> None:
        self.pool = row.pool
        self.rules = rules
        self.draft = Draft(row.policies)
        self.balance, self.fees, self.inflow = row.balance, row.fees, row.inflow
        self.released, self.settled, self.paid_out = row.released, row.settled, row.paid_out
        self.time, self.seq, self.entry, self.head, self.terms = row.time, row.seq, row.entry, row.head, row.terms
        self._secret = secret
        self._domain = seal_domain(row.pool)

    def write(self, kind: Kind, account: str = "", policy: int = 0, amount: int = 0, profits: int = 0) -> None:
        """Appends an entry with the pool's time, balance and last applied sequence."""
        number = self.entry = self.entry + 1
        seal = self._secret.seal(self._domain, number, account) if self._secret else b""
        entry = Entry(
            self.pool,
            number,
            self.seq,
            self.time,
            kind,
            account,
            policy,
            amount,
            self.balance,
            profits,
            self.terms,
            seal,
        )
        self.head = link(self.head, entry, self.rules.digest)
        self.draft.entries.append(entry)
        self.draft.hashes.append(self.head)

    def check_room(self, amount: int) -> None:
        """Raises Rejection if the pool and the fee account could not take an amount that flows in, within 64 bits."""
        check_sum("the pool's inflow", self.inflow + self.fees, amount)

    def take_premium(self, taken: int) -> None:
        """Divides what was taken from an account between the fee account and the pool (rule 3)."""
        fee = taken * self.rules.platform_fee // PPM
        self.fees += fee
        self.add(taken - fee)

    def add(self, amount: int) -> None:
        """Money flows into the pool."""
        self.inflow += amount
        self.balance += amount

    def release(self, amount: int) -> None:
        """The pool releases a budget to the active policies; a negative amount returns to it (rule 6)."""
        self.released += amount
        self.balance -= amount


def check_sum(what: str, before: int, amount: int) -> None:
    """Raises Rejection if a sum does not fit 64 bits."""
    if before + amount > INT64_MAX:
        raise Rejection(Reason.OUT_OF_RANGE, f"{what} {before} + {amount} atoms is beyond 64 bits")
