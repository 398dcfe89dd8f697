"""Writes what the crash test sends: a seeded market, a recording, duplicates and garbage, in messages of every form."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fundsvc.cli.tools.recordings import read_recording
from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Event, Fill, Listing, Mark, Reason, Settle, Takeover, Unwind
from tests.crash.poison import BEGINNING_MS, BROKEN, NEVER_SETTLED, Destination, answer, poison, reasons_of

EVENTS_PER_LETTER_MAX = 30
GARBAGE_SHARE = 0.02
DUPLICATE_SHARE = 0.03
RELISTED_SHARE = 0.01
CONTRADICTED_SHARE = 0.01
LATE_SHARE = 0.01
DOUBTED_SHARE = 0.002
TAKEN_SHARE = 0.05
LARGE_SHARE = 0.0003
"""Shares of the events that one of this kind follows; for duplicates, of the letters."""

LARGE_EVENTS = 9_000
"""With the other events of the letter, slightly below the limit of a message."""

CLOCK_JUMPS_MS = (0, 0, -86_400_000, -3_600_000, 3_600_000, 86_400_000)
"""Temporary errors of the exchange's clock."""

CLOCK_JUMP_SHARE = 0.01
CONTRACTS: Sequence[tuple[str, str, str | float, int]] = (
    ("XBTUSDTM", "USDT", 0.001, 84_000),
    ("ETHUSDTM", "USDT", "0.01", 3_200),
    ("PEPEUSDTM", "USDT", "1E+4", 1),
    ("SOLUSDCM", "USDC", 0.1, 140),
    ("WIFUSDCM", "USDC", 10, 2),
    ("XBTUSDM", "XBT", -1.0, 84_000),
    ("ETHUSDM", "ETH", "-1", 3_200),
)
"""Symbol, settlement currency, multiplier and approximate price."""

DATED = ("XBTMZ26", "USDT", 0.001, 84_000)
"""A contract that is settled. It has no marks: they have no sequence, so one that is resent after the end is rejected."""

SETTLED_AFTER = 0.7
"""The share of the fills after which the dated contract is settled."""


class Element(NamedTuple):
    """One event of a letter, or bytes in its place. `seq` is 0 if the event has none.

    Garbage, which can never be settled, has the `reasons` with which it may be rejected.
    """

    content: Event | dict[str, Any] | bytes
    symbol: str = ""
    seq: int = 0
    reasons: frozenset[Reason] = frozenset()

    @property
    def garbage(self) -> bool:
        """Whether the element can never be settled."""
        return bool(self.reasons)

    @property
    def rejected_by_seq(self) -> bool:
        """Whether the sequence is the reason of the rejection: the ledger keeps duplicates of the element once."""
        return self.garbage and 0 < self.seq < NEVER_SETTLED

    @property
    def provisional(self) -> bool:
        """Whether the element lists a contract with terms that change later; rejected if the contract has entries."""
        return isinstance(self.content, Listing) and "provisional" in self.content.contract

    def raw(self, field: str) -> bytes:
        """The bytes in the codec of this field; JSON for a field without a codec."""
        if isinstance(self.content, bytes):
            return self.content
        return msgspec.msgpack.encode(self.content) if field == "msgpack" else msgspec.json.encode(self.content)


Unit = tuple[Element, ...]
"""Consecutive elements of one letter."""


class Letter(NamedTuple):
    """One message to a partition's stream: the name of its field, and its elements."""

    partition: int
    field: str
    elements: Sequence[Element]

    def body(self) -> bytes:
        """The bytes of the message: one event, or an array of several."""
        raws = [element.raw(self.field) for element in self.elements]
        if len(raws) == 1:
            return raws[0]
        encode = msgspec.msgpack.encode if self.field == "msgpack" else msgspec.json.encode
        return encode([msgspec.Raw(raw) for raw in raws])

    def to_resend(self, cursor: Mapping[str, int], chance: random.Random) -> "Letter | None":
        """Returns the elements that a producer resends after this cursor, a random half of the garbage; None if empty."""
        return self._replace(elements=rest) if (rest := [e for e in self.elements if _is_resent(e, cursor, chance)]) else None


UNREADABLE = reasons_of(Reason.UNDECODABLE) | {Reason.INVALID_FIELD, Reason.TOO_LARGE}
"""Reasons with which a whole message may be rejected: some broken ones are valid in the other codec, or too large."""


def write_letters(seed: int, partitions: int, fills: int, recording: Path | None) -> list[Letter]:
    """Writes letters in the order of sending: `fills` of a seeded market, and a recording of forced orders."""
    chance = random.Random(seed)
    streams: list[Sequence[Event | Unit]] = [list(_market(chance, fills))]
    if recording:
        streams.append(list(_recorded(recording)))
    return list(letters_of(chance, partitions, _merged(chance, streams)))


def listing_of(contract: tuple[str, str, str | float, int], **more: Any) -> Listing:
    """Returns a listing of one of CONTRACTS; `more` are further fields, or other terms."""
    symbol, currency, multiplier, _ = contract
    terms = {"settleCurrency": currency, "multiplier": multiplier, "isInverse": float(multiplier) < 0}
    return Listing({"symbol": symbol, **terms, **more})


