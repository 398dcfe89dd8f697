"""Recomputes a contract's ledger from its entries and ADL records, for the audit.

`Replay` follows entries and records in the order in which settlement wrote them. A shortfall or the end of an order requires a
certain next entry or record. That requirement is pending until the next entry or record confirms or contradicts it.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from fundsvc.core.adl.order import AdlOrder, OrderState, opposite
from fundsvc.core.adl.records import AdlRecord, OrderBody, order_of
from fundsvc.core.adl.verification import OpenOrders, OrdersCheckpoint, OrdersReplay
from fundsvc.core.commitment import NO_SECRETS, SEAL_BYTES, Secrets, commitment, seal_parts
from fundsvc.core.contracts import Contract, contract_of, partition_of
from fundsvc.core.events import SETTLEMENT, Rejection
from fundsvc.core.fund.chain import CARRIED, GENESIS, Entry, link
from fundsvc.core.fund.held_lots import HeldReplay
from fundsvc.core.fund.inventory import Inventory
from fundsvc.core.fund.settlement import Closing, Fund, FundState
from fundsvc.core.generations import named_generation, public_symbol
from fundsvc.core.policy import Guard, Policy, SavedGuard, payable

Policies = Mapping[int, Policy]
"""The policies of a contract by version; version 0 is the configured policy of a partition without recorded policies."""

UNKNOWN: Policies = {}
"""Without known policies, the audit allows a fund to pay less than it can, and a shortfall not to escalate."""

Span = tuple[int, int]
"""A range of amounts, both ends included."""


class Pending(msgspec.Struct, array_like=True, frozen=True):
    """The next entry or record that the rules require.

    `shortfall` requires an ADL order, unless the policy does not escalate it; `known` means that the policies under which it
    was settled are known. `due` is the required entry of a closed order, without its amount, which is in one of the `spans`. If
    a span contains 0, the entry may be missing. `taken` is a takeover entry, which may cause an order for the lots that the
    fund did not accept.
    """

    shortfall: Entry | None = None
    known: bool = True
    due: Entry | None = None
    spans: list[Span] = []
    taken: Entry | None = None


class Undated(msgspec.Struct, array_like=True, frozen=True):
    """Amounts of closed orders whose records do not contain the entry that they follow. Amounts are atoms.

    `ended` is the rest of the orders that ended uncovered, as far as it is not known to be outstanding. By order, `covers` are
    the amounts that the fund may still pay, and `refunds` the amounts that completed orders may still refund.
    """

    ended: int = 0
    covers: dict[int, int] = {}
    refunds: dict[int, int] = {}


class Subject(NamedTuple):
    """What a difference is about: a contract, or one of its entries or records; `at` is the entry that the audit logs."""

    symbol: str
    kind: str = ""
    number: int = 0
    at: int | None = None

    def __str__(self) -> str:
        return f"{self.symbol} {self.kind} {self.number}" if self.kind else self.symbol


class Checkpoint(NamedTuple):
    """The state after an entry up to which a ledger has no difference.

    `entry`, `head` and `balance` are those of the last entry, and `seq` is the highest sequence so far. `uncovered` and
    `repaid` are sums over all entries. `orders` is the state after the ADL records. `guard` is the drawdown guard, None if it
    cannot be recomputed. Amounts are atoms.
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
    """Totals of all ADL orders of a contract: the recovered amount, the amount that open orders still have to recover, the
    highest sequence, and the number of orders.
    """

    recovered: int
    open: int
    seq: int
    orders: int


def missing(symbol: str) -> str:
    """Returns the difference of a ledger that has entries, a contract or a fund, but not all of them."""
    return f"{symbol}: its contract or its fund is missing"


def contract_differences(contract: Contract, specification: dict[str, Any], partition: int, partitions: int) -> list[str]:
    """Returns the differences between a contract and its listing, and between its partition and the one of its symbol."""
    try:
        listed = contract_of(specification, {}, 0)
    except Rejection as rejection:
        return [f"{contract.symbol}: its listing is illegal: {rejection}"]
    terms = [(public_symbol(one.symbol), one.settle_currency, one.multiplier, one.is_inverse) for one in (contract, listed)]
    home = partition_of(contract.symbol, partitions)
    found = [f"{contract.symbol}: its terms are {terms[0]}, it was listed with {terms[1]}"] if terms[0] != terms[1] else []
    return found + ([f"{contract.symbol}: its partition is {partition}, it should be {home}"] if partition != home else [])


