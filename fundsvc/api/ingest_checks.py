"""What the ledger will make of events that are about to be appended, as far as that can be told before it settles them.

It applies the engine's rules to what the ledger has. It does not know events that are on their way through the streams, except
those that this process appended.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from fundsvc.config.settings import Config
from fundsvc.core.contracts import Contract, TermsChanged, check_relisting, contract_of
from fundsvc.core.events import (
    UNDER_TERMS,
    Event,
    Fill,
    Listing,
    Mark,
    Position,
    Rate,
    Reason,
    Rejection,
    terms_in_doubt,
)
from fundsvc.core.identifiers import check_identifiers
from fundsvc.core.numbers import PRICE_DECIMALS_MAX, parse_amount, parse_price
from fundsvc.core.sequence_lookup import recollect
from fundsvc.core.sequences import Gap, Numbered, Sequences, content_of
from fundsvc.core.times import check_time
from fundsvc.store.reader import Reader

FRESH_SECONDS = 0.5
"""How long what the ledger said of a contract is taken for what it would say: an engine posts many times a second."""


class Outlook(NamedTuple):
    """A contract as the next event will find it: `seq` is its last sequence in the ledger, `last` the last one on its way."""

    contract: Contract
    has_entries: bool
    suspended: bool
    seq: int
    last: int


class Foresight:
    """What is known of contracts, kept between bodies of events."""

    def __init__(self, config: Config, reader: Reader) -> None:
        self._reader = reader
        self._currency = config.currency
        self._ahead_ms = int(config.stream.ts_ahead_seconds_max * 1000)
        self._known: dict[str, Outlook] = {}
        self._asked_at: dict[str, float] = {}

    async def look(self, events: Sequence[Event | Rejection]) -> "Glance":
        """Asks the ledger for what must be known of these events; raises StoreFault."""
        now = time.monotonic()
        symbols = {symbol for event in events if (symbol := _symbol_of(event)) and self._is_stale(symbol, event, now)}
        if symbols:
            await self._refresh(sorted(symbols), now)
        glance = Glance(self._known, self._currency.decimals, self._currency.decimals_default, self._ahead_ms)
        await recollect(glance.sequences, glance.lacking(events), self._reader, partial(asyncio.sleep, 0))
        return glance

    def accept(self, glance: "Glance") -> None:
        """Takes over what will be known once the events of a glance, which are appended, are settled."""
        self._known |= glance.changed

    def _is_stale(self, symbol: str, event: Event | Rejection, now: float) -> bool:
        known = self._known.get(symbol)
        if known is None or isinstance(event, Listing) or now > self._asked_at.get(symbol, 0.0) + FRESH_SECONDS:
            return True
        return isinstance(event, Numbered) and (event.seq <= known.last or _doubts(event, known.last))

    async def _refresh(self, symbols: list[str], now: float) -> None:
        for row in await self._reader.contract_states(symbols):
            symbol = row.contract.symbol
            known = self._known.get(symbol)
            on_its_way = known is not None and known.has_entries
            last = max(row.seq, known.last if known else 0)
            self._known[symbol] = Outlook(row.contract, row.has_entries or on_its_way, row.suspended, row.seq, last)
        self._asked_at |= dict.fromkeys(symbols, now)


class Glance:
    """The events of one body, one after the other; `changed` are the contracts that they change."""

    def __init__(self, known: dict[str, Outlook], decimals: dict[str, int], default_decimals: int, ahead_ms: int) -> None:
        self.changed: dict[str, Outlook] = {}
        self.gaps: list[Gap | None] = []
        self.sequences = Sequences({symbol: outlook.seq for symbol, outlook in known.items()})
        self._known = known
        self._decimals = decimals
        self._default_decimals = default_decimals
        self._latest_ms = time.time_ns() // 1_000_000 + ahead_ms

    def lacking(self, events: Iterable[Event | Rejection]) -> dict[str, set[int]]:
        """The sequences of which the ledger must be asked, by contract."""
        found: dict[str, set[int]] = {}
        for event in events:
            if isinstance(event, Numbered) and event.symbol in self._known and event.seq <= self._known[event.symbol].seq:
                found.setdefault(event.symbol, set()).add(event.seq)
        return found

    def check(self, event: Event | Rejection) -> Gap | None:
        """Raises Rejection for what will be refused; returns the gap before an event that will be settled, if there is one."""
        if isinstance(event, Rejection):
            raise event
        check_time(event, self._latest_ms)
        match event:
            case Rate():
                check_identifiers(event)
                parse_price(event.price, PRICE_DECIMALS_MAX)
            case Listing():
                self._list(event)
            case _:
                return self._check_of_contract(event)
        return None

    def _check_of_contract(self, event: Event) -> Gap | None:
        outlook = self._outlook(event.symbol)  # type: ignore[attr-defined]
        if outlook is None:
            raise Rejection(Reason.UNKNOWN_SYMBOL, f"no contract {event.symbol!r} is listed")  # type: ignore[attr-defined]
        if outlook.suspended and isinstance(event, UNDER_TERMS):
            raise terms_in_doubt(event.symbol)
        if isinstance(event, Numbered) and (event.seq <= outlook.seq or self.sequences.has(event)):
            refusal = self.sequences.refusal(event, outlook.contract, outlook.seq)
            if refusal:
                raise refusal
            return None
        check_fields(event, outlook.contract)
        return self._advance(event, outlook) if isinstance(event, Numbered) else None

    def _advance(self, event: Numbered, outlook: Outlook) -> Gap | None:
        """Takes an event with a new sequence for settled; one of this body with the same sequence must be the same."""
        if event.seq <= outlook.last:
            return None
        self.changed[event.symbol] = outlook._replace(
            last=event.seq, has_entries=outlook.has_entries or isinstance(event, Fill)
        )
        self.sequences.note(event, content_of(event, outlook.contract))
        return self.sequences.gap(event, outlook.last)

    def _list(self, event: Listing) -> None:
        contract = contract_of(event.contract, self._decimals, self._default_decimals)
        outlook = self._outlook(contract.symbol)
        if outlook is None or not outlook.has_entries:
            seq, last = (outlook.seq, outlook.last) if outlook else (0, 0)
            self.changed[contract.symbol] = Outlook(contract, has_entries=False, suspended=False, seq=seq, last=last)
            return
        try:
            check_relisting(outlook.contract, contract)
        except TermsChanged:
            self.changed[contract.symbol] = outlook._replace(suspended=True)
            raise
        self.changed[contract.symbol] = outlook._replace(suspended=False)

    def _outlook(self, symbol: str) -> Outlook | None:
        return self.changed.get(symbol) or self._known.get(symbol)


def check_fields(event: Event, contract: Contract) -> None:
    """Raises Rejection where a number cannot be held exactly, or a name is no identifier."""
    if isinstance(event, Fill | Position):
        check_identifiers(event)
    price, money = contract.price_decimals, contract.settle_decimals
    match event:
        case Fill():
            parse_price(event.price, price)
            contract.bankruptcy_price(event.bankruptcy_price)
        case Mark():
            parse_price(event.price, price)
            parse_price(event.index_price or event.price, price)
        case Position():
            parse_price(event.entry_price if event.lots else "1", price)
            parse_amount(event.margin, money)


def _symbol_of(event: Event | Rejection) -> str | None:
    """The contract that an event is about."""
    if isinstance(event, Listing):
        symbol = event.contract.get("symbol")
        return symbol if isinstance(symbol, str) else None
    return getattr(event, "symbol", None)


def _doubts(event: Numbered, last: int) -> bool:
    return isinstance(event.prev_seq, int) and event.prev_seq != last