def _is_resent(element: Element, cursor: Mapping[str, int], chance: random.Random) -> bool:
    """Whether a producer that resumes at a cursor resends an element.

    It resends all marks in order, because the fund accepts the takeovers after them at the last mark.
    """
    if isinstance(element.content, Mark) and not element.garbage:
        return True
    if isinstance(element.content, Listing):
        return not (element.provisional and cursor.get(element.symbol))
    return element.seq > cursor.get(element.symbol, 0) if element.seq and not element.garbage else chance.random() < 0.5


def _recorded(path: Path) -> Iterator[Event]:
    """Yields the recording, with each contract's listing before its first fill."""
    recording = read_recording(path, "binance-force-orders")
    unlisted = {listing.contract["symbol"]: listing for listing in recording.listings}
    for fill in recording.events:
        if fill.symbol in unlisted:
            yield unlisted.pop(fill.symbol)
        yield fill


def rejected_element(content: Event | dict[str, Any], symbol: str, reason: Reason) -> Element:
    """Returns an element that settlement rejects with this reason."""
    fields = content if isinstance(content, dict) else msgspec.to_builtins(content)
    closed = {Reason.CONTRACT_CLOSED} if symbol == DATED[0] else set()  # It may be resent after the settlement.
    return Element(fields, symbol, fields.get("seq") or 0, reasons_of(reason) | closed)


def disputed_terms(chance: random.Random, contract: tuple[str, str, str | float, int]) -> Unit:
    """Returns other terms for a contract that has entries, an event while the terms are disputed, and the original terms."""
    symbol, _, multiplier, _ = contract
    size = float(multiplier)
    wrong: dict[str, Any] = chance.choice(
        ({"multiplier": 3 * size}, {"settleCurrency": "EUR"}, {"multiplier": -size, "isInverse": size > 0})
    )
    doubted = answer(Destination(symbol, 0, 0), "adlEnd", 10**9)
    return (
        rejected_element(listing_of(contract, **wrong), symbol, Reason.CONTRACT_FIXED),
        rejected_element(doubted, symbol, Reason.TERMS_IN_DOUBT),
        element_of(listing_of(contract)),
    )


def _market(chance: random.Random, fills: int) -> Iterator[Event | Unit]:
    """Yields fills with mostly surpluses and some deficits that exceed the fund; between them marks, takeovers and listings."""
    contracts = [*CONTRACTS, DATED]
    for contract in contracts:
        yield from _listings(chance, contract)
    sequences = dict.fromkeys((contract[0] for contract in contracts), 0)
    held: dict[tuple[str, str], int] = defaultdict(int)
    jump = 0
    for number in range(fills):
        if number == int(SETTLED_AFTER * fills):
            contracts.remove(DATED)
            sequences[DATED[0]] += 1
            yield Settle(DATED[0], sequences[DATED[0]], f"{DATED[3]}.5", BEGINNING_MS + number * 1000)
        contract = chance.choice(contracts)
        symbol, _, _, about = contract
        last = sequences[symbol]
        sequences[symbol] += chance.randint(1, 5)
        jump = chance.choice(CLOCK_JUMPS_MS) if chance.random() < CLOCK_JUMP_SHARE else jump
        ts = BEGINNING_MS + number * 1000 + jump
        fill_seq = sequences[symbol]
        yield _fill(chance, symbol, fill_seq, about, ts)
        if contract != DATED:
            yield from _marks(chance, symbol, about, ts)
        if chance.random() < TAKEN_SHARE:
            sequences[symbol] += 1
            yield _moved_lots(chance, symbol, sequences[symbol], about, ts, held)
        if chance.random() < CONTRADICTED_SHARE:
            other = msgspec.structs.replace(_fill(chance, symbol, sequences[symbol], 1, ts), lots=7_000)
            yield (rejected_element(other, symbol, Reason.CONFLICT),)
        if last < fill_seq - 1 and chance.random() < LATE_SHARE:
            yield (rejected_element(_fill(chance, symbol, fill_seq - 1, about, ts), symbol, Reason.LATE),)
        yield from _relistings(chance, contract, number)
        if DATED not in contracts:
            yield from _after_end(chance, sequences[DATED[0]], ts)


def _listings(chance: random.Random, contract: tuple[str, str, str | float, int]) -> Iterator[Listing]:
    """Yields a listing of a contract with provisional terms, and then with its own."""
    other = -1 if float(contract[2]) < 0 else 7
    yield listing_of(contract, multiplier=contract[2] if chance.random() < 0.5 else other, provisional=True)
    yield listing_of(contract)


def _relistings(chance: random.Random, contract: tuple[str, str, str | float, int], number: int) -> Iterator[Event | Unit]:
    """Yields sometimes a listing with the same terms, and seldom one with other terms."""
    if chance.random() < RELISTED_SHARE:
        yield listing_of(contract, note=number)
    if chance.random() < DOUBTED_SHARE:
        yield disputed_terms(chance, contract)


