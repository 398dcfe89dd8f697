"""The effects of a run of events on a partition, which one transaction writes or does not write."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, NamedTuple

from fundsvc.core.adl.book_parts import BookPart
from fundsvc.core.adl.order import AdlOrder, OrderState
from fundsvc.core.adl.records import SealedRecord
from fundsvc.core.contracts import Contract
from fundsvc.core.events import Rejected
from fundsvc.core.fund.chain import Entry, Kind
from fundsvc.core.fund.inventory import HoldingState, Outcome, TrancheState
from fundsvc.core.fund.settlement import Closing, Fund, FundState
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import Policies
from fundsvc.core.sequences import Gap

_SYMBOL_AND_KIND = attrgetter("symbol", "kind")


ENTRY_BYTES = 300
REJECTED_BYTES = 200
ORDER_BYTES = 500
RECORD_BYTES = 400
"""The approximate size of a row of each kind in memory and on the wire, without its text or bytes."""


class Offset(NamedTuple):
    """The position in a partition's stream up to which it is settled.

    `last_id` is the last message that is settled completely, and `messages` counts the messages up to it. Of the next message,
    `partial_id`, the first `events` events are settled too. They are "" and 0 if a commit ended with a message.
    """

    last_id: str
    messages: int
    events: int = 0
    partial_id: str = ""

    def settled_of(self, stream_id: str) -> int:
        """Returns how many events of a message after `last_id` are settled."""
        return self.events if stream_id == self.partial_id else 0


class EventPlace(NamedTuple):
    """The place of an event in the stream: the id of its message, and its position in the message."""

    stream_id: str
    position: int


class BookState(NamedTuple):
    """A contract's book to save with a batch.

    `seq` is the contract's last sequence, `parts` positions as `BookPart`s in MessagePack, None if they are unchanged since the
    last save, and `positions` their number. `first` is the number of the first part: with 0 the parts replace all earlier
    ones, else they contain what changed since these. See `Book` for the mark.
    """

    symbol: str
    seq: int
    mark: int | None
    mark_ts: int
    mark_seq: int
    parts: list[bytes] | None
    positions: int
    mark_ts_max: int = 0
    first: int = 0


class StoredBook(NamedTuple):
    """A contract's book as it was saved, after the message `last_id` and the sequence `seq`; see `Book` for the mark.

    `book` iterates over its parts once; it is None if the book never had positions. `parts` is the number of parts, 0 if an
    earlier release saved them in another form.
    """

    symbol: str
    last_id: str
    seq: int
    mark: int | None
    mark_ts: int
    mark_seq: int
    book: Iterable[BookPart] | None
    mark_ts_max: int = 0
    parts: int = 0


class Durations(NamedTuple):
    """The seconds that a batch took: to decode its messages, to settle their events, and to commit."""

    decode: float
    settle: float
    commit: float


class RateState(NamedTuple):
    """The price of one unit of a currency in USDT, in units of 10**-PRICE_DECIMALS_MAX; `ts` is the engine's clock (ms)."""

    currency: str
    price: int
    ts: int


class Moved(NamedTuple):
    """What happened to a fund since it was loaded: see `Fund`. Amounts are in atoms."""

    credited: int
    repaid: int
    dried: int
    guarded: int


class Round(NamedTuple):
    """A round of an ADL order to announce: the accounts to reduce at the order's price, and the lots of each."""

    order: OrderState
    accounts: Sequence[str]
    lots: Sequence[int]


class Replayed(NamedTuple):
    """A rejected event that was sent again and is settled: its place, the message that settled it, and the entry it wrote.

    `settled_by` is None if another event with the same content was settled first; `entry` is None if it wrote no entry.
    """

    stream_id: str
    position: int
    settled_by: str | None
    entry: Entry | None


