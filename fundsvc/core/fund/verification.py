"""Recomputing a contract's ledger from its entries and ADL records: what the audit does.

Entries and records are followed in the order in which they were made. What a shortfall or the end of an order demands next is
kept as pending, until the next entry or record shows whether it came.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from fundsvc.core.adl.order import AdlOrder, OrderState
from fundsvc.core.adl.records import AdlRecord
from fundsvc.core.adl.verification import OpenOrders, OrdersCheckpoint, OrdersReplay
from fundsvc.core.commitment import NO_SECRETS, SEAL_BYTES, Secrets, commitment, seal_parts
from fundsvc.core.contracts import Contract, contract_of, partition_of
from fundsvc.core.events import Rejection
from fundsvc.core.fund.chain import GENESIS, Entry, link
from fundsvc.core.fund.settlement import Fund, FundState
from fundsvc.core.policy import Guard, Policy, SavedGuard, payable

Policies = Mapping[int, Policy]
"""The policies that a contract has had, by version; 0 is the configured one where none was recorded."""

UNKNOWN: Policies = {}
"""Where they are not known, a fund may pay less than it can, and a shortfall need not escalate."""

Span = tuple[int, int]
"""Amounts from the first to the second one, both included."""


class Pending(msgspec.Struct, array_like=True, frozen=True):
    """What the rules demand next: an order of a shortfall, unless the policy spares it; or an entry of an order that is over.

    `known` says whether the policies are known that the shortfall was settled under. `due` is the entry but for its amount,
    which is in one of the `spans`; with 0 among them it may be missing.
    """

    shortfall: Entry | None = None
    known: bool = True
    due: Entry | None = None
    spans: list[Span] = []


class Undated(msgspec.Struct, array_like=True, frozen=True):
    """What came of orders from before there were records: nobody knows what entries they ended at.

    `ended` is what those left that ended uncovered, as far as it is not known to be outstanding yet; `covers` what the fund may
    still pay of each, and `refunds` what completed ones may still refund. Amounts are atoms.
    """

    ended: int = 0
    covers: dict[int, int] = {}
    refunds: dict[int, int] = {}


class Checkpoint(NamedTuple):
    """How far a ledger was followed without a difference: its last entry, that entry's hash and balance (atoms), the highest
    sequence by then, the sums of what was uncovered and repaid, what is outstanding, how far its ADL records were followed,
    what is pending, and the drawdown guard, None where it cannot be recomputed.
    """

    entry: int = 0
    seq: int = 0
    balance: int = 0
    uncovered: int = 0
    repaid: int = 0
    head: bytes = GENESIS
    outstanding: int = 0
    orders: OrdersCheckpoint = OrdersCheckpoint()
    pending: Pending = Pending()
    undated: Undated = Undated()
    guard: SavedGuard | None = SavedGuard()


NOTHING = Pending()

START = Checkpoint()
"""Before entry 1."""


class OrderTotals(NamedTuple):
    """Of the rows of all ADL orders of a contract: what they recovered, what open ones are still to recover, their highest
    sequence, and their number.
    """

    recovered: int
    open: int
    seq: int
    orders: int


def missing(symbol: str) -> str:
    """The difference of a ledger that has entries, a contract or a fund, but not all of them."""
    return f"{symbol}: its contract or its fund is missing"


def contract_differences(contract: Contract, specification: dict[str, Any], partition: int, partitions: int) -> list[str]:
    """Where the terms of a contract are not those that it was listed with, or it is not in its partition."""
    try:
        listed = contract_of(specification, {}, 0)
    except Rejection as refusal:
        return [f"{contract.symbol}: its listing is none: {refusal}"]
    terms = [(one.symbol, one.settle_currency, one.multiplier, one.is_inverse) for one in (contract, listed)]
    home = partition_of(contract.symbol, partitions)
    found = [f"{contract.symbol}: its terms are {terms[0]}, it was listed with {terms[1]}"] if terms[0] != terms[1] else []
    return found + ([f"{contract.symbol}: its partition is {partition}, it should be {home}"] if partition != home else [])


class Replay:
    """Follows a ledger from a checkpoint, entry 1 unless told otherwise, and notes every difference from the rules.

    `late` are the numbers of the entries whose events were rejected at first and settled later: only their sequence may lie
    below that of an earlier entry. `opened` are the orders that are open at the checkpoint: the replay takes them along, so
    they are those of its own checkpoint afterwards. Differences are sentences; an empty list means that everything holds.
    `differs_at` is the number of the first entry that differs, or of the last one before a record that does, None while there
    is none. `orders` has the ADL orders as the rules have them. `secrets` open commitments to accounts; `unopened` counts those
    that they do not open.
    """

    def __init__(
        self,
        contract: Contract,
        late: Collection[int] = (),
        since: Checkpoint = START,
        policies: Policies = UNKNOWN,
        opened: OpenOrders | None = None,
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        self.differences: list[str] = []
        self.unopened = 0
        self.differs_at: int | None = None
        state = FundState(contract.symbol, since.balance, since.outstanding, since.entry, since.seq, head=since.head)
        self._fund = Fund(contract, state)
        self._late = late
        self._secrets = secrets
        self._seq = since.seq
        self._uncovered = since.uncovered
        self._repaid = since.repaid
        self._pending = since.pending
        self._undated = since.undated
        self._rules = _Rules(contract, policies, since.guard)
        self._place = contract.symbol
        self._number: int | None = None
        self.orders = OrdersReplay(self._differ, since.orders, opened)

    @property
    def entry(self) -> int:
        """The number of the last entry followed."""
        return self._fund.entry

    @property
    def checkpoint(self) -> Checkpoint:
        """Where another may go on."""
        fund = self._fund
        return Checkpoint(
            fund.entry,
            self._seq,
            fund.balance,
            self._uncovered,
            self._repaid,
            fund.head,
            fund.outstanding,
            self.orders.checkpoint,
            self._pending,
            self._undated,
            self._rules.saved,
        )

    def follow(self, entry: Entry, digest: bytes, *, known: bool = True) -> None:
        """Checks one entry against what came before it, and goes on from what it says.

        `known` says whether the policies are known that it was settled under.
        """
        pending = self._taken()
        if self.orders.unfinished:
            self._differ(self.orders.unfinished)
        fund = self._fund
        self._at(entry)
        self._expect("entry number", entry.entry, fund.entry + 1)
        self._expect("symbol", entry.symbol, fund.contract.symbol)
        self._expect("balance", entry.balance, fund.balance + entry.change)
        if entry.balance < 0 or entry.uncovered < 0 or entry.repaid < 0:
            self._differ("has a negative amount")
        if entry.kind in ("refund", "cover"):
            self._check_of_order(entry, pending)
        else:
            self._check_spared(pending)
            self._check_of_fill(entry, known=known)
        self._check_opening(entry)
        fund.head = link(fund.head, entry)
        self._expect("hash", digest.hex(), fund.head.hex())
        fund.head = digest
        fund.entry = entry.entry
        fund.balance = entry.balance
        self._seq = max(self._seq, entry.seq)
        self._uncovered += entry.uncovered
        self._repaid += entry.repaid
        fund.outstanding -= entry.repaid
        if not self._pending.shortfall:
            self._rules.observe(entry.ts, entry.balance)

    def follow_record(self, record: AdlRecord, digest: bytes) -> None:
        """Checks one ADL record against what came before it, and goes on from what it says."""
        cause = self._pending.shortfall if record.kind == "order" else None
        if cause is None:
            self._check_spared(self._taken())
        self._place, self._number = f"{record.symbol} ADL record {record.record}", self._fund.entry
        self._expect("symbol", record.symbol, self._fund.contract.symbol)
        if record.entry not in (0, self._fund.entry):
            self._differ(f"follows entry {record.entry}, it should be {self._fund.entry}")
        closed = self.orders.follow(record, digest, cause)
        self._seq = max(self._seq, record.seq)
        if cause:
            self._escalated(cause, self.orders.orders.get(record.adl))
        if closed:
            self._demand(closed, record)

    def compare(self, rows: Mapping[int, OrderState], *, ended: bool) -> None:
        """Compares rows of orders, by number, with the orders that were followed: open ones at the end of the records."""
        self._place, self._number = self._fund.contract.symbol, self._fund.entry
        self.orders.compare(rows, ended=ended)

    def conservation_error(self, state: FundState, orders: OrderTotals) -> int:
        """What was uncovered less what became of it: recovered, repaid, outstanding or open in ADL; 0 unless value was lost."""
        return self._uncovered - (orders.recovered + self._repaid + state.outstanding + orders.open)

    def distrust_guard(self) -> None:
        """The next entry has a time that none may have now: the fund's guard was healed of it, and cannot be recomputed."""
        self._rules.lose_guard()

    def finish(self, state: FundState, orders: OrderTotals) -> None:
        """Compares the end of the chains with the stored fund, and what was uncovered with what became of it."""
        self._check_spared(self._taken())
        self._place, self._number = self._fund.contract.symbol, None
        if self.orders.unfinished:
            self._differ(self.orders.unfinished)
        self._compare("the fund says (entry, balance, head)", "its entries say", self._ends(state), self._ends(self._fund))
        # A sequence that was raised by hand would pass coming fills off as duplicates.
        highest = max(self._seq, orders.seq)
        if state.seq != highest:
            self.differences.append(f"the fund's sequence is {state.seq}, the highest of its entries and orders {highest}")
        if self.conservation_error(state, orders):
            self.differences.append(
                f"uncovered {self._uncovered} is not recovered {orders.recovered} + repaid {self._repaid}"
                f" + outstanding {state.outstanding} + open in ADL {orders.open}"
            )
        else:
            outstanding = self._fund.outstanding + self._undated.ended
            self._compare("the fund's outstanding is", "its entries and records say", state.outstanding, outstanding)
        ours = self.orders
        self._compare(
            "the fund says (ADL orders, records, head)",
            "its records say",
            (state.adl, state.adl_record, state.adl_head.hex()),
            (ours.adl, ours.record, ours.head.hex()),
        )
        self._compare(
            "its orders say (number, recovered, open in ADL)",
            "its records say",
            orders._replace(seq=0),
            OrderTotals(ours.recovered, ours.open_in_adl, 0, ours.adl),
        )
        if self._rules.saved is not None:
            self._compare("the fund's guard is", "its entries say", state.guard, self._rules.kept)

    def _check_opening(self, entry: Entry) -> None:
        """The commitment of an entry is one to its account, as far as its secret is known."""
        if not entry.seal:
            return
        if not entry.account or len(entry.seal) != SEAL_BYTES:
            self._differ("has a seal that no account has")
            return
        salt = self._secrets.salt(entry.symbol, entry.entry, entry.seal)
        if salt is None:
            self.unopened += 1
        elif commitment(salt, entry.account) != seal_parts(entry.seal).commitment:
            self._differ("its commitment is not one to its account")

    def _check_of_fill(self, entry: Entry, *, known: bool) -> None:
        """An entry of a fill: its amounts add up to what the fill was worth, a surplus repays first, a shortfall is paid."""
        if entry.seq <= self._seq and entry.entry not in self._late:
            self._differ(f"sequence {entry.seq} is not above {self._seq}")
        worth = self._worth(entry)
        if worth is None:
            return
        self._expect("kind", entry.kind, "surplus" if worth > 0 else "shortfall" if worth else "flat")
        self._expect("change + repaid - uncovered", entry.change + entry.repaid - entry.uncovered, worth)
        if worth >= 0:
            self._date_until(min(worth, entry.repaid))
            self._expect("repaid", entry.repaid, min(worth, self._fund.outstanding))
        elif entry.uncovered > 0:
            self._pending = Pending(entry, known)
        else:
            self._check_paid(entry, None, known=known)

    def _worth(self, entry: Entry) -> int | None:
        lowest = int(self._fund.contract.is_inverse)
        if entry.lots < 1 or entry.price < 1 or entry.bankruptcy_price < lowest:
            self._differ("has lots or prices that no fill has")
            return None
        return self._fund.worth(entry.side, entry.lots, entry.price, entry.bankruptcy_price)

    def _escalated(self, shortfall: Entry, order: AdlOrder | None) -> None:
        """A shortfall gave rise to an order."""
        known, self._pending = self._pending.known, NOTHING
        if order is None:
            return
        self._check_paid(shortfall, order, known=known)
        self._rules.observe(shortfall.ts, shortfall.balance)

    def _taken(self) -> Pending:
        """Takes what is pending, as something else comes: a shortfall did not escalate, so its rest is outstanding."""
        pending, self._pending = self._pending, NOTHING
        shortfall = pending.shortfall
        if shortfall:
            self._at(shortfall)
            self._fund.outstanding += shortfall.uncovered
            self._check_paid(shortfall, None, known=pending.known)
            self._rules.observe(shortfall.ts, shortfall.balance)
        return pending

    def _check_paid(self, entry: Entry, order: AdlOrder | None, *, known: bool) -> None:
        """A shortfall: what the fund paid, and whether an order recovers the rest, is what some policies in force demand."""
        deficit, covered = entry.uncovered - entry.change, -entry.change
        before = entry.balance + covered
        if not 0 <= covered <= min(deficit, before):
            self._differ(f"pays {covered} of a deficit of {deficit}, the fund has {before}")
        versions = self._rules.versions if order is None else [order.policy_version]
        if not known or not self._rules.versions:
            self._rules.lose_guard()
        elif order is not None and not self._rules.knows(order.policy_version):
            self._differ(f"gives rise to ADL order {order.adl} under policies {order.policy_version}, which are not recorded")
        elif not any(self._rules.explain(version, entry, order) for version in versions):
            escalates = f"ADL order {order.adl}" if order else "no ADL order"
            self._differ(f"pays {covered} of a deficit of {deficit} from {before}, with {escalates}: no policy in force does")

    def _demand(self, order: AdlOrder, record: AdlRecord) -> None:
        """An order is over: its rest is outstanding and the fund pays what it can, or it refunds what it took too much."""
        if order.state == "uncovered":
            self._demand_cover(order, record)
        elif order.refund and record.entry:
            due = self._fund.adl_entry("refund", order, 0, 0, record.lots, record.seq, record.ts)
            self._pending = Pending(due=due, spans=[(order.refund, order.refund)])
        elif order.refund:
            refunds = self._undated.refunds | {order.adl: order.refund}
            self._undated = msgspec.structs.replace(self._undated, refunds=refunds)

    def _demand_cover(self, order: AdlOrder, record: AdlRecord) -> None:
        if not record.entry:
            ended, covers = self._undated.ended + order.rest, self._undated.covers | {order.adl: order.rest}
            self._undated = msgspec.structs.replace(self._undated, ended=ended, covers=covers)
            self._rules.lose_guard()
            return
        self._fund.outstanding += order.rest
        spans = self._rules.payables(record.ts, self._fund.balance, order.rest)
        due = self._fund.adl_entry("cover", order, 0, 0, order.needed, record.seq or self._seq, record.ts)
        if any(most for _, most in spans):
            self._pending = Pending(due=due, spans=spans)

    def _check_of_order(self, entry: Entry, pending: Pending | None) -> None:
        """An entry of an ADL order: it is the one that is due, or one of an order from before there were records."""
        amount = entry.change if entry.kind == "refund" else entry.repaid
        moved = (amount, 0) if entry.kind == "refund" else (-amount, amount)
        if amount <= 0 or entry.uncovered or (entry.change, entry.repaid) != moved:
            self._differ(f"is no {entry.kind}: it changes, leaves uncovered or repays what it must not")
        elif pending and pending.due:
            change, repaid = moved
            due = msgspec.structs.replace(pending.due, change=change, repaid=repaid, balance=self._fund.balance + change)
            if entry != due or not _within(amount, pending.spans):
                self._differ(f"is {_shown(entry)} of {amount}, it should be {_shown(due)} of {_written(pending.spans)}")
        elif not self._take_undated(entry, amount):
            self._differ(f"is a {entry.kind} of {amount} that no ADL order is due")

    def _check_spared(self, pending: Pending) -> None:
        """The entry of an order that was due did not come: the rules must allow an amount of 0."""
        if pending.due and not _within(0, pending.spans):
            self._differ(f"{_shown(pending.due)} of {_written(pending.spans)} is missing")

    def _take_undated(self, entry: Entry, amount: int) -> bool:
        """Whether an order from before there were records may have an entry; counts it."""
        kind, _, number = entry.order_id.partition("/")
        if kind != "adl" or not number.isdecimal():
            return False
        adl, refunds, covers = int(number), dict(self._undated.refunds), dict(self._undated.covers)
        if entry.kind == "refund":
            allowed = refunds.pop(adl, 0) == amount
        else:
            self._date_until(amount)
            allowed = covers.pop(adl, 0) >= amount and self._fund.outstanding >= amount
        self._undated = msgspec.structs.replace(self._undated, refunds=refunds, covers=covers)
        return allowed

    def _date_until(self, repaid: int) -> None:
        """Takes so much of what orders from before there were records left for outstanding that it could be repaid."""
        dated = min(self._undated.ended, max(0, repaid - self._fund.outstanding))
        if dated:
            self._fund.outstanding += dated
            self._undated = msgspec.structs.replace(self._undated, ended=self._undated.ended - dated)

    @staticmethod
    def _ends(fund: FundState | Fund) -> tuple[int, int, str]:
        return fund.entry, fund.balance, fund.head.hex()

    def _compare(self, what: str, by: str, found: object, expected: object) -> None:
        if found != expected:
            self.differences.append(f"{what} {found}, {by} {expected}")

    def _at(self, entry: Entry) -> None:
        self._place, self._number = f"{entry.symbol} entry {entry.entry}", entry.entry

    def _expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self._differ(f"{what} is {found}, it should be {expected}")

    def _differ(self, sentence: str) -> None:
        if self.differs_at is None:
            self.differs_at = self._number
        self.differences.append(f"{self._place}: {sentence}")


