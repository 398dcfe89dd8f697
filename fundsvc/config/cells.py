"""The cells of a ledger: PostgreSQL clusters, each of which holds some partitions with everything that belongs to them.

The database of section [database] is the cell `main`. It holds every partition that no further cell is configured to hold, so a
ledger with one database needs no cells.
"""

import re
from collections.abc import Iterable, Mapping

MAIN = "main"
"""The cell of `database.dsn`. It also holds what belongs to no partition: the pools of the mutual, and HTTP producers."""

CELL_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
"""Names of cells, which are part of metrics, file names and answers."""


def placement(ranges: Mapping[str, Iterable[str]], partitions: int) -> tuple[str, ...]:
    """Returns the cell of each partition by number, from the ranges of the further cells, such as "3" or "8-15".

    Raises ValueError for a range that does not exist, or that two cells have.
    """
    cells: dict[int, str] = {}
    for cell, texts in ranges.items():
        for text in texts:
            first, last = (int(number) for number in (text.split("-") * 2)[:2])
            if not first <= last < partitions:
                raise ValueError(
                    f"cells.{cell}: partitions has {text!r}: with stream.partitions = {partitions}, the partitions are 0 to"
                    f" {partitions - 1}"
                )
            for number in range(first, last + 1):
                if number in cells:
                    raise ValueError(f"cells.{cell}: cell {cells[number]} has partition {number} too: leave it to one of them")
                cells[number] = cell
    return tuple(cells.get(number, MAIN) for number in range(partitions))
