"""A partition in memory: its contracts and funds, and what one event after another does to them.

Loaded from the ledger, changed by `apply`, thrown away and loaded again when a commit fails. What has happened since the
last commit is collected in a `Batch`; the caller takes it (`take`) when it is ready to write it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from fundsvc.core.adl import AdlOrder, give_up, order_for
from fundsvc.core.chain import Entry, Kind
from fundsvc.core.contracts import Contract, contract_of, partition_of
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
from fundsvc.core.numbers import PRICE_DECIMALS_MAX, parse_price
from fundsvc.core.settlement import Fund, FundState

_SYMBOL_AND_KIND = attrgetter("symbol", "kind")


class Offset(NamedTuple):
    """How far a partition's stream has been settled: the last message's id, and how many messages that makes in all."""

    last_id: str
    messages: int


@dataclass(slots=True)
class Batch:
    """What a run of events did: to be written in one transaction, or forgotten whole.

    `hashes[i]` belongs to `entries[i]`; `funds` are those that changed, as they are after it; `listings` are contracts listed
    or updated, with the KuCoin object they came from; `rejected` and `replayed` (stream id, position, entry) are the events
    that were refused, and those refused before that are settled now; `duplicates` counts events that were known, by contract.

    A large batch outgrows the processor's cache, and going through it once more to encode it would cost a sixth of the
    service's speed. So entries may be encoded while they are fresh, and let go (`pack`): `packed` holds their bytes then,
    `packed_count` their number and `packed_kinds` their numbers by contract and kind.
    """

    entries: list[Entry] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    changed: dict[str, Fund] = field(default_factory=dict)
    funds: list[FundState] = field(default_factory=list)
    orders: list[AdlOrder] = field(default_factory=list)
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
    ) -> None:
        self.number = number
        self.batch = Batch()
        self._partitions = partitions
        self._funds = {fund.contract.symbol: fund for fund in funds}
        self._currency_decimals = dict(currency_decimals)
        self._default_decimals = default_decimals
        self._handlers: dict[type, Callable[[Any], None]] = {
            Fill: self._fill,
            Mark: self._mark,
            Position: self._position,
            AdlFill: self._adl_report,
            AdlEnd: self._adl_report,
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
        if isinstance(event, Fill):
            self._settle(self._fund(event.symbol), event)
        else:
            self.apply(event)
        return self.batch.entries[-1] if len(self.batch.entries) > written else None

    def take(self) -> Batch:
        """Hands over what has happened since the last call."""
        batch, self.batch = self.batch, Batch()
        batch.funds = [fund.state() for fund in batch.changed.values()]
        return batch

    def _refuse(self, rejection: Rejection) -> None:
        raise rejection

    def _fill(self, fill: Fill) -> None:
        fund = self._funds.get(fill.symbol) or self._fund(fill.symbol)
        if fill.seq <= fund.seq:
            self.batch.duplicates[fill.symbol] += 1
            return
        self._settle(fund, fill)

    def _settle(self, fund: Fund, fill: Fill) -> None:
        if not (fill.trade_id + fill.order_id + fill.account).isprintable():
            raise Rejection(Reason.INVALID_FIELD, "tradeId, orderId and account must be printable text")
        entry, digest = fund.settle(fill)
        batch = self.batch
        batch.entries.append(entry)
        batch.hashes.append(digest)
        batch.changed[fill.symbol] = fund
        if entry.uncovered:
            self._escalate(fund, entry)

    def _escalate(self, fund: Fund, shortfall: Entry) -> None:
        """Records the ADL order of a shortfall. No positions are kept yet, so it finds nobody and its rest is outstanding."""
        fund.adl += 1
        self.batch.orders.append(give_up(order_for(shortfall, fund.adl)))
        fund.outstanding += shortfall.uncovered

    def _mark(self, mark: Mark) -> None:
        decimals = self._fund(mark.symbol).contract.price_decimals
        parse_price(mark.price, decimals)
        if mark.index_price is not None:
            parse_price(mark.index_price, decimals)

    def _position(self, position: Position) -> None:
        self._fund(position.symbol)

    def _rate(self, rate: Rate) -> None:
        parse_price(rate.price, PRICE_DECIMALS_MAX)

    def _adl_report(self, event: AdlFill | AdlEnd) -> None:
        fund = self._fund(event.symbol)
        if event.seq <= fund.seq:
            self.batch.duplicates[event.symbol] += 1
        elif event.adl > fund.adl:
            raise Rejection(Reason.ADL_ORDER_UNKNOWN, f"{event.symbol} has no ADL order {event.adl}")
        else:
            raise Rejection(Reason.ADL_ORDER_CLOSED, f"ADL order {event.adl} of {event.symbol} is no longer open")

    def _list(self, listing: Listing) -> None:
        contract = contract_of(listing.contract, self._currency_decimals, self._default_decimals)
        home = partition_of(contract.symbol, self._partitions)
        if home != self.number:
            raise Rejection(Reason.WRONG_PARTITION, f"{contract.symbol} belongs to partition {home}, not {self.number}")
        fund = self._funds.get(contract.symbol)
        if fund is None or (not fund.entry and fund.contract != contract):
            fund = Fund(contract)
        elif not fund.contract.same_terms(contract):
            raise Rejection(
                Reason.CONTRACT_FIXED,
                f"{contract.symbol} has {fund.entry} entries: multiplier, settleCurrency and isInverse cannot change",
            )
        self._funds[contract.symbol] = fund
        self.batch.changed[contract.symbol] = fund
        self.batch.listings[contract.symbol] = fund.contract, listing.contract

    def _fund(self, symbol: str) -> Fund:
        fund = self._funds.get(symbol)
        if fund is not None:
            return fund
        home = partition_of(symbol, self._partitions)
        if home != self.number:
            raise Rejection(Reason.WRONG_PARTITION, f"{symbol} belongs to partition {home}, not {self.number}")
        raise Rejection(Reason.UNKNOWN_SYMBOL, f"{symbol} is not listed: list it with a contract event, then replay this")
