"""A partition in memory: its contracts and funds, and what one event after another does to them.

Loaded from the ledger, changed by `apply`, thrown away and loaded again when a commit fails. What has happened since the
last commit is collected in a `Batch`; the caller takes it (`take`) when it is ready to write it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeGuard

import msgspec

from fundsvc.core.adl.book import Book
from fundsvc.core.adl.desk import Deleveraging
from fundsvc.core.adl.escalation import acknowledge, end_round, escalate, execute, time_out, waits_for_adl
from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.batch import Batch, BookState, KeptBook, Moved, RateState, Round
from fundsvc.core.commitment import LedgerSecret
from fundsvc.core.contracts import CONTRACTS_MAX, Contract, TermsChanged, check_relisting, contract_of, partition_of
from fundsvc.core.events import (
    UNDER_TERMS,
    AdlAck,
    AdlEnd,
    AdlFill,
    AdlTimeout,
    Event,
    Fill,
    Listing,
    Mark,
    PolicyChange,
    Position,
    Rate,
    Reason,
    Rejection,
    Snapshot,
    terms_in_doubt,
)
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.identifiers import check_identifiers
from fundsvc.core.numbers import PRICE_DECIMALS_MAX, parse_amount, parse_price
from fundsvc.core.policy import Policies, Policy
from fundsvc.core.sequences import Numbered, Sequences, content_of, content_of_entry
from fundsvc.core.times import AHEAD_SECONDS_MAX, check_time, is_old, is_time

BOOK_POSITIONS_MAX = 20_000
BOOKS_MAX = 1_000
"""Positions, give or take one book, and books that are kept with one batch: bounds how long they hold a commit up."""

LISTING_BYTES = 3000
"""KuCoin's object of a contract, about."""

RANKING = frozenset((Fill, AdlFill, AdlEnd, AdlTimeout, Snapshot))
"""Events that may rank the positions of their contract, or go through all positions that a round asks, or that are open."""

RUN_MIN = 16
"""Fewer events of a message are applied before it would pay to look ahead."""


