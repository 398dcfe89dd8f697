"""Ledger entries and the hash chain that links them.

hash = sha256(previous hash || MessagePack array), with 32 zero bytes before the first. The array has one of two versions:

    1   the fields of `Entry` in their order, without `seal`; of an entry without a seal
    2   the integer 2, then the same fields with `seal` (binary) in place of `account`

After `ts`, either version continues with `closes` if it is not 0 or the entry is forced, and then with true if it is forced.
Money is in atoms of the settlement currency, prices
are in 10**-priceDecimals, text is UTF-8, and integers have their shortest form: any MessagePack library gives the same bytes.
The hash does not contain the time of recording, so the same events give the same chain at any time.
"""

from hashlib import sha256
from typing import Any, Literal

import msgspec
from msgspec.structs import astuple

GENESIS = bytes(32)
"""The hash before the first entry of every contract."""

SEALED_ACCOUNT, SEALED_COMMITMENT = 1, 2
"""Versions of the hashed array."""

CARRIED = "carry/"
"""The beginning of the `order_id` of an entry that moves a balance; the public name of the other contract follows."""

Kind = Literal["surplus", "flat", "shortfall", "refund", "cover", "takeover", "deleverage", "carry_out", "carry_in"]
"""The kind of an entry. An ADL order causes a `refund` if it took more than needed, and a `cover` if it ended uncovered. A
`takeover` adds a tranche to the inventory. A `deleverage` records lots that ADL took in place of the fund. A
`carry_out` moves the balance of a closed contract to its successor, whose entry is a `carry_in`.
"""


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One record of a contract's ledger: the change, the balance after it, and the fill that caused it.

    `change` is the change of the balance: of a shortfall the covered part (negative or 0), of a surplus the rest after `repaid`
    reduced the outstanding amount. Covered + uncovered is the deficit of the fill. The hash contains `seal` in place of
    `account`, see `core.commitment`; if `seal` is empty, the hash contains the account itself. `closes` is the takeover entry
    whose tranche the entry reduces, 0 for none. `forced` is whether the fund took lots over because no position was left for
    ADL.
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
    closes: int = 0
    forced: bool = False

    @property
    def version(self) -> int:
        """The version of the hashed array."""
        return SEALED_COMMITMENT if self.seal else SEALED_ACCOUNT


_ACCOUNT, _SEAL = map(Entry.__struct_fields__.index, ("account", "seal"))

_encode = msgspec.msgpack.Encoder().encode


def link(previous: bytes, entry: Entry) -> bytes:
    """Returns the hash of an entry: 32 bytes that depend on the entry and on all entries before it."""
    return sha256(previous + _encode(_sealed(entry))).digest()


def _sealed(entry: Entry) -> tuple[Any, ...]:
    """Returns the hashed array."""
    fields = astuple(entry)
    sealed = fields[:_SEAL]
    if entry.seal:
        sealed = (SEALED_COMMITMENT, *fields[:_ACCOUNT], entry.seal, *fields[_ACCOUNT + 1 : _SEAL])
    if entry.forced:
        return (*sealed, entry.closes, True)
    return (*sealed, entry.closes) if entry.closes else sealed
