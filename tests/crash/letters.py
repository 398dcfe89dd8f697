"""What the crash test sends: a seeded market, a recording, duplicates and garbage, as messages of every form."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Event, Fill, Listing, Mark
from fundsvc.recordings import read_recording

EVENTS_PER_LETTER_MAX = 30
GARBAGE_SHARE = 0.02
DUPLICATE_SHARE = 0.03
RELISTED_SHARE = 0.01
CONTRADICTED_SHARE = 0.01
"""Shares of the events, or of the letters for duplicates, that are followed by one."""

CLOCK_JUMPS_MS = (0, 0, -86_400_000, -3_600_000, 3_600_000, 86_400_000)
"""By how much the exchange's clock is wrong for a while."""

CLOCK_JUMP_SHARE = 0.01
BEGINNING_MS = 1_765_000_000_000

NEVER_SETTLED = 2**62
"""A sequence above all others: garbage that has one is refused whenever it is read, not taken for a duplicate."""

CONTRACTS: Sequence[tuple[str, str, str | float, int]] = (
    ("XBTUSDTM", "USDT", 0.001, 84_000),
    ("ETHUSDTM", "USDT", "0.01", 3_200),
    ("PEPEUSDTM", "USDT", "1E+4", 1),
    ("SOLUSDCM", "USDC", 0.1, 140),
    ("WIFUSDCM", "USDC", 10, 2),
    ("XBTUSDM", "XBT", -1.0, 84_000),
    ("ETHUSDM", "ETH", "-1", 3_200),
)
"""Symbol, settlement currency, multiplier, price about which it trades."""

BROKEN = (b"", b"{", b"null", b"[]]", b"\xff\xfe\x00", b'"fill"', b"\xc1", b'{"type":"fill"', bytes(range(256)))


class Element(NamedTuple):
    """One event of a letter, or what passes for one; `seq` is 0 where there is none."""

    content: Event | dict[str, Any] | bytes
    symbol: str = ""
    seq: int = 0

    @property
    def garbage(self) -> bool:
        """Whether it can never be settled."""
        return not isinstance(self.content, Event)

    @property
    def passed(self) -> bool:
        """Whether it is refused for its sequence: it is kept once, however often it is sent."""
        return self.garbage and 0 < self.seq < NEVER_SETTLED

    @property
    def provisional(self) -> bool:
        """Whether it lists a contract on terms that later ones replace: once there are fills, it is refused."""
        return isinstance(self.content, Listing) and "provisional" in self.content.contract

    def raw(self, field: str) -> bytes:
        """Its bytes in the codec that a field names; in no codec, for a field that names none."""
        if isinstance(self.content, bytes):
            return self.content
        return msgspec.msgpack.encode(self.content) if field == "msgpack" else msgspec.json.encode(self.content)


class Letter(NamedTuple):
    """One message to a partition's stream: the name of its field, and what is in it."""

    partition: int
    field: str
    elements: Sequence[Element]

    def body(self) -> bytes:
        """One event as it is, several as an array."""
        raws = [element.raw(self.field) for element in self.elements]
        if len(raws) == 1:
            return raws[0]
        encode = msgspec.msgpack.encode if self.field == "msgpack" else msgspec.json.encode
        return encode([msgspec.Raw(raw) for raw in raws])

    def beyond(self, cursor: Mapping[str, int], chance: random.Random) -> "Letter | None":
        """What an engine that resumes at a cursor sends of it again; garbage has no sequence, and is sent again or not."""
        return self._replace(elements=rest) if (rest := [e for e in self.elements if _open(e, cursor, chance)]) else None


def write_letters(seed: int, partitions: int, fills: int, recording: Path | None) -> list[Letter]:
    """Letters in the order of sending: `fills` of a seeded market, and all of a recording of forced orders."""
    chance = random.Random(seed)
    streams = [list(_market(chance, fills))]
    if recording:
        streams.append(list(_recorded(recording)))
    return list(letters_of(chance, partitions, _merged(chance, streams)))


