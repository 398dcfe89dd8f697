"""A partition in memory: it routes events to its contracts and collects their effects.

It is loaded from the ledger, changed by `apply`, and discarded and loaded again when a commit fails. `take` returns the effects
since the last commit as a `Batch`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from fundsvc.core.adl.book import Book
from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.batch import Batch, Draft, RateState, Round, StoredBook
from fundsvc.core.checks import check_rate
from fundsvc.core.commitment import LedgerSecret
from fundsvc.core.contracts import (
    CONTRACTS_MAX,
    ENDED,
    Contract,
    check_listing_of_closed,
    check_relisting,
    contract_of,
    partition_of,
)
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
    Settle,
    Snapshot,
    Takeover,
    Unwind,
    terms_in_doubt,
)
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import Closing, Fund
from fundsvc.core.market import Market
from fundsvc.core.policy import Policies, Policy
from fundsvc.core.sequences import Numbered, Sequences
from fundsvc.core.shared import Shared
from fundsvc.core.takeover import Exposure
from fundsvc.core.times import AHEAD_SECONDS_MAX, check_time, is_old, is_time

BOOK_POSITIONS_MAX = 20_000
BOOKS_MAX = 1_000
"""Positions, exceeded by at most one book, and books that one batch saves. They bound the time that books add to a commit."""

LISTING_BYTES = 3000
"""The approximate size of KuCoin's object of a contract."""

RANKING = frozenset((Fill, Takeover, Unwind, Settle, AdlFill, AdlEnd, AdlTimeout, Snapshot))
"""Events that may rank the positions of their contract, or read all positions of a round or of the book."""

RUN_MIN = 16
"""In a shorter run of events, preparing the book costs more than it saves."""


