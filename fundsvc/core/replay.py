"""Recomputing a contract's ledger from its entries: what the audit does, and what anyone with an export can do."""

from collections.abc import Collection
from typing import NamedTuple

from fundsvc.core.chain import GENESIS, Entry, link
from fundsvc.core.contracts import Contract
from fundsvc.core.settlement import Fund, FundState


class Checkpoint(NamedTuple):
    """How far a ledger was followed without a difference: its last entry, that entry's hash and balance (atoms), the highest
    sequence by then, and the sums of what was uncovered and repaid.
    """

    entry: int = 0
    seq: int = 0
    balance: int = 0
    uncovered: int = 0
    repaid: int = 0
    head: bytes = GENESIS


START = Checkpoint()
"""Before entry 1."""


class OrderTotals(NamedTuple):
    """Of all ADL orders of a contract: what they recovered, what open ones are still to recover, their highest sequence."""

    recovered: int
    open: int
    seq: int


def missing(symbol: str) -> str:
    """The difference of a ledger that has entries, a contract or a fund, but not all of them."""
    return f"{symbol}: its contract or its fund is missing"


class Replay:
    """Follows a ledger from a checkpoint, entry 1 unless told otherwise, and notes every difference from the rules.

    `late` are the numbers of the entries whose events were rejected at first and settled later: only their sequence may lie
    below that of an earlier entry. Differences are sentences; an empty list means that everything holds. `differs_at` is the
    number of the first entry that differs, None while there is none.
    """

    def __init__(self, contract: Contract, late: Collection[int] = (), since: Checkpoint = START) -> None:
        self.differences: list[str] = []
        self.differs_at: int | None = None
        self._fund = Fund(contract, balance=since.balance, entry=since.entry, seq=since.seq, head=since.head)
        self._late = late
        self._uncovered = since.uncovered
        self._repaid = since.repaid

    @property
    def entry(self) -> int:
        """The number of the last entry followed."""
        return self._fund.entry

    @property
    def checkpoint(self) -> Checkpoint:
        """Where another may go on."""
        fund = self._fund
        return Checkpoint(fund.entry, fund.seq, fund.balance, self._uncovered, self._repaid, fund.head)

    def follow(self, entry: Entry, digest: bytes) -> None:
        """Checks one entry against what came before it, and goes on from what it says."""
        fund = self._fund
        self._expect(entry, "entry number", entry.entry, fund.entry + 1)
        self._expect(entry, "symbol", entry.symbol, fund.contract.symbol)
        self._expect(entry, "balance", entry.balance, fund.balance + entry.change)
        if entry.balance < 0 or entry.uncovered < 0 or entry.repaid < 0:
            self._differ(entry, "has a negative amount")
        if entry.seq <= fund.seq and entry.entry not in self._late:
            self._differ(entry, f"sequence {entry.seq} is not above {fund.seq}")
        self._check_amounts(entry)
        fund.head = link(fund.head, entry)
        self._expect(entry, "hash", digest.hex(), fund.head.hex())
        fund.head = digest
        fund.entry = entry.entry
        fund.balance = entry.balance
        fund.seq = max(fund.seq, entry.seq)
        self._uncovered += entry.uncovered
        self._repaid += entry.repaid

    def conservation_error(self, state: FundState, orders: OrderTotals) -> int:
        """What was uncovered less what became of it: recovered, repaid, outstanding or open in ADL; 0 unless value was lost."""
        return self._uncovered - (orders.recovered + self._repaid + state.outstanding + orders.open)

    def finish(self, state: FundState, orders: OrderTotals) -> None:
        """Compares the end of the chain with the stored fund, and what was uncovered with what became of it."""
        stored = (state.entry, state.balance, state.head.hex())
        computed = (self._fund.entry, self._fund.balance, self._fund.head.hex())
        if stored != computed:
            self.differences.append(f"the fund says (entry, balance, head) {stored}, its entries say {computed}")
        # A sequence that was raised by hand would pass coming fills off as duplicates.
        highest = max(self._fund.seq, orders.seq)
        if state.seq != highest:
            self.differences.append(f"the fund's sequence is {state.seq}, the highest of its entries and orders {highest}")
        if self.conservation_error(state, orders):
            self.differences.append(
                f"uncovered {self._uncovered} is not recovered {orders.recovered} + repaid {self._repaid}"
                f" + outstanding {state.outstanding} + open in ADL {orders.open}"
            )

    def _check_amounts(self, entry: Entry) -> None:
        """An entry of an ADL order moves its refund in, or what it repays out; one of a fill what the fill was worth."""
        if entry.kind in ("refund", "cover"):
            moved = entry.change > 0 and not entry.repaid if entry.kind == "refund" else entry.change == -entry.repaid < 0
            if entry.uncovered or not moved:
                self._differ(entry, f"is no {entry.kind}: it changes, leaves uncovered or repays what it must not")
        else:
            self._check_worth(entry)

    def _check_worth(self, entry: Entry) -> None:
        """The amounts must add up to what the fill was worth by the formula."""
        if self._fund.contract.is_inverse and not entry.price * entry.bankruptcy_price:
            self._differ(entry, "has a price of 0, which an inverse contract cannot have")
            return
        worth = self._fund.worth(entry.side, entry.lots, entry.price, entry.bankruptcy_price)
        kind = "surplus" if worth > 0 else "shortfall" if worth else "flat"
        self._expect(entry, "kind", entry.kind, kind)
        self._expect(entry, "change + repaid - uncovered", entry.change + entry.repaid - entry.uncovered, worth)

    def _expect(self, entry: Entry, what: str, found: object, expected: object) -> None:
        if found != expected:
            self._differ(entry, f"{what} is {found}, it should be {expected}")

    def _differ(self, entry: Entry, sentence: str) -> None:
        if self.differs_at is None:
            self.differs_at = entry.entry
        self.differences.append(f"{entry.symbol} entry {entry.entry}: {sentence}")
