"""The alphabetical order of accounts, which decides between equal scores."""

from bisect import bisect
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int32]

FEW = 16
"""New names are put into their places one by one while they are fewer than a sixteenth: a search for each is then cheaper than
sorting all.
"""


class Alphabet:
    """The rows of a table by the name of their account, kept as integers so that ties cost a ranking nothing.

    `rows` are in the order of the names, `places` are where in that order a row stands. `update` gives a place to the rows
    that were added or got another name since the last time.
    """

    def __init__(self, accounts: Sequence[str]) -> None:
        self._accounts = accounts
        self.rows: Places = np.empty(0, np.int32)
        self.places: Places = np.empty(0, np.int32)
        self.update(set())

    def update(self, renamed: set[int]) -> None:
        """Takes in the rows that were added, and `renamed` ones, which it clears."""
        known, rows = len(self.rows), len(self._accounts)
        moved = sorted(row for row in renamed if row < known)
        renamed.clear()
        changed = [*moved, *range(known, rows)]
        if not changed:
            return
        self.rows = self._inserted(changed) if len(changed) * FEW < known else self._sorted(range(rows))
        self.places = np.empty(rows, np.int32)
        self.places[self.rows] = np.arange(rows, dtype=np.int32)

    def _sorted(self, rows: Sequence[int]) -> Places:
        return np.array(sorted(rows, key=self._accounts.__getitem__), np.int32)

    def _inserted(self, changed: Sequence[int]) -> Places:
        name = self._accounts.__getitem__
        moved = [self.places[row] for row in changed if row < len(self.places)]
        kept = np.delete(self.rows, moved)
        new = self._sorted(changed)
        return np.insert(kept, [bisect(kept, name(row), key=name) for row in new], new)