class _Rules:
    """What the policies of a contract demand. The drawdown guard is recomputed where all of them have the same one; else a fund
    with a guard may pay any amount.
    """

    def __init__(self, contract: Contract, policies: Policies, saved: SavedGuard | None) -> None:
        self._funds = {version: Fund(contract, policy=policy) for version, policy in policies.items()}
        self._decimals = contract.settle_decimals
        self.versions = sorted(policies)
        terms = {policy.drawdown_guard for policy in policies.values()}
        self._terms = terms.pop() if len(terms) == 1 else None
        self._saved = None if terms else saved
        self._guard = self._restored(self._saved)

    @property
    def saved(self) -> SavedGuard | None:
        """The guard to go on with; None where it cannot be recomputed any more."""
        return self._guard.save() if self._guard else self._saved

    @property
    def kept(self) -> SavedGuard | None:
        """The guard as the fund keeps it; None without one."""
        return self._guard.save() if self._guard else None

    def knows(self, version: int) -> bool:
        """Whether a version of the policies is known."""
        return version in self._funds

    def lose_guard(self) -> None:
        """The guard cannot be recomputed any more: something was settled under policies that are not known."""
        self._guard = self._saved = None

    def observe(self, ts: int, balance: int) -> None:
        """Shows the guard a balance at a time (ms)."""
        if self._guard:
            self._guard.observe(ts, balance)

    def explain(self, version: int, shortfall: Entry, order: AdlOrder | None) -> bool:
        """Whether under a version a shortfall is paid as it was, and gives rise to an order or not."""
        fund = self._funds[version]
        uncovered, covered = shortfall.uncovered, -shortfall.change
        escalates = uncovered > 0 and uncovered >= fund.escalate_min(shortfall.bankruptcy_price)
        if escalates != (order is not None):
            return False
        if order is not None and len(order.asked) and fund.policy.waterfall == "adl_then_fund":
            return covered == 0
        guard = self._restored(self.saved)
        least, most = self._payable(version, guard, shortfall.ts, shortfall.balance + covered, uncovered + covered)
        if not least <= covered <= most:
            return False
        self._guard = guard
        return True

    def payables(self, ts: int, balance: int, wanted: int) -> list[Span]:
        """What a fund may pay of an amount under each version; anything where none is known."""
        return [self._payable(one, self._guard, ts, balance, wanted) for one in self.versions] or [(0, min(wanted, balance))]

    def _payable(self, version: int, guard: Guard | None, ts: int, balance: int, wanted: int) -> Span:
        whole = min(wanted, balance)
        if self._funds[version].policy.drawdown_guard is None:
            return whole, whole
        if guard is None:
            return 0, whole
        guard.observe(ts, balance)
        paid = min(wanted, payable(balance, guard))
        return paid, paid

    def _restored(self, saved: SavedGuard | None) -> Guard | None:
        return Guard(self._terms, self._decimals, saved) if self._terms and saved else None


def _within(amount: int, spans: Iterable[Span]) -> bool:
    return any(least <= amount <= most for least, most in spans)


def _written(spans: Iterable[Span]) -> str:
    return " or ".join(str(least) if least == most else f"{least} to {most}" for least, most in sorted(set(spans)))


def _shown(entry: Entry) -> str:
    return f"the {entry.kind} of {entry.order_id} with seq {entry.seq}, {entry.side} {entry.lots} lots at {entry.price}"
