"""A partition in memory: its contracts and funds, and what one event after another does to them.

Loaded from the ledger, changed by `apply`, thrown away and loaded again when a commit fails. What has happened since the
last commit is collected in a `Batch`; the caller takes it (`take`) when it is ready to write it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from fundsvc.core.adl import AdlOrder, Allocation, AllocationState, OrderState, opposite, order_for
from fundsvc.core.book import Book, SavedBook
from fundsvc.core.chain import Entry, Kind
from fundsvc.core.contracts import Contract, contract_of, partition_of
from fundsvc.core.deleveraging import Deleveraging
from fundsvc.core.events import (
    AdlEnd,
    AdlFill,
    Event,
    Fill,
    Listing,
    Mark,
    Position,
    Rate,
    Reason,
    Rejected,
    Rejection,
)
from fundsvc.core.numbers import INT64_MAX, PRICE_DECIMALS_MAX, parse_amount, parse_price
from fundsvc.core.policy import Policy
from fundsvc.core.settlement import Fund, FundState

_SYMBOL_AND_KIND = attrgetter("symbol", "kind")

BOOK_POSITIONS_MAX = 20_000
"""Positions that are kept with one batch, give or take one book: bounds how long it holds a commit up."""


class Offset(NamedTuple):
    """How far a partition's stream has been settled: the last message's id, and how many messages that makes in all."""

    last_id: str
    messages: int


class BookState(NamedTuple):
    """A contract's book to be kept with a batch: after which engine sequence, its mark, and its positions unless unchanged."""

    symbol: str
    seq: int
    mark: int | None
    book: SavedBook | None
    positions: int


class RateState(NamedTuple):
    """The price of one unit of a currency in USDT, in units of 10**-PRICE_DECIMALS_MAX, by the engine's clock (ms)."""

    currency: str
    price: int
    ts: int


class Round(NamedTuple):
    """A round of an ADL order, as the engine is told of it: reduce these accounts by so many lots at the order's price."""

    order: OrderState
    allocations: tuple[AllocationState, ...]


@dataclass(slots=True)
class Batch:
    """What a run of events did: to be written in one transaction, or forgotten whole.

    `hashes[i]` belongs to `entries[i]`; `funds` are those that changed, as they are after it; `listings` are contracts listed
    or updated, with the KuCoin object they came from; `rejected` and `replayed` (stream id, position, entry) are the events
    that were refused, and those refused before that are settled now; `duplicates` counts events that were known, by contract;
    `rounds` are the ADL rounds that began, to be announced; `books` are books to be kept as they are after it; `rates` are the
    newest by currency.

    A large batch outgrows the processor's cache, and going through it once more to encode it would cost a sixth of the
    service's speed. So entries may be encoded while they are fresh, and let go (`pack`): `packed` holds their bytes then,
    `packed_count` their number and `packed_kinds` their numbers by contract and kind.
    """

    entries: list[Entry] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    changed: dict[str, Fund] = field(default_factory=dict)
    funds: list[FundState] = field(default_factory=list)
    orders: dict[tuple[str, int], OrderState] = field(default_factory=dict)
    allocations: dict[tuple[str, int, int, str], AllocationState] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    books: list[BookState] = field(default_factory=list)
    rates: dict[str, RateState] = field(default_factory=dict)
    listings: dict[str, tuple[Contract, dict[str, Any]]] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    replayed: list[tuple[str, int, Entry | None]] = field(default_factory=list)
    duplicates: Counter[str] = field(default_factory=Counter)
    packed: list[bytes] = field(default_factory=list)
    packed_count: int = 0
    packed_kinds: Counter[tuple[str, Kind]] = field(default_factory=Counter)

    def pack(self, encode: Callable[[Sequence[Entry], Sequence[bytes]], bytes]) -> None:
        """Encodes the entries at hand and lets go of them."""
        if self.entries:
            self.packed.append(encode(self.entries, self.hashes))
            self.packed_count += len(self.entries)
            self.packed_kinds.update(map(_SYMBOL_AND_KIND, self.entries))
            self.entries.clear()
            self.hashes.clear()

    def count(self) -> int:
        """The number of entries, packed or not."""
        return self.packed_count + len(self.entries)

    def kinds(self) -> Counter[tuple[str, Kind]]:
        """The number of entries by contract and kind, packed or not."""
        return self.packed_kinds + Counter(map(_SYMBOL_AND_KIND, self.entries))


