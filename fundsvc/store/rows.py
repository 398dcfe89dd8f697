"""Ledger entries as PostgreSQL's binary COPY format: the fastest way in, and exact."""

from collections.abc import Iterable
from functools import cache
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
    "seal",
)
"""The columns of a row, fixed widths first; `recorded_at` is the database's own clock."""

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""Signature, no flags, no header extension."""

TRAILER = b"\xff\xff"
"""A field count of -1 ends the data."""

_FIXED = Struct("!h" + "iq" * 10 + "i32s").pack
_LENGTHS = tuple(Struct("!i").pack(length) for length in range(4 * 64 + 1))
"""The length of a text, ready made, up to that of an identifier of 64 characters of 4 bytes."""


def copy_rows(entries: Iterable[Entry], hashes: Iterable[bytes]) -> bytes:
    """The rows of a COPY, without header and trailer; `hashes` go with `entries` one to one."""
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


@cache
def _labels(*texts: str) -> bytes:
    """Fields that hold one of few texts; there are some combinations for each contract, and they are made once."""
    return b"".join(_LENGTHS[len(encoded)] + encoded for encoded in map(str.encode, texts))