class Replay:
    """Follows a ledger from a checkpoint, by default from entry 1, and collects every difference from the rules.

    `late` are the numbers of the entries whose events were rejected first and settled later. Only these may have a sequence
    below that of an earlier entry. `opened` are the open orders at the checkpoint, and `inventory` are the positions that the
    fund held; the replay changes both, so that they belong to its own checkpoint afterwards. `differences` are sentences; an
    empty list means that the ledger is correct. `differs_at` is the number of the first entry that differs, or of the last
    entry before a record that differs; None without a difference. `orders` are the recomputed ADL orders. `secrets` open the
    commitments to accounts; `unopened` counts the commitments whose secret is not configured. `closing` is the end of the
    contract, None while it is open.
    """

    def __init__(
        self,
        contract: Contract,
        late: Collection[int] = (),
        since: Checkpoint = START,
        policies: Policies = UNKNOWN,
        opened: OpenOrders | None = None,
        secrets: Secrets = NO_SECRETS,
        inventory: Inventory | None = None,
        closing: Closing | None = None,
    ) -> None:
        self.differences: list[str] = []
        self.unopened = 0
        self.differs_at: int | None = None
        state = FundState(contract.symbol, since.balance, since.outstanding, since.entry, since.seq, head=since.head)
        self._fund = Fund(contract, state)
        self._late = late
        self._closing = closing
        self._secrets = secrets
        self._seq = since.seq
        self._uncovered = since.uncovered
        self._repaid = since.repaid
        self._pending = since.pending
        self._undated = since.undated
        self._rules = _Rules(contract, policies, since.guard)
        self._subject: Subject | Entry = Subject(contract.symbol)
        self.orders = OrdersReplay(self._differ, since.orders, opened)
        self.held = HeldReplay(self._differ, inventory or Inventory(contract, self._fund.worth), self.orders.orders.values())

    @property
    def entry(self) -> int:
        """The number of the last entry followed."""
        return self._fund.entry

    @property
    def checkpoint(self) -> Checkpoint:
        """The state from which another replay continues."""
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
        """Checks one entry against the state before it, and continues from the entry's own values.

        `known` means that the policies under which it was settled are known.
        """
        pending = self._take_pending()
        if self.orders.unfinished:
            self._differ(self.orders.unfinished)
        fund = self._fund
        self._at(entry)
        self._check_place(entry)
        self._check_kind(entry, pending, known=known)
        if entry.seal:
            self._check_opening(entry)
        computed = link(fund.head, entry)
        if digest != computed:
            self._mismatch("hash", digest.hex(), computed.hex())
        fund.head = digest
        fund.entry = entry.entry
        fund.balance = entry.balance
        self._seq = max(self._seq, entry.seq)
        self._uncovered += entry.uncovered
        self._repaid += entry.repaid
        fund.outstanding -= entry.repaid
        if entry.closes or entry.kind in ("takeover", "deleverage"):
            self.held.follow(entry)
        if not self._pending.shortfall:
            self._rules.observe(entry.ts, entry.balance)

    def _check_place(self, entry: Entry) -> None:
        """Checks that an entry continues the one before it."""
        fund = self._fund
        if entry.entry != fund.entry + 1:
            self._mismatch("entry number", entry.entry, fund.entry + 1)
        if entry.symbol != fund.contract.symbol:
            self._mismatch("symbol", entry.symbol, fund.contract.symbol)
        if entry.balance != fund.balance + entry.change:
            self._mismatch("balance", entry.balance, fund.balance + entry.change)
        if entry.balance < 0 or entry.uncovered < 0 or entry.repaid < 0:
            self._differ("has a negative amount")

    def _check_kind(self, entry: Entry, pending: Pending, *, known: bool) -> None:
        """Checks an entry by the rules of its kind."""
        kind = entry.kind
        if kind in ("refund", "cover"):
            self._check_of_order(entry, pending)
        elif kind == "deleverage" or entry.forced:
            self._check_of_lots(entry, pending)
        else:
            self._check_optional(pending)
            if kind in ("carry_out", "carry_in"):
                self._check_carried(entry)
            elif kind == "takeover":
                self._check_takeover(entry, known=known)
            else:
                self._check_of_fill(entry, known=known)

    def follow_record(self, record: AdlRecord, digest: bytes) -> None:
        """Checks one ADL record against the state before it, and continues from the record's own values."""
        body = _body_of(record) if record.kind == "order" else None
        cause = self._pending.shortfall if body and body.origin == "shortfall" else None
        taken = self._pending.taken
        if cause is None:
            self._check_optional(self._take_pending())
        self._subject = Subject(record.symbol, "ADL record", record.record, self._fund.entry)
        if record.symbol != self._fund.contract.symbol:
            self._mismatch("symbol", record.symbol, self._fund.contract.symbol)
        if record.entry not in (0, self._fund.entry):
            self._differ(f"follows entry {record.entry}, it should be {self._fund.entry}")
        if body and body.origin != "shortfall":
            self._check_beginning(record, body, taken)
        before = self.orders.orders.get(record.adl)
        needed = before.needed if before else 0
        closed = self.orders.follow(record, digest, cause)
        self._seq = max(self._seq, record.seq)
        order = self.orders.orders.get(record.adl) or before
        if order and order.origin != "shortfall":
            self.held.follow_order(order, needed)
            self._demand_of_lots(order, record)
        elif cause:
            self._escalated(cause, order)
        elif closed:
            self._demand(closed, record)

    def compare(self, rows: Mapping[int, OrderState], *, ended: bool) -> None:
        """Compares stored orders, by number, with the recomputed ones. `ended` means that all records have been followed."""
        self._subject = Subject(self._fund.contract.symbol, at=self._fund.entry)
        self.orders.compare(rows, ended=ended)

    def conservation_error(self, state: FundState, orders: OrderTotals) -> int:
        """Returns uncovered - (recovered + repaid + outstanding + open in ADL), in atoms; 0 in a correct ledger."""
        return self._uncovered - (orders.recovered + self._repaid + state.outstanding + orders.open)

    def distrust_guard(self) -> None:
        """Stops recomputing the guard: the next entry has a time out of range, which the fund's guard has dropped."""
        self._rules.lose_guard()

    def finish(self, state: FundState, orders: OrderTotals) -> None:
        """Compares the end of both chains with the stored fund, and checks the conservation of uncovered amounts."""
        self._check_optional(self._take_pending())
        self._subject = Subject(self._fund.contract.symbol)
        if self.orders.unfinished:
            self._differ(self.orders.unfinished)
        self._compare("the fund has (entry, balance, head)", "its entries give", self._ends(state), self._ends(self._fund))
        # With a raised sequence, settlement would drop coming fills as duplicates.
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
            self._compare("the fund's outstanding is", "its entries and records give", state.outstanding, outstanding)
        ours = self.orders
        if self._closing and (ours.orders or self.held.inventory.lots):
            self.differences.append("the contract is closed, but orders are open or lots are held")
        self._compare(
            "the fund has (ADL orders, records, head)",
            "its records give",
            (state.adl, state.adl_record, state.adl_head.hex()),
            (ours.adl, ours.record, ours.head.hex()),
        )
        self._compare(
            "its orders have (number, recovered, open in ADL)",
            "its records give",
            orders._replace(seq=0),
            OrderTotals(ours.recovered, ours.open_in_adl, 0, ours.adl),
        )
        if self._rules.saved is not None:
            self._compare("the fund's guard is", "its entries give", state.guard, self._rules.kept)

    def _check_opening(self, entry: Entry) -> None:
        """Checks that the commitment of a sealed entry belongs to its account, if the secret is configured."""
        if not entry.account or len(entry.seal) != SEAL_BYTES:
            self._differ("has a seal without an account, or of the wrong length")
            return
        salt = self._secrets.salt(entry.symbol, entry.entry, entry.seal)
        if salt is None:
            self.unopened += 1
        elif commitment(salt, entry.account) != seal_parts(entry.seal).commitment:
            self._differ("its commitment does not belong to its account")

    def _check_of_fill(self, entry: Entry, *, known: bool) -> None:
        """Checks an entry of a fill: its amounts equal the fill's worth, a surplus repays first, and a shortfall is paid.

        An entry that closes lots of a tranche is one piece of an unwind, whose entries and records have the same sequence.
        """
        if entry.closes:
            self.held.check_piece(entry)
            self._check_settlement(entry)
        if entry.seq <= self._seq - bool(entry.closes) and entry.entry not in self._late:
            self._differ(f"sequence {entry.seq} is not above {self._seq}")
        worth = self._worth(entry)
        if worth is None:
            return
        kind = "surplus" if worth > 0 else "shortfall" if worth else "flat"
        if entry.kind != kind:
            self._mismatch("kind", entry.kind, kind)
        moved = entry.change + entry.repaid - entry.uncovered
        if moved != worth:
            self._mismatch("change + repaid - uncovered", moved, worth)
        if worth >= 0:
            self._check_repaid(entry, worth)
        elif entry.uncovered > 0:
            self._pending = Pending(entry, known)
        else:
            self._check_paid(entry, None, known=known)

    def _check_repaid(self, entry: Entry, worth: int) -> None:
        """Checks that a surplus repays the outstanding amount first."""
        if entry.repaid and self._undated.ended:
            self._date_until(min(worth, entry.repaid))
        repaid = min(worth, self._fund.outstanding)
        if entry.repaid != repaid:
            self._mismatch("repaid", entry.repaid, repaid)

    def _check_settlement(self, entry: Entry) -> None:
        """Checks that an entry belongs to the settlement of the contract if it has the sequence or the order id of that."""
        closing = self._closing or Closing(0)
        found, wanted = (entry.seq, entry.price, entry.ts), (closing.seq, closing.price, closing.at)
        if (entry.order_id == SETTLEMENT or entry.seq == closing.seq) and (found, entry.order_id) != (wanted, SETTLEMENT):
            self._differ(f"has (seq, price, ts) {found} and order id {entry.order_id!r}, the contract was settled by {wanted}")

    def _check_carried(self, entry: Entry) -> None:
        """Checks an entry that moves the balance of a closed contract. The entry in the other chain is compared separately."""
        is_out, other = entry.kind == "carry_out", entry.order_id.removeprefix(CARRIED)
        others = entry.uncovered, entry.repaid, entry.lots, entry.price, entry.bankruptcy_price, entry.closes
        texts = entry.side, entry.trade_id, entry.account, entry.order_id
        if (entry.change < 0) != is_out or not entry.change or any(others) or texts != ("sell", "", "", CARRIED + other):
            self._differ(f"has fields that a {entry.kind} cannot have")
        if named_generation(other) is None or entry.seq < self._seq:
            self._differ(f"names the contract {other!r} and has sequence {entry.seq}, the one before has {self._seq}")
        if is_out and (entry.balance or self._fund.outstanding or self.orders.orders or self.held.inventory.lots):
            self._differ("moves a balance while something is left, outstanding or open")
        if is_out and not self._rules.may_carry():
            self._differ("moves a balance, which no policy does")

    def _check_takeover(self, entry: Entry, *, known: bool) -> None:
        """Checks an entry of accepted lots. Whether the fund can bear their loss depends on the mark, which is not recorded."""
        if entry.seq <= self._seq and entry.entry not in self._late:
            self._differ(f"sequence {entry.seq} is not above {self._seq}")
        lowest = int(self._fund.contract.is_inverse)
        if entry.lots < 1 or entry.price < lowest or entry.price != entry.bankruptcy_price:
            self._differ("has lots or prices that a takeover cannot have")
        if entry.change or entry.uncovered or entry.repaid or entry.closes:
            self._differ("is a takeover that moves money or closes a tranche")
        if known and not self._rules.may_accept():
            self._differ("accepts lots, which no policy in force does")
        self._rules.begin_inventory()
        self._pending = Pending(taken=entry)

    def _check_beginning(self, record: AdlRecord, body: OrderBody, taken: Entry | None) -> None:
        """Checks the cause of an order for lots: a takeover whose rest it requests, or a tranche with enough free lots."""
        if body.origin == "inventory":
            self.held.check_tranche(body)
            return
        self._rules.begin_inventory()
        if not body.cause:
            self._rules.observe(record.ts, self._fund.balance)
        found = (body.cause, body.reduce, body.price, body.account, record.seq, record.ts)
        wanted = (
            (taken.entry, opposite(taken.side), taken.price, taken.account, taken.seq, taken.ts)
            if taken and taken.seq == record.seq
            else (0, *found[1:])  # The fund accepted nothing.
        )
        if found != wanted:
            self._differ(f"ADL order {record.adl} has (cause, side, price, account, seq, ts) {found}, it should have {wanted}")

    def _demand_of_lots(self, order: AdlOrder, record: AdlRecord) -> None:
        """Requires the entry of an execution of lots, or of those that a takeover order leaves."""
        due = None
        if record.kind == "execution":
            due = self._fund.adl_entry("deleverage", order, 0, 0, record.lots, record.seq, record.ts)
            due = msgspec.structs.replace(due, closes=order.cause if order.origin == "inventory" else 0)
        elif record.kind == "end" and order.origin == "takeover":
            due = self._fund.adl_entry("takeover", order, 0, 0, order.needed, record.seq or self._seq, record.ts)
            due = msgspec.structs.replace(due, forced=True)
        if due:
            self._pending = Pending(due=due, spans=[(1, 1)])

    def _check_of_lots(self, entry: Entry, pending: Pending) -> None:
        """Checks the entry of an execution or of forced lots: it is exactly the required one."""
        if pending.due is None:
            self._differ(f"is a {entry.kind} that no ADL order requires")
        elif entry != pending.due:
            self._differ(f"is {_shown(entry)}, it should be {_shown(pending.due)}")

    def _worth(self, entry: Entry) -> int | None:
        lowest = int(self._fund.contract.is_inverse)
        if entry.lots < 1 or entry.price < 1 or entry.bankruptcy_price < lowest:
            self._differ("has lots or prices that a fill cannot have")
            return None
        return self._fund.worth(entry.side, entry.lots, entry.price, entry.bankruptcy_price)

    def _escalated(self, shortfall: Entry, order: AdlOrder | None) -> None:
        """Checks a shortfall that has an order."""
        known, self._pending = self._pending.known, NOTHING
        if order is None:
            return
        self._check_paid(shortfall, order, known=known)
        self._rules.observe(shortfall.ts, shortfall.balance)

    def _take_pending(self) -> Pending:
        """Returns the pending requirement and clears it. A pending shortfall did not escalate, so it becomes outstanding."""
        pending, self._pending = self._pending, NOTHING
        shortfall = pending.shortfall
        if shortfall:
            self._at(shortfall)
            self._fund.outstanding += shortfall.uncovered
            self._check_paid(shortfall, None, known=pending.known)
            self._rules.observe(shortfall.ts, shortfall.balance)
        return pending

    def _check_paid(self, entry: Entry, order: AdlOrder | None, *, known: bool) -> None:
        """Checks that a policy in force explains what the fund paid of a shortfall, and whether an order recovers the rest."""
        deficit, covered = entry.uncovered - entry.change, -entry.change
        before = entry.balance + covered
        if not 0 <= covered <= min(deficit, before):
            self._differ(f"pays {covered} of a deficit of {deficit}, the fund has {before}")
        versions = self._rules.versions if order is None else [order.policy_version]
        if not known or not self._rules.versions:
            self._rules.lose_guard()
        elif order is not None and not self._rules.knows(order.policy_version):
            self._differ(f"causes ADL order {order.adl} under policies {order.policy_version}, which are not recorded")
        elif not any(self._rules.explain(version, entry, order) for version in versions):
            escalates = f"ADL order {order.adl}" if order else "no ADL order"
            self._differ(f"pays {covered} of a deficit of {deficit} from {before}, with {escalates}: no policy in force does")

    def _demand(self, order: AdlOrder, record: AdlRecord) -> None:
        """Requires the cover of an order that ended uncovered, or the refund of a completed one."""
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
        """Checks an entry of an ADL order: it is the required one, or belongs to an order with undated records."""
        amount = entry.change if entry.kind == "refund" else entry.repaid
        moved = (amount, 0) if entry.kind == "refund" else (-amount, amount)
        if amount <= 0 or entry.uncovered or (entry.change, entry.repaid) != moved:
            self._differ(f"has amounts that a {entry.kind} cannot have")
        elif pending and pending.due:
            change, repaid = moved
            due = msgspec.structs.replace(pending.due, change=change, repaid=repaid, balance=self._fund.balance + change)
            if entry != due or not _within(amount, pending.spans):
                self._differ(f"is {_shown(entry)} of {amount}, it should be {_shown(due)} of {_written(pending.spans)}")
        elif not self._take_undated(entry, amount):
            self._differ(f"is a {entry.kind} of {amount} that no ADL order requires")

    def _check_optional(self, pending: Pending) -> None:
        """Checks that a required entry that is missing may have an amount of 0."""
        if pending.due and not _within(0, pending.spans):
            self._differ(f"{_shown(pending.due)} of {_written(pending.spans)} is missing")

    def _take_undated(self, entry: Entry, amount: int) -> bool:
        """Whether an order with undated records may have an entry; subtracts the entry's amount."""
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
        """Makes as much of the undated amounts outstanding as a repayment needs."""
        dated = min(self._undated.ended, max(0, repaid - self._fund.outstanding))
        if dated:
            self._fund.outstanding += dated
            self._undated = msgspec.structs.replace(self._undated, ended=self._undated.ended - dated)

    @staticmethod
    def _ends(fund: FundState | Fund) -> tuple[int, int, str]:
        return fund.entry, fund.balance, fund.head.hex()

    def _compare(self, stored: str, recomputed: str, found: object, expected: object) -> None:
        if found != expected:
            self.differences.append(f"{stored} {found}, {recomputed} {expected}")

    def _at(self, entry: Entry) -> None:
        self._subject = entry

    def _mismatch(self, what: str, found: object, expected: object) -> None:
        """Adds a value that differs. The callers compare before, because a walk follows millions of entries."""
        self._differ(f"{what} is {found}, it should be {expected}")

    def _differ(self, sentence: str) -> None:
        subject = self._subject
        if isinstance(subject, Entry):
            subject = Subject(subject.symbol, "entry", subject.entry, subject.entry)
        if self.differs_at is None:
            self.differs_at = subject.at
        self.differences.append(f"{subject}: {sentence}")