class Uncarried(NamedTuple):
    """The balance of a closed contract that did not move to its successor, and why."""

    symbol: str
    successor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """The effects of a run of events, which one transaction writes.

    `hashes[i]` belongs to `entries[i]`. `changed` are the funds that changed, `funds` their states after the batch, and
    `moved[i]` the amounts that `funds[i]` moved. `tranches` are the tranches that changed, in their last state, and `holdings`
    the states of both sides of each fund with an inventory. `orders` are the ADL orders that changed, in their last state;
    `opened` names the new ones. `records` are the sealed records of orders, and `rounds` the rounds to announce. `books` are
    books to save, and `rates` the newest rates by currency. `listings` are contracts that were listed or updated, with their
    KuCoin objects. `rejected` are the rejected events, `replayed` the events rejected earlier that are settled now.

    By contract: `duplicates` counts events that were known, `old` events more than a day old (under "" those of no listed
    contract), `repeated_trades` trade ids that the contract had before, and `suspensions` says whether the terms are in doubt.
    `closings` are the ends of contracts that were closed, and `uncarried` the balances that could not move to a successor.
    `outcomes` counts the outcomes of takeovers, and `outcome_lots` their lots.
    `policies` are the versions that came into force, `gaps` the gaps that `prevSeq` revealed.

    `events` counts the events of the batch, `place` is that of the last one, and `latest_ms` the latest time that it could
    have. A batch that is `uncut` must be committed at the end of a message.

    `packed` holds entries that are encoded already, `packed_count` their number, and `packed_kinds` their number by contract
    and kind; see `Draft.pack`. `packed_records` and `packed_record_count` are the same for records.
    """

    entries: Sequence[Entry] = field(default_factory=list)
    hashes: Sequence[bytes] = field(default_factory=list)
    changed: Mapping[str, Fund] = field(default_factory=dict)
    funds: Sequence[FundState] = field(default_factory=list)
    moved: Sequence[Moved] = field(default_factory=list)
    tranches: Sequence[TrancheState] = field(default_factory=list)
    holdings: Sequence[HoldingState] = field(default_factory=list)
    orders: Mapping[tuple[str, int], OrderState] = field(default_factory=dict)
    opened: AbstractSet[tuple[str, int]] = field(default_factory=set)
    records: Sequence[SealedRecord] = field(default_factory=list)
    rounds: Sequence[Round] = field(default_factory=list)
    books: Sequence[BookState] = field(default_factory=list)
    rates: Mapping[str, RateState] = field(default_factory=dict)
    listings: Mapping[str, tuple[Contract, dict[str, Any]]] = field(default_factory=dict)
    rejected: Sequence[Rejected] = field(default_factory=list)
    replayed: Sequence[Replayed] = field(default_factory=list)
    duplicates: Counter[str] = field(default_factory=Counter)
    old: Counter[str] = field(default_factory=Counter)
    latest_ms: int = INT64_MAX
    suspensions: Mapping[str, bool] = field(default_factory=dict)
    closings: Mapping[str, Closing] = field(default_factory=dict)
    uncarried: Sequence[Uncarried] = field(default_factory=list)
    policies: Sequence[Policies] = field(default_factory=list)
    gaps: Sequence[Gap] = field(default_factory=list)
    repeated_trades: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    outcome_lots: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    packed: Sequence[bytes] = field(default_factory=list)
    packed_count: int = 0
    packed_kinds: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    packed_records: Sequence[bytes] = field(default_factory=list)
    packed_record_count: int = 0
    events: int = 0
    place: EventPlace | None = None
    uncut: bool = False

    def count(self) -> int:
        """The number of entries, packed or not."""
        return self.packed_count + len(self.entries)

    def kinds(self) -> Counter[tuple[str, Kind]]:
        """The number of entries by contract and kind, packed or not."""
        return self.packed_kinds + Counter(map(_SYMBOL_AND_KIND, self.entries))


