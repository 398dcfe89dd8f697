"""Ledger entries and the hash chain that seals them.

hash = sha256(previous hash || MessagePack array), with 32 zero bytes before the first. The array has one of two versions:

    1   the fields of `Entry` in their order, without `seal`: an entry that has no seal
    2   the integer 2, then the same fields with `seal` (binary) in the place of `account`

Fields that later kinds of entries add stand behind `ts` in either version. Money is in atoms of the settlement currency, prices
in 10**-priceDecimals, text is UTF-8, integers are encoded in their shortest form: any MessagePack library gives the same bytes.
The time of recording is not sealed, so that the same events give the same chain whenever and however often they are replayed.
"""

from hashlib import sha256
from typing import Any, Literal

import msgspec
from msgspec.structs import astuple

GENESIS = bytes(32)
"""The hash before the first entry of every contract."""

SEALED_ACCOUNT, SEALED_COMMITMENT = 1, 2
"""Versions of the sealed array."""

Kind = Literal["surplus", "flat", "shortfall", "refund", "cover"]
"""What an entry records. `refund` and `cover` come of ADL orders: what one recovered too much, what one could not recover."""


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One line of a contract's ledger: what moved, the balance after it, and the fill that caused it.

    `change` is the movement of the balance: of a shortfall the covered part (negative or 0), of a surplus what was left
    after `repaid` went to the outstanding amount. Covered + uncovered is the deficit of the fill. `seal` is sealed in the place
    of `account`, see `core.commitment`; where it is empty, the account itself is sealed.
    """

    symbol: str
    entry: int
    seq: int
    kind: Kind
    change: int
    balance: int
    uncovered: int
    repaid: int
    side: Literal["sell", "buy"]
    lots: int
    price: int
    bankruptcy_price: int
    trade_id: str
    order_id: str
    account: str
    ts: int
    seal: bytes = b""

    @property
    def version(self) -> int:
        """Of the array that is sealed."""
        return SEALED_COMMITMENT if self.seal else SEALED_ACCOUNT


_ACCOUNT, _SEAL = map(Entry.__struct_fields__.index, ("account", "seal"))

_encode = msgspec.msgpack.Encoder().encode


def link(previous: bytes, entry: Entry) -> bytes:
    """The hash of an entry: 32 bytes that depend on it and on everything before it."""
    return sha256(previous + _encode(_sealed(entry))).digest()


def _sealed(entry: Entry) -> tuple[Any, ...]:
    """The array that is sealed."""
    fields = astuple(entry)
    if not entry.seal:
        return fields[:_SEAL]
    return (SEALED_COMMITMENT, *fields[:_ACCOUNT], entry.seal, *fields[_ACCOUNT + 1 : _SEAL])
