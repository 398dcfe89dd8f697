"""Events that can never be settled, for every rejection reason.

`POISON` makes events that are invalid in every state of a ledger. The reasons in `BY_STATE` depend on earlier events:
`letters` and `exchange` write these.
"""

import random
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, NamedTuple

from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Reason

NEVER_SETTLED = 2**62
"""The sequence of garbage. It is above all others, so the engine never treats garbage as a duplicate."""

BEGINNING_MS = 1_765_000_000_000

REJECTED_TRADE = "rejected by the database"
"""The trade id of fills that the database rejects, because of the constraint `FORBIDDEN`."""

FORBIDDEN = f"ALTER TABLE entries ADD CONSTRAINT forbidden_trade CHECK (trade_id <> '{REJECTED_TRADE}')"

LARGE = "x" * 300_000
"""More bytes than an event may have."""

BY_STATE = (
    Reason.CONFLICT,
    Reason.LATE,
    Reason.CONTRACT_FIXED,
    Reason.TERMS_IN_DOUBT,
    Reason.ADL_ORDER_CLOSED,
    Reason.ADL_NOT_ASKED,
    Reason.ADL_TOO_MANY_LOTS,
    Reason.CONTRACT_CLOSED,
)

OF_POOLS = (
    Reason.INSUFFICIENT,
    Reason.NOT_FUNDED,
    Reason.UNKNOWN_POLICY,
    Reason.POLICY_OVER,
    Reason.UNKNOWN_POOL,
    Reason.TS_AHEAD,
    Reason.TERMS_FIXED,
)
"""Only events of the mutual are rejected with these; tests/mutual tests them."""

BEYOND_LETTERS = (Reason.TOO_MANY_CONTRACTS, Reason.ARCHIVED, *OF_POOLS)
"""The first needs 10,000 contracts in a partition; tests/core/test_many_contracts.py tests it. The second needs an archive;
tests/store/test_archive.py tests it.
"""

RARE = (Reason.DATABASE_REFUSED, Reason.TOO_LARGE)
"""Each of these costs a dozen transactions, or the memory of a thousand others."""

RARE_SHARE = 0.2
"""The probability with which a drawn rare reason is used."""

