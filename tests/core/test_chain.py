import hashlib
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.commitment import SEAL_BYTES
from fundsvc.core.fund.chain import GENESIS, Entry, link

FIRST = Entry(
    "XBTUSDTM", 1, 7, "surplus", 10_000_000_000, 10_000_000_000, 0, 0, "sell", 1000, 39100 * 10**12, 39000 * 10**12,
    "trade-1", "order-1", "äccount", 1_765_416_983_918,
)  # fmt: skip
SECOND = msgspec.structs.replace(FIRST, entry=2, seq=9, kind="shortfall", change=-5, balance=9_999_999_995, uncovered=300, ts=0)

SEAL = bytes(range(SEAL_BYTES))
SEALED = msgspec.structs.replace(FIRST, seal=SEAL)

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=64)
ENTRIES = st.builds(
    Entry,
    *(TEXT, INT64, INT64, st.sampled_from(["surplus", "flat", "shortfall", "refund"]), INT64, INT64, INT64, INT64),
    *(st.sampled_from(["sell", "buy"]), INT64, INT64, INT64, TEXT, TEXT, TEXT, INT64),
    st.sampled_from([b"", SEAL]),
    st.just(0) | INT64,
    st.booleans(),
)


def packed_integer(value: int) -> bytes:
    """The shortest MessagePack form of an integer, by the specification."""
    if 0 <= value < 2**7 or -(2**5) <= value < 0:
        return struct.pack("b", value)
    for code, form in ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q")):
        if 0 <= value < 2 ** (8 * struct.calcsize(form)):
            return bytes([code]) + struct.pack(form, value)
    for code, form in ((0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q")):
        if value >= -(2 ** (8 * struct.calcsize(form) - 1)):
            return bytes([code]) + struct.pack(form, value)
    raise ValueError(value)


def packed_text(value: str) -> bytes:
    encoded = value.encode()
    length = len(encoded)
    head = (
        bytes([0xA0 | length])
        if length < 32
        else bytes([0xD9, length])
        if length < 256
        else b"\xda" + struct.pack(">H", length)
    )
    return head + encoded


def independent_hash(previous: bytes, entry: Entry) -> bytes:
    """The hash, implemented from the documentation alone: SHA-256 of the previous hash and the array of either version."""
    before = (
        *(entry.symbol, entry.entry, entry.seq, entry.kind, entry.change, entry.balance, entry.uncovered, entry.repaid),
        *(entry.side, entry.lots, entry.price, entry.bankruptcy_price, entry.trade_id, entry.order_id),
    )
    packed = b"".join(packed_text(field) if isinstance(field, str) else packed_integer(field) for field in before)
    fields = 16 + (1 if entry.seal else 0) + (2 if entry.forced else 1 if entry.closes else 0)
    head = b"\xdc" + struct.pack(">H", fields)
    if entry.seal:
        packed = head + b"\x02" + packed + b"\xc4" + bytes([len(entry.seal)]) + entry.seal
    else:
        packed = head + packed + packed_text(entry.account)
    packed += packed_integer(entry.ts)
    if entry.closes or entry.forced:
        packed += packed_integer(entry.closes)
    if entry.forced:
        packed += b"\xc3"
    return hashlib.sha256(previous + packed).digest()


def test_hashes_of_a_known_chain_are_stable():
    first = link(GENESIS, FIRST)
    assert first.hex() == "730b69acd1563a14f5802412b2655209ff976db1578d79921239be8d40b463fc"
    assert link(GENESIS, SEALED).hex() == "e5a04d9b43be5358f3a518d966a2fe828f842de09cf99b1c71a9b79b48b542df"
    assert link(first, SECOND).hex() == "1367c67fe775e4ef0fe8c03760e957d72e370e29247f8d6e6add9860f1fcfd4b"


@given(st.binary(min_size=32, max_size=32), ENTRIES)
def test_hash_equals_an_independent_implementation(previous, entry):
    assert link(previous, entry) == independent_hash(previous, entry)


OTHERS = {
    str: lambda text: text + "x",
    int: lambda number: number + 1,
    bytes: lambda seal: seal[::-1] or b"s" * SEAL_BYTES,
    bool: lambda flag: not flag,
}


@pytest.mark.parametrize("name", Entry.__struct_fields__)
@pytest.mark.parametrize("first", [FIRST, SEALED])
def test_every_altered_field_changes_the_hashes(name, first):
    if (first.seal, name) == (SEAL, "account"):
        return  # The hash contains the commitment in place of the account; see test_commitment.py.
    value = getattr(first, name)
    altered = msgspec.structs.replace(first, **{name: OTHERS[type(value)](value)})
    assert link(GENESIS, altered) != link(GENESIS, first)
    assert link(link(GENESIS, altered), SECOND) != link(link(GENESIS, first), SECOND)


def test_moving_text_between_fields_changes_the_hash():
    moved = msgspec.structs.replace(FIRST, trade_id="trade-", order_id="1order-1")
    assert link(GENESIS, moved) != link(GENESIS, FIRST)


def test_swapped_or_dropped_entries_change_the_hash():
    assert link(link(GENESIS, SECOND), FIRST) != link(link(GENESIS, FIRST), SECOND)
    assert link(GENESIS, SECOND) != link(link(GENESIS, FIRST), SECOND)
