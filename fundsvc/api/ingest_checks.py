"""Predicts how settlement will decide about posted events before they are appended.

The checks apply the rules of settlement to the state of the ledger. Of the events that are appended but not settled, they know
those that this process appended.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import msgspec

from fundsvc.config.settings import Config
from fundsvc.core.checks import check, check_rate
from fundsvc.core.contracts import (
    OPEN,
    Contract,
    TermsChanged,
    check_listing_of_closed,
    check_relisting,
    contract_of,
    partition_of,
)
from fundsvc.core.events import (
    UNDER_TERMS,
    Event,
    Fill,
    Listing,
    Rate,
    Reason,
    Rejection,
    Settle,
    Takeover,
    contract_closed,
    terms_in_doubt,
)
from fundsvc.core.fund.settlement import Closing
from fundsvc.core.generations import generation_of, public_symbol
from fundsvc.core.sequence_lookup import look_up
from fundsvc.core.sequences import Gap, Numbered, Sequences, content_of
from fundsvc.core.times import check_time
from fundsvc.mutual.codec import pool_of
from fundsvc.mutual.core.events import Event as PoolEvent
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import PoolRow
from fundsvc.store.reader import Reader
from fundsvc.wire.codec import Codec

FRESH_SECONDS = 0.5
"""The time for which a contract's state from the ledger is reused. An engine posts many times a second."""


class ContractState(NamedTuple):
    """The state of a contract before the next event: `seq` is its last settled sequence, `last` its last appended one.

    `before` is the generation before it, None for the first. `ends` is whether a settlement is appended.

    `has_entries` means that it has entries or ADL orders, whose amounts its terms determine. `closing` is its end according to
    the ledger; None while it is open.
    """

    contract: Contract
    has_entries: bool
    suspended: bool
    seq: int
    last: int
    closing: Closing | None = None
    before: "ContractState | None" = None
    ends: bool = False

    @property
    def since(self) -> int:
        """The last sequence of the generation before."""
        return self.before.last_seq if self.before else 0

    @property
    def last_seq(self) -> int:
        """The last settled sequence, which may be that of a settlement without entries."""
        return max(self.seq, self.closing.seq if self.closing else 0)

    def of(self, event: Numbered) -> "ContractState":
        """Returns the generation to which an event belongs."""
        return self.before.of(event) if self.before and event.seq <= self.since else self


class IngestChecks:
    """The known states of contracts, kept between requests."""

    def __init__(self, config: Config, reader: Reader) -> None:
        self._config = config
        self._reader = reader
        self._known: dict[str, ContractState] = {}
        self._read_at: dict[str, float] = {}
        self._unsettled: set[str] = set()  # symbols of appended listings that the ledger does not have yet

    async def of(self, events: Sequence[Event | Rejection]) -> "BodyChecks":
        """Returns checks of the events of one body; reads the necessary states from the ledger. Raises StoreFault."""
        now = time.monotonic()
        symbols = {symbol for event in events if (symbol := _symbol_of(event)) and self._is_stale(symbol, event, now)}
        counts: Counter[int] = Counter()
        if any(isinstance(event, Listing) for event in events):
            counts.update(await self._reader.contract_counts())
            symbols |= self._unsettled
        if symbols:
            await self._refresh(sorted(symbols), now)
        counts.update(partition_of(symbol, self._config.stream.partitions) for symbol in self._unsettled)
        checks = BodyChecks(self._known, self._config, counts)
        await look_up(checks.sequences, checks.passed(events), self._reader, partial(asyncio.sleep, 0))
        return checks

    def accept(self, checks: "BodyChecks") -> None:
        """Stores the states that appended events cause once they are settled."""
        self._unsettled.update(checks.changed.keys() - self._known.keys())
        self._known |= checks.changed

    def _is_stale(self, symbol: str, event: Event | Rejection, now: float) -> bool:
        known = self._known.get(symbol)
        if known is None or isinstance(event, Listing) or now > self._read_at.get(symbol, 0.0) + FRESH_SECONDS:
            return True
        return isinstance(event, Numbered) and (event.seq <= known.last or _is_gap(event, known.last))

    async def _refresh(self, symbols: list[str], now: float) -> None:
        rows = await self._reader.contract_states(symbols)
        for symbol, generations in groupby(rows, lambda row: public_symbol(row.contract.symbol)):
            known, before = self._known.get(symbol), None
            for row in generations:
                has_entries, last = row.has_entries, max(row.seq, known.last if known else 0)
                if known is not None and known.contract.symbol == row.contract.symbol:
                    has_entries = has_entries or known.has_entries
                before = ContractState(row.contract, has_entries, row.suspended, row.seq, last, row.closing, before)
            self._unsettled.discard(symbol)
            if before is not None:
                self._known[symbol] = before
        self._read_at |= dict.fromkeys(symbols, now)


