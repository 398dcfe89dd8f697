"""Ledger entries as PostgreSQL's binary COPY format: the fastest way in, and exact."""

from collections.abc import Iterable
from struct import Struct

from fundsvc.core.chain import Entry

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
    "hash",
    "symbol",
    "kind",
    "side",
    "trade_id",
    "order_id",
    "account",
)
"""The columns of a row, fixed widths first; `recorded_at` is the database's own clock."""

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""Signature, no flags, no header extension."""

TRAILER = b"\xff\xff"
"""A field count of -1 ends the data."""

_FIXED = Struct("!h" + "iq" * 10 + "i32s").pack
_LENGTH = Struct("!i").pack


def copy_rows(entries: Iterable[Entry], hashes: Iterable[bytes]) -> bytes:
    """The rows of a COPY, without header and trailer; `hashes` go with `entries` one to one."""
    fields = len(COLUMNS)
    parts = []
    for line, digest in zip(entries, hashes, strict=True):
        parts.append(
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
                32,
                digest,
            )
        )
        for text in (line.symbol, line.kind, line.side, line.trade_id, line.order_id, line.account):
            encoded = text.encode()
            parts.append(_LENGTH(len(encoded)))
            parts.append(encoded)
    return b"".join(parts)