class Partition:
    """All contracts of one partition. Events must come in stream order; one with a known `seq` changes nothing.

    `secret` seals the accounts of new entries; without one they are sealed as they are.
    """

    def __init__(
        self,
        number: int,
        partitions: int,
        funds: Iterable[Fund],
        currency_decimals: Mapping[str, int],
        default_decimals: int,
        policy_of: Callable[[str], Policy] = lambda _: Policy(),
        ts_ahead_seconds_max: float = AHEAD_SECONDS_MAX,
        policies: Iterable[Policies] = (),
        secret: LedgerSecret | None = None,
        contracts_max: int = CONTRACTS_MAX,
    ) -> None:
        self.number = number
        self.batch = Batch()
        self._partitions = partitions
        self._funds = {fund.contract.symbol: fund for fund in funds}
        self._currency_decimals = dict(currency_decimals)
        self._default_decimals = default_decimals
        self._policies = {known.version: known for known in policies}
        self.policy_version = max(self._policies, default=0)
        self._policy_of = self._policies[self.policy_version].of if self._policies else policy_of
        self._secret = secret
        for fund in self._funds.values():
            fund.policy_version = self.policy_version
            fund.secret = secret
        self._ahead_ms = int(ts_ahead_seconds_max * 1000)
        self._contracts_max = contracts_max
        self.sequences = Sequences({symbol: fund.seq for symbol, fund in self._funds.items()})
        self._desks: dict[str, Deleveraging] = {}
        self._books_due: dict[str, None] = {}
        self._now_ms = 0
        self._handlers: dict[type, Callable[[Any], None]] = {
            Fill: self._fill,
            Mark: self._mark,
            Position: self._position,
            AdlFill: self._adl_fill,
            AdlEnd: self._adl_end,
            AdlAck: self._adl_ack,
            AdlTimeout: self._adl_timeout,
            Snapshot: self._snapshot,
            Rate: self._rate,
            PolicyChange: self._change_policy,
            Listing: self._list,
            Rejection: self._refuse,
        }

    def expect(self, events: Sequence[Event | Rejection]) -> None:
        """Says which events are about to be applied: changes nothing, makes many positions of one contract quicker."""
        if len(events) < RUN_MIN or type(events[0]) is not Position:
            return
        symbol = events[0].symbol
        if symbol in self._desks:
            run = [event.account for event in events if type(event) is Position and event.symbol == symbol]
            self._desks[symbol].book.expect(run)

    def are_long(self, events: Iterable[Event | Rejection]) -> bool:
        """Whether applying some of these events may rank a large book, or go through all of it."""
        symbols = {event.symbol for event in events if type(event) in RANKING}  # type: ignore[union-attr]
        return any(self._is_large(symbol) for symbol in symbols)

    def keeping_is_long(self) -> bool:
        """Whether one of the books that are due to be kept is large."""
        return any(map(self._is_large, list(self._books_due)))  # copied, as a thread may apply events meanwhile

    def _is_large(self, symbol: str) -> bool:
        desk = self._desks.get(symbol)
        return desk is not None and desk.book.is_large

    def apply(self, event: Event | Rejection, stream_ms: int = 0) -> None:
        """Applies one event; raises Rejection, having changed nothing, when it cannot be settled or decoded.

        `stream_ms` is the time in the id of the message that carried it; where that is no time, its own is not checked.
        """
        try:
            self._check(event, stream_ms)
            self._handlers[type(event)](event)
        except Rejection:
            if isinstance(event, Numbered):
                self.sequences.remember(event)
                self._see(event)
            raise

    def apply_late(self, event: Event | Rejection, stream_ms: int = 0) -> Entry | None:
        """Applies an event that was rejected before and whose number the contract has passed since.

        Returns the entry it wrote, if any. The caller answers for its not having been applied already.
        """
        written = len(self.batch.entries)
        self._check(event, stream_ms)
        match event:
            case Fill():
                self._settle(self._fund(event.symbol), event)
            case AdlFill():
                self._execute(self._fund(event.symbol), event)
            case AdlEnd():
                self._end_round(self._fund(event.symbol), event)
            case Listing():
                self._list(event, late=True)
            case _:
                self.apply(event)
        return self.batch.entries[-1] if len(self.batch.entries) > written else None

    def take(self, *, with_books: bool = True) -> Batch:
        """Hands over what has happened since the last call; with books that are due only where a message ends."""
        batch, self.batch = self.batch, Batch()
        batch.funds = [fund.state() for fund in batch.changed.values()]
        batch.moved = [Moved(fund.credited, fund.repaid) for fund in batch.changed.values()]
        positions = 0
        while with_books and self._books_due and positions < BOOK_POSITIONS_MAX and len(batch.books) < BOOKS_MAX:
            batch.books.append(self._kept(self._books_due.popitem()[0]))
            positions += batch.books[-1].positions
        return batch

    def keep_books(self) -> None:
        """Has all books kept: a bounded part with each batch that is taken from now on."""
        self._books_due = dict.fromkeys(sorted(self._funds))

    @property
    def owes_books(self) -> bool:
        """Whether books are due to be kept."""
        return bool(self._books_due)

    def _keep(self, symbol: str) -> None:
        self._books_due.setdefault(symbol)

    def restore(self, kept: KeptBook) -> Iterator[None]:
        """Makes a contract's book what was kept, if anything was; some positions at each step."""
        if kept.mark is None and kept.book is None:
            return
        book = self._desk(self._funds[kept.symbol]).book
        book.mark, book.mark_ts, book.mark_seq = kept.mark, kept.mark_ts, kept.mark_seq
        for part in kept.book or ():
            yield from book.restore(part)

    def make_stale(self, known_ms: int) -> None:
        """Marks the books with positions as stale, as the stream lost its tail; the next snapshot of a contract ends that.

        Messages up to the time `known_ms` of the stream are read again: they must not roll any book back.
        """
        for symbol, fund in self._funds.items():
            desk = self._desk(fund)
            desk.changed = True
            desk.book.known_ms = known_ms
            desk.book.stale = desk.book.stale or desk.book.open > 0
            self._keep(symbol)

    def admit(self, fund: Fund) -> None:
        """Takes in a contract that was listed elsewhere: for who follows the books without settling anything."""
        self._funds[fund.contract.symbol] = fund

    def contract(self, symbol: str) -> Contract | None:
        """The terms of a contract, if it is here."""
        fund = self._funds.get(symbol)
        return fund.contract if fund else None

    def funds(self) -> list[Fund]:
        """The funds of all contracts, as they stand."""
        return list(self._funds.values())

    def books(self) -> Iterator[tuple[Contract, Book]]:
        """The books of all contracts that have had a mark or a position."""
        return ((self._funds[symbol].contract, desk.book) for symbol, desk in self._desks.items())

    def book(self, symbol: str) -> Book | None:
        """A contract's book, if it has had a mark or a position."""
        desk = self._desks.get(symbol)
        return desk.book if desk else None

    def price_decimals(self, symbol: str) -> int:
        """The scale of a contract's prices."""
        return self._funds[symbol].contract.price_decimals

    def _kept(self, symbol: str) -> BookState:
        """A book to be kept; only its place in the stream when its positions have not changed since they were."""
        fund, desk = self._funds[symbol], self._desks.get(symbol)
        if desk is None:
            return BookState(symbol, fund.seq, None, 0, 0, None, 0)
        book = desk.book
        parts = [msgspec.msgpack.encode(part) for part in book.save()] if desk.changed else None
        desk.changed = False
        return BookState(symbol, fund.seq, book.mark, book.mark_ts, book.mark_seq, parts, book.open if parts else 0)

    def reopen(self, order: AdlOrder) -> Round:
        """Goes on with an order that was open when the partition was last owned; returns the round at hand."""
        fund = self._funds[order.symbol]
        fund.open_in_adl += order.rest
        self._desk(fund).reopen(order)
        return _round(order)

    def open_order(self, symbol: str, adl: int) -> AdlOrder | None:
        """An ADL order as it stands, if it is open."""
        desk = self._desks.get(symbol)
        return desk.orders.get(adl) if desk else None

    def recall(self, event: Event, side: SideName | None = None, stream_ms: int = 0) -> None:
        """Applies again what an event did to a book, and nothing else: for what was settled after the book was kept.

        `side` is the one that the order of an execution reduces; an account that had changed sides keeps what it has.
        `stream_ms` is the time in the id of the event's message.
        """
        self._now_ms = stream_ms
        if isinstance(event, Mark | Snapshot):
            self._handlers[type(event)](event)
        elif isinstance(event, Position):
            self._place(self._fund(event.symbol), event)  # its fields were checked when it was settled, by the rules of then
        elif isinstance(event, AdlFill) and side and (desk := self._desks.get(event.symbol)):
            desk.changed = True
            desk.book.sides[side].reduce(event.account, event.lots)
        self.batch.duplicates.clear()  # They were counted when they came.

    def _check(self, event: Event | Rejection, stream_ms: int) -> None:
        """Raises Rejection for an event that no fund may see: its time cannot be right, or its terms are in doubt."""
        fund = self._funds.get(getattr(event, "symbol", ""))
        self._now_ms = stream_ms
        if is_time(stream_ms):
            latest_ms = self.batch.latest_ms = stream_ms + self._ahead_ms
            check_time(event, latest_ms)
            if fund is not None and fund.guard is not None:
                fund.guard.forget_after(latest_ms)
            if is_old(event, stream_ms):
                self.batch.old[fund.contract.symbol if fund else ""] += 1
        if fund is not None and fund.suspended and isinstance(event, UNDER_TERMS):
            raise terms_in_doubt(event.symbol)

    def _refuse(self, rejection: Rejection) -> None:
        raise rejection

    def _fill(self, fill: Fill) -> None:
        fund = self._funds.get(fill.symbol) or self._fund(fill.symbol)
        if self._is_new(fund, fill):
            self._settle(fund, fill)

    def _settle(self, fund: Fund, fill: Fill) -> None:
        check_identifiers(fill)
        adl_comes_first = fund.policy.waterfall == "adl_then_fund"
        settled = fund.settle(fill, waits_for_adl(fund, self._desk(fund), fill) if adl_comes_first else None)
        self.batch.record(fund, settled)
        self.sequences.note(fill, content_of_entry(settled[0]))
        if fill.trade_id and self.sequences.repeats_trade(fill):
            self.batch.repeated_trades[fill.symbol] += 1
        if settled[0].uncovered:
            escalate(self.batch, fund, self._desk(fund), settled[0], self._now_ms)

    def _adl_fill(self, event: AdlFill) -> None:
        fund = self._fund(event.symbol)
        if self._is_new(fund, event):
            self._execute(fund, event)

    def _execute(self, fund: Fund, event: AdlFill) -> None:
        execute(self.batch, fund, self._desk(fund), event)
        self.sequences.note(event, content_of(event, fund.contract))

    def _adl_end(self, event: AdlEnd) -> None:
        fund = self._fund(event.symbol)
        if self._is_new(fund, event):
            self._end_round(fund, event)
            self._see(event)

    def _end_round(self, fund: Fund, event: AdlEnd) -> None:
        end_round(self.batch, fund, self._desk(fund), event, self._now_ms)
        self.sequences.note(event, content_of(event, fund.contract))

    def _adl_ack(self, event: AdlAck) -> None:
        fund = self._fund(event.symbol)
        acknowledge(self.batch, fund, self._desk(fund), event)

    def _adl_timeout(self, event: AdlTimeout) -> None:
        fund = self._fund(event.symbol)
        time_out(self.batch, fund, self._desk(fund), event, self._now_ms)

    def _is_new(self, fund: Fund, event: Numbered) -> bool:
        """Whether an event's sequence is above the fund's; one that is not and is new all the same is refused."""
        if event.seq > fund.seq:
            gap = self.sequences.gap(event, fund.seq)
            if gap:
                self.batch.gaps.append(gap)
            return True
        if not self._is_moot(fund, event):
            self.sequences.check_passed(event, fund.contract, fund.seq)
        self.batch.duplicates[fund.contract.symbol] += 1
        return False

    def _is_moot(self, fund: Fund, event: Numbered) -> bool:
        """Whether an event that was never applied would change nothing: it ends an order that is over."""
        if not isinstance(event, AdlEnd) or event.adl > fund.adl or event.adl in self._desk(fund).orders:
            return False
        return not self.sequences.is_applied(event, fund.contract)

    def _see(self, event: Numbered) -> None:
        """Notes the sequence of an event that did not move its fund's, so that no gap is seen there."""
        fund = self._funds.get(event.symbol)
        if fund is not None and event.seq > fund.seq:
            self.sequences.see(event)

    def lacking(self, events: Iterable[Event | Rejection]) -> dict[str, set[int]]:
        """The sequences of which the ledger must be asked before these events are applied, by contract."""
        found: dict[str, set[int]] = defaultdict(set)
        for event in events:
            if self._has_passed(event) and self.sequences.lacks(event, self._funds[event.symbol].contract):
                found[event.symbol].add(event.seq)
        return found

    def is_applied(self, event: Event | Rejection) -> bool:
        """Whether a numbered event is applied; raises Rejection if another one has its sequence. The ledger was asked."""
        return self._has_passed(event) and self.sequences.is_applied(event, self._funds[event.symbol].contract)

    def _has_passed(self, event: Event | Rejection) -> TypeGuard[Numbered]:
        """Whether an event is of a contract that has had its sequence or a higher one."""
        if not isinstance(event, Numbered):
            return False
        fund = self._funds.get(event.symbol)
        return fund is not None and event.seq <= fund.seq

    def _desk(self, fund: Fund) -> Deleveraging:
        symbol = fund.contract.symbol
        desk = self._desks.get(symbol)
        if desk is None:
            desk = self._desks[symbol] = Deleveraging(fund.contract, fund.policy, partial(self._policy_under, symbol))
        return desk

    def _policy_under(self, symbol: str, version: int) -> Policy:
        """A contract's policy as it was in a version; orders of before there were versions run under the present one."""
        return self._policies[version].of(symbol) if version in self._policies else self._funds[symbol].policy

    def _change_policy(self, change: PolicyChange) -> None:
        policies = Policies(change.version, change.default, change.contracts)
        if self._policies.get(change.version) == policies:
            return
        if change.version != self.policy_version + 1:
            raise Rejection(Reason.SUPERSEDED, f"the policies of partition {self.number} have version {self.policy_version}")
        self._policies[change.version] = policies
        self.policy_version, self._policy_of = change.version, policies.of
        self.batch.policies.append(policies)
        for symbol, fund in self._funds.items():
            fund.adopt(policies.of(symbol), change.version)
            self.batch.changed[symbol] = fund
        for symbol, desk in self._desks.items():
            desk.policy = policies.of(symbol)

    def _mark(self, mark: Mark) -> None:
        fund = self._fund(mark.symbol)
        decimals = fund.contract.price_decimals
        price = parse_price(mark.price, decimals)
        if mark.index_price is not None:
            parse_price(mark.index_price, decimals)
        book = self._desk(fund).book
        if self._is_known(book, mark.seq, book.mark_seq):
            self.batch.duplicates[mark.symbol] += 1
            return
        book.mark, book.mark_ts, book.mark_seq = price, mark.ts, mark.seq or book.mark_seq

    def _position(self, position: Position) -> None:
        fund = self._funds.get(position.symbol) or self._fund(position.symbol)
        check_identifiers(position)
        self._place(fund, position)

    def _place(self, fund: Fund, position: Position) -> None:
        contract = fund.contract
        entry_price = parse_price(position.entry_price, contract.price_decimals) if position.lots else 0
        margin = parse_amount(position.margin, contract.settle_decimals)
        desk = self._desks.get(position.symbol) or self._desk(fund)
        if self._is_known(desk.book, position.seq, desk.book.seq_of(position.account, position.position_side)):
            desk.book.name(position.account, position.position_side)
            self.batch.duplicates[position.symbol] += 1
            return
        desk.changed = True
        if not desk.book.open:
            self._keep(position.symbol)  # followers of the kept books learn at once that this one has positions
        desk.book.set(position.account, position.lots, entry_price, margin, position.position_side)
        if position.owner:
            desk.book.owners.name(position.account, position.owner)
        if position.seq is not None:
            desk.book.remember(position.account, position.position_side, position.seq)

    def _snapshot(self, snapshot: Snapshot) -> None:
        fund = self._fund(snapshot.symbol)
        desk = self._desk(fund)
        if self._is_known(desk.book, None, 0):
            self.batch.duplicates[snapshot.symbol] += 1
            return
        desk.changed = True
        if snapshot.phase == "begin":
            desk.book.begin_snapshot()
        else:
            desk.book.end_snapshot()
            self._keep(snapshot.symbol)

    def _is_known(self, book: Book, seq: int | None, last_seq: int) -> bool:
        """Whether an event changed a book before: by its own sequence, or by its message, which is read again."""
        return self._now_ms <= book.known_ms if seq is None else seq <= last_seq

    def _rate(self, rate: Rate) -> None:
        check_identifiers(rate)
        state = RateState(rate.currency, parse_price(rate.price, PRICE_DECIMALS_MAX), rate.ts)
        known = self.batch.rates.get(rate.currency)
        if known is None or state.ts >= known.ts:
            self.batch.rates[rate.currency] = state

    def _list(self, listing: Listing, *, late: bool = False) -> None:
        """Lists or updates a contract; a listing that comes late says nothing about the contract's terms of now."""
        contract = contract_of(listing.contract, self._currency_decimals, self._default_decimals)
        home = partition_of(contract.symbol, self._partitions)
        if home != self.number:
            raise Rejection(Reason.WRONG_PARTITION, f"{contract.symbol} belongs to partition {home}, not {self.number}")
        fund = self._funds.get(contract.symbol)
        if fund is None:
            self._check_room(contract.symbol)
        if fund is None or (not fund.entry and fund.contract != contract):
            policy, version = self._policy_of(contract.symbol), self.policy_version
            fund = Fund(contract, policy=policy, policy_version=version, secret=self._secret)
            # Its positions had prices in units that may be others now; the empty book is kept in place of theirs.
            if self._desks.pop(contract.symbol, None):
                self._desk(fund).changed = True
                # A restart would apply positions of before in the new units to a book that was kept in the old ones.
                self.batch.uncut = True
        elif late:
            check_relisting(fund.contract, contract)
        else:
            self._relist(fund, contract)
        self._funds[contract.symbol] = fund
        self.batch.changed[contract.symbol] = fund
        self.batch.listings[contract.symbol] = fund.contract, listing.contract
        self.batch.note_bytes(LISTING_BYTES)
        self._keep(contract.symbol)

    def _check_room(self, symbol: str) -> None:
        """Raises Rejection where the partition has as many contracts as it may have."""
        if len(self._funds) >= self._contracts_max:
            raise Rejection(
                Reason.TOO_MANY_CONTRACTS,
                f"partition {self.number} has {len(self._funds)} contracts: raise stream.contracts_max ({self._contracts_max})"
                f" to list {symbol}",
            )

    def _relist(self, fund: Fund, listed: Contract) -> None:
        """Takes a listing of a contract that is known; one that changes the terms of its entries suspends it."""
        try:
            check_relisting(fund.contract, listed)
        except TermsChanged:
            self._suspend(fund, suspended=True)
            raise
        self._suspend(fund, suspended=False)

    def _suspend(self, fund: Fund, *, suspended: bool) -> None:
        if fund.suspended != suspended:
            fund.suspended = self.batch.suspensions[fund.contract.symbol] = suspended

    def _fund(self, symbol: str) -> Fund:
        fund = self._funds.get(symbol)
        if fund is not None:
            return fund
        home = partition_of(symbol, self._partitions)
        if home != self.number:
            raise Rejection(Reason.WRONG_PARTITION, f"{symbol} belongs to partition {home}, not {self.number}")
        raise Rejection(Reason.UNKNOWN_SYMBOL, f"{symbol} is not listed: list it with a contract event, then replay this")


def _round(order: AdlOrder) -> Round:
    rests = [(account, rest) for account, rest in order.asked.rests() if rest]
    return Round(order.written(), [account for account, _ in rests], [rest for _, rest in rests])
