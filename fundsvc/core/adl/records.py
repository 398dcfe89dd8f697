"""The sealed record of a contract's ADL: orders, rounds, executions and ends, in the order in which they happened.

hash = sha256(previous hash || MessagePack array of the record's fields, in the order of `AdlRecord`), with 32 zero bytes before
the first. `body` is a MessagePack array too, so that the whole record can be recomputed with any MessagePack library.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import Literal, NamedTuple

import msgspec

from fundsvc.core.adl.order import AdlOrder, Reduced, RoundTerms
from fundsvc.core.adl.valuation import SideName

RecordKind = Literal["order", "round", "part", "execution", "end"]
"""`order` begins an order and its first round, `round` a later one, `part` holds further positions of the round before it.

`execution` reduces a position; `end` ends an order that could not recover all, its `lots` being those that were not executed.
An order whose lots are all executed is over without one.
"""


class AdlRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One thing that happened to an ADL order.

    `entry` is the contract's last ledger entry by then, so that entries and records have one order; it is 0 where that is not
    known, in records of orders from before there were any. `seq` and `ts` are those of the event that caused it; `seq` is 0
    where the event has none. `account` and `lots` are an execution's. `body` is an `OrderBody`, a `RoundTerms` (of `round` and
    `part`), a `Reduced` (of `execution`) or empty.
    """

    symbol: str
    record: int
    entry: int
    kind: RecordKind
    adl: int
    round: int
    seq: int
    ts: int
    account: str
    lots: int
    body: bytes


class SealedRecord(NamedTuple):
    """A record and its hash. `first_rank` is the best rank that a record of a round holds, 0 for other kinds: it is not sealed,
    as the body says it too.
    """

    record: AdlRecord
    hash: bytes
    first_rank: int = 0


class OrderBody(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What an order is, and its first round."""

    cause: int
    reduce: SideName
    lots: int
    price: int
    deficit: int
    deficit_lots: int
    uncovered: int
    account: str
    policy_version: int
    first: RoundTerms


_encode = msgspec.msgpack.Encoder().encode
_decode_order = msgspec.msgpack.Decoder(OrderBody).decode
_decode_round = msgspec.msgpack.Decoder(RoundTerms).decode
_decode_reduced = msgspec.msgpack.Decoder(Reduced).decode


def link_record(previous: bytes, record: AdlRecord) -> bytes:
    """The hash of a record: 32 bytes that depend on it and on everything before it."""
    return sha256(previous + _encode(record)).digest()


def round_bodies(order: AdlOrder, terms: RoundTerms) -> Iterator[tuple[RecordKind, bytes, int]]:
    """The records that begin a round of an order: kind, body and first rank. The first round says what the order is."""
    first, *rest = terms.parts()
    if order.round == 1:
        yield "order", _order_body(order, first), _first_rank(first)
    else:
        yield "round", _encode(first), _first_rank(first)
    for part in rest:
        yield "part", _encode(part), _first_rank(part)


def reduced_body(reduced: Reduced) -> bytes:
    """The body of an execution's record."""
    return _encode(reduced)


def terms_of(kind: RecordKind, body: bytes) -> RoundTerms:
    """What a round asked, from the body of an `order`, `round` or `part` record."""
    return _decode_order(body).first if kind == "order" else _decode_round(body)


def order_of(body: bytes) -> OrderBody:
    """What an order is, from the body of its `order` record."""
    return _decode_order(body)


def reduced_of(body: bytes) -> Reduced:
    """The position that an execution reduced, from the body of its record."""
    return _decode_reduced(body)


def _first_rank(terms: RoundTerms) -> int:
    return terms.ranks[0] if terms.ranks else 1


def _order_body(order: AdlOrder, first: RoundTerms) -> bytes:
    return _encode(
        OrderBody(
            order.cause,
            order.reduce,
            order.lots,
            order.price,
            order.deficit,
            order.deficit_lots,
            order.uncovered,
            order.account,
            order.policy_version,
            first,
        )
    )