def _body_of(record: AdlRecord) -> OrderBody | None:
    """Decodes the terms of an order; None if they are not legal, which following the record reports."""
    try:
        return order_of(record.body)
    except msgspec.DecodeError:
        return None


class _Rules:
    """The requirements of a contract's policies.

    The drawdown guard is recomputed if all versions have the same one. Otherwise a fund with a guard may pay any amount.
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
        """The state of the guard to continue with; None if it can no longer be recomputed."""
        return self._guard.save() if self._guard else self._saved

    @property
    def kept(self) -> SavedGuard | None:
        """The guard as the fund stores it; None without a guard."""
        return self._guard.save() if self._guard else None

    def knows(self, version: int) -> bool:
        """Whether a version of the policies is known."""
        return version in self._funds

    def lose_guard(self) -> None:
        """Stops recomputing the guard, because an event was settled under unknown policies."""
        self._guard = self._saved = None

    def begin_inventory(self) -> None:
        """Stops recomputing a guard that watches the equity, which depends on marks."""
        if self._terms and self._terms.on == "equity":
            self.lose_guard()

    def may_accept(self) -> bool:
        """Whether a version of the policies accepts lots of takeovers; True if none is known."""
        return not self.versions or any(self._funds[one].policy.takeover.mode != "adl" for one in self.versions)

    def may_carry(self) -> bool:
        """Whether a version of the policies moves the balance of a closed contract; True if none is known."""
        return not self.versions or any(self._funds[one].policy.on_close == "successor" for one in self.versions)

    def observe(self, ts: int, balance: int) -> None:
        """Adds a balance at a time (ms) to the guard."""
        if self._guard:
            self._guard.observe(ts, balance)

    def explain(self, version: int, shortfall: Entry, order: AdlOrder | None) -> bool:
        """Whether a version of the policies explains the payment of a shortfall and its order, or that it has none."""
        fund = self._funds[version]
        uncovered, covered = shortfall.uncovered, -shortfall.change
        escalates = uncovered > 0 and uncovered >= fund.escalate_min(shortfall.bankruptcy_price)
        is_of_settlement = shortfall.closes > 0 and shortfall.order_id == SETTLEMENT and order is None
        if escalates != (order is not None) and not is_of_settlement:
            return False
        if order is not None and len(order.progress) and fund.policy.waterfall == "adl_then_fund":
            return covered == 0
        guard = self._restored(self.saved)
        least, most = self._payable(version, guard, shortfall.ts, shortfall.balance + covered, uncovered + covered)
        if not least <= covered <= most:
            return False
        self._guard = guard
        return True

    def payables(self, ts: int, balance: int, wanted: int) -> list[Span]:
        """Returns the amounts that a fund may pay under each version; any amount if no version is known."""
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
