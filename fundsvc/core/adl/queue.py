"""The ADL queue of a side as anyone may see it: its lights, and what stands under each, without saying whose it is."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from fundsvc.core.adl.account_order import Ordinals
from fundsvc.core.adl.book import Side
from fundsvc.core.adl.valuation import LIGHTS


class HasPositions(Protocol):
    """What holds a number of positions."""

    @property
    def positions(self) -> int:
        """How many."""


Group = TypeVar("Group", bound=HasPositions)


class Section(NamedTuple):
    """The positions of a side with `lights` down to `to_lights`: how many, their lots, the scores of the first and last, and
    their uPnL.

    `unrealised_pnl` is in atoms, summed in double precision. Scores are None where there is no position.
    """

    lights: int
    to_lights: int
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


def _section(side: Side, mark: int, lights: int, rows: Ordinals) -> Section:
    if not len(rows):
        return Section(lights, lights, 0, 0, None, None, 0)
    lots = side.lots_of(rows)
    columns = side.columns(mark).of(rows)
    profit = ((columns.mark - columns.entry) * columns.direction * lots).sum()
    first, last = (side.valued(int(row), mark).score for row in (rows[0], rows[-1]))
    return Section(lights, lights, len(rows), sum(lots.tolist()), first, last, math.floor(profit))


def merge_small_groups(found: Sequence[Group], k_min: int, joined: Callable[[Group, Group], Group]) -> list[Group]:
    """Each joined with those below it until it holds at least `k_min` positions; none where all together hold fewer.

    What is left below the last such one joins it: nothing is left out that totals would reveal. Where the sections of a side
    are joined depends on nothing but the number of its positions.
    """
    groups: list[Group] = []
    for one in found:
        if groups and groups[-1].positions < k_min:
            groups[-1] = joined(groups[-1], one)
        else:
            groups.append(one)
    if len(groups) > 1 and groups[-1].positions < k_min:
        rest = groups.pop()
        groups[-1] = joined(groups[-1], rest)
    return groups if groups and groups[-1].positions >= k_min else []


def joined_sections(upper: Section, lower: Section) -> Section:
    """Two sections, of which the first has more lights, as one."""
    return Section(
        upper.lights,
        lower.to_lights,
        upper.positions + lower.positions,
        upper.lots + lower.lots,
        lower.highest if upper.highest is None else upper.highest,
        upper.lowest if lower.lowest is None else lower.lowest,
        upper.unrealised_pnl + lower.unrealised_pnl,
    )