BROKEN = (
    *(b"", b"{", b"null", b"[]]", b"\xff\xfe\x00", b'"fill"', b"\xc1", b'{"type":"fill"', bytes(range(256))),
    *(b"[" * 100_000, b"\x91" * 100_000, b'{"a":' * 50_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff\xa1a"),
    b'{"type":"mark","symbol":"XBTUSDTM","symbol":"ETHUSDTM","price":"1","ts":1765000000000}',
    *(b"[" + b"null," * 20_000 + b"null]", b'{"type":"fill","lots":' + b"9" * 100_000 + b"}"),
)
"""Messages without a valid event: truncated, in another codec, deeply nested, or with false lengths."""


class Destination(NamedTuple):
    """The contract and partition of an event, and the number of partitions."""

    symbol: str
    partition: int
    partitions: int


Content = dict[str, Any]
Make = Callable[[random.Random, Destination], Content]


def poison(chance: random.Random, destination: Destination) -> tuple[Reason, Content]:
    """Returns a random reason, and an event that is rejected with it."""
    reason = chance.choice(list(POISON))
    while reason in RARE and chance.random() > RARE_SHARE:
        reason = chance.choice(list(POISON))
    return reason, POISON[reason](chance, destination)


def reasons_of(reason: Reason) -> frozenset[Reason]:
    """Returns the reasons with which an event with this error may be kept, at its first settlement or at a replay."""
    return frozenset({reason, *_INSTEAD.get(reason, ()), *_BEFORE_OTHERS})


_BEFORE_OTHERS = (Reason.TERMS_IN_DOUBT, Reason.UNKNOWN_SYMBOL, Reason.SUPERSEDED)
"""Reasons that settlement checks first: the contract may be suspended, or the stream may have lost its listing. The replay of a
position or mark is always superseded.
"""

_ORDERS = (Reason.ADL_ORDER_UNKNOWN, Reason.ADL_ORDER_CLOSED, Reason.ADL_NOT_ASKED, Reason.ADL_TOO_MANY_LOTS)

_INSTEAD: Mapping[Reason, tuple[Reason, ...]] = {
    Reason.WRONG_PARTITION: (Reason.UNKNOWN_SYMBOL,),  # the API appends it to the partition of its symbol
    Reason.TERMS_IN_DOUBT: _ORDERS,  # resent without the preceding listing
    **dict.fromkeys(_ORDERS, _ORDERS),  # the order may end before the answer is resent
}


def fill(destination: Destination, **wrong: Any) -> Content:
    """Returns a valid fill, except for the given fields."""
    numbers = {"seq": NEVER_SETTLED, "lots": 1, "ts": BEGINNING_MS}
    return {
        "type": "fill",
        "symbol": destination.symbol,
        "side": "sell",
        "price": "2",
        "bankruptcyPrice": "1",
        **numbers,
        **wrong,
    }


def takeover(destination: Destination, **wrong: Any) -> Content:
    """Returns a valid takeover, except for the given fields."""
    numbers = {"seq": NEVER_SETTLED, "lots": 1, "ts": BEGINNING_MS}
    return {"type": "takeover", "symbol": destination.symbol, "side": "sell", "bankruptcyPrice": "1", **numbers, **wrong}


def unwind(destination: Destination, **wrong: Any) -> Content:
    """Returns an unwind of one lot, except for the given fields."""
    numbers = {"seq": NEVER_SETTLED, "lots": 1, "ts": BEGINNING_MS}
    return {"type": "unwind", "symbol": destination.symbol, "side": "sell", "price": "1", **numbers, **wrong}


def answer(destination: Destination, kind: str, adl: int, **more: Any) -> Content:
    """Returns an answer to an ADL order."""
    return {"type": kind, "symbol": destination.symbol, "seq": NEVER_SETTLED, "adl": adl, "ts": BEGINNING_MS, **more}


def _mark(destination: Destination, **wrong: Any) -> Content:
    return {"type": "mark", "symbol": destination.symbol, "price": "1", "ts": BEGINNING_MS, **wrong}


def _position(destination: Destination, **wrong: Any) -> Content:
    numbers = {"lots": 1, "entryPrice": "1", "margin": "1", "ts": BEGINNING_MS}
    return {"type": "position", "symbol": destination.symbol, "account": "a1", **numbers, **wrong}


def _undecodable(chance: random.Random, destination: Destination) -> Content:
    return chance.choice(({}, {"kind": "fill"}, {"type": 5, "symbol": destination.symbol}, {"type": None}))


def _unknown_type(chance: random.Random, destination: Destination) -> Content:
    return fill(destination, type=chance.choice(("deposit", "withdrawal", "Fill", "")))


def _invalid_field(chance: random.Random, destination: Destination) -> Content:
    leg = chance.choice(({"positionSide": "LEFT"}, {"account": ""}, {"account": "=1+1"}, {"account": "a" * 65}, {"lots": 1.5}))
    wrong: Content = chance.choice(
        (
            *({"lots": "5"}, {"lots": -1}, {"lots": 0}, {"lots": 2**63}, {"price": 2.5}, {"side": "hold"}, {"seq": 0}),
            *({"color": "red"}, {"account": "a\u0000b"}, {"account": "\u202e"}, {"ts": BEGINNING_MS * 1000}, {"ts": None}),
        )
    )
    return chance.choice(
        (
            fill(destination, **wrong),
            _position(destination, **leg),
            _mark(destination, price=7),
            {"type": "snapshot", "symbol": destination.symbol, "phase": "middle", "ts": BEGINNING_MS},
            {"type": "rate", "currency": "U S D", "price": "1", "ts": BEGINNING_MS},
            answer(destination, "adlFill", 0, account="a1", lots=1),
            takeover(destination, lots=chance.choice((0, -1, 2**63))),
            takeover(destination, price="1"),
            unwind(destination, side="hold"),
            unwind(destination, account="a1"),
        )
    )


def _invalid_number(chance: random.Random, destination: Destination) -> Content:
    wrong = chance.choice(("-1", "abc", "1e5", "NaN", "٣", " 1", "+1", "0x10"))
    return chance.choice(
        (
            *(fill(destination, price=wrong), fill(destination, bankruptcyPrice=wrong), _mark(destination, price=wrong)),
            takeover(destination, bankruptcyPrice=wrong),
            unwind(destination, price=wrong),
        )
    )


def _not_a_liquidation(chance: random.Random, destination: Destination) -> Content:
    trade = fill(destination)
    del trade["bankruptcyPrice"]
    return trade


def _unknown_symbol(chance: random.Random, destination: Destination) -> Content:
    unlisted = destination._replace(symbol=_unlisted_symbol(chance, destination, in_partition=True))
    makes = fill, _mark, _position, takeover, unwind
    return chance.choice((*(make(unlisted) for make in makes), answer(unlisted, "adlEnd", 1)))


def _wrong_partition(chance: random.Random, destination: Destination) -> Content:
    return fill(destination._replace(symbol=_unlisted_symbol(chance, destination, in_partition=False)))


def _unlisted_symbol(chance: random.Random, destination: Destination, *, in_partition: bool) -> str:
    """Returns a symbol that is never listed, of this partition or of another one."""
    names = (f"NOSUCH{number}" for number in count(chance.randrange(100)))
    return next(name for name in names if (partition_of(name, destination.partitions) == destination.partition) is in_partition)


def _too_many_decimals(chance: random.Random, destination: Destination) -> Content:
    return chance.choice((fill(destination, price="1.0000000000001"), _mark(destination, price="0.0000000000001")))


def _out_of_range(chance: random.Random, destination: Destination) -> Content:
    large = "9" * 40
    return chance.choice(
        (fill(destination, price=large), _mark(destination, price=large), takeover(destination, bankruptcyPrice=large))
    )


def _contract_invalid(chance: random.Random, destination: Destination) -> Content:
    contract = {"symbol": destination.symbol, "settleCurrency": "USDT", "multiplier": 1, "isInverse": False}
    wrong: Content = chance.choice(
        (
            *({"multiplier": 0}, {"multiplier": "x"}, {"settleCurrency": "U/S"}, {"symbol": "a b"}, {"symbol": ".."}),
            *({"isInverse": "maybe"}, {"n": "\u0000"}, {"multiplier": "1E+99"}, {"symbol": ""}),
        )
    )
    return {"type": "contract", "contract": contract | wrong}


def _superseded(chance: random.Random, destination: Destination) -> Content:
    return {"type": "policy", "version": 10**6, "default": {}, "contracts": {}, "ts": BEGINNING_MS}


def _ts_out_of_range(chance: random.Random, destination: Destination) -> Content:
    ts = chance.choice((BEGINNING_MS * 10, BEGINNING_MS // 1000))
    return chance.choice((fill(destination, ts=ts), _mark(destination, ts=ts), _position(destination, ts=ts)))


def _order_unknown(chance: random.Random, destination: Destination) -> Content:
    execution = {"account": "nobody", "lots": 1}
    return chance.choice((answer(destination, "adlEnd", 10**9), answer(destination, "adlFill", 10**9, **execution)))


def _inventory_short(chance: random.Random, destination: Destination) -> Content:
    return unwind(destination, side=chance.choice(("sell", "buy")), lots=chance.choice((10**15, 2**63 - 1)))


def _database_rejected(chance: random.Random, destination: Destination) -> Content:
    return fill(destination, tradeId=REJECTED_TRADE)


def _too_large(chance: random.Random, destination: Destination) -> Content:
    return chance.choice(
        (fill(destination, tradeId=LARGE), {"type": "contract", "contract": {"symbol": destination.symbol, "n": LARGE}})
    )


POISON: Mapping[Reason, Make] = {
    Reason.UNDECODABLE: _undecodable,
    Reason.UNKNOWN_TYPE: _unknown_type,
    Reason.INVALID_FIELD: _invalid_field,
    Reason.INVALID_NUMBER: _invalid_number,
    Reason.NOT_A_LIQUIDATION: _not_a_liquidation,
    Reason.UNKNOWN_SYMBOL: _unknown_symbol,
    Reason.WRONG_PARTITION: _wrong_partition,
    Reason.TOO_MANY_DECIMALS: _too_many_decimals,
    Reason.OUT_OF_RANGE: _out_of_range,
    Reason.CONTRACT_INVALID: _contract_invalid,
    Reason.ADL_ORDER_UNKNOWN: _order_unknown,
    Reason.SUPERSEDED: _superseded,
    Reason.TS_OUT_OF_RANGE: _ts_out_of_range,
    Reason.INVENTORY_SHORT: _inventory_short,
    Reason.DATABASE_REFUSED: _database_rejected,
    Reason.TOO_LARGE: _too_large,
}