def listing_of(contract: tuple[str, str, str | float, int], **more: Any) -> Listing:
    """Lists one of CONTRACTS; `more` are fields that change nothing, or terms of its own."""
    symbol, currency, multiplier, _ = contract
    inverse = float(multiplier) < 0
    return Listing({"symbol": symbol, "settleCurrency": currency, "multiplier": multiplier, "isInverse": inverse, **more})


def _open(element: Element, cursor: Mapping[str, int], chance: random.Random) -> bool:
    """Whether an engine that resumes at a cursor sends an element again."""
    if isinstance(element.content, Listing):
        return not (element.provisional and cursor.get(element.symbol))
    return element.seq > cursor.get(element.symbol, 0) if element.seq and not element.garbage else chance.random() < 0.5


def _recorded(path: Path) -> Iterator[Event]:
    """The recording, each contract listed just before its first fill."""
    recording = read_recording(path, "binance-force-orders")
    unlisted = {listing.contract["symbol"]: listing for listing in recording.listings}
    for fill in recording.events:
        if fill.symbol in unlisted:
            yield unlisted.pop(fill.symbol)
        yield fill


def _contradiction(chance: random.Random, symbol: str, seq: int, ts: int) -> Element:
    """Another fill under the last sequence."""
    fill = _fill(chance, symbol, seq, 1, ts)
    return Element(msgspec.to_builtins(fill) | {"lots": 7_000}, symbol, seq)


def _market(chance: random.Random, fills: int) -> Iterator[Event | Element]:
    """Fills that mostly leave a surplus, and now and then a loss that a fund cannot pay; marks and relistings between them."""
    for contract in CONTRACTS:
        yield listing_of(
            contract, multiplier=contract[2] if chance.random() < 0.5 else -1 if float(contract[2]) < 0 else 7, provisional=True
        )
        yield listing_of(contract)
    sequences = dict.fromkeys((contract[0] for contract in CONTRACTS), 0)
    jump = 0
    for number in range(fills):
        contract = chance.choice(CONTRACTS)
        symbol, _, _, about = contract
        sequences[symbol] += chance.randint(1, 5)
        jump = chance.choice(CLOCK_JUMPS_MS) if chance.random() < CLOCK_JUMP_SHARE else jump
        ts = BEGINNING_MS + number * 1000 + jump
        yield _fill(chance, symbol, sequences[symbol], about, ts)
        if chance.random() < 0.1:
            yield Mark(symbol, f"{about}.5", ts)
        if chance.random() < CONTRADICTED_SHARE:
            yield _contradiction(chance, symbol, sequences[symbol], ts)
        if chance.random() < RELISTED_SHARE:
            yield listing_of(contract, note=number)


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


def _merged(chance: random.Random, streams: Sequence[Sequence[Event]]) -> Iterator[Event]:
    turns = [number for number, events in enumerate(streams) for _ in events]
    chance.shuffle(turns)
    iterators = [iter(events) for events in streams]
    return (next(iterators[turn]) for turn in turns)


def letters_of(
    chance: random.Random, partitions: int, events: Iterable[Event | Element], duplicate_share: float = DUPLICATE_SHARE
) -> Iterator[Letter]:
    """Groups events into letters, in order within a partition, and slips in garbage and letters that were sent before."""
    open_letters: dict[int, list[Element]] = defaultdict(list)
    sent: dict[int, list[Letter]] = defaultdict(list)
    for event in events:
        element = event if isinstance(event, Element) else element_of(event)
        partition = partition_of(element.symbol, partitions)
        elements = open_letters[partition]
        elements.append(element)
        if chance.random() < GARBAGE_SHARE:
            elements.insert(chance.randint(0, len(elements)), _garbage(chance, element.symbol))
        if len(elements) >= EVENTS_PER_LETTER_MAX or chance.random() < 0.1:
            letter = Letter(partition, _codec(chance), open_letters.pop(partition))
            yield from _posted(chance, sent[partition], letter, duplicate_share)
    for partition, elements in open_letters.items():
        yield Letter(partition, "json", elements)


def element_of(event: Event) -> Element:
    """An event as it stands in a letter."""
    symbol = event.contract["symbol"] if isinstance(event, Listing) else event.symbol
    return Element(event, symbol, getattr(event, "seq", None) or 0)


