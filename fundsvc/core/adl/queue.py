"""Summarises the ADL queue of a side by lights, without accounts, for public answers."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from fundsvc.core.adl.account_order import Ordinals
from fundsvc.core.adl.side import Side
from fundsvc.core.adl.valuation import LIGHTS
from fundsvc.core.policy import Eligible


class HasPositions(Protocol):
    """A group with a number of positions."""

    @property
    def positions(self) -> int:
        """The number of positions in the group."""


Group = TypeVar("Group", bound=HasPositions)


class Section(NamedTuple):
    """Totals of the positions of a side with `lights` down to `to_lights`.

    `highest` and `lowest` are the scores of the first and the last position, None without positions. `unrealised_pnl` is in
    atoms, summed in double precision and rounded down.
    """

    lights: int
    to_lights: int
    positions: int
    lots: int
    highest: float | None
    lowest: float | None
    unrealised_pnl: int


def sections(side: Side, mark: int, eligible: Eligible = "all") -> list[Section]:
    """Returns the sections of the positions that ADL may reduce at a mark, one per number of lights, five lights first."""
    ranking = side.ranking(mark)
    rows = ranking.rows if eligible == "all" else ranking.rows[: ranking.gainers]
    # Rank r has 5 - floor((r - 1) x 5 / n) lights, so 5 - k lights begin at the first rank with (r - 1) x 5 >= k x n.
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
    """Joins adjacent groups until each has at least `k_min` positions; returns none if all together have fewer.

    A last group that stays too small is joined with the one before it, so that no total reveals it. For the sections of a side,
    the result depends only on the number of positions.
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
    """Joins two sections; `upper` has more lights."""
    return Section(
        upper.lights,
        lower.to_lights,
        upper.positions + lower.positions,
        upper.lots + lower.lots,
        lower.highest if upper.highest is None else upper.highest,
        upper.lowest if lower.lowest is None else lower.lowest,
        upper.unrealised_pnl + lower.unrealised_pnl,
    )
