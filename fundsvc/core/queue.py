"""The ADL queue of a side as anyone may see it: its lights, and what stands under each, without saying whose it is."""

import math
from typing import NamedTuple

from fundsvc.core.alphabet import Places
from fundsvc.core.book import Side
from fundsvc.core.valuation import LIGHTS


class Section(NamedTuple):
    """The positions of a side with the same lights: how many, their lots, the scores of the first and last, and their uPnL.

    `unrealised_pnl` is in atoms, summed in double precision. Scores are None where there is no position.
    """

    lights: int
    positions: int
    lots: int
    highest: float | None
    lowest: float | None
    unrealised_pnl: int


def sections(side: Side, mark: int) -> list[Section]:
    """The whole queue of a side at a mark, five lights first."""
    rows = side.ranking(mark).rows
    # rank r has lights 5 - floor((r - 1) x 5 / n), so k lights fewer begin at the first rank with (r - 1) x 5 >= k x n
    bounds = [-(-dimmed * len(rows) // LIGHTS) for dimmed in range(LIGHTS + 1)]
    return [_section(side, mark, LIGHTS - dimmed, rows[bounds[dimmed] : bounds[dimmed + 1]]) for dimmed in range(LIGHTS)]


def _section(side: Side, mark: int, lights: int, rows: Places) -> Section:
    if not len(rows):
        return Section(lights, 0, 0, None, None, 0)
    lots = side.lots_of(rows)
    columns = side.columns(mark).of(rows)
    profit = ((columns.mark - columns.entry) * columns.direction * lots).sum()
    first, last = (side.standing(int(row), mark).score for row in (rows[0], rows[-1]))
    return Section(lights, len(rows), sum(lots.tolist()), first, last, math.floor(profit))
