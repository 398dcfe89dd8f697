"""The alphabetical order of accounts. It decides the ranks of equal scores."""

from bisect import bisect
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Ordinals = NDArray[np.int32]

FEW = 16
"""Fewer new names than this fraction (1/16) of all are inserted one by one; a binary search for each is cheaper than a sort."""


BUCKET_ROWS = 4096
"""Names per sort. A sort of Python objects holds the interpreter's lock; this many take a few milliseconds."""

SAMPLES_PER_BUCKET = 16
"""Sampled names per bucket. They determine the bounds; with 16, few buckets are twice as large as others."""


class AccountOrder:
    """Orders the rows of a table by account. The order is stored as integers, so a ranking compares no names.

    `rows` contains the rows in the order of their accounts. `ordinals` contains the index of each row in that order.
    """

    def __init__(self, accounts: Sequence[str]) -> None:
        self._accounts = accounts
        self.rows: Ordinals = np.empty(0, np.int32)
        self.ordinals: Ordinals = np.empty(0, np.int32)
        self.update(set())

    def update(self, renamed: set[int]) -> None:
        """Inserts the rows added since the last update, moves the `renamed` rows, and clears `renamed`."""
        known, rows = len(self.rows), len(self._accounts)
        moved = sorted(row for row in renamed if row < known)
        renamed.clear()
        changed = len(moved) + rows - known
        if not changed:
            return
        if changed * FEW < known:
            self.rows = self._inserted([*moved, *range(known, rows)])
        else:
            self.rows = rows_by_name(range(rows), self._accounts)
        self.ordinals = np.empty(rows, np.int32)
        self.ordinals[self.rows] = np.arange(rows, dtype=np.int32)

    def _inserted(self, changed: Sequence[int]) -> Ordinals:
        name = self._accounts.__getitem__
        moved = [self.ordinals[row] for row in changed if row < len(self.ordinals)]
        kept = np.delete(self.rows, moved)
        new = rows_by_name(changed, self._accounts)
        return np.insert(kept, [bisect(kept, name(row), key=name) for row in new], new)


def rows_by_name(rows: Sequence[int], accounts: Sequence[str]) -> Ordinals:
    """Returns the rows in the order of their accounts. The sort is stable."""
    name = accounts.__getitem__
    sorted_buckets = (np.array(sorted(bucket, key=name), np.int32) for bucket in _buckets(rows, accounts))
    return np.concatenate(list(sorted_buckets))


def _buckets(rows: Sequence[int], accounts: Sequence[str]) -> Iterable[Sequence[int]]:
    """Divides rows into buckets. All names of a bucket precede those of the next one."""
    if len(rows) <= 2 * BUCKET_ROWS:
        return (rows,)
    sample = sorted(accounts[row] for row in rows[:: BUCKET_ROWS // SAMPLES_PER_BUCKET])
    bounds = sample[SAMPLES_PER_BUCKET::SAMPLES_PER_BUCKET]
    buckets: deque[list[int]] = deque([] for _ in range(len(bounds) + 1))
    for row in rows:
        buckets[bisect(bounds, accounts[row])].append(row)
    return _drained(buckets)


def _drained(buckets: deque[list[int]]) -> Iterator[list[int]]:
    """Yields and releases one bucket at a time. Freeing millions of numbers in one call would block other threads."""
    while buckets:
        yield buckets.popleft()
