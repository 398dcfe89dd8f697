"""Maps accounts to rows with 8 to 16 bytes per account."""

from array import array
from collections.abc import Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

SLOTS_MIN = 64
"""Initial size of the hash table. Every size is a power of two, so that a mask reduces a hash to a slot."""

MOVES_PER_ADD = 8
"""Rows that each `add` moves to a larger table. The move ends before the next one is due, and no single call is long."""

NONE = -1
"""No row."""


class Directory:
    """A hash table from account to row: open addressing with 32-bit integers, see the decision D19 of the handbook.

    A removed account frees its row for another account; `accounts` keeps the old name in the row until then. `renamed` contains
    the rows that got another account since the last update of `AccountOrder`. A table that became too small moves to a larger
    one step by step; meanwhile the rows from `_moved` to `_moving` are in the old table.
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
        """Returns the row of an account, or NONE."""
        slots, accounts = self._slots, self.accounts
        mask = len(slots) - 1
        slot = hash(account) & mask
        while (row := slots[slot]) != NONE and accounts[row] != account:
            slot = (slot + 1) & mask
        return row if row != NONE or self._old is None else self._old[self._slot_of(self._old, account)]

    def prefetch(self, accounts: Sequence[str]) -> NDArray[np.int32]:
        """Loads the memory that `find` will read into the processor's cache; loads of many accounts overlap.

        Returns the likely rows; a row can be NONE or that of another account.
        """
        slots = np.frombuffer(self._slots, np.int32)
        rows: NDArray[np.int32] = slots[np.fromiter(map(hash, accounts), np.int64, len(accounts)) & (len(slots) - 1)]
        itemgetter(*rows.tolist())(self.accounts)
        return rows

    def has_room(self, rows_max: int) -> bool:
        """Returns whether another account fits into `rows_max` rows."""
        return bool(self._free) or len(self.accounts) < rows_max

    def add(self, account: str) -> int:
        """Assigns a free or new row to an account that has none; returns it."""
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
        """Returns the slot that contains an account's row, or the empty slot at which the search ends.

        The old table still contains rows that were moved; the search skips them.
        """
        mask = len(slots) - 1
        slot = hash(account) & mask
        current = self._moved if slots is self._old else 0
        while (row := slots[slot]) != NONE and (row < current or self.accounts[row] != account):
            slot = (slot + 1) & mask
        return slot

    def _close_gap(self, slots: "array[int]", gap: int) -> None:
        """Empties a slot, and moves later rows of its run up, so that a search still finds them."""
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
