"""Account to row, compactly."""

from array import array
from collections.abc import Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

SLOTS_MIN = 64
"""A power of two, as every size of the table is, so that a hash is reduced by a mask."""

MOVES_PER_ADD = 8
"""Rows that an added account moves to a larger table: the move ends long before the next one, and no single call is long."""

NONE = -1
"""No row."""


class Directory:
    """The rows of a table by account, by open addressing in 32-bit integers.

    A dict would take 63 bytes an account beside its name, this takes 8 to 16. A removed account frees its row for another
    account; the row keeps the old name until then. `renamed` holds the rows that got another account since `AccountOrder` last
    looked. While a table that became too small is moved to a larger one, rows from `_moved` to `_moving` are in the old one.
    """

    def __init__(self) -> None:
        self.accounts: list[str] = []
        self.renamed: set[int] = set()
        self._free: set[int] = set()
        self._slots = array("i", [NONE]) * SLOTS_MIN
        self._old: array[int] | None = None
        self._moved = self._moving = 0

    @property
    def used(self) -> int:
        """The number of accounts that have a row."""
        return len(self.accounts) - len(self._free)

    def find(self, account: str) -> int:
        """The row of an account, or NONE."""
        slots, accounts = self._slots, self.accounts
        mask = len(slots) - 1
        slot = hash(account) & mask
        while (row := slots[slot]) != NONE and accounts[row] != account:
            slot = (slot + 1) & mask
        return row if row != NONE or self._old is None else self._old[self._slot_of(self._old, account)]

    def prefetch(self, accounts: Sequence[str]) -> NDArray[np.int32]:
        """Reads what `find` will: a processor waits for the memory of many accounts hardly longer than for that of one.

        Gives the rows where they probably are.
        """
        slots = np.frombuffer(self._slots, np.int32)
        rows: NDArray[np.int32] = slots[np.fromiter(map(hash, accounts), np.int64, len(accounts)) & (len(slots) - 1)]
        itemgetter(*rows.tolist())(self.accounts)
        return rows

    def has_room(self, rows_max: int) -> bool:
        """Whether another account finds a row among so many."""
        return bool(self._free) or len(self.accounts) < rows_max

    def add(self, account: str) -> int:
        """The row of an account that has none: a free one, else a new one."""
        if self._old is not None:
            self._move()
        if self._free:
            row = self._free.pop()
            self.accounts[row] = account
            self.renamed.add(row)
        else:
            row = len(self.accounts)
            self._make_room(row)
            self.accounts.append(account)
        self._enter(self._table_of(row), row)
        return row

    def remove(self, account: str) -> None:
        """Frees the row of an account that has one."""
        row = self.find(account)
        slots = self._table_of(row)
        self._close_gap(slots, self._slot_of(slots, account))
        self._free.add(row)

    def _table_of(self, row: int) -> "array[int]":
        return self._old if self._old is not None and self._moved <= row < self._moving else self._slots

    def _slot_of(self, slots: "array[int]", account: str) -> int:
        """The slot that holds an account's row, or the empty one at which the search for it ends.

        Rows that were moved are still in the old table, but out of date.
        """
        mask = len(slots) - 1
        slot = hash(account) & mask
        current = self._moved if slots is self._old else 0
        while (row := slots[slot]) != NONE and (row < current or self.accounts[row] != account):
            slot = (slot + 1) & mask
        return slot

    def _close_gap(self, slots: "array[int]", gap: int) -> None:
        """Empties a slot. Later rows of its run move up, so that a search still finds them."""
        mask = len(slots) - 1
        slot, slots[gap] = gap, NONE
        while (row := slots[slot := (slot + 1) & mask]) != NONE:
            home = hash(self.accounts[row]) & mask
            if (slot - home) & mask >= (slot - gap) & mask:
                slots[gap], slots[slot] = row, NONE
                gap = slot

    def _make_room(self, row: int) -> None:
        if self._old is None and 2 * (row + 1) > len(self._slots):
            self._old, self._slots = self._slots, array("i", [NONE]) * (2 * len(self._slots))
            self._moved, self._moving = 0, row

    def _move(self) -> None:
        for row in range(self._moved, min(self._moved + MOVES_PER_ADD, self._moving)):
            if row not in self._free:
                self._enter(self._slots, row)
            self._moved = row + 1
        if self._moved >= self._moving:
            self._old = None

    def _enter(self, slots: "array[int]", row: int) -> None:
        mask = len(slots) - 1
        slot = hash(self.accounts[row]) & mask
        while slots[slot] != NONE:
            slot = (slot + 1) & mask
        slots[slot] = row
