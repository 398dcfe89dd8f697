"""The saved form of an ADL book: its positions by side, in columns, divided into parts."""

import msgspec

NOTHING_KNOWN = -1
"""A time before every message of a stream."""

ROWS_PER_PART = 4096
"""Positions of each side in a part of a saved book: 200 to 400 kB, which take a millisecond to encode or send."""

CELL_BYTES = 8


class SidePart(msgspec.Struct, array_like=True, frozen=True):
    """The saved columns of a side, or a part of them: little-endian 64-bit integers, one row per position.

    `seq` is empty if no position has a sequence; closed rows with a sequence are saved with 0 lots. During a snapshot `seen`
    has one byte per row, 1 if the snapshot contains the row, else it is None. `legs` has one byte per row, 1 if the row is one
    leg of an account in hedge mode; it is empty if there is none.
    """

    accounts: list[str]
    lots: bytes
    entry_price: bytes
    margin: bytes
    seq: bytes = b""
    seen: bytes | None = None
    legs: bytes = b""

    def part(self, first: int, last: int) -> "SidePart":
        """Returns the rows from `first` up to, not including, `last`, or up to the end."""
        cells = slice(CELL_BYTES * first, CELL_BYTES * last)
        return SidePart(
            self.accounts[first:last],
            self.lots[cells],
            self.entry_price[cells],
            self.margin[cells],
            self.seq[cells],
            None if self.seen is None else self.seen[first:last],
            self.legs[first:last],
        )


class BookPart(msgspec.Struct, array_like=True, frozen=True):
    """A part of a saved book. Restoring all parts in order restores the book.

    `owners` contains the owner of each account for which the matching engine named one. A part of `changes` contains what
    changed since the parts before it were saved: rows with their new numbers, closed ones with 0 lots, and the accounts whose
    owner was forgotten with "".
    """

    long: SidePart
    short: SidePart
    stale: bool = False
    known_ms: int = NOTHING_KNOWN
    owners: dict[str, str] = {}
    changes: bool = False

    @property
    def rows(self) -> int:
        """The number of rows of both sides."""
        return len(self.long.accounts) + len(self.short.accounts)


def closed_rows(accounts: list[str]) -> SidePart:
    """Returns the form of accounts whose rows were freed."""
    return SidePart(accounts, *(bytes(CELL_BYTES * len(accounts)) for _ in range(3)))
