"""Ranked positions of a side: their order, and the columns from which rounds are allocated."""

from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fundsvc.core.adl.account_order import Ordinals
from fundsvc.core.adl.allocation import Sharing
from fundsvc.core.adl.ranking import ROUNDING_ERROR, Floats, Integers, Leaders, Mask, numbers_of
from fundsvc.core.adl.valuation import Valuation


class Positions(Protocol):
    """What candidates need of the positions of their side, by row; see `Side`."""

    valuation: Valuation

    def lots_of(self, rows: NDArray[np.integer]) -> Integers:
        """Returns the open lots of rows."""

    def promised(self, rows: NDArray[np.integer]) -> Integers:
        """Returns the promised lots of rows."""

    def promised_at(self, row: int) -> int:
        """Returns the promised lots of a row."""

    def profits(self, rows: NDArray[np.integer], mark: int) -> Floats:
        """Returns the unrealised PnL of rows at a mark, up to a common factor."""

    def stakes(self, rows: NDArray[np.integer]) -> tuple[Floats, Floats]:
        """Returns, per lot of each row: margin - direction x entry value, and margin + entry value."""

    def limit(self, row: int) -> int:
        """Returns the last price at which closing a row leaves no deficit."""

    def ordinals(self, rows: NDArray[np.integer]) -> Ordinals:
        """Returns the ordinals of the accounts of rows."""


class Candidates:
    """Positions in the order of rank, with cached inputs of allocations; valid until a position of the side changes.

    `rows[0]` has rank 1 unless `ranks` contains other ranks. `ranked` is the number of positions of the side with a rank,
    `gainers` the number of leading rows with a profit, `complete` whether these are all gainers of the side. All lots of rows
    before `start` are promised.
    """

    def __init__(
        self, side: Positions, mark: int, leaders: Leaders, gainers: int, *, complete: bool, ranks: Integers | None = None
    ) -> None:
        self.mark = mark
        self.rows = leaders.rows
        self.ranked = leaders.ranked
        self.gainers = gainers
        self.complete = complete
        self.held = side.lots_of(leaders.rows)
        self.row_at = self.rows.item
        self.held_at = self.held.item
        self.start = 0
        self._ranks = ranks
        self._side = side
        self._limits: dict[int, int] = {}
        self._sharing: tuple[int, Sharing] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def profits(self) -> Floats:
        """The unrealised PnL of each candidate, up to a common factor."""
        return self._side.profits(self.rows, self.mark)

    @cached_property
    def ordinals(self) -> Ordinals:
        """The ordinal of the account of each candidate."""
        return self._side.ordinals(self.rows)

    def sharing(self, last: int) -> Sharing:
        """Returns the sharing of lots by profit among the first `last` candidates; cached."""
        if self._sharing is None or self._sharing[0] != last:
            self._sharing = last, Sharing(self.profits[:last], self.ordinals[:last])
        return self._sharing[1]

    @cached_property
    def _stakes(self) -> tuple[Floats, Floats]:
        """Per lot: the equity at price value 0, and the sum of the values it is computed from; see `Side.stakes`."""
        return self._side.stakes(self.rows)

    def leaves_all_solvent(self, part: slice, price: int) -> bool:
        """Returns whether all candidates of a part certainly survive a price, without checking each."""
        valuation = self._side.valuation
        return 0 < part.stop <= self.gainers and valuation.direction * valuation.lot_value(price) > self._safe

    @cached_property
    def _safe(self) -> float:
        """The limit of direction times lot value above which every gainer certainly survives, including rounding errors."""
        base, scale = (column[: self.gainers] for column in self._stakes)
        safe = np.max(scale * (2 * ROUNDING_ERROR) - base)
        return float(safe + abs(safe) * (2 * ROUNDING_ERROR))

    def rank_at(self, index: int) -> int:
        """Returns the rank of a candidate."""
        return index + 1 if self._ranks is None else int(self._ranks[index])

    def ranks_of(self, indices: NDArray[np.integer]) -> list[int]:
        """Returns the ranks of some candidates."""
        return numbers_of(indices + 1 if self._ranks is None else self._ranks[indices])

    def free_at(self, index: int) -> int:
        """Returns the lots of a candidate that are not promised to an open order."""
        return self.held_at(index) - self._side.promised_at(self.row_at(index))

    def free(self, part: slice) -> Integers:
        """Returns the lots of each candidate that are not promised; negative if more are promised than it holds."""
        return self.held[part] - self._side.promised(self.rows[part])

    def solvent(self, part: slice, price: int) -> Integers:
        """Returns the lots of each candidate that are not promised; 0 if the price would bankrupt the position."""
        free = self.free(part)
        if not self.leaves_all_solvent(part, price):
            free[~self.survivors(part, price)] = 0
        return free

    def survives(self, index: int, price: int) -> bool:
        """Returns whether closing a candidate at a price leaves no deficit: margin + PnL at the price >= 0."""
        limit = self._limits.get(index)
        if limit is None:
            limit = self._limits[index] = self._side.limit(self.row_at(index))
        return self._side.valuation.survives(limit, price)

    def survivors(self, part: slice, price: int) -> Mask:
        """Returns `survives` for the candidates of a part: by floats, and by integers within their rounding error."""
        base, scale = self._stakes
        value = self._side.valuation.lot_value(price)
        slack = base[part] + self._side.valuation.direction * value
        survives: Mask = slack >= 0
        for index in np.flatnonzero(np.abs(slack) <= (scale[part] + value) * ROUNDING_ERROR).tolist():
            survives[index] = self.survives(index + part.start, price)
        return survives