def _posted(chance: random.Random, before: list[Letter], letter: Letter, duplicate_share: float) -> Iterator[Letter]:
    if not any(element.provisional for element in letter.elements):
        before.append(letter)
    yield letter
    if before and chance.random() < duplicate_share:
        yield chance.choice(before[-50:])
    if chance.random() < GARBAGE_SHARE:
        yield Letter(letter.partition, _codec(chance), [Element(chance.choice(BROKEN))])
    if chance.random() < GARBAGE_SHARE:
        yield letter._replace(field="xml", elements=[Element(b"<fill/>")])


def _codec(chance: random.Random) -> str:
    return chance.choice(("json", "msgpack"))


def _garbage(chance: random.Random, symbol: str) -> Element:
    """Something in the place of an event that no state of the ledger makes good."""
    make = chance.choice((_wrong_fill, _wrong_fill, _wrong_deleveraging, _wrong_state, _wrong_listing))
    garbage = make(chance, symbol)
    return Element(garbage, symbol, garbage.get("seq", 0))


def _wrong_fill(chance: random.Random, symbol: str) -> dict[str, Any]:
    fill: dict[str, Any] = {
        "type": "fill",
        "symbol": symbol,
        "seq": NEVER_SETTLED,
        "side": "sell",
        "lots": 1,
        "price": "2",
        "bankruptcyPrice": "1",
        "ts": BEGINNING_MS,
    }
    wrong: dict[str, Any] = chance.choice(
        (
            {"symbol": f"NOSUCH{chance.randrange(100)}"},
            {"price": "1.0000000000001"},
            {"price": "-1"},
            {"price": "abc"},
            {"price": 2.5},
            {"bankruptcyPrice": "-1"},
            {"lots": "5"},
            {"lots": -1},
            {"lots": 2**63 - 1, "price": "9000000"},
            {"side": "hold"},
            {"seq": 0},
            {"type": "deposit"},
            {"color": "red"},
            {"account": "a\u0000b"},
            {"ts": BEGINNING_MS * 10},
            {"ts": BEGINNING_MS // 1000},
        )
    )
    garbage = fill | wrong
    if chance.random() < 0.1:
        del garbage["bankruptcyPrice"]
    return garbage


def _wrong_deleveraging(chance: random.Random, symbol: str) -> dict[str, Any]:
    """Answers to orders that there are not, or not from who was asked."""
    numbers = {"symbol": symbol, "seq": NEVER_SETTLED, "ts": BEGINNING_MS}
    return chance.choice(
        (
            {"type": "adlEnd", **numbers, "adl": 10**9},
            {"type": "adlFill", **numbers, "adl": 10**9, "account": "a1", "lots": 1},
            {"type": "adlFill", **numbers, "adl": chance.randint(1, 50), "account": "nobody", "lots": 1},
            {"type": "adlFill", **numbers, "adl": 0, "account": "a1", "lots": 1},
        )
    )


def _wrong_state(chance: random.Random, symbol: str) -> dict[str, Any]:
    mark = {"type": "mark", "symbol": symbol, "price": "1", "ts": BEGINNING_MS}
    position = {"account": "a1", "lots": 1, "entryPrice": "1", "margin": "1"}
    return chance.choice(
        (
            mark | {"price": "one"},
            mark | {"symbol": "NOSUCH"},
            mark | {"indexPrice": "1e5"},
            mark | {"type": "position"},
            {**mark, "type": "position", **position, "account": ""},
            {"type": "rate", "currency": "U S D", "price": "1", "ts": BEGINNING_MS},
        )
    )


def _wrong_listing(chance: random.Random, symbol: str) -> dict[str, Any]:
    contract = {"symbol": symbol, "settleCurrency": "USDT", "multiplier": 1, "isInverse": False}
    wrong: dict[str, Any] = chance.choice(
        (
            {"multiplier": 0},
            {"multiplier": "x"},
            {"settleCurrency": "U/S"},
            {"symbol": "a b"},
            {"isInverse": "maybe"},
            {"n": "\u0000"},
        )
    )
    return {"type": "contract", "contract": contract | wrong}
