"""The sealed ADL records of a contract: orders, rounds, executions and ends, in the order of their events.

hash = sha256(previous hash || MessagePack array of the record's fields, in the order of `AdlRecord`), with 32 zero bytes before
the first. `body` is a MessagePack array too, so any MessagePack library can recompute the hash.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import Literal, NamedTuple

import msgspec

from fundsvc.core.adl.order import AdlOrder, Origin, Reduced, RoundTerms
from fundsvc.core.adl.valuation import SideName

RecordKind = Literal["order", "round", "part", "execution", "unwind", "end"]
"""`order` begins an order and its first round, `round` a later one, `part` holds further positions of the round before it.

`execution` reduces a position. `unwind` removes lots that the market took from an inventory order. `end` ends an order with
lots that were not executed; its `lots` is their number. An order whose lots are all executed or unwound ends without such a
record.
"""


class AdlRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One record of a contract's ADL.

    `entry` is the contract's last ledger entry at that time, which gives entries and records one order; it is 0 in records of
    orders that are older than sealed records. `seq` and `ts` are those of the event that caused the record; `seq` is 0 if the
    event has none. Only executions have an `account`; only executions, unwinds and ends have `lots`. `body` is an `OrderBody`,
    a `RoundTerms` (of `round` and `part`), a `Reduced` (of `execution`) or empty.
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
    """A record and its hash.

    `first_rank` is the best rank in a record of a round, 0 for other kinds. It is not sealed, because the body contains it.
    """

    record: AdlRecord
    hash: bytes
    first_rank: int = 0


class OrderBody(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The terms of an order, and its first round. The body of an order for a shortfall has no `origin`."""

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
    origin: Origin = "shortfall"


_encode = msgspec.msgpack.Encoder().encode
_decode_order = msgspec.msgpack.Decoder(OrderBody).decode
_decode_round = msgspec.msgpack.Decoder(RoundTerms).decode
_decode_reduced = msgspec.msgpack.Decoder(Reduced).decode


def link_record(previous: bytes, record: AdlRecord) -> bytes:
    """Returns the hash of a record: 32 bytes that depend on it and on all records before it."""
    return sha256(previous + _encode(record)).digest()


def round_bodies(order: AdlOrder, terms: RoundTerms) -> Iterator[tuple[RecordKind, bytes, int]]:
    """Yields the records that begin a round: kind, body and first rank. That of round 1 contains the terms of the order."""
    first, *rest = terms.parts()
    if order.round == 1:
        yield "order", _order_body(order, first), _first_rank(first)
    else:
        yield "round", _encode(first), _first_rank(first)
    for part in rest:
        yield "part", _encode(part), _first_rank(part)


def reduced_body(reduced: Reduced) -> bytes:
    """Returns the body of an execution's record."""
    return _encode(reduced)


def terms_of(kind: RecordKind, body: bytes) -> RoundTerms:
    """Decodes the terms of a round from the body of an `order`, `round` or `part` record."""
    return _decode_order(body).first if kind == "order" else _decode_round(body)


def order_of(body: bytes) -> OrderBody:
    """Decodes the terms of an order from the body of its `order` record."""
    return _decode_order(body)


def reduced_of(body: bytes) -> Reduced:
    """Decodes the reduced position from the body of an `execution` record."""
    return _decode_reduced(body)


def _first_rank(terms: RoundTerms) -> int:
    return terms.ranks[0] if terms.ranks else 1


def _order_body(order: AdlOrder, first: RoundTerms) -> bytes:
    fields = msgspec.structs.astuple(
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
            order.origin,
        )
    )
    return _encode(fields[:-1] if order.origin == "shortfall" else fields)
