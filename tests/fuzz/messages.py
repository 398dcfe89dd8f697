"""Messages of every kind: valid events of every type in both codecs, and damaged ones.

All random choices use one random.Random, or hypothesis's replacement, so that a seed repeats a run and a failure shrinks.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

Terms = tuple[str, str, str | float, int]

LISTED: Sequence[Terms] = (
    ("XBTUSDTM", "USDT", 0.001, 84_000),
    ("PEPEUSDTM", "USDT", "1E+4", 1),
    ("SOLUSDCM", "USDC", 0.1, 140),
    ("XBTUSDM", "XBT", -1.0, 84_000),
)
"""Symbol, settlement currency, multiplier and approximate price."""

STRANGE_SYMBOLS = ("NOSUCH", "A" * 64, "A" * 65, "", " ", ".", "..", "é😀", "a/b", "a\u0000b", "\u202e", "active", "S,1")
ACCOUNTS = ("a1", "a2", "a3", "a4", "a5", "a6", "é😀", "B" * 64)
STRANGE_TEXTS = ("", "x" * 65, "a\u0000b", "\u202e", "\ufdd0", "\U0010ffff", "=1+1", "\n", "<b>", "'; --", "é")
STRANGE_NUMBERS: Sequence[Any] = (
    *("0", "-1", "+1", "1e3", "1E400", "NaN", "Infinity", "-0", "0.000000000001", "0.0000000000001", "00001", ".5", "5."),
    *("9223372.036854775807", "9" * 40, "9" * 41, "٣", " 1", "1 ", "1_000", "", "0x10", "1,5", 1, 1.5, None, True, [], {}),
)
STRANGE_INTEGERS: Sequence[Any] = (
    *(0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64 - 1, 2**64, 10**30, 1.0, 1.5, 1e300),
    *("5", "", None, True, [], {}, float("nan"), float("inf")),
)
TYPES = (
    *("fill", "takeover", "unwind", "mark", "position", "snapshot"),
    *("adlFill", "adlEnd", "adlAck", "adlTimeout", "rate", "contract"),
)
NUMBERED = ("fill", "takeover", "unwind", "settle", "adlFill", "adlEnd")
STRANGE_TYPES: Sequence[Any] = ("deposit", "", "Fill", "fill ", "x" * 1000, None, 1, [], {}, True)

TOKENS = (
    *(
        b"\\u0000",
        b"\\ud800",
        b"\\udc00",
        b'"',
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b"-",
        b"0",
        b"9",
        b"1e999",
        b"null",
        b"\x00",
    ),
    *("\u202e😀\ufdd0\U0010ffff".encode(), b"\xed\xa0\x80", b"\xff", b"\xcf" + b"\xff" * 8, b"\xcb\x7f\xf8" + bytes(6)),
    *(b"\xd4\x05\x00", b"\x81\x90\x01", b"\xd6\xff\x00\x00\x00\x01", b"\xc4\x01\xff", b"\xc1", b"9223372036854775807"),
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xef\xbb\xbf", b"//", b"\\", b"1e5", b"NaN"),
)
"""Byte sequences that break text, numbers and structure in JSON and in MessagePack."""

LEGAL_SHARE = 0.75
"""Share of the events that are valid by themselves."""

SETTLE_SHARE = 0.0005
"""Share of the events that settle a contract. It takes no events before its next listing, which begins a new generation."""

SEQUENCE_KEPT_SHARE = 0.999
"""Share of the invalid sequences that do not include the highest one, which would be the last of its contract."""

DAMAGED_SHARE = 0.06
"""Share of the messages whose bytes are damaged."""

EVENTS_MAX = 10_000
"""The most events of a valid message."""

Fields = tuple[bytes, ...]
"""A stream entry: alternating names and values."""


class Requested(NamedTuple):
    """The lots that an ADL round requests of an account."""

    symbol: str
    adl: int
    round: int
    account: str
    lots: int


class Messages:
    """Writes messages. The caller adds announced rounds to `requested`, which later messages answer."""

    def __init__(self, chance: random.Random, now_ms: int) -> None:
        self.requested: list[Requested] = []
        self._chance = chance
        self._now = now_ms
        self._listed: Sequence[Terms] = LISTED
        self._generation = 0
        self._sequences: Counter[str] = Counter()
        self._states: Counter[str] = Counter()
        self._sent: list[dict[str, Any]] = []
        self._writers: dict[str, Callable[[Terms], dict[str, Any]]] = {
            "fill": self._fill,
            "takeover": self._takeover,
            "unwind": self._unwind,
            "settle": self._settle,
            "mark": self._mark,
            "position": self._position,
            "snapshot": self._snapshot,
            "adlFill": self._adl_fill,
            "adlEnd": self._adl_end,
            "adlAck": self._adl_ack,
            "adlTimeout": self._adl_ack,
            "rate": self._rate,
            "contract": self._listing,
        }

    def listings(self) -> Fields:
        """Returns a message that lists new contracts; all later messages use these."""
        self._listed = [(f"{symbol}{self._generation or ''}", *terms) for symbol, *terms in LISTED]
        self._generation += 1
        return b"json", msgspec.json.encode([{"type": "contract", **self._listing(contract)} for contract in self._listed])

    def next(self) -> Fields:
        """Returns the next message."""
        codec = self._chance.choice(("json", "msgpack"))
        body = self._encode(self._content(), codec)
        if self._chance.random() < DAMAGED_SHARE:
            body = self._damaged(body)
        return self._fields(codec.encode(), body)

    def large(self) -> Iterator[Fields]:
        """Yields messages of the maximum size and larger ones, one of each kind."""
        contents: Sequence[Callable[[], Any]] = (
            lambda: [self._legal("position") | {"account": f"p{number}"} for number in range(EVENTS_MAX)],
            lambda: [self._legal("fill") for _ in range(EVENTS_MAX)],
            lambda: [self._legal("mark") | {"symbol": "NOSUCH"}] * EVENTS_MAX,
            lambda: [self._legal("fill") | {"lots": -1}] * EVENTS_MAX,
            lambda: [self._legal("mark")] * (EVENTS_MAX + 1),
            lambda: {"type": "contract", "contract": {"symbol": "BIGUSDTM", "note": "x" * 1_000_000}},
            lambda: self._legal("fill") | {"tradeId": "x" * 1_000_000},
            lambda: ["x" * 1_000_000],
        )
        for codec in ("json", "msgpack"):
            for content in contents:
                yield codec.encode(), self._encode(content(), codec)
        yield b"json", b"[" * 1_000_000
        yield b"msgpack", b"\x91" * 1_000_000
        yield b"json", b"[" + b"null," * 1_000_000 + b"null]"

    def _content(self) -> Any:
        """Returns one event, an array of events, or another value."""
        kind = self._chance.random()
        if kind < 0.4:
            return self._event()
        if kind < 0.97:
            return [self._event() for _ in range(self._chance.randint(0, 6))]
        return self._chance.choice((None, [], {}, [[self._event()]], [None], 7, "fill", [{"fill": self._event()}]))

    def _event(self) -> Any:
        if self._sent and self._chance.random() < 0.08:
            return self._resent(self._chance.choice(self._sent))
        is_end = self._chance.random() < SETTLE_SHARE
        event = self._legal("settle" if is_end else self._chance.choice(TYPES))
        if self._chance.random() < LEGAL_SHARE:
            return event
        return self._wrong(event)

    def _legal(self, kind: str) -> dict[str, Any]:
        event = {"type": kind, **self._writers[kind](self._chance.choice(self._listed))}
        if kind in NUMBERED:
            if self._chance.random() < 0.2:
                event["prevSeq"] = max(0, event["seq"] - self._chance.choice((1, 1, 2, 3)))
            self._sent = [*self._sent[-20:], event]
        return event

    def _resent(self, event: dict[str, Any]) -> dict[str, Any]:
        """Returns an event that was sent before, unchanged or with other content."""
        if self._chance.random() < 0.7 or "lots" not in event:
            return event
        return event | {"lots": self._chance.randint(1, 1000)}

    def _wrong(self, event: dict[str, Any]) -> Any:
        """Returns an event with one wrong, additional or missing field."""
        how = self._chance.randrange(10)
        if how == 0:
            return self._chance.choice((None, [], {}, "x", 1, [event]))
        if how == 1:
            return event | {self._chance.choice(("color", "", "Seq", "x" * 300)): self._chance.choice((1, None, "x"))}
        name = self._chance.choice(list(event))
        if how == 2:
            return {key: value for key, value in event.items() if key != name}
        return event | {name: self._strange(name)}

    def _strange(self, name: str) -> Any:  # noqa: PLR0911 - a table of kinds
        match name:
            case "type":
                return self._chance.choice((*STRANGE_TYPES, *TYPES))
            case "symbol" | "currency":
                return self._chance.choice(STRANGE_SYMBOLS)
            case "price" | "bankruptcyPrice" | "entryPrice" | "margin" | "indexPrice":
                return self._chance.choice(STRANGE_NUMBERS)
            case "seq" if self._chance.random() < SEQUENCE_KEPT_SHARE:
                return self._chance.choice((0, -1, 2**63, 1.0, "5", None))
            case "seq" | "lots" | "ts" | "adl" | "round" | "prevSeq":
                return self._chance.choice(STRANGE_INTEGERS)
            case "contract":
                return self._strange_specification()
            case _:
                return self._chance.choice((*STRANGE_TEXTS, None, 5, []))

    def _strange_specification(self) -> Any:
        contract = self._chance.choice(self._listed)
        specification = self._listing(contract)["contract"]
        name = self._chance.choice(("symbol", "settleCurrency", "isInverse", "note", "maxPrice"))
        values = (*STRANGE_NUMBERS, *STRANGE_TEXTS, *STRANGE_SYMBOLS, {"a": [{"b": [[[[]]]]}]}, float("nan"))
        if self._chance.random() < 0.1:
            return self._chance.choice((None, [], "x", {}))
        strange = specification | {name: self._chance.choice(values)}
        return strange | ({"symbol": f"N{self._chance.randrange(30)}USDTM"} if self._chance.random() < 0.5 else {})

    def _fill(self, contract: Terms) -> dict[str, Any]:
        symbol, _, _, about = contract
        optional = {
            "tradeId": self._chance.choice(("", "t1", "é😀", "x" * 64)),
            "account": self._chance.choice(("", *ACCOUNTS)),
        }
        return {
            "symbol": symbol,
            "seq": self._next(symbol),
            "side": self._chance.choice(("sell", "buy")),
            "lots": self._chance.choice((1, 7, 100, 10**6)),
            "price": self._price(about, 0.02),
            "bankruptcyPrice": self._price(about, 0.02),
            "ts": self._ts(),
            **{name: value for name, value in optional.items() if self._chance.random() < 0.5},
        }

    def _takeover(self, contract: Terms) -> dict[str, Any]:
        fields = self._fill(contract)
        del fields["price"]
        return fields

    def _unwind(self, contract: Terms) -> dict[str, Any]:
        fields = self._fill(contract) | {"lots": self._chance.choice((1, 7, 20))}
        del fields["bankruptcyPrice"]
        fields.pop("account", None)
        return fields

    def _settle(self, contract: Terms) -> dict[str, Any]:
        symbol, _, _, about = contract
        return {"symbol": symbol, "seq": self._next(symbol), "price": self._price(about, 0.02), "ts": self._ts()}

    def _mark(self, contract: Terms) -> dict[str, Any]:
        index = {"indexPrice": self._price(contract[3], 0.01)} if self._chance.random() < 0.3 else {}
        price = self._price(contract[3], 0.01)
        return {"symbol": contract[0], "price": price, "ts": self._ts(), **index, **self._state(contract[0])}

    def _position(self, contract: Terms) -> dict[str, Any]:
        symbol, _, multiplier, about = contract
        lots = self._chance.choice((0, 1, -1)) * self._chance.randint(1, 500)
        size = abs(lots * float(multiplier))
        value = size / about if float(multiplier) < 0 else size * about
        return {
            "symbol": symbol,
            "account": self._chance.choice(ACCOUNTS),
            "lots": lots,
            "entryPrice": self._price(about, 0.05),
            "margin": f"{value * self._chance.choice((0, 0.01, 0.1)):.8f}",
            "ts": self._ts(),
            **self._leg(),
            **self._state(symbol),
        }

    def _leg(self) -> dict[str, str]:
        """Returns, with some probability, a leg of hedge mode, which the sign of the lots may contradict, and an owner."""
        leg = {"positionSide": self._chance.choice(("BOTH", "LONG", "SHORT"))} if self._chance.random() < 0.3 else {}
        return leg | ({"owner": self._chance.choice(ACCOUNTS)} if self._chance.random() < 0.1 else {})

    def _state(self, symbol: str) -> dict[str, int]:
        """Returns, with some probability, a sequence of positions and marks, mostly a new one."""
        if self._chance.random() < 0.7:
            return {}
        self._states[symbol] += self._chance.choice((1, 1, 2, 0, -3))
        return {"seq": max(1, self._states[symbol])}

    def _snapshot(self, contract: Terms) -> dict[str, Any]:
        return {"symbol": contract[0], "phase": self._chance.choice(("begin", "end")), "ts": self._ts()}

    def _adl_fill(self, contract: Terms) -> dict[str, Any]:
        requested = self._any_requested(contract)
        lots = self._chance.choice((requested.lots, max(1, requested.lots // 2), requested.lots + 1))
        numbers = {"seq": self._next(requested.symbol), "adl": requested.adl, "ts": self._ts()}
        return {"symbol": requested.symbol, "account": requested.account, "lots": lots, **numbers}

    def _adl_end(self, contract: Terms) -> dict[str, Any]:
        requested = self._any_requested(contract)
        return {"symbol": requested.symbol, "seq": self._next(requested.symbol), "adl": requested.adl, "ts": self._ts()}

    def _adl_ack(self, contract: Terms) -> dict[str, Any]:
        requested = self._any_requested(contract)
        return {"symbol": requested.symbol, "adl": requested.adl, "round": requested.round, "ts": self._ts()}

    def _any_requested(self, contract: Terms) -> Requested:
        """Returns a request of an announced round; otherwise, or with small probability, a random one."""
        if self.requested and self._chance.random() < 0.9:
            return self._chance.choice(self.requested)
        return Requested(
            contract[0], self._chance.randint(1, 50), 1, self._chance.choice(ACCOUNTS), self._chance.randint(1, 10)
        )

    def _rate(self, contract: Terms) -> dict[str, Any]:
        return {"currency": contract[1], "price": self._price(contract[3], 0.1), "ts": self._ts()}

    def _listing(self, contract: Terms) -> dict[str, Any]:
        symbol, currency, multiplier, _ = contract
        inverse = float(multiplier) < 0
        terms = {"symbol": symbol, "settleCurrency": currency, "multiplier": multiplier, "isInverse": inverse}
        return {"contract": {**terms, "note": self._chance.choice(("", "😀", "\\"))}}

    def _next(self, symbol: str) -> int:
        self._sequences[symbol] += self._chance.randint(1, 3)
        return self._sequences[symbol]

    def _ts(self) -> int:
        """Returns mostly the current time; otherwise a past time, or one slightly or too far ahead."""
        return self._now + self._chance.choice((0, 0, 0, -1, -86_400_000, 200_000, 3_600_000))

    def _price(self, about: float, spread: float) -> str:
        return f"{about * (1 + self._chance.uniform(-spread, spread)):.4f}"

    def _encode(self, content: Any, codec: str) -> bytes:
        """Encodes any value. Integers that MessagePack cannot represent become text."""
        if codec == "json":
            return json.dumps(content, ensure_ascii=self._chance.random() < 0.5).encode()
        try:
            return msgspec.msgpack.encode(content)
        except OverflowError:
            return msgspec.msgpack.encode(json.loads(json.dumps(content), parse_int=str))

    def _damaged(self, body: bytes) -> bytes:
        damaged = bytearray(body)
        for _ in range(self._chance.randint(1, 3)):
            at = self._chance.randint(0, len(damaged))
            damaged[at : at + self._chance.randint(0, 3)] = self._chance.choice(
                (*TOKENS, bytes(damaged[: self._chance.randint(0, 40)]))
            )
        return bytes(damaged)

    def _fields(self, codec: bytes, body: bytes) -> Fields:
        """Returns the stream entry of a body; with small probability one without codec, or with further fields."""
        if self._chance.random() < 0.99:
            return codec, body
        return self._chance.choice(
            (
                (b"xml", body),
                (b"", b""),
                (codec, body, codec, body),
                (codec, body, b"replayOf", b"1-1/0"),
                (codec, body, b"replayOf", b"\xff"),
                (codec, body, b"replayOf", b"99999999999999999999-0/1"),
                (b"replayOf", b"1-1/0", codec, body),
            )
        )
