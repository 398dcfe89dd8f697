"""Recognises numbered events that come again.

An event with an engine sequence is applied once. An event whose sequence was passed is a duplicate if the same content was
applied under it, a conflict if other content was, and late if nothing was. Recent contents are in memory; older ones are looked
up in the ledger (`facts`) before the message that needs them is applied.
"""

from collections.abc import Iterable, Mapping
from enum import Enum
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

from fundsvc.core.contracts import Contract
from fundsvc.core.events import AdlEnd, AdlFill, Event, Fill, Reason, Rejection
from fundsvc.core.fund.chain import Entry
from fundsvc.core.numbers import parse_price

RECENT_MAX = 10_000
"""Applied and committed events in memory, in some 3 MB; those that are not committed yet are there too."""

FACTS_MAX = 50_000
"""Facts of the ledger in memory, at the beginning of a message."""

Numbered = Fill | AdlFill | AdlEnd
Key = tuple[str, int]
"""A contract and an engine sequence."""

Content = int
"""A hash of all that an event says but its sequence. Equal within a process for equal events; 64 bits tell others apart."""


class Applied(Enum):
    """What the ledger knows of a sequence whose content it does not have."""

    NEVER = "never"
    UNVERIFIED = "unverified"


class Gap(NamedTuple):
    """An event of a contract says that `prev_seq` came before it, but `last` did."""

    symbol: str
    seq: int
    prev_seq: int
    last: int


class Facts(NamedTuple):
    """What the ledger has of some sequences: what was applied under them, and the digests of what was refused."""

    applied: Mapping[Key, Content | Applied]
    refused: Iterable[bytes]


class Sequences:
    """The sequences of a partition's contracts; `floors` are the last ones at the time of loading, by symbol.

    Everything applied with a sequence above its contract's floor is in memory. `seen` is the last sequence above the fund's
    that was refused, by symbol: no gap begins there.
    """

    def __init__(self, floors: Mapping[str, int], seen: Mapping[str, int] | None = None) -> None:
        self._floors = dict(floors)
        self._seen = dict(seen or {})
        self._recent: dict[Key, Content] = {}
        self._marked = 0
        self._facts: dict[Key, Content | Applied] = {}
        self._refused: set[bytes] = set()
        self._trades: dict[int, None] = {}

    def mark(self) -> int:
        """A mark behind everything that is applied by now."""
        return self._marked

    def forget(self, mark: int) -> None:
        """Forgets what is beyond the bound and was applied before a mark: the ledger has that, as it was committed."""
        behind = mark - (self._marked - len(self._recent))
        recent, floors = self._recent, self._floors
        for key in list(islice(recent, max(0, min(behind, len(recent) - RECENT_MAX)))):
            del recent[key]
            symbol, seq = key
            if seq > floors.get(symbol, 0):
                floors[symbol] = seq

    def trim(self) -> None:
        """Forgets what the ledger said, and trade ids, beyond the bounds; not between a question to the ledger and its use."""
        for trade in list(islice(self._trades, max(0, len(self._trades) - RECENT_MAX))):
            del self._trades[trade]
        if len(self._facts) + len(self._refused) > FACTS_MAX:
            self._facts.clear()
            self._refused.clear()

    def lacks(self, event: Numbered, contract: Contract) -> bool:
        """Whether the ledger must be asked before this event, whose sequence was passed, can be judged."""
        key = event.symbol, event.seq
        return key not in self._facts and self._recent.get(key) != content_of(event, contract)

    def learn(self, facts: Facts) -> None:
        """Takes in what the ledger has."""
        for key, content in facts.applied.items():
            # What is applied and not committed yet is in memory alone, and may be forgotten before this is used.
            self._facts[key] = self._recent.get(key, content)
        self._refused.update(facts.refused)

    def has(self, event: Numbered) -> bool:
        """Whether an event with this sequence was applied lately."""
        return (event.symbol, event.seq) in self._recent

    def note(self, event: Numbered, content: Content) -> None:
        """Notes that an event is applied."""
        key = event.symbol, event.seq
        self._marked += key not in self._recent
        self._recent[key] = content
        if key in self._facts:
            self._facts[key] = content

    def is_applied(self, event: Numbered, contract: Contract) -> bool:
        """Whether an event whose sequence was passed is applied; raises Rejection if another one was in its place."""
        found = self._found(event)
        if found is Applied.NEVER:
            return False
        if found is Applied.UNVERIFIED or found == content_of(event, contract):
            return True
        raise Rejection(Reason.CONFLICT, f"{event.symbol} has settled another event with seq {event.seq}")

    def check_passed(self, event: Numbered, contract: Contract, last: int) -> None:
        """Returns if an event whose sequence was passed is known: applied, or refused before and so kept.

        Raises Rejection if it is new, and remembers it.
        """
        refusal = self.refusal(event, contract, last)
        if refusal and self.remember(event):
            raise refusal

    def refusal(self, event: Numbered, contract: Contract, last: int) -> Rejection | None:
        """Why an event whose sequence was passed cannot be settled in its turn; None if it is applied."""
        try:
            applied = self.is_applied(event, contract)
        except Rejection as conflict:
            return conflict
        late = f"{event.symbol} has settled seq {last} and never {event.seq}: fundsvc rejected replay settles it"
        return None if applied else Rejection(Reason.LATE, late)

    def remember(self, event: Numbered) -> bool:
        """Remembers an event as refused and kept; returns whether it is the first like it."""
        before = len(self._refused)
        self._refused.add(digest_of(event))
        return len(self._refused) > before

    def _found(self, event: Numbered) -> Content | Applied:
        """What is known of an event's sequence; without the ledger, what was applied before it was loaded is not told apart."""
        key = event.symbol, event.seq
        unknown = Applied.NEVER if event.seq > self._floors.get(event.symbol, 0) else Applied.UNVERIFIED
        return self._recent.get(key, self._facts.get(key, unknown))

    def see(self, event: Numbered) -> None:
        """Notes a sequence above the fund's that came but does not count."""
        self._seen[event.symbol] = event.seq

    def gap(self, event: Numbered, last: int) -> Gap | None:
        """The gap that a new event reveals: its `prevSeq` is neither the last sequence nor that of the last refused event."""
        previous = event.prev_seq
        if not isinstance(previous, int) or previous in (last, self._seen.get(event.symbol)):
            return None
        return Gap(event.symbol, event.seq, previous, last)

    def repeats_trade(self, fill: Fill) -> bool:
        """Whether a trade of the contract with this id was settled lately; notes that it is."""
        trade = hash((fill.symbol, fill.trade_id))
        if trade in self._trades:
            return True
        self._trades[trade] = None
        return False


