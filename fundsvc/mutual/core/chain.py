"""Ledger entries of a pool and the hash chain that links them.

hash = sha256(previous hash || MessagePack array), with 32 zero bytes before the first. The array has one of two versions:

    1   the integer 1, the fields of `Entry` in their order without `seal`, with the digest of the terms in place of `terms`
    2   the integer 2, then the same with `seal` (binary) in place of `account`

Money is in atoms, text is UTF-8, and integers have their shortest form. So the chain seals the terms in force at each entry,
premiums with the day's profits, and budgets: all money can be recomputed from entry 1.
"""

from hashlib import sha256
from typing import Literal

import msgspec

GENESIS = bytes(32)
"""The hash before the first entry of every pool."""

OPEN_ACCOUNT, SEALED_COMMITMENT = 1, 2
"""Versions of the hashed array."""

Kind = Literal[
    "transfer",
    "topUp",
    "covered",
    "uncovered",
    "loss",
    "issue",
    "premium",
    "activate",
    "thaw",
    "freeze",
    "expire",
    "cancel",
    "complete",
    "cycle",
    "payout",
]


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One record of a pool's ledger. `account` is "" and `policy` 0 if it has none; `balance` is that of the pool after it.

    `ts` is the pool's time, `seq` the last applied sequence. `profits` are the account's insured profits of the UTC day after a
    trade that owed a premium, 0 in all other entries. `terms` is the version of the terms in force.
    """

    pool: str
    entry: int
    seq: int
    ts: int
    kind: Kind
    account: str
    policy: int
    amount: int
    balance: int
    profits: int
    terms: int
    seal: bytes = b""


_encode = msgspec.msgpack.Encoder().encode


def link(previous: bytes, entry: Entry, terms: bytes) -> bytes:
    """Returns the hash of an entry: 32 bytes that depend on it, on all entries before it, and on the digest of its terms."""
    version, account = (SEALED_COMMITMENT, entry.seal) if entry.seal else (OPEN_ACCOUNT, entry.account)
    array = (
        version,
        entry.pool,
        entry.entry,
        entry.seq,
        entry.ts,
        entry.kind,
        account,
        entry.policy,
        entry.amount,
        entry.balance,
        entry.profits,
        terms,
    )
    return sha256(previous + _encode(array)).digest()


def seal_domain(pool: str) -> str:
    """Returns the name under which a ledger secret seals accounts of a pool; no contract has it."""
    return f"mutual/{pool}"
