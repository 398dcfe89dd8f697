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


def listing_of(contract: tuple[str, str, str | float, int]) -> Listing:
    """Lists one of CONTRACTS."""
    symbol, currency, multiplier, _ = contract
    inverse = float(multiplier) < 0
    return Listing({"symbol": symbol, "settleCurrency": currency, "multiplier": multiplier, "isInverse": inverse})


def _open(element: Element, cursor: Mapping[str, int], chance: random.Random) -> bool:
    if isinstance(element.content, Listing):
        return element.symbol not in cursor
    return element.seq > cursor.get(element.symbol, 0) if element.seq and not element.garbage else chance.random() < 0.5


def _recorded(path: Path) -> Iterator[Event]:
    """The recording, each contract listed just before its first fill."""
    recording = read_recording(path, "binance-force-orders")
    unlisted = {listing.contract["symbol"]: listing for listing in recording.listings}
    for fill in recording.events:
        if fill.symbol in unlisted:
            yield unlisted.pop(fill.symbol)
        yield fill


def _market(chance: random.Random, fills: int) -> Iterator[Event]:
    """Fills that mostly leave a surplus, and now and then a loss that a fund cannot pay; marks between them."""
    yield from map(listing_of, CONTRACTS)
    sequences = dict.fromkeys((contract[0] for contract in CONTRACTS), 0)
    for number in range(fills):
        symbol, _, _, about = chance.choice(CONTRACTS)
        sequences[symbol] += chance.randint(1, 5)
        ts = 1_765_000_000_000 + number * 1000
        yield _fill(chance, symbol, sequences[symbol], about, ts)
        if chance.random() < 0.1:
            yield Mark(symbol, f"{about}.5", ts)


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
    chance: random.Random, partitions: int, events: Iterable[Event], duplicate_share: float = DUPLICATE_SHARE
) -> Iterator[Letter]:
    """Groups events into letters, in order within a partition, and slips in garbage and letters that were sent before."""
    open_letters: dict[int, list[Element]] = defaultdict(list)
    sent: dict[int, list[Letter]] = defaultdict(list)
    for event in events:
        symbol = event.contract["symbol"] if isinstance(event, Listing) else event.symbol
        partition = partition_of(symbol, partitions)
        elements = open_letters[partition]
        elements.append(Element(event, symbol, getattr(event, "seq", 0)))
        if chance.random() < GARBAGE_SHARE:
            elements.insert(chance.randint(0, len(elements)), _garbage(chance, symbol))
        if len(elements) >= EVENTS_PER_LETTER_MAX or chance.random() < 0.1:
            letter = Letter(partition, _codec(chance), open_letters.pop(partition))
            yield from _posted(chance, sent[partition], letter, duplicate_share)
    for partition, elements in open_letters.items():
        yield Letter(partition, "json", elements)


def _posted(chance: random.Random, before: list[Letter], letter: Letter, duplicate_share: float) -> Iterator[Letter]:
    before.append(letter)
    yield letter
    if chance.random() < duplicate_share:
        yield chance.choice(before[-50:])
    if chance.random() < GARBAGE_SHARE:
        yield Letter(letter.partition, _codec(chance), [Element(chance.choice(BROKEN))])
    if chance.random() < GARBAGE_SHARE:
        yield letter._replace(field="xml", elements=[Element(b"<fill/>")])


def _codec(chance: random.Random) -> str:
    return chance.choice(("json", "msgpack"))


def _garbage(chance: random.Random, symbol: str) -> Element:
    """Something in the place of an event that no state of the ledger makes good."""
    fill: dict[str, Any] = {
        "type": "fill",
        "symbol": symbol,
        "seq": NEVER_SETTLED,
        "side": "sell",
        "lots": 1,
        "price": "2",
        "bankruptcyPrice": "1",
        "ts": 1_765_000_000_000,
    }
    wrong: dict[str, Any] = chance.choice(
        (
            {"symbol": f"NOSUCH{chance.randrange(100)}"},
            {"price": "1.0000000000001"},
            {"price": "-1"},
            {"price": 2.5},
            {"bankruptcyPrice": "0"},
            {"lots": "5"},
            {"lots": -1},
            {"lots": 2**63 - 1, "price": "9000000"},
            {"side": "hold"},
            {"seq": 0},
            {"type": "deposit"},
            {"color": "red"},
            {"account": "a\u0000b"},
        )
    )
    garbage = fill | wrong
    if chance.random() < 0.1:
        del garbage["bankruptcyPrice"]
    return Element(garbage, symbol, garbage["seq"])