def content_of(event: Numbered, contract: Contract) -> Content:
    """What an event says but for its sequence. A fill says numbers, not texts: 1.50 is 1.5."""
    match event:
        case Fill():
            try:
                price = parse_price(event.price, contract.price_decimals)
                bankruptcy_price = contract.bankruptcy_price(event.bankruptcy_price)
            except Rejection:
                return hash((event.price, event.bankruptcy_price))
            ids = event.trade_id, event.order_id, event.account
            return content_of_fill(event.side, event.lots, price, bankruptcy_price, *ids, event.ts)
        case AdlFill():
            return content_of_execution(event.adl, event.account, event.lots, event.ts)
        case AdlEnd():
            return content_of_end(event.adl, event.ts)


def content_of_fill(
    side: str, lots: int, price: int, bankruptcy_price: int, trade_id: str, order_id: str, account: str, ts: int
) -> Content:
    """What a fill says, its prices in the contract's units."""
    return hash((side, lots, price, bankruptcy_price, trade_id, order_id, account, ts))


def content_of_entry(entry: Entry) -> Content:
    """What the fill of an entry said but for its sequence."""
    ids = entry.trade_id, entry.order_id, entry.account
    return content_of_fill(entry.side, entry.lots, entry.price, entry.bankruptcy_price, *ids, entry.ts)


def content_of_execution(adl: int, account: str, lots: int, ts: int) -> Content:
    """What an adlFill said but for its sequence."""
    return hash(("adlFill", adl, account, lots, ts))


def content_of_end(adl: int, ts: int) -> Content:
    """What an adlEnd said but for its sequence."""
    return hash(("adlEnd", adl, ts))


def digest_of(event: Event) -> bytes:
    """A digest of an event that outlives the process; `prevSeq` does not count, an engine may learn it later."""
    values = [str(getattr(event, name)) for name in event.__struct_fields__ if name != "prev_seq"]
    told = "\x1f".join((type(event).__name__, *values))
    return blake2b(told.encode(errors="surrogatepass"), digest_size=16).digest()


def kept_as(event: Any) -> tuple[str, int, bytes] | None:
    """The contract, the sequence and the digest by which a refused event is found again.

    None for an event without a sequence, or whose symbol no contract can have: the database may not take its characters.
    """
    if isinstance(event, Numbered) and event.symbol.isprintable():
        return event.symbol, event.seq, digest_of(event)
    return None
