"""A partition in memory: it routes events to its contracts and collects their effects.

It is loaded from the ledger, changed by `apply`, and discarded and loaded again when a commit fails. `take` returns the effects
since the last commit as a `Batch`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from fundsvc.core.adl.book import Book
from fundsvc.core.adl.book_parts import ROWS_PER_PART
from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.adl.ranking import ROWS_MAX
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.awaited_books import POSTPONED_MAX, BookAwaited, Journal, Postponable
from fundsvc.core.batch import Batch, Draft, RateState, Round, StoredBook, Uncarried
from fundsvc.core.checks import check_rate
from fundsvc.core.commitment import LedgerSecret
from fundsvc.core.contracts import (
    CONTRACTS_MAX,
    ENDED,
    OPEN,
    Contract,
    check_listing_of_closed,
    check_relisting,
    contract_of,
    partition_of,
    successor_of,
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
from fundsvc.core.fund.settlement import Closing, Fund, FundState
from fundsvc.core.generations import generation_of, public_symbol
from fundsvc.core.market import Market
from fundsvc.core.policy import Policies, Policy
from fundsvc.core.sequences import Numbered, Sequences, is_stored
from fundsvc.core.shared import Shared
from fundsvc.core.succession import carry, obstacle
from fundsvc.core.takeover import Exposure
from fundsvc.core.times import AHEAD_SECONDS_MAX, OLD_MS, check_time, is_time

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
        funds = sorted(funds, key=_generation_number)
        self.number = number
        self.batch = Draft()
        self.sequences = Sequences({public_symbol(fund.contract.symbol): fund.seq for fund in funds})
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
        self._markets: dict[str, Market] = {}  # by ledger key
        self._current: dict[str, Market] = {}  # by symbol, the newest generation
        self.awaited: dict[str, Journal] = {}  # by ledger key, the contracts whose books are not loaded yet
        for fund in funds:
            self._open(fund)
        self._handlers: dict[type, Callable[[Any], None]] = {
            Rate: self._rate,
            PolicyChange: self._change_policy,
            Listing: self._list,
            Settle: self._settle,
            Rejection: self._reject,
        }

    def prefetch(self, events: Sequence[Event | Rejection]) -> None:
        """Prepares for events that are about to be applied. Changes nothing; speeds up many positions of one contract."""
        if len(events) < RUN_MIN or type(events[0]) is not Position:
            return
        symbol = events[0].symbol
        if symbol in self._current:
            run = (event.account for event in events if type(event) is Position and event.symbol == symbol)
            self._current[symbol].prefetch(run)

    def are_long(self, events: Sequence[Event | Rejection]) -> bool:
        """Whether applying some of these events may rank a large book, read all of it, or copy it to larger memory."""
        ranked = {event.symbol for event in events if type(event) in RANKING}  # type: ignore[union-attr]
        marked = {event.symbol for event in events if type(event) is Mark}
        extended = {event.symbol for event in events if type(event) is Position}
        ranked |= {symbol for symbol in marked if symbol in self._current and self._current[symbol].has_inventory}
        is_large = any(symbol in self._current and self._current[symbol].is_large for symbol in ranked)
        return is_large or any(self._may_copy(symbol, len(events)) for symbol in extended)

    def keeping_is_long(self) -> bool:
        """Whether one of the books that the next batches save is large."""
        # Copied: a thread may apply events meanwhile.
        return any(self._markets[key].is_large for key in list(self._shared.books_due))

    def _may_copy(self, symbol: str, accounts: int) -> bool:
        market = self._current.get(symbol)
        return market is not None and market.book is not None and market.book.may_copy(accounts)

    def apply(self, event: Event | Rejection, stream_ms: int = 0) -> None:
        """Applies one event; raises Rejection, having changed no contract, if it cannot be settled or decoded.

        `stream_ms` is the time in the id of its message. If that is not a time, the event's own time is not checked.
        Raises BookAwaited, having changed nothing, if the event needs a book that is not loaded yet.
        """
        if self.awaited:
            self._check_loaded(event)
        try:
            market = self._admit(event, stream_ms)
            apply = _MARKET_HANDLERS.get(type(event))
            if apply is None:
                self._handlers[type(event)](event)
            elif market is None:
                raise self._not_here(event.symbol)  # type: ignore[union-attr]
            elif market.journal is not None and isinstance(event, Postponable):
                market.postpone(event, market.journal)
            else:
                apply(market, event)
        except Rejection:
            self.pass_over(event)
            raise

    def pass_over(self, event: Event | Rejection) -> None:
        """Remembers a rejected event, so that a repetition is a duplicate and its sequence no gap."""
        if isinstance(event, Numbered):
            self.sequences.remember(event)
            market = self._market_of(event)
            if market is not None:
                market.skip(event)

    def apply_late(self, event: Event | Rejection, stream_ms: int = 0) -> Entry | None:
        """Applies an event that was rejected before and whose sequence the contract has passed since.

        Returns the first entry it wrote, if any. The caller ensures that the event has not been applied. Raises BookAwaited,
        having changed nothing, while the book of the contract is not loaded.
        """
        written = len(self.batch.entries)
        market = self._market_of(event)
        if market is not None and market.journal is not None:
            raise BookAwaited(market.symbol)
        if market is not None and isinstance(event, Settle):
            self._check_successor(market.fund.successor)
        market = self._admit(event, stream_ms)
        if isinstance(event, Listing):
            self._list(event, late=True)
        elif not isinstance(event, Numbered):
            self.apply(event)
        elif market is None:
            raise self._not_here(event.symbol)
        else:
            market.check_open()
            _LATE_HANDLERS[type(event)](market, event)
            if isinstance(event, Settle):
                self._carry(market, event.ts)
        return self.batch.entries[written] if len(self.batch.entries) > written else None

    def await_books(self, saved: Iterable[StoredBook]) -> None:
        """Begins without the saved books of these contracts; `restore` and `complete` load them, while events are applied."""
        for one in saved:
            market = self._markets[one.symbol]
            if market.fund.closing is None:  # Positions end with their contract.
                market.journal = self.awaited[one.symbol] = Journal(max(0, ROWS_MAX - one.parts * ROWS_PER_PART))

    def complete(self, key: str) -> Iterator[None]:
        """Applies what was postponed for a restored book, some events at each step; nothing more is postponed at the end."""
        market, journal = self._markets[key], self.awaited[key]
        yield from market.take_later(journal)
        del self.awaited[key]

    def _check_loaded(self, event: Event | Rejection) -> None:
        """Raises BookAwaited if the event needs a book that is not loaded yet, or cannot be postponed."""
        market = self._market_of(event)
        if market is None or isinstance(event, Rejection):
            return
        is_full = self._shared.postponed >= POSTPONED_MAX and isinstance(event, Postponable)
        if market.journal is not None and (is_full or market.needs_book(event)):
            raise BookAwaited(market.symbol)
        if isinstance(event, Settle):
            self._check_successor(market.fund.successor)

    def _check_successor(self, symbol: str) -> None:
        """Raises BookAwaited if a successor needs its book to receive a balance: its guard may watch an inventory's worth."""
        successor = self._current.get(symbol)
        if successor is not None and successor.journal is not None and successor.has_inventory:
            raise BookAwaited(successor.symbol)

    def take(self, *, with_books: bool = True) -> Batch:
        """Returns the effects of the events since the last call. Books may be included only at the end of a message."""
        books, due = self.batch.books, self._shared.books_due
        positions = 0
        while with_books and due and positions < BOOK_POSITIONS_MAX and len(books) < BOOKS_MAX:
            books.append(self._markets[due.popitem()[0]].take_book())
            positions += books[-1].positions
        return self.batch.take()

    def request_books(self) -> None:
        """Requests that the next batches save all loaded books, a bounded part with each batch."""
        self._shared.books_due = dict.fromkeys(sorted(self._markets.keys() - self.awaited.keys()))

    @property
    def owes_books(self) -> bool:
        """Whether the next batches save books."""
        return bool(self._shared.books_due)

    def restore(self, kept: StoredBook) -> Iterator[None]:
        """Restores a contract's book from a saved one, if there is one; some positions at each step.

        If the book is awaited, also applies what was settled after it was saved, as far as it is known; `complete` follows.
        """
        market = self._markets[kept.symbol]
        if kept.mark is not None or kept.book is not None:
            market.restore_mark(kept)
            if market.fund.closing is not None:
                return  # Positions end with their contract.
            yield from market.restore_book(kept)
        if market.journal is not None:
            yield from market.take_earlier(market.journal)

    def make_stale(self, known_ms: int) -> None:
        """Marks the books with positions as stale after a stream regression, each until its next snapshot.

        Messages up to the time `known_ms` of the stream are read again; they must not roll any book back.
        """
        for market in self._markets.values():
            market.make_stale(known_ms)

    def admit(self, fund: Fund) -> None:
        """Adds a newly listed contract; used by read-only followers."""
        self._add(fund)

    def end(self, key: str, closing: Closing) -> None:
        """Closes a contract that is closed in the ledger; used by read-only followers."""
        market = self._markets[key]
        if market.fund.closing is None:
            market.end(closing)

    def market(self, key: str) -> Market | None:
        """A contract of the partition by ledger key; None if it is not listed here."""
        return self._markets.get(key)

    def contract(self, key: str) -> Contract | None:
        """The terms of a contract; None if it is not listed here."""
        market = self._markets.get(key)
        return market.contract if market else None

    def key_of(self, symbol: str) -> str | None:
        """The ledger key of the current generation of a symbol; None if it is not listed here."""
        market = self._current.get(symbol)
        return market.symbol if market else None

    def funds(self) -> list[Fund]:
        """The funds of all contracts."""
        return [market.fund for market in self._markets.values()]

    def books(self) -> Iterator[tuple[Contract, Book]]:
        """The loaded books of all contracts that have had a mark or a position."""
        return ((market.contract, market.book) for market in self._markets.values() if market.book and market.journal is None)

    def exposures(self, ts: int) -> Iterator[tuple[str, Exposure | None]]:
        """The exposures at a time (ms) of all contracts that have had a takeover, by symbol; None without an inventory.

        Without contracts whose book, with the mark, is not loaded yet.
        """
        loaded = ((symbol, market) for symbol, market in self._markets.items() if market.journal is None)
        return ((symbol, market.exposure(ts)) for symbol, market in loaded if market.has_inventory)

    def book(self, key: str) -> Book | None:
        """A contract's book; None before its first mark or position."""
        market = self._markets.get(key)
        return market.book if market else None

    def price_decimals(self, key: str) -> int:
        """The scale of a contract's prices."""
        return self._markets[key].contract.price_decimals

    def reopen(self, order: AdlOrder) -> Round:
        """Continues an order that was open when the partition was last owned; returns its current round."""
        return self._markets[order.symbol].reopen(order)

    def open_order(self, key: str, adl: int) -> AdlOrder | None:
        """An ADL order, if it is open."""
        market = self._markets.get(key)
        return market.orders.get(adl) if market else None

    def apply_to_book(self, event: Event, side: SideName | None = None, stream_ms: int = 0) -> None:
        """Applies an event that was settled after a book was saved, to the book alone.

        `side` is the side that the order of an execution reduces; an account that had changed sides keeps what it has.
        `stream_ms` is the time in the id of the event's message.
        """
        self._shared.now_ms = stream_ms
        if isinstance(event, Mark | Snapshot | Position | AdlFill | Settle):
            market = self._current.get(event.symbol)
            if market is None:
                raise self._not_here(event.symbol)
            market.apply_to_book(event, side)

    def lacking(self, events: Iterable[Event | Rejection], passed: dict[str, int]) -> dict[str, set[int]]:
        """The sequences that must be looked up in the ledger before these events are applied, by ledger key.

        `passed` are the highest sequences by symbol of the events that are applied before them; these events are added.
        """
        found: dict[str, set[int]] = defaultdict(set)
        for event in events:
            if isinstance(event, Numbered):
                market, last = self._market_of(event), passed.get(event.symbol, 0)
                if event.seq > last:
                    passed[event.symbol] = event.seq
                if market is None:
                    if event.seq <= last and is_stored(event):
                        found[event.symbol].add(event.seq)
                elif (event.seq <= last or market.has_passed(event)) and market.is_unknown(event):
                    found[market.symbol].add(event.seq)
        return found

    def is_applied(self, event: Event | Rejection) -> bool:
        """Whether a numbered event is applied, after `lacking` was looked up.

        Raises Rejection if another event has its sequence.
        """
        if not isinstance(event, Numbered):
            return False
        market = self._market_of(event)
        return market is not None and market.has_passed(event) and market.is_applied(event)

    def _market_of(self, event: Event | Rejection) -> Market | None:
        """The contract of an event, if it is listed here: the generation to which the event belongs."""
        market = self._current.get(getattr(event, "symbol", ""))
        return market if market is not None and market.before is None else self._generation_of(event, market)

    def _generation_of(self, event: Event | Rejection, market: Market | None) -> Market | None:
        """The generation to which an event belongs: that of its sequence, or the current one."""
        if isinstance(event, AdlTimeout):
            return self._markets.get(event.symbol)
        while isinstance(event, Numbered) and market is not None and event.seq <= market.since:
            market = market.before
        return market

    def _admit(self, event: Event | Rejection, stream_ms: int) -> Market | None:
        """The contract of an event, if it is listed here.

        Raises Rejection if the event's time is out of range, or its contract's terms are in doubt.
        """
        market = self._current.get(getattr(event, "symbol", ""))
        if market is None or market.before is not None:
            market = self._generation_of(event, market)
        self._shared.now_ms = stream_ms
        if is_time(stream_ms):
            latest_ms = self.batch.latest_ms = stream_ms + self._ahead_ms
            if not stream_ms - OLD_MS <= getattr(event, "ts", stream_ms) <= latest_ms:
                check_time(event, latest_ms)
                self.batch.old[market.symbol if market else ""] += 1
            if market is not None and market.fund.guard is not None:
                market.fund.guard.forget_after(latest_ms)
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
        if known is None or state.ts >= known.ts or known.ts > self.batch.latest_ms:
            self._shared.rates[rate.currency] = self.batch.rates[rate.currency] = state

    def _settle(self, settle: Settle) -> None:
        """Settles a contract; the settlement that closes it may move its balance to its successor."""
        market = self._market_of(settle)
        if market is None:
            raise self._not_here(settle.symbol)
        was_open = market.fund.closing is None
        market.settlement(settle)
        if was_open:
            self._carry(market, settle.ts)

    def _carry(self, market: Market, ts: int) -> None:
        """Moves the balance of a closed contract to its successor at a time (ms), by the policy and if nothing prevents it."""
        fund, batch = market.fund, self.batch
        if fund.closing is None or fund.policy.on_close != "successor" or not fund.successor or not fund.balance:
            return
        successor = self._current.get(fund.successor)
        reason = obstacle(fund, successor.fund) if successor else self._not_here(fund.successor).detail
        if successor and not reason:
            carry(fund, successor.fund, batch, ts)
        else:
            batch.uncarried.append(Uncarried(market.symbol, fund.successor, reason))

    def _list(self, listing: Listing, *, late: bool = False) -> None:
        """Lists or updates a contract. A late listing does not show the contract's current terms, so it cannot resume it."""
        contract = contract_of(listing.contract, self._currency_decimals, self._default_decimals)
        market, status = self._listed(contract.symbol), listing.contract.get("status")
        if market is None:
            self._check_listable(contract.symbol)
        else:
            contract = msgspec.structs.replace(contract, symbol=market.symbol)
            self._check_relistable(market, contract, listing)
        if market is not None and market.fund.closing is not None:
            market = self._list_closed(market, contract, opens=status == OPEN and not late)
        elif market is None or (not market.has_ledger and market.contract != contract):
            market = self._list_anew(contract, market)
        elif late:
            check_relisting(market.contract, contract)
        else:
            market.relist(contract)
        market.fund.successor = successor_of(listing.contract)
        self.batch.changed[market.symbol] = market.fund
        self.batch.listings[market.symbol] = market.contract, listing.contract
        self.batch.note_bytes(LISTING_BYTES)
        market.request_book()
        if late:
            return
        if status in ENDED:
            market.close_if_idle()
        for ended in filter(None, (market.before, market)):
            self._carry(ended, self._shared.now_ms)

    def _check_relistable(self, market: Market, contract: Contract, listing: Listing) -> None:
        """Raises BookAwaited if a listing replaces or ends a book that is not loaded yet, or may carry a balance to one."""
        if market.journal is not None and (market.contract != contract or listing.contract.get("status") in ENDED):
            raise BookAwaited(market.symbol)
        self._check_successor(successor_of(listing.contract))
        if market.before is not None:
            self._check_successor(market.before.fund.successor)

    def _listed(self, symbol: str) -> Market | None:
        """The generation to which a listing belongs. One from before the end of an earlier generation is read again."""
        market = self._current.get(symbol)
        while market is not None and market.before is not None and self._is_before(market.before.fund.closing):
            market = market.before
        return market

    def _is_before(self, closing: Closing | None) -> bool:
        """Whether the current event came before the end of a contract."""
        now_ms = self._shared.now_ms
        return closing is not None and is_time(now_ms) and now_ms < closing.at

    def _list_closed(self, market: Market, contract: Contract, *, opens: bool) -> Market:
        """Updates a closed contract, or opens the next generation of its symbol.

        A listing from before the end is read again, so it opens nothing.
        """
        if not opens or self._is_before(market.fund.closing):
            check_listing_of_closed(market.contract, contract)
            return market
        symbol = generation_of(market.symbol).next.key
        self._check_room(symbol)
        state = FundState(symbol, seq=market.last_seq)
        opened = self._open(Fund(msgspec.structs.replace(contract, symbol=symbol), state, self._policy_of(symbol)))
        # Else a restart within the message would apply positions of the closed generation to the book of the new one.
        opened.clear_book()
        self.batch.uncut = True
        return opened

    def _list_anew(self, contract: Contract, before: Market | None) -> Market:
        """Adds a contract, in place of one without entries and orders that had other terms."""
        state = FundState(contract.symbol, seq=before.since) if before else None
        market = self._open(Fund(contract, state, self._policy_of(contract.symbol)))
        # The prices of the old positions may have other units, so an empty book replaces the saved one. A restart within the
        # message would apply old positions in new units to the book saved in old units.
        if before and before.book:
            market.clear_book()
            self.batch.uncut = True
        return market

    def _open(self, fund: Fund) -> Market:
        """Adds a contract under the current policies."""
        fund.policy_version, fund.secret = self.policy_version, self._secret
        return self._add(fund)

    def _add(self, fund: Fund) -> Market:
        """Adds a contract as the current generation of its symbol."""
        generation = generation_of(fund.contract.symbol)
        market = Market(fund, self._shared, self._markets.get(generation.previous.key))
        self._markets[generation.key] = self._current[generation.symbol] = market
        return market

    def _check_listable(self, symbol: str) -> None:
        """Raises Rejection if a new contract belongs to another partition, or the partition has no room for it."""
        if not self._is_home_of(symbol):
            raise self._not_here(symbol)
        self._check_room(symbol)

    def _check_room(self, symbol: str) -> None:
        """Raises Rejection if the partition has no room for another contract."""
        if len(self._markets) >= self._contracts_max:
            raise Rejection(
                Reason.TOO_MANY_CONTRACTS,
                f"partition {self.number} has {len(self._markets)} contracts: raise stream.contracts_max"
                f" ({self._contracts_max}) to list {symbol}",
            )

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
    Mark: Market.mark,
    Position: Market.position,
    AdlFill: Market.adl_fill,
    AdlEnd: Market.adl_end,
    AdlAck: Market.adl_ack,
    AdlTimeout: Market.adl_timeout,
    Snapshot: Market.snapshot,
}
"""Maps the events of one contract to the methods that apply them."""

_LATE_HANDLERS: dict[type, Callable[[Market, Any], object]] = {
    Fill: Market.settle,
    Takeover: Market.take_over,
    Unwind: Market.close_held,
    Settle: Market.close_at,
    AdlFill: Market.execute,
    AdlEnd: Market.end_round,
}
"""Maps the numbered events of one contract to the methods that apply them late."""


def _generation_number(fund: Fund) -> int:
    return generation_of(fund.contract.symbol).number
