"""The memory of a side's positions: one row per account, in columns that grow a block at a time."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fundsvc.core.adl.ranking import Floats, Integers, blocks

ROWS_MIN = 16
"""Rows allocated for a new side."""

GROWTH = 1.25
"""Growth of a full side. Empty rows add at most a quarter to the memory per position."""

FIELDS = 4
"""Exact integers of a row: lots, entry price, margin, promised lots."""

LOTS, ENTRY_PRICE, MARGIN, PROMISED = range(FIELDS)


class Rows:
    """The numbers of a side's rows. `len` is the number of allocated rows; those without an account contain no position.

    `exact` contains the integers of each row, and `lots`, `entry_price`, `margin` and `promised` are its columns. The integers
    of a row are adjacent, because the row of a changed position is rarely in the processor's cache. `entry` and
    `margin_per_lot` are the inputs of rankings; `entry` is NaN in a row without a position. `seq` contains sequences, None
    before the first one.

    `changed` is 1 in rows that changed since the book was last saved.

    `exact_at`, `entry_at`, `margin_per_lot_at` and `changed_at` read and write single cells, in a third of the time of numpy's
    scalars. The first cell of a row in `exact_at` is FIELDS * row.
    """

    def __init__(self) -> None:
        self.seq: Integers | None = None
        none = np.zeros(ROWS_MIN, np.uint8)
        self._use(np.zeros((ROWS_MIN, FIELDS), np.int64), np.full(ROWS_MIN, np.nan), np.zeros(ROWS_MIN), none)

    def __len__(self) -> int:
        return len(self.entry)

    def reserve(self, count: int) -> Iterator[None]:
        """Allocates at least `count` rows, a block per step. No row may be written between the steps.

        A step copies 1.5 MB. Copying all columns of a million positions at once takes up to 70 ms, most of it for new pages.
        """
        if count > len(self):
            yield from self._grow(max(count, int(len(self) * GROWTH)))

    def add_seq(self) -> Integers:
        """Returns the column of sequences, which is added if there is none."""
        if self.seq is None:
            self.seq = np.zeros(len(self), np.int64)
        return self.seq

    def _grow(self, count: int) -> Iterator[None]:
        exact, entry, margin_per_lot = np.empty((count, FIELDS), np.int64), np.empty(count), np.empty(count)
        seq = None if self.seq is None else np.empty(count, np.int64)
        changed = np.empty(count, np.uint8)
        for block in blocks(count):
            known, new = slice(block.start, min(block.stop, len(self))), slice(max(block.start, len(self)), block.stop)
            exact[known], exact[new] = self.exact[known], 0
            entry[known], entry[new] = self.entry[known], np.nan
            margin_per_lot[known], margin_per_lot[new] = self.margin_per_lot[known], 0
            changed[known], changed[new] = self.changed[known], 0
            if seq is not None and self.seq is not None:
                seq[known], seq[new] = self.seq[known], 0
            yield
        self.seq = seq
        self._use(exact, entry, margin_per_lot, changed)

    def _use(self, exact: Integers, entry: Floats, margin_per_lot: Floats, changed: NDArray[np.uint8]) -> None:
        self.exact, self.entry, self.margin_per_lot, self.changed = exact, entry, margin_per_lot, changed
        self.lots: Integers = exact[:, LOTS]
        self.entry_price: Integers = exact[:, ENTRY_PRICE]
        self.margin: Integers = exact[:, MARGIN]
        self.promised: Integers = exact[:, PROMISED]
        self.exact_at: memoryview[int] = exact.reshape(-1).data
        self.entry_at: memoryview[float] = entry.data.cast("B").cast("d")
        self.margin_per_lot_at: memoryview[float] = margin_per_lot.data.cast("B").cast("d")
        self.changed_at: memoryview[int] = changed.data
