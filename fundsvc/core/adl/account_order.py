"""The alphabetical order of accounts, which decides between equal scores."""

from bisect import bisect
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Ordinals = NDArray[np.int32]

FEW = 16
"""Fewer new names than this fraction (1/16) of all are inserted one by one; a binary search for each is cheaper than a sort."""


BUCKET_ROWS = 4096
"""So many names are sorted at a time, in a few milliseconds: another thread waits for the end of a sort of Python objects."""

SAMPLES_PER_BUCKET = 16
"""Names are sampled to find the bounds of buckets: with so many, a bucket is hardly ever twice as large as another."""


class AccountOrder:
    """The rows of a table by the name of their account, kept as integers so that ties cost a ranking nothing.

    `rows` are in the order of the names, `ordinals` are where in that order a row stands. `update` gives a place to the rows
    that were added or got another name since the last time.
    """

    def __init__(self, accounts: Sequence[str]) -> None:
        self._accounts = accounts
        self.rows: Ordinals = np.empty(0, np.int32)
        self.ordinals: Ordinals = np.empty(0, np.int32)
        self.update(set())

    def update(self, renamed: set[int]) -> None:
        """Takes in the rows that were added, and `renamed` ones, which it clears."""
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
    """Rows in the order of their accounts' names; rows with equal names stay in their order."""
    name = accounts.__getitem__
    sorted_buckets = (np.array(sorted(bucket, key=name), np.int32) for bucket in _buckets(rows, accounts))
    return np.concatenate(list(sorted_buckets))


def _buckets(rows: Sequence[int], accounts: Sequence[str]) -> Iterable[Sequence[int]]:
    """Parts of the rows: the names of each are before those of the next one."""
    if len(rows) <= 2 * BUCKET_ROWS:
        return (rows,)
    sample = sorted(accounts[row] for row in rows[:: BUCKET_ROWS // SAMPLES_PER_BUCKET])
    bounds = sample[SAMPLES_PER_BUCKET::SAMPLES_PER_BUCKET]
    buckets: deque[list[int]] = deque([] for _ in range(len(bounds) + 1))
    for row in rows:
        buckets[bisect(bounds, accounts[row])].append(row)
    return _drained(buckets)


def _drained(buckets: deque[list[int]]) -> Iterator[list[int]]:
    """The buckets one after the other. To let go of millions of numbers at once would keep other threads waiting."""
    while buckets:
        yield buckets.popleft()
