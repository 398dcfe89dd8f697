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

    `rows` are in the order of the names, `places` are where in that order a row stands. Rows are only ever added; `update`
    gives those that came since the last time their places.
    """

    def __init__(self, accounts: Sequence[str]) -> None:
        self._accounts = accounts
        self.rows: Places = np.empty(0, np.int32)
        self.places: Places = np.empty(0, np.int32)
        self.update()

    def update(self) -> None:
        """Takes in the rows that have been added."""
        known, rows = len(self.rows), len(self._accounts)
        if known == rows:
            return
        self.rows = self._inserted() if (rows - known) * FEW < known else self._sorted(0)
        self.places = np.empty(rows, np.int32)
        self.places[self.rows] = np.arange(rows, dtype=np.int32)

    def _sorted(self, first: int) -> Places:
        return np.array(sorted(range(first, len(self._accounts)), key=self._accounts.__getitem__), np.int32)

    def _inserted(self) -> Places:
        name = self._accounts.__getitem__
        new = self._sorted(len(self.rows))
        return np.insert(self.rows, [bisect(self.rows, name(row), key=name) for row in new], new)
