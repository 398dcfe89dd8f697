"""Encodes ledger entries, ADL orders and ADL records in PostgreSQL's binary COPY format, which is the fastest way to insert."""

from collections.abc import Iterable
from functools import cache
from struct import Struct

from fundsvc.core.adl.order import OrderState
from fundsvc.core.adl.records import SealedRecord
from fundsvc.core.fund.chain import Entry

COLUMNS = (
    "entry",
    "seq",
    "change",
    "balance",
    "uncovered",
    "repaid",
    "lots",
    "price",
    "bankruptcy_price",
    "ts",
    "closes",
    "forced",
    "hash",
    "symbol",
    "kind",
    "side",
    "trade_id",
    "order_id",
    "account",
    "seal",
)
"""The columns of an entry, fixed widths first. PostgreSQL sets `recorded_at`."""

ORDER_COLUMNS = (
    "adl",
    "cause",
    "lots",
    "price",
    "deficit",
    "deficit_lots",
    "uncovered",
    "recovered",
    "executed",
    "unwound",
    "ts",
    "seq",
    "round_ms",
    "round",
    "policy_version",
    "acknowledged",
    "symbol",
    "reduce",
    "state",
    "origin",
    "account",
)
"""The columns of an ADL order, fixed widths first."""

RECORD_COLUMNS = (
    "record",
    "entry",
    "adl",
    "seq",
    "ts",
    "lots",
    "round",
    "hash",
    "symbol",
    "kind",
    "account",
    "body",
    "first_rank",
)
"""The columns of an ADL record, fixed widths first. `first_rank` locates the part of a round that contains a rank."""

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""Signature, no flags, no header extension."""

TRAILER = b"\xff\xff"
"""A field count of -1 ends the data."""

_FIXED = Struct("!h" + "iq" * 11 + "i?" + "i32s").pack
_FIXED_OF_ORDER = Struct("!h" + "iq" * 13 + "ii" * 2 + "i?").pack
_FIXED_OF_RECORD = Struct("!h" + "iq" * 6 + "ii" + "i32s").pack
_LENGTH = Struct("!i").pack
_BIGINT = Struct("!iq").pack
_NULL = _LENGTH(-1)
_LENGTHS = tuple(map(_LENGTH, range(4 * 64 + 1)))
"""Encoded lengths of texts, precomputed up to an identifier of 64 characters of 4 bytes."""


def copy_rows(entries: Iterable[Entry], hashes: Iterable[bytes]) -> bytes:
    """Returns the COPY rows of entries, without header and trailer; `hashes` correspond to `entries` one to one."""
    fields = len(COLUMNS)
    parts: list[bytes] = []
    for line, digest in zip(entries, hashes, strict=True):
        trade_id, order_id, account = line.trade_id.encode(), line.order_id.encode(), line.account.encode()
        parts += (
            _FIXED(
                fields,
                8,
                line.entry,
                8,
                line.seq,
                8,
                line.change,
                8,
                line.balance,
                8,
                line.uncovered,
                8,
                line.repaid,
                8,
                line.lots,
                8,
                line.price,
                8,
                line.bankruptcy_price,
                8,
                line.ts,
                8,
                line.closes,
                1,
                line.forced,
                32,
                digest,
            ),
            _labels(line.symbol, line.kind, line.side),
            _LENGTHS[len(trade_id)],
            trade_id,
            _LENGTHS[len(order_id)],
            order_id,
            _LENGTHS[len(account)],
            account,
            _LENGTHS[len(line.seal)],
            line.seal,
        )
    return b"".join(parts)


def copy_orders(orders: Iterable[OrderState]) -> bytes:
    """Returns the COPY rows of new ADL orders, without header and trailer."""
    fields = len(ORDER_COLUMNS)
    parts: list[bytes] = []
    for order in orders:
        account = order.account.encode()
        parts += (
            _FIXED_OF_ORDER(
                fields,
                8,
                order.adl,
                8,
                order.cause,
                8,
                order.lots,
                8,
                order.price,
                8,
                order.deficit,
                8,
                order.deficit_lots,
                8,
                order.uncovered,
                8,
                order.recovered,
                8,
                order.executed,
                8,
                order.unwound,
                8,
                order.ts,
                8,
                order.seq,
                8,
                order.round_ms,
                4,
                order.round,
                4,
                order.policy_version,
                1,
                order.acknowledged,
            ),
            _labels(order.symbol, order.reduce, order.state, order.origin),
            _LENGTHS[len(account)],
            account,
        )
    return b"".join(parts)


def copy_records(records: Iterable[SealedRecord]) -> bytes:
    """Returns the COPY rows of ADL records, without header and trailer."""
    fields = len(RECORD_COLUMNS)
    parts: list[bytes] = []
    for record, digest, first_rank in records:
        account = record.account.encode()
        parts += (
            _FIXED_OF_RECORD(
                fields,
                8,
                record.record,
                8,
                record.entry,
                8,
                record.adl,
                8,
                record.seq,
                8,
                record.ts,
                8,
                record.lots,
                4,
                record.round,
                32,
                digest,
            ),
            _labels(record.symbol, record.kind),
            _LENGTHS[len(account)],
            account,
            _LENGTH(len(record.body)),
            record.body,
            _BIGINT(8, first_rank) if first_rank else _NULL,
        )
    return b"".join(parts)


@cache
def _labels(*texts: str) -> bytes:
    """Encodes fields with few distinct values. Each contract has a handful of combinations, which are cached."""
    return b"".join(_LENGTHS[len(encoded)] + encoded for encoded in map(str.encode, texts))
