"""Recognises duplicates among events with an engine sequence.

Such an event is applied once. An event whose sequence has passed is a duplicate if the same content was applied under that
sequence, a conflict if other content was, and late if nothing was. Recent contents are in memory. Older contents are looked up
in the ledger (`Facts`) before the message that needs them is applied.
"""

from collections.abc import Iterable, Mapping
from enum import Enum
from hashlib import blake2b
from inspect import signature
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from fundsvc.core.contracts import Contract
from fundsvc.core.events import AdlEnd, AdlFill, Event, Fill, Reason, Rejection, Settle, Takeover, Unwind
from fundsvc.core.fund.chain import Entry
from fundsvc.core.generations import public_symbol
from fundsvc.core.numbers import parse_price

RECENT_MAX = 10_000
"""The number of applied and committed events in memory, about 3 MB. Events that are not committed yet are not counted."""

FACTS_MAX = 50_000
"""The number of ledger facts in memory at the beginning of a message."""

Numbered = Fill | Takeover | Unwind | Settle | AdlFill | AdlEnd
Key = tuple[str, int]
"""A contract and an engine sequence."""

Content = int
"""A 64-bit hash of all fields of an event but its sequence. Comparable within one process only."""


class Applied(Enum):
    """The state of a sequence whose content is not known. That of an ARCHIVED one, if it was applied, is in a file."""

    NEVER = "never"
    UNVERIFIED = "unverified"
    ARCHIVED = "archived"


class WithoutIds(NamedTuple):
    """The content of a takeover whose trade and order are not known: the ledger has no entry of it if no lots were accepted."""

    content: Content


Found = Content | WithoutIds | Applied
"""What is known of the event that was applied under a sequence."""


class Gap(NamedTuple):
    """A gap before an event: its `prevSeq` is `prev_seq`, but the contract's last sequence is `last`."""

    symbol: str
    seq: int
    prev_seq: int
    last: int


class Facts(NamedTuple):
    """The ledger's facts of some sequences: the contents applied under them, by ledger key, and digests of rejected events."""

    applied: Mapping[Key, Found]
    rejected: Iterable[bytes]


class Sequences:
    """The sequences of a partition's contracts.

    They belong to a symbol in all its generations. `floors` are the last sequences at the time of loading. Every event applied
    with a sequence above its symbol's floor is in memory.
    """

    def __init__(self, floors: Mapping[str, int]) -> None:
        self._floors = dict(floors)
        self._skipped: dict[str, int] = {}
        self._recent: dict[Key, Content] = {}
        self._marked = 0
        self._facts: dict[Key, Found] = {}
        self._rejected: set[bytes] = set()
        self._trades: set[int] = set()
        self._earlier_trades: set[int] = set()

    def mark(self) -> int:
        """Returns a mark after all events applied so far."""
        return self._marked

    def forget(self, mark: int) -> None:
        """Drops events applied before a mark, beyond the bound. The ledger has them, because they are committed."""
        behind = mark - (self._marked - len(self._recent))
        recent, floors = self._recent, self._floors
        for key in list(islice(recent, max(0, min(behind, len(recent) - RECENT_MAX)))):
            del recent[key]
            symbol, seq = key
            if seq > floors.get(symbol, 0):
                floors[symbol] = seq

    def trim(self) -> None:
        """Drops facts and trade ids beyond the bounds. Must not be called between a ledger query and the use of its facts."""
        if len(self._trades) >= RECENT_MAX:
            self._trades, self._earlier_trades = set(), self._trades
        if len(self._facts) + len(self._rejected) > FACTS_MAX:
            self._facts.clear()
            self._rejected.clear()

    def lacks(self, event: Numbered, contract: Contract) -> bool:
        """Whether the ledger must be queried before this event, whose sequence has passed, can be classified.

        Archived entries may have been restored since.
        """
        key = event.symbol, event.seq
        return self._facts.get(key, Applied.ARCHIVED) is Applied.ARCHIVED and self._recent.get(key) != content_of(
            event, contract
        )

    def learn(self, facts: Facts) -> None:
        """Adds facts of the ledger, which are by ledger key. A sequence belongs to one generation of its symbol."""
        for (symbol, seq), content in facts.applied.items():
            key = public_symbol(symbol), seq
            # An event that is not committed yet is only in memory, and may be dropped before this fact is used.
            self._facts[key] = self._recent.get(key, content)
        self._rejected.update(facts.rejected)

    def has(self, event: Numbered) -> bool:
        """Whether an event with this sequence was applied recently."""
        return (event.symbol, event.seq) in self._recent

    def note(self, event: Numbered, content: Content) -> None:
        """Records that an event is applied."""
        key = event.symbol, event.seq
        self._marked += key not in self._recent
        self._recent[key] = content
        if key in self._facts:
            self._facts[key] = content

    def is_applied(self, event: Numbered, contract: Contract) -> bool:
        """Whether an event whose sequence has passed is applied.

        Raises Rejection if another event has its sequence, or if the entries of that time are in an archive.
        """
        found = self._found(event)
        if found is Applied.NEVER or (found is Applied.ARCHIVED and isinstance(event, AdlEnd)):
            return False  # The records of ends are not archived.
        if found is Applied.ARCHIVED:
            detail = f"the entries of {event.symbol} of the time of seq {event.seq} are archived: fundsvc archive restore"
            raise Rejection(Reason.ARCHIVED, detail)
        if isinstance(found, WithoutIds) and isinstance(event, Takeover):
            event, found = msgspec.structs.replace(event, trade_id="", order_id=""), found.content
        if found is Applied.UNVERIFIED or found == content_of(event, contract):
            return True
        raise Rejection(Reason.CONFLICT, f"{event.symbol} has settled another event with seq {event.seq}")

    def rejection(self, event: Numbered, contract: Contract, last: int) -> Rejection | None:
        """Returns the rejection of an event whose sequence has passed, a conflict or late; None if it is applied."""
        try:
            applied = self.is_applied(event, contract)
        except Rejection as conflict:
            return conflict
        late = f"{event.symbol} has settled seq {last} and never {event.seq}: fundsvc rejected replay settles it"
        return None if applied else Rejection(Reason.LATE, late)

    def remember(self, event: Numbered) -> bool:
        """Records an event as rejected; returns whether it is the first with this content."""
        before = len(self._rejected)
        self._rejected.add(digest_of(event))
        return len(self._rejected) > before

    def _found(self, event: Numbered) -> Found:
        """Returns the content applied under an event's sequence.

        Without facts of the ledger, the content of a sequence up to the floor is unverified.
        """
        key = event.symbol, event.seq
        unknown = Applied.NEVER if event.seq > self._floors.get(event.symbol, 0) else Applied.UNVERIFIED
        return self._recent.get(key, self._facts.get(key, unknown))

    def skip(self, event: Numbered) -> None:
        """Records a sequence above the fund's that did not move it, so that the next event reveals no gap there."""
        self._skipped[event.symbol] = event.seq

    def gap(self, event: Numbered, last: int) -> Gap | None:
        """Returns the gap before a new event, if its `prevSeq` is neither the last sequence nor the last skipped one."""
        previous = event.prev_seq
        if not isinstance(previous, int) or previous in (last, self._skipped.get(event.symbol)):
            return None
        return Gap(event.symbol, event.seq, previous, last)

    def repeats_trade(self, fill: Fill) -> bool:
        """Whether a trade of the contract with this id was settled recently; records the trade."""
        trade = hash((fill.symbol, fill.trade_id))
        if trade in self._trades or trade in self._earlier_trades:
            return True
        self._trades.add(trade)
        return False