class Partition:
    """All contracts of one partition. Events must come in stream order; one with a known `seq` changes nothing."""

    def __init__(
        self,
        number: int,
        partitions: int,
        funds: Iterable[Fund],
        currency_decimals: Mapping[str, int],
        default_decimals: int,
        policy_of: Callable[[str], Policy] = lambda _: Policy(),
    ) -> None:
        self.number = number
        self.batch = Batch()
        self._partitions = partitions
        self._funds = {fund.contract.symbol: fund for fund in funds}
        self._currency_decimals = dict(currency_decimals)
        self._default_decimals = default_decimals
        self._policy_of = policy_of
        self._desks: dict[str, Deleveraging] = {}
        self._books_due: list[str] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            Fill: self._fill,
            Mark: self._mark,
            Position: self._position,
            AdlFill: self._adl_fill,
            AdlEnd: self._adl_end,
            Rate: self._rate,
            Listing: self._list,
            Rejection: self._refuse,
        }

    def apply(self, event: Event | Rejection) -> None:
        """Applies one event; raises Rejection, having changed nothing, when it cannot be settled or decoded."""
        self._handlers[type(event)](event)

    def apply_late(self, event: Event | Rejection) -> Entry | None:
        """Applies an event that was rejected before and whose number the contract has passed since.

        Returns the entry it wrote, if any. The caller answers for its not having been applied already.
        """
        written = len(self.batch.entries)
        match event:
            case Fill():
                self._settle(self._fund(event.symbol), event)
            case AdlFill():
                self._execute(self._fund(event.symbol), event)
            case AdlEnd():
                self._end_round(self._fund(event.symbol), event)
            case _:
                self.apply(event)
        return self.batch.entries[-1] if len(self.batch.entries) > written else None

    def take(self) -> Batch:
        """Hands over what has happened since the last call."""
        batch, self.batch = self.batch, Batch()
        batch.funds = [fund.state() for fund in batch.changed.values()]
        while self._books_due and sum(kept.positions for kept in batch.books) < BOOK_POSITIONS_MAX:
            batch.books.append(self._kept(self._books_due.pop()))
        return batch

    def keep_books(self) -> None:
        """Asks for all books to be kept: a bounded part with each batch that is taken from now on."""
        self._books_due = sorted(self._funds)

    def _keep(self, symbol: str) -> None:
        if symbol not in self._books_due:
            self._books_due.append(symbol)

    def restore(self, symbol: str, mark: int | None, saved: SavedBook | None) -> None:
        """Makes a contract's book what was kept, if anything was."""
        if mark is None and saved is None:
            return
        book = self._desk(self._funds[symbol]).book
        book.mark = mark
        if saved:
            book.restore(saved)

    def admit(self, fund: Fund) -> None:
        """Takes in a contract that was listed elsewhere: for who follows the books without settling anything."""
        self._funds[fund.contract.symbol] = fund

    def contract(self, symbol: str) -> Contract | None:
        """The terms of a contract, if it is here."""
        fund = self._funds.get(symbol)
        return fund.contract if fund else None

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
            return BookState(symbol, fund.seq, None, None, 0)
        saved = desk.book.save() if desk.changed else None
        desk.changed = False
        return BookState(symbol, fund.seq, desk.book.mark, saved, desk.book.open if saved else 0)

    def reopen(self, order: AdlOrder) -> Round:
        """Goes on with an order that was open when the partition was last owned; returns the round at hand."""
        fund = self._funds[order.symbol]
        fund.open_in_adl += order.rest
        self._desk(fund).orders[order.adl] = order
        return Round(order.written(), tuple(map(order.allocation_written, order.allocations.values())))

    def recall(self, event: Event) -> None:
        """Applies again what an event did to a book, and nothing else: for what was settled after the book was kept."""
        if isinstance(event, Mark | Position):
            self.apply(event)
        elif isinstance(event, AdlFill):
            desk = self._desk(self._fund(event.symbol))
            desk.changed = True
            for side in desk.book.sides.values():
                side.reduce(event.account, event.lots)

    def _refuse(self, rejection: Rejection) -> None:
        raise rejection

    def _fill(self, fill: Fill) -> None:
        fund = self._funds.get(fill.symbol) or self._fund(fill.symbol)
        if not self._known(fund, fill.seq):
            self._settle(fund, fill)

    def _settle(self, fund: Fund, fill: Fill) -> None:
        if not (fill.trade_id + fill.order_id + fill.account).isprintable():
            raise Rejection(Reason.INVALID_FIELD, "tradeId, orderId and account must be printable text")
        settled = fund.settle(fill, self._stays_out(fund, fill) if fund.policy.waterfall == "adl_then_fund" else None)
        self._record(fund, settled)
        if settled[0].uncovered:
            self._escalate(fund, settled[0])

    def _record(self, fund: Fund, settled: tuple[Entry, bytes]) -> None:
        entry, digest = settled
        batch = self.batch
        batch.entries.append(entry)
        batch.hashes.append(digest)
        batch.changed[entry.symbol] = fund

    def _escalate(self, fund: Fund, shortfall: Entry) -> None:
        """Writes the ADL order of a shortfall and asks the first positions; with nobody to ask, its rest is outstanding."""
        fund.adl += 1
        fund.open_in_adl += shortfall.uncovered
        order = order_for(shortfall, fund.adl)
        if not self._next_round(fund, order):
            self._end_uncovered(fund, order)

    def _next_round(self, fund: Fund, order: AdlOrder) -> bool:
        """Begins another round of an order; False when there is nobody to ask."""
        if not self._desk(fund).begin_round(order):
            return False
        state = self._note(order, order.allocations.values())
        self.batch.rounds.append(Round(state, tuple(map(order.allocation_written, order.allocations.values()))))
        return True

    def _end_uncovered(self, fund: Fund, order: AdlOrder) -> None:
        order.state = "uncovered"
        fund.open_in_adl -= order.rest
        fund.outstanding += order.rest
        self._desk(fund).close(order)
        self._note(order, ())

    def _note(self, order: AdlOrder, allocations: Iterable[Allocation]) -> OrderState:
        """Puts an order and some of its allocations into the batch as they now stand."""
        state = self.batch.orders[order.symbol, order.adl] = order.written()
        for allocation in allocations:
            key = order.symbol, order.adl, order.round, allocation.account
            self.batch.allocations[key] = order.allocation_written(allocation)
        return state

    def _adl_fill(self, event: AdlFill) -> None:
        fund = self._fund(event.symbol)
        if not self._known(fund, event.seq):
            self._execute(fund, event)

    def _execute(self, fund: Fund, event: AdlFill) -> None:
        """Counts an execution against its order, and off the position; a completed order may refund."""
        desk, order = self._desk(fund), self._open_order(fund, event.adl)
        if order.refund > INT64_MAX - fund.balance:
            raise Rejection(Reason.OUT_OF_RANGE, "the order's refund does not fit the fund's 64-bit balance")
        before = order.rest
        allocation = order.execute(event)
        fund.open_in_adl -= before - order.rest
        desk.changed = True
        desk.book.sides[order.reduce].reduce(event.account, event.lots)
        self._pass(fund, order, event.seq)
        self._note(order, (allocation,))
        if order.state == "done":
            desk.close(order)
            if order.refund:
                self._record(fund, fund.refund(order, event))

    def _adl_end(self, event: AdlEnd) -> None:
        fund = self._fund(event.symbol)
        if not self._known(fund, event.seq):
            self._end_round(fund, event)

    def _end_round(self, fund: Fund, event: AdlEnd) -> None:
        """Asks again for what is missing, or ends the order as uncovered. An order that is over has nothing more to end:
        the event moves nothing, not even the sequence.
        """
        order = self._desk(fund).orders.get(event.adl)
        if order is None and event.adl > fund.adl:
            raise _unknown_order(fund, event.adl)
        if order is None:
            return
        self._pass(fund, order, event.seq)
        if order.round < fund.policy.rounds_max and self._next_round(fund, order):
            return
        self._end_uncovered(fund, order)
        covered = fund.cover(order, event) if fund.policy.waterfall == "adl_then_fund" else None
        if covered:
            self._record(fund, covered)

    def _pass(self, fund: Fund, order: AdlOrder, seq: int) -> None:
        """Notes that an event without an entry of its own was settled, and on which order, so that the audit knows it."""
        fund.seq = max(fund.seq, seq)
        order.seq = max(order.seq, seq)
        self.batch.changed[fund.contract.symbol] = fund

    def _open_order(self, fund: Fund, number: int) -> AdlOrder:
        order = self._desk(fund).orders.get(number)
        if order is not None:
            return order
        if number > fund.adl:
            raise _unknown_order(fund, number)
        raise Rejection(Reason.ADL_ORDER_CLOSED, f"ADL order {number} of {fund.contract.symbol} is no longer open")

    def _known(self, fund: Fund, seq: int) -> bool:
        if seq > fund.seq:
            return False
        self.batch.duplicates[fund.contract.symbol] += 1
        return True

    def _desk(self, fund: Fund) -> Deleveraging:
        symbol = fund.contract.symbol
        desk = self._desks.get(symbol)
        if desk is None:
            desk = self._desks[symbol] = Deleveraging(fund.contract, fund.policy)
        return desk

    def _stays_out(self, fund: Fund, fill: Fill) -> Callable[[], bool]:
        """Whether the fund waits for deleveraging: it does when there is somebody to deleverage."""
        return lambda: self._desk(fund).anybody(opposite(fill.side))

    def _mark(self, mark: Mark) -> None:
        fund = self._fund(mark.symbol)
        decimals = fund.contract.price_decimals
        price = parse_price(mark.price, decimals)
        if mark.index_price is not None:
            parse_price(mark.index_price, decimals)
        self._desk(fund).book.mark = price

    def _position(self, position: Position) -> None:
        fund = self._funds.get(position.symbol) or self._fund(position.symbol)
        if not position.account.isprintable():
            raise Rejection(Reason.INVALID_FIELD, "account must be printable text")
        contract = fund.contract
        entry_price = parse_price(position.entry_price, contract.price_decimals) if position.lots else 0
        margin = parse_amount(position.margin, contract.settle_decimals)
        desk = self._desks.get(position.symbol) or self._desk(fund)
        desk.changed = True
        if not desk.book.open:
            self._keep(position.symbol)  # whoever watches the kept books learns at once that this one is worth following
        desk.book.set(position.account, position.lots, entry_price, margin)

    def _rate(self, rate: Rate) -> None:
        if not rate.currency.isalnum():
            raise Rejection(Reason.INVALID_FIELD, f"currency {rate.currency!r} must be letters and digits")
        state = RateState(rate.currency, parse_price(rate.price, PRICE_DECIMALS_MAX), rate.ts)
        known = self.batch.rates.get(rate.currency)
        if known is None or state.ts >= known.ts:
            self.batch.rates[rate.currency] = state

    def _list(self, listing: Listing) -> None:
        contract = contract_of(listing.contract, self._currency_decimals, self._default_decimals)
        home = partition_of(contract.symbol, self._partitions)
        if home != self.number:
            raise Rejection(Reason.WRONG_PARTITION, f"{contract.symbol} belongs to partition {home}, not {self.number}")
        fund = self._funds.get(contract.symbol)
        if fund is None or (not fund.entry and fund.contract != contract):
            fund = Fund(contract, policy=self._policy_of(contract.symbol))
            # Its positions had prices in units that may be others now; the empty book is kept in place of theirs.
            if self._desks.pop(contract.symbol, None):
                self._desk(fund).changed = True
        elif not fund.contract.same_terms(contract):
            raise Rejection(
                Reason.CONTRACT_FIXED,
                f"{contract.symbol} has {fund.entry} entries: multiplier, settleCurrency and isInverse cannot change",
            )
        self._funds[contract.symbol] = fund
        self.batch.changed[contract.symbol] = fund
        self.batch.listings[contract.symbol] = fund.contract, listing.contract
        self._keep(contract.symbol)

    def _fund(self, symbol: str) -> Fund:
        fund = self._funds.get(symbol)
        if fund is not None:
            return fund
        home = partition_of(symbol, self._partitions)
        if home != self.number:
            raise Rejection(Reason.WRONG_PARTITION, f"{symbol} belongs to partition {home}, not {self.number}")
        raise Rejection(Reason.UNKNOWN_SYMBOL, f"{symbol} is not listed: list it with a contract event, then replay this")


def _unknown_order(fund: Fund, number: int) -> Rejection:
    return Rejection(Reason.ADL_ORDER_UNKNOWN, f"{fund.contract.symbol} has no ADL order {number}")
