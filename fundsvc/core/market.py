"""One contract of a partition: its fund, its book, and its open ADL orders, and the effect of each event on them.

Settling a fill is the fast path. A shortfall that the fund cannot pay escalates: the market creates an ADL order and begins its
first round. Each execution and each end of a round moves the order, until it is done or no position is left to reduce.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from fundsvc.core.adl.book import Book
from fundsvc.core.adl.book_saves import Saved
from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.awaited_books import Journal, Postponable, Postponed
from fundsvc.core.batch import BookState, Round, StoredBook
from fundsvc.core.checks import (
    check_fill,
    check_mark,
    check_position,
    check_settle,
    check_takeover,
    check_unwind,
    position_numbers,
)
from fundsvc.core.contracts import Contract, TermsChanged, check_relisting
from fundsvc.core.escalation import Escalation
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
    Settle,
    Snapshot,
    Takeover,
    Unwind,
    contract_closed,
)
from fundsvc.core.fund.settlement import Closing, Fund
from fundsvc.core.policy import Policies
from fundsvc.core.sequences import (
    Content,
    Numbered,
    content_of,
    content_of_entry,
    content_of_settlement,
    content_of_takeover,
    content_of_unwind,
)
from fundsvc.core.shared import Shared
from fundsvc.core.takeover import Cause, Exposure, check_held

EVENTS_PER_STEP = 200
"""Postponed events applied per step: about a millisecond."""


class Market:
    """The fund, the book and the ADL orders of one contract. `symbol` is its ledger key.

    `before` is the closed generation before it, None for the first, and `since` the last sequence of that. `journal` contains
    what the book has yet to get, None once it is loaded.
    A method that takes an event applies it and adds to the draft what the ledger must record. It raises Rejection, having
    changed nothing, if the event cannot be applied.
    """

    __slots__ = ("_adl", "_shared", "before", "fund", "journal", "since", "symbol")

    def __init__(self, fund: Fund, shared: Shared, before: "Market | None" = None) -> None:
        self.fund = fund
        self.symbol = fund.contract.symbol
        self.before = before
        self.since = before.last_seq if before else 0
        self.journal: Journal | None = None
        self._shared = shared
        self._adl = Escalation(fund, shared)

    @property
    def contract(self) -> Contract:
        """The terms of the contract."""
        return self.fund.contract

    @property
    def last_seq(self) -> int:
        """The last sequence of the fund, or of the settlement that closed the contract without entries."""
        return max(self.fund.seq, self.fund.closing.seq if self.fund.closing else 0)

    @property
    def book(self) -> Book | None:
        """The book; None before the first mark or position."""
        return self._adl.begun_desk.book if self._adl.begun_desk else None

    @property
    def orders(self) -> dict[int, AdlOrder]:
        """The open ADL orders by number."""
        return self._adl.orders

    @property
    def is_large(self) -> bool:
        """Whether ranking the book, or reading all of it, takes long."""
        return self._adl.begun_desk is not None and self._adl.begun_desk.book.is_large

    @property
    def has_ledger(self) -> bool:
        """Whether the contract has entries or ADL orders, whose amounts its terms determine."""
        return bool(self.fund.entry or self.fund.adl)

    @property
    def has_inventory(self) -> bool:
        """Whether the fund has ever taken a position over, so that a mark may rank the book."""
        return self.fund.inventory is not None

    def exposure(self, ts: int) -> Exposure | None:
        """Returns what the inventory means for the fund at a time (ms); None if the fund holds nothing."""
        return self._adl.takeovers.exposure(ts) if self.has_inventory else None

    def fill(self, fill: Fill) -> None:
        """Settles a fill, unless it is a duplicate."""
        if self._is_new(fill):
            self.settle(fill)

    def settle(self, fill: Fill) -> None:
        """Settles a fill that is not a duplicate; escalates what the fund cannot pay."""
        shared, fund = self._shared, self.fund
        entry = self._adl.write_fill(fill)
        shared.sequences.note(fill, content_of_entry(entry))
        if fill.trade_id and shared.sequences.repeats_trade(fill):
            shared.batch.repeated_trades[self.symbol] += 1
        if entry.uncovered:
            self._adl.escalate(entry)
        if fund.inventory is not None:
            self._adl.relieve(Cause(fill.seq, fill.ts))

    def takeover(self, event: Takeover) -> None:
        """Takes lots over, unless the event is a duplicate."""
        if self._is_new(event):
            self.take_over(event)

    def take_over(self, event: Takeover) -> None:
        """Takes over what the fund accepts, and begins an ADL order for the rest."""
        price = check_takeover(event, self.contract)
        self._adl.takeovers.take_over(event, price, self._shared.rates)
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
        self._adl.takeovers.unwind(event, price)
        self._end_numbered(event, content_of_unwind(event.side, event.lots, price, event.trade_id, event.order_id, event.ts))

    def _end_numbered(self, event: Takeover | Unwind, content: Content) -> None:
        """Records the sequence and the content of an applied event, and relieves the inventory."""
        self.fund.seq = max(self.fund.seq, event.seq)
        self._adl.note_change()
        self._shared.sequences.note(event, content)
        self._adl.takeovers.relieve(Cause(event.seq, event.ts))

    def settlement(self, event: Settle) -> None:
        """Settles the contract, unless the event is a duplicate."""
        if self.fund.closing is not None and self._is_settlement(event):
            self._shared.batch.duplicates[self.symbol] += 1
        elif self._is_new(event):
            self.close_at(event)

    def close_at(self, event: Settle) -> None:
        """Ends the open orders, closes the inventory at the settlement price, and closes the contract."""
        price, fund, written = check_settle(event, self.contract), self.fund, self.fund.entry
        if fund.inventory is None:
            self._adl.end_orders(Cause(event.seq, event.ts))
        else:
            self._adl.takeovers.settle(event, price)
        self._shared.sequences.note(event, content_of_settlement(price, event.ts))
        if fund.entry == written:
            self.skip(event)  # The audit finds the sequence neither in an entry nor in an order.
        self.end(Closing(event.ts, event.seq, price))

    def end(self, closing: Closing) -> None:
        """Closes the contract, whose positions end with it."""
        self.fund.closing = self._shared.batch.closings[self.symbol] = closing
        self._adl.note_change()
        self._adl.forget_positions()
        self.request_book()

    def close_if_idle(self) -> None:
        """Closes an open contract that its listing ends, unless lots or orders are left."""
        is_idle = not self.orders and (self.fund.inventory is None or not self.fund.inventory.lots)
        if self.fund.closing is None and is_idle:
            self.end(Closing(self._shared.now_ms))

    def check_open(self) -> None:
        """Raises Rejection if the contract is closed."""
        if self.fund.closing is not None:
            raise contract_closed(self.symbol)

    def _is_settlement(self, event: Numbered) -> bool:
        """Whether an event is the settlement that closed the contract; raises Rejection for another one with its sequence."""
        closing = self.fund.closing
        if closing is None or not isinstance(event, Settle) or event.seq != closing.seq:
            return False
        if content_of(event, self.contract) == content_of_settlement(closing.price, closing.at):
            return True
        raise Rejection(Reason.CONFLICT, f"{self.symbol} was settled by another event with seq {event.seq}")

    def has_passed(self, event: Numbered) -> bool:
        """Whether the contract has settled this sequence or a higher one."""
        fund = self.fund
        return event.seq <= fund.seq or (fund.closing is not None and event.seq <= fund.closing.seq)

    def is_unknown(self, event: Numbered) -> bool:
        """Whether the ledger must be queried before this event, whose sequence has passed, can be applied."""
        return self._shared.sequences.lacks(event, self.contract)

    def is_applied(self, event: Numbered) -> bool:
        """Whether an event whose sequence has passed is applied; raises Rejection if another event has its sequence."""
        return self._is_settlement(event) or self._shared.sequences.is_applied(event, self.contract)

    def skip(self, event: Numbered) -> None:
        """Records the sequence of an event that did not move the fund's sequence."""
        if event.seq > self.fund.seq:
            self._shared.sequences.skip(event)

    def _is_new(self, event: Numbered) -> bool:
        """Whether an event's sequence is above the fund's. Raises Rejection for a late event and for a conflict."""
        shared, last = self._shared, self.fund.seq
        if event.seq > last:
            if self.fund.closing is not None:
                raise contract_closed(self.symbol)
            gap = shared.sequences.gap(event, last) if event.prev_seq is not msgspec.UNSET else None
            if gap:
                shared.batch.gaps.append(gap._replace(symbol=self.symbol))
            return True
        if not self._is_moot(event):
            rejection = shared.sequences.rejection(event, self.contract, last)
            if rejection and self.fund.closing is not None and rejection.reason is Reason.LATE:
                rejection = contract_closed(self.symbol)
            # An event rejected before is stored already, so it counts as a duplicate.
            if rejection and shared.sequences.remember(event):
                raise rejection
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
        """Adds an execution to its order, and reduces the position."""
        self._adl.execute(event)
        self._shared.sequences.note(event, content_of(event, self.contract))
        self._adl.relieve(Cause(event.seq, event.ts))

    def adl_end(self, event: AdlEnd) -> None:
        """Ends a round, unless the event is a duplicate."""
        if self._is_new(event):
            self.end_round(event)
            self.skip(event)

    def end_round(self, event: AdlEnd) -> None:
        """Ends a round and begins the next, or ends the order as uncovered.

        The end of a closed order changes nothing, not even the sequence.
        """
        was_open = self._adl.end_round(event)
        self._shared.sequences.note(event, content_of(event, self.contract))
        if was_open:
            self._adl.relieve(Cause(event.seq, event.ts))

    def adl_timeout(self, event: AdlTimeout) -> None:
        """Ends a round that the engine did not answer. Changes nothing if the round is over."""
        self._adl.time_out(event)

    def adl_ack(self, event: AdlAck) -> None:
        """Records that the engine has received a round. Changes nothing if that is known or the round is over."""
        self._adl.acknowledge(event)

    def reopen(self, order: AdlOrder) -> Round:
        """Continues an open order of the ledger; returns the lots that its round still requests."""
        return self._adl.reopen(order, promises=self.journal is None)

    def mark(self, mark: Mark, *, is_settled: bool = False) -> None:
        """Sets the mark price, unless the event is a duplicate, and relieves the inventory, unless the mark is settled already.

        Engines resend marks, so a mark with a time before that of an earlier one is not acted upon.
        """
        price = check_mark(mark, self.contract)
        book = self._adl.desk.book
        if self._is_known(book, mark.seq, book.mark_seq):
            self._shared.batch.duplicates[self.symbol] += 1
            return
        self.check_open()
        book.mark, book.mark_ts, book.mark_seq = price, mark.ts, mark.seq or book.mark_seq
        is_latest = mark.ts >= book.mark_ts_max
        if is_latest:
            book.mark_ts_max = mark.ts
        if self.fund.inventory is not None:
            self.fund.inventory.reprice(price)
            if is_latest and not is_settled:
                self._adl.relieve(Cause(0, mark.ts))

    def position(self, position: Position) -> None:
        """Sets a position, unless the event is a duplicate."""
        self._set(position, check_position(position, self.fund.contract))

    def _set(self, position: Position, numbers: tuple[int, int]) -> None:
        """Sets a position with these numbers: its entry price and its margin."""
        desk = self._adl.begun_desk or self._adl.desk
        book = desk.book
        last_seq = 0 if position.seq is None else book.seq_of(position.account, position.position_side)
        if self._is_known(book, position.seq, last_seq):
            book.mark_seen(position.account, position.position_side)
            self._shared.batch.duplicates[self.symbol] += 1
            return
        self.check_open()
        desk.changed = True
        if not book.open:
            self.request_book()  # Readers of the saved books learn at once that this book has positions.
        book.set(position.account, position.lots, *numbers, position.position_side, position.owner)
        if position.seq is not None:
            book.remember(position.account, position.position_side, position.seq)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Begins or ends a snapshot, unless the event is a duplicate."""
        desk = self._adl.desk
        if self._is_known(desk.book, None, 0):
            self._shared.batch.duplicates[self.symbol] += 1
            return
        self.check_open()
        desk.changed = True
        if snapshot.phase == "begin":
            desk.book.begin_snapshot()
        else:
            desk.book.end_snapshot()
            self.request_book()

    def needs_book(self, event: Event) -> bool:
        """Whether an event may read or rank positions, or there is no room to postpone it. Only for a book that is awaited."""
        match event:
            case Fill():
                return self._is_uncertain(event)
            case Mark() | Position() | Snapshot():
                moves_inventory = self.has_inventory and isinstance(event, Mark)
                return moves_inventory or (self.journal is not None and len(self.journal) >= self.journal.rows_left)
            case AdlAck():
                return False
        return True

    def _is_uncertain(self, fill: Fill) -> bool:
        """Whether a fill may read the book: it may escalate, move an inventory, or look for candidates."""
        fund = self.fund
        if fill.seq <= fund.seq:
            return False
        if self.has_inventory:
            return True
        try:
            worth = fund.worth(fill.side, fill.lots, *check_fill(fill, self.contract))
        except Rejection:
            return False
        is_simple = fund.guard is None and fund.policy.waterfall == "fund_then_adl"
        return worth < 0 and not (is_simple and -worth <= fund.balance - fund.configured_line)

    def postpone(self, event: Postponable, journal: Journal) -> None:
        """Accepts an event that the book gets once it is loaded."""
        match event:
            case Mark():
                check_mark(event, self.contract)
            case Position():
                check_position(event, self.contract)
        journal.later.append(Postponed(event, None, self._shared.now_ms))
        self._shared.postponed += 1

    def take_earlier(self, journal: Journal) -> Iterator[None]:
        """Applies to the restored book what was settled before the partition was loaded; some events at each step."""
        while journal.earlier:
            with self._counted_already():
                self._take(journal.earlier)
            yield
        journal.restored = True

    def take_later(self, journal: Journal) -> Iterator[None]:
        """Promises lots to the open orders, and applies what was postponed since; some events at each step."""
        self._adl.promise_orders()
        while journal.later:
            self._take(journal.later)
            yield
        self.journal = None

    def _take(self, postponed: deque[Postponed]) -> None:
        """Applies the first EVENTS_PER_STEP events."""
        for _ in range(min(EVENTS_PER_STEP, len(postponed))):
            self._shared.postponed -= 1
            event, side, self._shared.now_ms = postponed.popleft()
            with suppress(Rejection):
                self._apply_to_book(event, side)

    @contextmanager
    def _counted_already(self) -> Iterator[None]:
        """Ignores duplicates of the contract: the ledger counted them when the events were settled."""
        duplicates = self._shared.batch.duplicates
        before = duplicates[self.symbol]
        try:
            yield
        finally:
            if before:
                duplicates[self.symbol] = before
            else:
                duplicates.pop(self.symbol, None)

    def apply_to_book(self, event: Event, side: SideName | None) -> None:
        """Applies to the book alone an event that was settled after the book was saved; see `Partition.apply_to_book`."""
        if self.journal is None or self.journal.restored:
            with self._counted_already():
                self._apply_to_book(event, side)
        else:
            self.journal.earlier.append(Postponed(event, side, self._shared.now_ms))
            self._shared.postponed += 1

    def _apply_to_book(self, event: Event, side: SideName | None) -> None:
        if self.fund.closing is not None:
            return  # The book of a closed contract is empty.
        match event:
            case Settle():
                self.end(Closing(event.ts, event.seq, check_settle(event, self.contract)))
            case Mark():
                self.mark(event, is_settled=True)
            case Snapshot():
                self.snapshot(event)
            case Position():
                # Settlement checked the identifiers, by the rules of that time.
                self._set(event, position_numbers(event, self.contract))
            case AdlFill() if side and self._adl.begun_desk:
                self._adl.begun_desk.changed = True
                self._adl.begun_desk.book.reduce(side, event.account, event.lots)

    def prefetch(self, accounts: Iterable[str]) -> None:
        """Prepares the book for positions of these accounts; a book that does not exist yet needs no preparation."""
        if self._adl.begun_desk:
            self._adl.begun_desk.book.prefetch([*accounts])

    def request_book(self) -> None:
        """Requests that the next batches save the book, unless it is not loaded yet."""
        if self.journal is None:
            self._shared.books_due.setdefault(self.symbol)

    def clear_book(self) -> None:
        """Makes the next save of the book write it even if it is empty, in place of one saved earlier."""
        self._adl.desk.changed = True

    def take_book(self) -> BookState:
        """The book to save; without positions if they have not changed since the book was last saved."""
        desk, seq = self._adl.begun_desk, self.fund.seq
        if desk is None:
            return BookState(self.symbol, seq, None, 0, 0, None, 0)
        book = desk.book
        saved = desk.saves.take(book) if desk.changed else Saved(0, None, 0)
        desk.changed = False
        mark = book.mark, book.mark_ts, book.mark_seq
        return BookState(self.symbol, seq, *mark, saved.parts, saved.rows, book.mark_ts_max, saved.first)

    def restore_book(self, kept: StoredBook) -> Iterator[None]:
        """Restores the positions of a saved book, some at each step."""
        desk = self._adl.desk
        for part in kept.book or ():
            desk.saves.count(part)
            yield from desk.book.restore(part)
        desk.saves.restored(desk.book, kept.parts)

    def restore_mark(self, kept: StoredBook) -> None:
        """Sets the mark of a saved book."""
        book = self._adl.desk.book
        book.mark, book.mark_ts, book.mark_seq = kept.mark, kept.mark_ts, kept.mark_seq
        book.mark_ts_max = max(kept.mark_ts, kept.mark_ts_max)
        if self.fund.inventory is not None and kept.mark is not None:
            self.fund.inventory.reprice(kept.mark)

    def make_stale(self, known_ms: int) -> None:
        """Marks the book as stale if it has positions; see `Partition.make_stale`."""
        desk = self._adl.desk
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
        self._adl.note_change()
        if self._adl.begun_desk:
            self._adl.begun_desk.policy = policy