def content_of(event: Numbered, contract: Contract) -> Content:
    """Hashes an event without its sequence. Prices are compared as numbers: 1.50 equals 1.5."""
    try:
        return _content_of(event, contract)
    except Rejection:  # A price that no applied event can have.
        return hash(digest_of(event))


def _content_of(event: Numbered, contract: Contract) -> Content:
    match event:
        case Fill():
            price = parse_price(event.price, contract.price_decimals)
            bankruptcy_price = contract.bankruptcy_price(event.bankruptcy_price)
            ids = event.trade_id, event.order_id, event.account
            return content_of_fill(event.side, event.lots, price, bankruptcy_price, *ids, event.ts)
        case Takeover():
            price = contract.bankruptcy_price(event.bankruptcy_price)
            ids = event.trade_id, event.order_id, event.account
            return content_of_takeover(event.side, event.lots, price, *ids, event.ts)
        case Unwind():
            price = parse_price(event.price, contract.price_decimals)
            return content_of_unwind(event.side, event.lots, price, event.trade_id, event.order_id, event.ts)
        case Settle():
            return content_of_settlement(parse_price(event.price, contract.price_decimals), event.ts)
        case AdlFill():
            return content_of_execution(event.adl, event.account, event.lots, event.ts)
        case AdlEnd():
            return content_of_end(event.adl, event.ts)


def content_of_fill(
    side: str, lots: int, price: int, bankruptcy_price: int, trade_id: str, order_id: str, account: str, ts: int
) -> Content:
    """Hashes a fill without its sequence; prices are in the contract's units."""
    return hash((side, lots, price, bankruptcy_price, trade_id, order_id, account, ts))


def content_of_entry(entry: Entry) -> Content:
    """Hashes the fill of an entry without its sequence, as `content_of_fill` does."""
    return hash(_FILL_OF_ENTRY(entry))


_FILL_OF_ENTRY = attrgetter(*signature(content_of_fill).parameters)


def content_of_takeover(
    side: str, lots: int, bankruptcy_price: int, trade_id: str, order_id: str, account: str, ts: int
) -> Content:
    """Hashes a takeover without its sequence; `lots` are all lots of the event, accepted or not."""
    return hash(("takeover", side, lots, bankruptcy_price, trade_id, order_id, account, ts))


def content_of_unwind(side: str, lots: int, price: int, trade_id: str, order_id: str, ts: int) -> Content:
    """Hashes an unwind without its sequence; `lots` are all lots of the event."""
    return hash(("unwind", side, lots, price, trade_id, order_id, ts))


def content_of_settlement(price: int, ts: int) -> Content:
    """Hashes a settlement without its sequence."""
    return hash(("settle", price, ts))


def content_of_execution(adl: int, account: str, lots: int, ts: int) -> Content:
    """Hashes an adlFill without its sequence."""
    return hash(("adlFill", adl, account, lots, ts))


def content_of_end(adl: int, ts: int) -> Content:
    """Hashes an adlEnd without its sequence."""
    return hash(("adlEnd", adl, ts))


def digest_of(event: Event) -> bytes:
    """Returns a digest of an event that the database stores. `prevSeq` is left out: an engine may add it when it resends."""
    values = [str(getattr(event, name)) for name in event.__struct_fields__ if name != "prev_seq"]
    text = "\x1f".join((type(event).__name__, *values))
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def is_stored(event: Numbered) -> bool:
    """Whether the database may contain the symbol of an event: PostgreSQL does not accept all characters."""
    return event.symbol.isprintable()


def identity_of(event: Any) -> tuple[str, int, bytes] | None:
    """Returns the contract, the sequence and the digest under which a rejected event is stored.

    Returns None for an event without a sequence, and for a symbol that the database does not contain.
    """
    if isinstance(event, Numbered) and is_stored(event):
        return event.symbol, event.seq, digest_of(event)
    return None