class BodyChecks:
    """Checks the events of one body in order; `changed` has the states of the contracts that they change.

    `counts` are the numbers of contracts by partition, including listings that are appended but not settled.
    """

    def __init__(self, known: dict[str, ContractState], config: Config, counts: Counter[int]) -> None:
        self.changed: dict[str, ContractState] = {}
        self.sequences = Sequences({symbol: state.seq for symbol, state in known.items()})
        self._known = known
        self._currency = config.currency
        self._stream = config.stream
        self._counts = counts
        self._latest_ms = time.time_ns() // 1_000_000 + int(config.stream.ts_ahead_seconds_max * 1000)

    def passed(self, events: Iterable[Event | Rejection]) -> dict[str, set[int]]:
        """Returns the sequences up to the last settled one, by ledger key. The ledger decides whether these are duplicates."""
        found: dict[str, set[int]] = {}
        for event in events:
            if isinstance(event, Numbered) and event.symbol in self._known:
                state = self._known[event.symbol].of(event)
                if event.seq <= state.last_seq:
                    found.setdefault(state.contract.symbol, set()).add(event.seq)
        return found

    def check(self, event: Event | Rejection) -> Gap | None:
        """Raises Rejection for an event that settlement will reject; returns the gap before an accepted event, if any."""
        if isinstance(event, Rejection):
            raise event
        check_time(event, self._latest_ms)
        match event:
            case Rate():
                check_rate(event)
            case Listing():
                self._list(event)
            case _:
                return self._check_of_contract(event)
        return None

    def _check_of_contract(self, event: Event) -> Gap | None:
        state = self._state_of(event.symbol)  # type: ignore[attr-defined]
        if state is None:
            raise Rejection(Reason.UNKNOWN_SYMBOL, f"no contract {event.symbol!r} is listed")  # type: ignore[attr-defined]
        if state.suspended and isinstance(event, UNDER_TERMS):
            raise terms_in_doubt(event.symbol)
        if isinstance(event, Numbered):
            state = state.of(event)
        if isinstance(event, Numbered) and (event.seq <= state.last_seq or self.sequences.has(event)):
            rejection = self.sequences.rejection(event, state.contract, state.seq)
            if rejection:
                late = rejection.reason is Reason.LATE and state.closing is not None
                raise contract_closed(event.symbol) if late else rejection
            return None
        is_appended = isinstance(event, Numbered) and event.seq <= state.last
        if (state.closing is not None or state.ends) and isinstance(event, UNDER_TERMS) and not is_appended:
            raise contract_closed(event.symbol)
        check(event, state.contract)
        return self._advance(event, state) if isinstance(event, Numbered) else None

    def _advance(self, event: Numbered, state: ContractState) -> Gap | None:
        """Records the sequence of an accepted event. A later event of this body with the same sequence must be equal to it."""
        if event.seq <= state.last:
            return None
        has_entries = state.has_entries or isinstance(event, Fill | Takeover)
        ends = state.ends or isinstance(event, Settle)
        self.changed[event.symbol] = state._replace(last=event.seq, has_entries=has_entries, ends=ends)
        self.sequences.note(event, content_of(event, state.contract))
        return self.sequences.gap(event, state.last)

    def _list(self, event: Listing) -> None:
        contract = contract_of(event.contract, self._currency.decimals, self._currency.decimals_default)
        state = self._state_of(contract.symbol)
        if state is None:
            self._count_listing(contract.symbol)
        if state is not None and (state.closing is not None or state.ends):
            self._list_closed(state, contract, opens=event.contract.get("status") == OPEN)
            return
        if state is None:
            self.changed[contract.symbol] = ContractState(contract, has_entries=False, suspended=False, seq=0, last=0)
            return
        if not state.has_entries:
            listed = msgspec.structs.replace(contract, symbol=state.contract.symbol)
            self.changed[contract.symbol] = state._replace(contract=listed, suspended=False)
            return
        try:
            check_relisting(state.contract, contract)
        except TermsChanged:
            self.changed[contract.symbol] = state._replace(suspended=True)
            raise
        self.changed[contract.symbol] = state._replace(suspended=False)

    def _list_closed(self, state: ContractState, contract: Contract, *, opens: bool) -> None:
        if not opens:
            check_listing_of_closed(state.contract, contract)
            return
        key, last = generation_of(state.contract.symbol).next.key, max(state.last, state.last_seq)
        self._count_listing(key)
        opened = msgspec.structs.replace(contract, symbol=key)
        before = state._replace(seq=last)
        self.changed[contract.symbol] = ContractState(opened, False, False, last, last, before=before)

    def _count_listing(self, symbol: str) -> None:
        """Counts a new contract of a partition; raises Rejection if the partition has no room for it."""
        partition = partition_of(symbol, self._stream.partitions)
        count, contracts_max = self._counts[partition], self._stream.contracts_max
        if count >= contracts_max:
            raise Rejection(
                Reason.TOO_MANY_CONTRACTS,
                f"partition {partition} has {count} contracts: raise stream.contracts_max ({contracts_max}) to list {symbol}",
            )
        self._counts[partition] += 1

    def _state_of(self, symbol: str) -> ContractState | None:
        return self.changed.get(symbol) or self._known.get(symbol)


class PoolChecks:
    """Checks events of pools, in whatever state the pools are."""

    def __init__(self, config: Config) -> None:
        ahead = config.stream.ts_ahead_seconds_max
        self._pools = {
            name: Pool(PoolRow(name), {1: terms.rules()}, ts_ahead_seconds_max=ahead)
            for name, terms in config.mutual.pools.items()
        }

    def known(self, codec: Codec, raw: bytes | msgspec.Raw) -> str | None:
        """Returns the configured pool that an event names, or None."""
        pool = pool_of(codec, raw)
        return pool if pool in self._pools else None

    def check(self, event: PoolEvent) -> None:
        """Raises Rejection for an event of a configured pool that settlement will reject."""
        self._pools[event.pool].check(event, time.time_ns() // 1_000_000)


def _symbol_of(event: Event | Rejection) -> str | None:
    """Returns the symbol of an event's contract, or None."""
    if isinstance(event, Listing):
        symbol = event.contract.get("symbol")
        return symbol if isinstance(symbol, str) else None
    return getattr(event, "symbol", None)


def _is_gap(event: Numbered, last: int) -> bool:
    return isinstance(event.prev_seq, int) and event.prev_seq != last