def _marks(chance: random.Random, symbol: str, about: int, ts: int) -> Iterator[Event | Unit]:
    """Yields sometimes a mark, and seldom very many."""
    if chance.random() < 0.1:
        yield Mark(symbol, f"{about}.5", ts)
    if chance.random() < LARGE_SHARE:
        yield (element_of(Mark(symbol, f"{about}.25", ts)),) * LARGE_EVENTS


def _after_end(chance: random.Random, seq: int, ts: int) -> Iterator[Unit]:
    """Yields sometimes a fill of the dated contract, which was settled by the event `seq`."""
    if chance.random() < CONTRADICTED_SHARE:
        after = _fill(chance, DATED[0], seq + 1, DATED[3], ts)
        yield (rejected_element(after, DATED[0], Reason.CONTRACT_CLOSED),)


def _moved_lots(
    chance: random.Random, symbol: str, seq: int, about: int, ts: int, held: dict[tuple[str, str], int]
) -> Takeover | Unwind:
    """Returns a takeover, or an unwind of `held` lots. There are no positions, so the fund holds all lots it ever took over."""
    side = chance.choice(("sell", "buy"))
    price = f"{about}.{chance.randrange(10**8):08}"
    if held[symbol, side] and chance.random() < 0.6:
        lots = chance.randint(1, held[symbol, side])
        held[symbol, side] -= lots
        return Unwind(symbol, seq, side, lots, price, ts, f"t{seq}", "o")
    lots = chance.randint(1, 5000)
    held[symbol, side] += lots
    return Takeover(symbol, seq, side, lots, price, ts, f"t{seq}", chance.choice(("", "ordre-é")), f"a{chance.randrange(1000)}")


def _fill(chance: random.Random, symbol: str, seq: int, about: int, ts: int) -> Fill:
    bankruptcy = about * 10**8 + chance.randrange(about * 10**6)
    kept = chance.choices((chance.randrange(10**6), 0, -chance.randrange(3 * 10**6)), (70, 5, 25))[0] * about
    side = chance.choice(("sell", "buy"))
    price = bankruptcy + (kept if side == "sell" else -kept)
    return Fill(
        symbol=symbol,
        seq=seq,
        side=side,
        lots=chance.randint(1, 5000),
        price=f"{price // 10**8}.{price % 10**8:08}",
        bankruptcy_price=f"{bankruptcy // 10**8}.{bankruptcy % 10**8:08}",
        ts=ts,
        trade_id=f"t{seq}",
        order_id=chance.choice(("", f"o{seq}", "ordre-é")),
        account=f"a{chance.randrange(1000)}",
    )


def _merged(chance: random.Random, streams: Sequence[Sequence[Event | Unit]]) -> Iterator[Event | Unit]:
    turns = [number for number, events in enumerate(streams) for _ in events]
    chance.shuffle(turns)
    iterators = [iter(events) for events in streams]
    return (next(iterators[turn]) for turn in turns)


def letters_of(
    chance: random.Random, partitions: int, events: Iterable[Event | Unit], duplicate_share: float = DUPLICATE_SHARE
) -> Iterator[Letter]:
    """Groups events into letters, in order within a partition; inserts garbage and duplicate letters."""
    open_letters: dict[int, list[Element]] = defaultdict(list)
    sent: dict[int, list[Letter]] = defaultdict(list)
    for event in events:
        unit = event if isinstance(event, tuple) else (element_of(event),)
        symbol = unit[0].symbol
        partition = partition_of(symbol, partitions)
        elements = open_letters[partition]
        elements += unit
        if chance.random() < GARBAGE_SHARE and len(elements) < LARGE_EVENTS:
            reason, content = poison(chance, Destination(symbol, partition, partitions))
            elements.insert(chance.randint(0, len(elements)), rejected_element(content, symbol, reason))
        if len(elements) >= EVENTS_PER_LETTER_MAX or chance.random() < 0.1:
            letter = Letter(partition, _codec(chance), open_letters.pop(partition))
            yield from _posted(chance, sent[partition], letter, duplicate_share)
    for partition, elements in open_letters.items():
        yield Letter(partition, "json", elements)


def element_of(event: Event) -> Element:
    """Returns the element of a valid event."""
    symbol = event.contract["symbol"] if isinstance(event, Listing) else event.symbol
    return Element(event, symbol, getattr(event, "seq", None) or 0)


def _posted(chance: random.Random, before: list[Letter], letter: Letter, duplicate_share: float) -> Iterator[Letter]:
    if not any(element.provisional for element in letter.elements):
        before.append(letter)
    yield letter
    if before and chance.random() < duplicate_share:
        yield chance.choice(before[-50:])
    if chance.random() < GARBAGE_SHARE:
        yield Letter(letter.partition, _codec(chance), [Element(chance.choice(BROKEN), reasons=UNREADABLE)])
    if chance.random() < GARBAGE_SHARE:
        yield letter._replace(field="xml", elements=[Element(b"<fill/>", reasons=UNREADABLE)])


def _codec(chance: random.Random) -> str:
    return chance.choice(("json", "msgpack"))
