"""One contract of a partition: its fund, its book, and its open ADL orders, and the effect of each event on them.

Settling a fill is the fast path. A shortfall that the fund cannot pay escalates: the market creates an ADL order and begins its
first round. Each execution and each end of a round moves the order, until it is done or no position is left to reduce.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from fundsvc.core.adl.book import Book
from fundsvc.core.adl.desk import AdlDesk
from fundsvc.core.adl.order import AdlOrder, RoundRequest, RoundTerms, opposite, order_for
from fundsvc.core.adl.records import reduced_body, round_bodies
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.batch import BookState, Draft, RateState, Round, StoredBook
from fundsvc.core.checks import check_mark, check_position, check_takeover, check_unwind, position_numbers
from fundsvc.core.contracts import Contract, TermsChanged, check_relisting
from fundsvc.core.events import (
    AdlAck,
    AdlEnd,
    AdlFill,
    AdlTimeout,
    Event,
    Fill,
    Mark,
    Position,
    Reason,
    Rejection,
    Snapshot,
    Takeover,
    Unwind,
)
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import Fund, WaitsForAdl
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import Policies, Policy
from fundsvc.core.sequences import (
    Content,
    Numbered,
    Sequences,
    content_of,
    content_of_entry,
    content_of_takeover,
    content_of_unwind,
)
from fundsvc.core.takeover import Cause, Exposure, Takeovers, check_held


@dataclass(slots=True)
class Shared:
    """What the markets of one partition share.

    `batch` is the draft of the next commit, `policies` the recorded policies by version, and `books_due` the symbols of the
    books to save with the next batches. `rates` are the latest rates by currency.
    `now_ms` is the time in the stream id of the current event.
    """

    batch: Draft
    sequences: Sequences
    policies: dict[int, Policies]
    books_due: dict[str, None] = field(default_factory=dict)
    rates: dict[str, RateState] = field(default_factory=dict)
    now_ms: int = 0


class Market:
    """The fund, the book and the ADL orders of one contract.

    A method that takes an event applies it and adds to the draft what the ledger must record. It raises Rejection, having
    changed nothing, if the event cannot be applied.
    """

    __slots__ = ("_desk", "_shared", "_takeovers", "fund", "symbol")

    def __init__(self, fund: Fund, shared: Shared) -> None:
        self.fund = fund
        self.symbol = fund.contract.symbol
        self._shared = shared
        self._desk: AdlDesk | None = None
        self._takeovers = Takeovers(self, fund.inventory) if fund.inventory else None

    @property
    def contract(self) -> Contract:
        """The terms of the contract."""
        return self.fund.contract

    @property
    def desk(self) -> AdlDesk:
        """The ADL desk, created with an empty book at first use."""
        if self._desk is None:
            self._desk = AdlDesk(self.contract, self.fund.policy, self._policy_under)
        return self._desk

    @property
    def batch(self) -> Draft:
        """The draft of the next commit."""
        return self._shared.batch

    @property
    def takeovers(self) -> Takeovers:
        """The takeovers, created with an empty inventory at first use."""
        if self._takeovers is None:
            self._takeovers = Takeovers(self, self.fund.begin_inventory(self.desk.book.mark))
        return self._takeovers

    @property
    def book(self) -> Book | None:
        """The book; None before the first mark or position."""
        return self._desk.book if self._desk else None

    @property
    def orders(self) -> dict[int, AdlOrder]:
        """The open ADL orders by number."""
        return self._desk.orders if self._desk else {}

    @property
    def is_large(self) -> bool:
        """Whether ranking the book, or reading all of it, takes long."""
        return self._desk is not None and self._desk.book.is_large

    @property
    def has_ledger(self) -> bool:
        """Whether the contract has entries or ADL orders, whose amounts its terms determine."""
        return bool(self.fund.entry or self.fund.adl)

    @property
    def has_inventory(self) -> bool:
        """Whether the fund has ever taken a position over, so that a mark may rank the book."""
        return self._takeovers is not None

    def exposure(self, ts: int) -> Exposure | None:
        """Returns what the inventory means for the fund at a time (ms); None if the fund holds nothing."""
        return self._takeovers.exposure(ts) if self._takeovers else None

    def fill(self, fill: Fill) -> None:
        """Settles a fill, unless it is a duplicate."""
        if self._is_new(fill):
            self.settle(fill)

    def settle(self, fill: Fill) -> None:
        """Settles a fill that is not a duplicate; escalates what the fund cannot pay."""
        shared = self._shared
        entry = self._write_fill(fill)
        shared.sequences.note(fill, content_of_entry(entry))
        if fill.trade_id and shared.sequences.repeats_trade(fill):
            shared.batch.repeated_trades[fill.symbol] += 1
        if entry.uncovered:
            self._escalate(entry)
        if self._takeovers is not None:
            self._takeovers.relieve(Cause(fill.seq, fill.ts))

    def _write_fill(self, fill: Fill, closes: int = 0) -> Entry:
        fund = self.fund
        adl_comes_first = fund.policy.waterfall == "adl_then_fund"
        settled = fund.settle(fill, waits_for_adl(fund, self.desk, fill) if adl_comes_first else None, closes)
        self._shared.batch.record(fund, settled)
        return settled[0]

    def settle_piece(self, fill: Fill, closes: int) -> None:
        """Settles a fill that closes lots of the tranche of a takeover entry; escalates what the fund cannot pay."""
        entry = self._write_fill(fill, closes)
        if entry.uncovered:
            self._escalate(entry)

    def takeover(self, event: Takeover) -> None:
        """Takes lots over, unless the event is a duplicate."""
        if self._is_new(event):
            self.take_over(event)

    def take_over(self, event: Takeover) -> None:
        """Takes over what the fund accepts, and begins an ADL order for the rest."""
        price = check_takeover(event, self.contract)
        self.takeovers.take_over(event, price, self._shared.rates)
        ids = event.trade_id, event.order_id, event.account
        self._end_numbered(event, content_of_takeover(event.side, event.lots, price, *ids, event.ts))

    def unwind(self, event: Unwind) -> None:
        """Unwinds lots of the inventory, unless the event is a duplicate."""
        if self._is_new(event):
            self.close_held(event)

    def close_held(self, event: Unwind) -> None:
        """Closes lots of the inventory that the market took."""
        price = check_unwind(event, self.contract)
        check_held(self.fund.inventory, event)
        self.takeovers.unwind(event, price)
        self._end_numbered(event, content_of_unwind(event.side, event.lots, price, event.trade_id, event.order_id, event.ts))

    def _end_numbered(self, event: Takeover | Unwind, content: Content) -> None:
        """Records the sequence and the content of an applied event, and relieves the inventory."""
        self.fund.seq = max(self.fund.seq, event.seq)
        self._note_change()
        self._shared.sequences.note(event, content)
        self.takeovers.relieve(Cause(event.seq, event.ts))

    def has_passed(self, event: Numbered) -> bool:
        """Whether the contract has settled this sequence or a higher one."""
        return event.seq <= self.fund.seq

    def is_unknown(self, event: Numbered) -> bool:
        """Whether the ledger must be queried before this event, whose sequence has passed, can be applied."""
        return self._shared.sequences.lacks(event, self.contract)

    def is_applied(self, event: Numbered) -> bool:
        """Whether an event whose sequence has passed is applied; raises Rejection if another event has its sequence."""
        return self._shared.sequences.is_applied(event, self.contract)

    def skip(self, event: Numbered) -> None:
        """Records the sequence of an event that did not move the fund's sequence."""
        if event.seq > self.fund.seq:
            self._shared.sequences.skip(event)

    def _is_new(self, event: Numbered) -> bool:
        """Whether an event's sequence is above the fund's. Raises Rejection for a late event and for a conflict."""
        shared, last = self._shared, self.fund.seq
        if event.seq > last:
            gap = shared.sequences.gap(event, last)
            if gap:
                shared.batch.gaps.append(gap)
            return True
        if not self._is_moot(event):
            shared.sequences.check_passed(event, self.contract, last)
        shared.batch.duplicates[self.symbol] += 1
        return False

    def _is_moot(self, event: Numbered) -> bool:
        """Whether an event that was never applied would change nothing, because it ends a closed order."""
        if not isinstance(event, AdlEnd) or event.adl > self.fund.adl or event.adl in self.orders:
            return False
        return not self.is_applied(event)

    def adl_fill(self, event: AdlFill) -> None:
        """Applies an execution, unless it is a duplicate."""
        if self._is_new(event):
            self.execute(event)

    def execute(self, event: AdlFill) -> None:
        """Adds an execution to its order and reduces the position; a completed order may refund."""
        fund, batch = self.fund, self._shared.batch
        order, desk = self._open_order(event.adl), self.desk
        if order.refund > INT64_MAX - fund.balance:
            raise Rejection(Reason.OUT_OF_RANGE, "the order's refund does not fit the fund's 64-bit balance")
        before = order.rest
        reduced = order.execute(event)
        fund.open_in_adl -= before - order.rest
        desk.reduce(order, event.account, event.lots)
        self._pass(order, event.seq)
        batch.seal(fund.record("execution", order, event.seq, event.ts, event.account, event.lots, reduced_body(reduced)))
        if order.origin != "shortfall":
            self.takeovers.deleverage(order, event)
        if order.state != "open":
            self.close_order(order)
            if order.refund:
                batch.record(fund, fund.refund(order, event))
        batch.note(order)
        self._shared.sequences.note(event, content_of(event, self.contract))
        if self._takeovers is not None:
            self._takeovers.relieve(Cause(event.seq, event.ts))

    def adl_end(self, event: AdlEnd) -> None:
        """Ends a round, unless the event is a duplicate."""
        if self._is_new(event):
            self.end_round(event)
            self.skip(event)

    def end_round(self, event: AdlEnd) -> None:
        """Ends a round and begins the next, or ends the order as uncovered.

        The end of a closed order changes nothing, not even the sequence.
        """
        order = self._order(event.adl)
        if order is not None:
            self._pass(order, event.seq)
            self._end_round(order, Cause(event.seq, event.ts))
        self._shared.sequences.note(event, content_of(event, self.contract))
        if order is not None and self._takeovers is not None:
            self._takeovers.relieve(Cause(event.seq, event.ts))

    def adl_timeout(self, event: AdlTimeout) -> None:
        """Ends a round that the engine did not answer. Changes nothing if the round is over."""
        order = self._order(event.adl)
        if order is not None and order.round == event.round:
            self._note_change()
            self._end_round(order, Cause(0, event.ts))

    def adl_ack(self, event: AdlAck) -> None:
        """Records that the engine has received a round. Changes nothing if that is known or the round is over."""
        order = self._order(event.adl)
        if order is not None and order.round == event.round and not order.acknowledged:
            order.acknowledged = True
            self._note_change()
            self._shared.batch.note(order)

    def reopen(self, order: AdlOrder) -> Round:
        """Continues an open order of the ledger; returns the lots that its round still requests."""
        self.fund.open_in_adl += order.rest
        self.desk.reopen(order)
        if order.origin != "shortfall":
            self.takeovers.reopen(order)
        rests = [(account, rest) for account, rest in order.progress.rests() if rest]
        return Round(order.state_row(), [account for account, _ in rests], [rest for _, rest in rests])

    def _escalate(self, shortfall: Entry) -> None:
        """Creates the ADL order of a shortfall and begins its first round.

        An amount below the contract's minimum becomes outstanding at once.
        """
        fund = self.fund
        if shortfall.uncovered < fund.escalate_min(shortfall.bankruptcy_price):
            fund.outstanding += shortfall.uncovered
            return
        fund.open_in_adl += shortfall.uncovered
        order = order_for(shortfall, fund.adl + 1, fund.policy_version)
        self.begin_order(order, Cause(shortfall.seq, shortfall.ts))

    def begin_order(self, order: AdlOrder, cause: Cause) -> None:
        """Begins the first round of a new order."""
        self.fund.adl = order.adl
        self._shared.batch.open(order)
        self._note_change()
        self._begin_round(order, cause)

    def close_order(self, order: AdlOrder) -> None:
        """Removes an order that has ended from the open orders."""
        if order.unwound:
            self.desk.withdraw(order)  # Its round may request more lots than it needed.
        self.desk.close(order)

    def _end_round(self, order: AdlOrder, cause: Cause) -> None:
        """Ends a round and begins the next, unless the order is no longer needed."""
        self.desk.end_round(order)
        if order.origin == "inventory" and not self.takeovers.is_needed(order):
            self._return(order, cause, without_candidates=False)
        else:
            self._begin_round(order, cause)

    def _begin_round(self, order: AdlOrder, cause: Cause) -> None:
        """Begins a round of an order; ends the order if no position can be reduced."""
        terms = self.desk.begin_round(order, self._shared.now_ms)
        self._seal_round(order, terms, cause)
        if terms.accounts:
            batch = self._shared.batch
            batch.rounds.append(Round(batch.note(order), terms.accounts, terms.requested))
        elif order.origin == "shortfall":
            self._end_uncovered(order, cause)
        else:
            self._return(order, cause, without_candidates=True)

    def _seal_round(self, order: AdlOrder, terms: RoundTerms, cause: Cause) -> None:
        for kind, body, first_rank in round_bodies(order, terms):
            self._shared.batch.seal(self.fund.record(kind, order, cause.seq, cause.ts, body=body, first_rank=first_rank))

    def _return(self, order: AdlOrder, cause: Cause, *, without_candidates: bool) -> None:
        """Ends a takeover or inventory order; the fund holds the lots that were not executed."""
        order.state = "returned"
        self.desk.close(order)
        self._shared.batch.note(order)
        self._shared.batch.seal(self.fund.record("end", order, cause.seq, cause.ts, lots=order.needed))
        self.takeovers.take_back(order, cause, without_candidates=without_candidates)

    def _end_uncovered(self, order: AdlOrder, cause: Cause) -> None:
        """Makes the rest of an order outstanding; the fund pays of it what it can."""
        fund, batch = self.fund, self._shared.batch
        order.state = "uncovered"
        fund.open_in_adl -= order.rest
        fund.outstanding += order.rest
        self.desk.close(order)
        batch.note(order)
        batch.seal(fund.record("end", order, cause.seq, cause.ts, lots=order.needed))
        covered = fund.cover(order, cause.seq, cause.ts)
        if covered:
            batch.record(fund, covered)

    def _pass(self, order: AdlOrder, seq: int) -> None:
        """Records the sequence of an event without an entry, and the order that it moved, for the audit."""
        self.fund.seq = max(self.fund.seq, seq)
        order.seq = max(order.seq, seq)
        self._note_change()

    def _note_change(self) -> None:
        """Adds the fund to those whose state the next commit writes."""
        self._shared.batch.changed[self.symbol] = self.fund

    def _order(self, number: int) -> AdlOrder | None:
        """An ADL order; None if it is closed. Raises Rejection if the contract never had it."""
        if number > self.fund.adl:
            raise Rejection(Reason.ADL_ORDER_UNKNOWN, f"{self.symbol} has no ADL order {number}")
        return self.orders.get(number)

    def _open_order(self, number: int) -> AdlOrder:
        order = self._order(number)
        if order is None:
            raise Rejection(Reason.ADL_ORDER_CLOSED, f"ADL order {number} of {self.symbol} is no longer open")
        return order

    def mark(self, mark: Mark) -> None:
        """Sets the mark price, unless the event is a duplicate, and relieves the inventory.

        Engines resend marks, so a mark with a time before that of an earlier one is not acted upon.
        """
        is_latest = self._set_mark(mark)
        if self._takeovers is not None and is_latest:
            self._takeovers.relieve(Cause(0, mark.ts))

    def _set_mark(self, mark: Mark) -> bool:
        """Sets the mark price, unless the event is a duplicate; returns whether no earlier mark has a later time."""
        price = check_mark(mark, self.contract)
        book = self.desk.book
        if self._is_known(book, mark.seq, book.mark_seq):
            self._shared.batch.duplicates[self.symbol] += 1
            return False
        book.mark, book.mark_ts, book.mark_seq = price, mark.ts, mark.seq or book.mark_seq
        if self._takeovers is not None:
            self._takeovers.inventory.reprice(price)
        if mark.ts < book.mark_ts_max:
            return False
        book.mark_ts_max = mark.ts
        return True

    def position(self, position: Position) -> None:
        """Sets a position, unless the event is a duplicate."""
        self._set(position, check_position(position, self.fund.contract))

    def _set(self, position: Position, numbers: tuple[int, int]) -> None:
        """Sets a position with these numbers: its entry price and its margin."""
        desk = self._desk or self.desk
        book = desk.book
        if self._is_known(book, position.seq, book.seq_of(position.account, position.position_side)):
            book.mark_seen(position.account, position.position_side)
            self._shared.batch.duplicates[self.symbol] += 1
            return
        desk.changed = True
        if not book.open:
            self.request_book()  # Readers of the saved books learn at once that this book has positions.
        book.set(position.account, position.lots, *numbers, position.position_side)
        if position.owner:
            book.owners.assign(position.account, position.owner)
        if position.seq is not None:
            book.remember(position.account, position.position_side, position.seq)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Begins or ends a snapshot, unless the event is a duplicate."""
        desk = self.desk
        if self._is_known(desk.book, None, 0):
            self._shared.batch.duplicates[self.symbol] += 1
            return
        desk.changed = True
        if snapshot.phase == "begin":
            desk.book.begin_snapshot()
        else:
            desk.book.end_snapshot()
            self.request_book()

    def apply_to_book(self, event: Event, side: SideName | None) -> None:
        """Applies to the book alone an event that was settled after the book was saved; see `Partition.apply_to_book`."""
        match event:
            case Mark():
                self._set_mark(event)
            case Snapshot():
                self.snapshot(event)
            case Position():
                # Settlement checked the identifiers, by the rules of that time.
                self._set(event, position_numbers(event, self.contract))
            case AdlFill() if side and self._desk:
                self._desk.changed = True
                self._desk.book.sides[side].reduce(event.account, event.lots)

    def prefetch(self, accounts: Iterable[str]) -> None:
        """Prepares the book for positions of these accounts; a book that does not exist yet needs no preparation."""
        if self._desk:
            self._desk.book.prefetch([*accounts])

    def request_book(self) -> None:
        """Requests that the next batches save the book."""
        self._shared.books_due.setdefault(self.symbol)

    def clear_book(self) -> None:
        """Makes the next save of the book write it even if it is empty, in place of one saved earlier."""
        self.desk.changed = True

    def take_book(self) -> BookState:
        """The book to save; without positions if they have not changed since the book was last saved."""
        desk, seq = self._desk, self.fund.seq
        if desk is None:
            return BookState(self.symbol, seq, None, 0, 0, None, 0)
        book = desk.book
        parts = [msgspec.msgpack.encode(part) for part in book.save()] if desk.changed else None
        desk.changed = False
        positions = book.open if parts else 0
        return BookState(self.symbol, seq, book.mark, book.mark_ts, book.mark_seq, parts, positions, book.mark_ts_max)

    def restore_mark(self, kept: StoredBook) -> Book:
        """Sets the mark of a saved book; returns the book, to restore its positions."""
        book = self.desk.book
        book.mark, book.mark_ts, book.mark_seq = kept.mark, kept.mark_ts, kept.mark_seq
        book.mark_ts_max = max(kept.mark_ts, kept.mark_ts_max)
        if self._takeovers is not None and kept.mark is not None:
            self._takeovers.inventory.reprice(kept.mark)
        return book

    def make_stale(self, known_ms: int) -> None:
        """Marks the book as stale if it has positions; see `Partition.make_stale`."""
        desk = self.desk
        desk.changed = True
        desk.book.known_ms = known_ms
        desk.book.stale = desk.book.stale or desk.book.open > 0
        self.request_book()

    def _is_known(self, book: Book, seq: int | None, last_seq: int) -> bool:
        """Whether the book has an event: by the event's own sequence, or because its message is read again."""
        return self._shared.now_ms <= book.known_ms if seq is None else seq <= last_seq

    def relist(self, listed: Contract) -> None:
        """Accepts a listing of a contract with entries; other terms than those of the entries suspend the contract."""
        try:
            check_relisting(self.contract, listed)
        except TermsChanged:
            self._suspend(suspended=True)
            raise
        self._suspend(suspended=False)

    def _suspend(self, *, suspended: bool) -> None:
        if self.fund.suspended != suspended:
            self.fund.suspended = self._shared.batch.suspensions[self.symbol] = suspended

    def adopt(self, policies: Policies) -> None:
        """Applies new policies; open orders keep the version under which they began."""
        policy = policies.of(self.symbol)
        self.fund.adopt(policy, policies.version)
        self._note_change()
        if self._desk:
            self._desk.policy = policy

    def _policy_under(self, version: int) -> Policy:
        """The policy of a version; orders from before versions were recorded use the current one."""
        policies = self._shared.policies.get(version)
        return policies.of(self.symbol) if policies else self.fund.policy


def waits_for_adl(fund: Fund, desk: AdlDesk, fill: Fill) -> WaitsForAdl:
    """The rule of `adl_then_fund`: the fund pays nothing yet if the deficit escalates and a position can be reduced."""

    def waits(deficit: int, bankruptcy_price: int) -> bool:
        request = RoundRequest(opposite(fill.side), 1, bankruptcy_price, fill.account)
        return deficit >= fund.escalate_min(bankruptcy_price) and desk.has_candidates(request)

    return waits