@dataclass(slots=True)
class Draft:
    """The batch that a partition fills; see `Batch` for the fields. `take` returns the batch and empties the draft.

    `noted_bytes` is the size of everything but entries.
    """

    entries: list[Entry] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    changed: dict[str, Fund] = field(default_factory=dict)
    orders: dict[tuple[str, int], OrderState] = field(default_factory=dict)
    opened: set[tuple[str, int]] = field(default_factory=set)
    records: list[SealedRecord] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    books: list[BookState] = field(default_factory=list)
    rates: dict[str, RateState] = field(default_factory=dict)
    listings: dict[str, tuple[Contract, dict[str, Any]]] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    replayed: list[Replayed] = field(default_factory=list)
    duplicates: Counter[str] = field(default_factory=Counter)
    old: Counter[str] = field(default_factory=Counter)
    latest_ms: int = INT64_MAX
    suspensions: dict[str, bool] = field(default_factory=dict)
    closings: dict[str, Closing] = field(default_factory=dict)
    uncarried: list[Uncarried] = field(default_factory=list)
    policies: list[Policies] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    repeated_trades: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    outcome_lots: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    packed: list[bytes] = field(default_factory=list)
    packed_count: int = 0
    packed_kinds: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    packed_records: list[bytes] = field(default_factory=list)
    packed_record_count: int = 0
    events: int = 0
    place: EventPlace | None = None
    uncut: bool = False
    noted_bytes: int = 0

    def take(self) -> Batch:
        """Returns the batch to commit and empties the draft, which does not change the batch afterwards."""
        inventories = [fund.inventory for fund in self.changed.values() if fund.inventory]
        taken = Batch(
            **{name: getattr(self, name) for name in _DRAFTED},
            funds=[fund.state() for fund in self.changed.values()],
            moved=[Moved(fund.credited, fund.repaid, fund.dried, fund.guarded) for fund in self.changed.values()],
            tranches=[tranche for inventory in inventories for tranche in inventory.take_changed()],
            holdings=[holding for inventory in inventories for holding in inventory.states()],
        )
        empty = Draft()
        for name in _DRAFTED:
            setattr(self, name, getattr(empty, name))
        self.noted_bytes = 0
        return taken

    def count(self) -> int:
        """The number of entries, packed or not."""
        return self.packed_count + len(self.entries)

    def rows(self) -> int:
        """The number of rows that the batch writes, without books and rates, which have their own bounds."""
        adl = len(self.orders) + self.packed_record_count + len(self.records)
        return self.count() + len(self.rejected) + len(self.replayed) + len(self.listings) + adl

    def size(self) -> int:
        """The approximate size of the batch in bytes."""
        return self.noted_bytes + ENTRY_BYTES * self.count()

    def record(self, fund: Fund, settled: tuple[Entry, bytes]) -> None:
        """Adds an entry and its hash."""
        entry, digest = settled
        self.entries.append(entry)
        self.hashes.append(digest)
        self.changed[entry.symbol] = fund

    def reject(self, event: Rejected) -> None:
        """Adds a rejected event."""
        self.rejected.append(event)
        self.note_bytes(REJECTED_BYTES + len(event.body))

    def note(self, order: AdlOrder) -> OrderState:
        """Adds the current state of an order, and returns it."""
        state = self.orders[order.symbol, order.adl] = order.state_row()
        self.note_bytes(ORDER_BYTES)
        return state

    def open(self, order: AdlOrder) -> None:
        """Marks an order as new."""
        self.opened.add((order.symbol, order.adl))

    def seal(self, record: SealedRecord) -> None:
        """Adds a sealed record of an order."""
        self.records.append(record)
        self.note_bytes(RECORD_BYTES + len(record.record.body))

    def note_outcome(self, symbol: str, outcome: Outcome, lots: int) -> None:
        """Counts an outcome of a takeover, and its lots."""
        self.outcomes[symbol, outcome] += 1
        self.outcome_lots[symbol, outcome] += lots

    def note_bytes(self, size: int) -> None:
        """Adds to the size of what the batch holds beside entries."""
        self.noted_bytes += size

    def pack(self, encode: Callable[[Sequence[Entry], Sequence[bytes]], bytes]) -> None:
        """Encodes the current entries and drops them.

        A large batch outgrows the processor's cache. Encoding it in a second pass would cost a sixth of the speed of
        settlement, so entries are encoded soon after they are settled. The rows stay with their batch, because the draft
        fills again while the store commits.
        """
        if self.entries:
            self.packed.append(encode(self.entries, self.hashes))
            self.packed_count += len(self.entries)
            self.packed_kinds.update(map(_SYMBOL_AND_KIND, self.entries))
            self.entries.clear()
            self.hashes.clear()

    def pack_records(self, encode: Callable[[Sequence[SealedRecord]], bytes]) -> None:
        """Encodes the current records and drops them, for the same reason; a record never changes."""
        if self.records:
            self.packed_records.append(encode(self.records))
            self.packed_record_count += len(self.records)
            self.records.clear()


_DRAFTED = tuple(field.name for field in fields(Draft) if field.name != "noted_bytes")