class Partition:
    """All contracts of one partition. Events must be applied in stream order; a duplicate changes nothing.

    `batch` collects the effects of the events. `secret` seals the accounts of new entries; without a secret, entries contain
    the accounts themselves. `rates` are the latest rates.
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
        rates: Iterable[RateState] = (),
    ) -> None:
        funds = [*funds]
        self.number = number
        self.batch = Draft()
        self.sequences = Sequences({fund.contract.symbol: fund.seq for fund in funds})
        self._partitions = partitions
        self._currency_decimals = dict(currency_decimals)
        self._default_decimals = default_decimals
        recorded = {known.version: known for known in policies}
        self.policy_version = max(recorded, default=0)
        self._policy_of = recorded[self.policy_version].of if recorded else policy_of
        self._secret = secret
        self._ahead_ms = int(ts_ahead_seconds_max * 1000)
        self._contracts_max = contracts_max
        self._shared = Shared(self.batch, self.sequences, recorded, rates={rate.currency: rate for rate in rates})
        self._markets: dict[str, Market] = {}
        for fund in funds:
            self._open(fund)
        self._handlers: dict[type, Callable[[Any], None]] = {
            Rate: self._rate,
            PolicyChange: self._change_policy,
            Listing: self._list,
            Rejection: self._reject,
        }

    def prefetch(self, events: Sequence[Event | Rejection]) -> None:
        """Prepares for events that are about to be applied. Changes nothing; speeds up many positions of one contract."""
        if len(events) < RUN_MIN or type(events[0]) is not Position:
            return
        symbol = events[0].symbol
        if symbol in self._markets:
            run = (event.account for event in events if type(event) is Position and event.symbol == symbol)
            self._markets[symbol].prefetch(run)

    def are_long(self, events: Sequence[Event | Rejection]) -> bool:
        """Whether applying some of these events may rank a large book, read all of it, or copy it to larger memory."""
        ranked = {event.symbol for event in events if type(event) in RANKING}  # type: ignore[union-attr]
        marked = {event.symbol for event in events if type(event) is Mark}
        extended = {event.symbol for event in events if type(event) is Position}
        ranked |= {symbol for symbol in marked if symbol in self._markets and self._markets[symbol].has_inventory}
        return any(map(self._is_large, ranked)) or any(self._may_copy(symbol, len(events)) for symbol in extended)

    def keeping_is_long(self) -> bool:
        """Whether one of the books that the next batches save is large."""
        return any(map(self._is_large, list(self._shared.books_due)))  # Copied: a thread may apply events meanwhile.

    def _is_large(self, symbol: str) -> bool:
        market = self._markets.get(symbol)
        return market is not None and market.is_large

    def _may_copy(self, symbol: str, accounts: int) -> bool:
        book = self.book(symbol)
        return book is not None and book.may_copy(accounts)

    def apply(self, event: Event | Rejection, stream_ms: int = 0) -> None:
        """Applies one event; raises Rejection, having changed no contract, if it cannot be settled or decoded.

        `stream_ms` is the time in the id of its message. If that is not a time, the event's own time is not checked.
        """
        try:
            market = self._admit(event, stream_ms)
            apply = _MARKET_HANDLERS.get(type(event))
            if apply is None:
                self._handlers[type(event)](event)
            elif market is None:
                raise self._not_here(event.symbol)  # type: ignore[union-attr]
            else:
                apply(market, event)
        except Rejection:
            self.pass_over(event)
            raise

    def pass_over(self, event: Event | Rejection) -> None:
        """Remembers a rejected event, so that a repetition is a duplicate and its sequence no gap."""
        if isinstance(event, Numbered):
            self.sequences.remember(event)
            if event.symbol in self._markets:
                self._markets[event.symbol].skip(event)

    def apply_late(self, event: Event | Rejection, stream_ms: int = 0) -> Entry | None:
        """Applies an event that was rejected before and whose sequence the contract has passed since.

        Returns the first entry it wrote, if any. The caller ensures that the event has not been applied.
        """
        written = len(self.batch.entries)
        market = self._admit(event, stream_ms)
        if market is not None and isinstance(event, Numbered):
            market.check_open()
        match event:
            case Fill():
                self._market(event.symbol).settle(event)
            case Takeover():
                self._market(event.symbol).take_over(event)
            case Unwind():
                self._market(event.symbol).close_held(event)
            case Settle():
                self._market(event.symbol).close_at(event)
            case AdlFill():
                self._market(event.symbol).execute(event)
            case AdlEnd():
                self._market(event.symbol).end_round(event)
            case Listing():
                self._list(event, late=True)
            case _:
                self.apply(event)
        return self.batch.entries[written] if len(self.batch.entries) > written else None

    def take(self, *, with_books: bool = True) -> Batch:
        """Returns the effects of the events since the last call. Books may be included only at the end of a message."""
        books, due = self.batch.books, self._shared.books_due
        positions = 0
        while with_books and due and positions < BOOK_POSITIONS_MAX and len(books) < BOOKS_MAX:
            books.append(self._markets[due.popitem()[0]].take_book())
            positions += books[-1].positions
        return self.batch.take()

    def request_books(self) -> None:
        """Requests that the next batches save all books, a bounded part with each batch."""
        self._shared.books_due = dict.fromkeys(sorted(self._markets))

    @property
    def owes_books(self) -> bool:
        """Whether the next batches save books."""
        return bool(self._shared.books_due)

    def restore(self, kept: StoredBook) -> Iterator[None]:
        """Restores a contract's book from a saved one, if there is one; some positions at each step."""
        if kept.mark is None and kept.book is None:
            return
        book = self._markets[kept.symbol].restore_mark(kept)
        if self._markets[kept.symbol].fund.closing is not None:
            return  # Positions end with their contract.
        for part in kept.book or ():
            yield from book.restore(part)

    def make_stale(self, known_ms: int) -> None:
        """Marks the books with positions as stale after a stream regression, each until its next snapshot.

        Messages up to the time `known_ms` of the stream are read again; they must not roll any book back.
        """
        for market in self._markets.values():
            market.make_stale(known_ms)

    def admit(self, fund: Fund) -> None:
        """Adds a newly listed contract; used by read-only followers."""
        self._markets[fund.contract.symbol] = Market(fund, self._shared)

    def end(self, symbol: str, closing: Closing) -> None:
        """Closes a contract that is closed in the ledger; used by read-only followers."""
        self._markets[symbol].end(closing)

    def market(self, symbol: str) -> Market | None:
        """A contract of the partition; None if it is not listed here."""
        return self._markets.get(symbol)

    def contract(self, symbol: str) -> Contract | None:
        """The terms of a contract; None if it is not listed here."""
        market = self._markets.get(symbol)
        return market.contract if market else None

    def funds(self) -> list[Fund]:
        """The funds of all contracts."""
        return [market.fund for market in self._markets.values()]

    def books(self) -> Iterator[tuple[Contract, Book]]:
        """The books of all contracts that have had a mark or a position."""
        return ((market.contract, market.book) for market in self._markets.values() if market.book)

    def exposures(self, ts: int) -> Iterator[tuple[str, Exposure | None]]:
        """The exposures at a time (ms) of all contracts that have had a takeover, by symbol; None without an inventory."""
        return ((symbol, market.exposure(ts)) for symbol, market in self._markets.items() if market.has_inventory)

    def book(self, symbol: str) -> Book | None:
        """A contract's book; None before its first mark or position."""
        market = self._markets.get(symbol)
        return market.book if market else None

    def price_decimals(self, symbol: str) -> int:
        """The scale of a contract's prices."""
        return self._markets[symbol].contract.price_decimals

    def reopen(self, order: AdlOrder) -> Round:
        """Continues an order that was open when the partition was last owned; returns its current round."""
        return self._markets[order.symbol].reopen(order)

    def open_order(self, symbol: str, adl: int) -> AdlOrder | None:
        """An ADL order, if it is open."""
        market = self._markets.get(symbol)
        return market.orders.get(adl) if market else None

    def apply_to_book(self, event: Event, side: SideName | None = None, stream_ms: int = 0) -> None:
        """Applies an event that was settled after a book was saved, to the book alone.

        `side` is the side that the order of an execution reduces; an account that had changed sides keeps what it has.
        `stream_ms` is the time in the id of the event's message.
        """
        self._shared.now_ms = stream_ms
        if isinstance(event, Mark | Snapshot | Position | AdlFill | Settle):
            self._market(event.symbol).apply_to_book(event, side)
        self.batch.duplicates.clear()  # They were counted when the event was settled.

    def lacking(self, events: Iterable[Event | Rejection]) -> dict[str, set[int]]:
        """The sequences that must be looked up in the ledger before these events are applied, by contract."""
        found: dict[str, set[int]] = defaultdict(set)
        for event in events:
            if self._has_passed(event) and self._markets[event.symbol].is_unknown(event):
                found[event.symbol].add(event.seq)
        return found

    def is_applied(self, event: Event | Rejection) -> bool:
        """Whether a numbered event is applied, after `lacking` was looked up.

        Raises Rejection if another event has its sequence.
        """
        return self._has_passed(event) and self._markets[event.symbol].is_applied(event)

    def _has_passed(self, event: Event | Rejection) -> TypeGuard[Numbered]:
        """Whether a contract of the partition has settled the event's sequence or a higher one."""
        if not isinstance(event, Numbered):
            return False
        market = self._markets.get(event.symbol)
        return market is not None and market.has_passed(event)

    def _admit(self, event: Event | Rejection, stream_ms: int) -> Market | None:
        """The contract of an event, if it is listed here.

        Raises Rejection if the event's time is out of range, or its contract's terms are in doubt.
        """
        market = self._markets.get(getattr(event, "symbol", ""))
        self._shared.now_ms = stream_ms
        if is_time(stream_ms):
            latest_ms = self.batch.latest_ms = stream_ms + self._ahead_ms
            check_time(event, latest_ms)
            if market is not None and market.fund.guard is not None:
                market.fund.guard.forget_after(latest_ms)
            if is_old(event, stream_ms):
                self.batch.old[market.symbol if market else ""] += 1
        if market is not None and market.fund.suspended and isinstance(event, UNDER_TERMS):
            raise terms_in_doubt(event.symbol)
        return market

    def _reject(self, rejection: Rejection) -> None:
        raise rejection

    def _change_policy(self, change: PolicyChange) -> None:
        policies = Policies(change.version, change.default, change.contracts)
        if self._shared.policies.get(change.version) == policies:
            return
        if change.version != self.policy_version + 1:
            raise Rejection(Reason.SUPERSEDED, f"the policies of partition {self.number} have version {self.policy_version}")
        self._shared.policies[change.version] = policies
        self.policy_version, self._policy_of = change.version, policies.of
        self.batch.policies.append(policies)
        for market in self._markets.values():
            market.adopt(policies)

    def _rate(self, rate: Rate) -> None:
        state = RateState(rate.currency, check_rate(rate), rate.ts)
        known = self._shared.rates.get(rate.currency)
        if known is None or state.ts >= known.ts:
            self._shared.rates[rate.currency] = self.batch.rates[rate.currency] = state

    def _list(self, listing: Listing, *, late: bool = False) -> None:
        """Lists or updates a contract. A late listing does not show the contract's current terms, so it cannot resume it."""
        contract = contract_of(listing.contract, self._currency_decimals, self._default_decimals)
        market = self._markets.get(contract.symbol)
        if market is None:
            self._check_listable(contract.symbol)
        if market is not None and market.fund.closing is not None:
            check_listing_of_closed(market.contract, contract, listing)
        elif market is None or (not market.has_ledger and market.contract != contract):
            market = self._list_anew(contract, market)
        elif late:
            check_relisting(market.contract, contract)
        else:
            market.relist(contract)
        self.batch.changed[contract.symbol] = market.fund
        self.batch.listings[contract.symbol] = market.contract, listing.contract
        self.batch.note_bytes(LISTING_BYTES)
        market.request_book()
        if not late and listing.contract.get("status") in ENDED:
            market.close_if_idle()

    def _list_anew(self, contract: Contract, before: Market | None) -> Market:
        """Adds a contract, in place of one without entries and orders that had other terms."""
        market = self._open(Fund(contract, policy=self._policy_of(contract.symbol)))
        # The prices of the old positions may have other units, so an empty book replaces the saved one. A restart within the
        # message would apply old positions in new units to the book saved in old units.
        if before and before.book:
            market.clear_book()
            self.batch.uncut = True
        return market

    def _open(self, fund: Fund) -> Market:
        """Adds a contract under the current policies."""
        fund.policy_version, fund.secret = self.policy_version, self._secret
        market = self._markets[fund.contract.symbol] = Market(fund, self._shared)
        return market

    def _check_listable(self, symbol: str) -> None:
        """Raises Rejection if a new contract belongs to another partition, or the partition has no room for it."""
        if not self._is_home_of(symbol):
            raise self._not_here(symbol)
        if len(self._markets) >= self._contracts_max:
            raise Rejection(
                Reason.TOO_MANY_CONTRACTS,
                f"partition {self.number} has {len(self._markets)} contracts: raise stream.contracts_max"
                f" ({self._contracts_max}) to list {symbol}",
            )

    def _market(self, symbol: str) -> Market:
        market = self._markets.get(symbol)
        if market is None:
            raise self._not_here(symbol)
        return market

    def _is_home_of(self, symbol: str) -> bool:
        return partition_of(symbol, self._partitions) == self.number

    def _not_here(self, symbol: str) -> Rejection:
        """The rejection of an event whose contract is not listed here."""
        if self._is_home_of(symbol):
            return Rejection(Reason.UNKNOWN_SYMBOL, f"{symbol} is not listed: list it with a contract event, then replay this")
        home = partition_of(symbol, self._partitions)
        return Rejection(Reason.WRONG_PARTITION, f"{symbol} belongs to partition {home}, not {self.number}")


_MARKET_HANDLERS: dict[type, Callable[[Market, Any], None]] = {
    Fill: Market.fill,
    Takeover: Market.takeover,
    Unwind: Market.unwind,
    Settle: Market.settlement,
    Mark: Market.mark,
    Position: Market.position,
    AdlFill: Market.adl_fill,
    AdlEnd: Market.adl_end,
    AdlAck: Market.adl_ack,
    AdlTimeout: Market.adl_timeout,
    Snapshot: Market.snapshot,
}
"""Maps the events of one contract to the methods that apply them."""
