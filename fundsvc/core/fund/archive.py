"""Stubs of archived entries: what the ledger keeps of a range of entries that a file has."""

from typing import NamedTuple

import msgspec

_LABEL = b"fundsvc archive"
"""Begins each signed message, so that no message is that of a salt or of a key id; see `core.commitment`."""


class Stub(NamedTuple):
    """A range of a contract's entries in a file.

    `previous_hash` is the hash before the range, and `last_hash` that of its last entry. `seq` is the highest sequence of all
    entries up to the last one, and `clock` the chart clock there. `digest` is the SHA-256 of the file of `size` bytes, and
    `hours` that of the rollups of the range. `checkpoint` is the state of the audit after the range, in MessagePack.
    `signature` covers all other fields; it is empty if no ledger secret was configured.
    """

    symbol: str
    first_entry: int
    last_entry: int
    previous_hash: bytes
    last_hash: bytes
    seq: int
    clock: int
    path: str
    size: int
    digest: bytes
    hours: bytes
    checkpoint: bytes
    signature: bytes = b""

    @property
    def entries(self) -> int:
        """The number of entries."""
        return self.last_entry - self.first_entry + 1

    @property
    def message(self) -> bytes:
        """What the signature covers."""
        return _LABEL + msgspec.msgpack.encode(self[:-1])

    def __str__(self) -> str:
        return f"{self.symbol} entries {self.first_entry} to {self.last_entry}"
