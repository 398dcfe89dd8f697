"""Allocates the lots of an ADL round to ranked positions.

`available` contains the lots of each position that may be allocated, in the order of rank. Results are pairs of index and lots,
in the same order, of the positions with at least one allocated lot.
"""

import math
from collections.abc import Iterable
from functools import cached_property
from operator import ge
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fundsvc.core.adl.account_order import Ordinals
from fundsvc.core.adl.ranking import Floats, Integers, Mask, blocks, numbers_of

Allocations = list[tuple[int, int]]


class Shares(NamedTuple):
    """Allocated lots as columns, in ascending order of the indices."""

    indices: NDArray[np.integer]
    lots: Integers


FEW = 32
"""Up to this number of positions, Python integers are faster than numpy calls."""

REMAINDER_UNITS = 1e9
"""Remainders are rounded to 1/1e9 lot before comparison, so that rounding errors of profits do not decide ties."""

WEIGHT_BITS = 62
"""Bits of the sum of scaled profits. Sums and shares of the scaled integers are exact."""

WEIGHT_BITS_MIN = 48
"""Lower limit of these bits for division by numpy. With 48 bits, shares of up to 8,000 lots are exact to ten decimals."""

FRONT_MIN = 256
"""Positions of the largest profits that `RunningSharing` searches first."""

BOUNDARY = 1e-6
"""Distance of a sum from a power of two, relative to the sum. Farther away, the sum's exponent is certain."""

FALL_MAX = 64.0
"""A sum that fell further is computed again: its rounding errors could exceed BOUNDARY."""

NO_INDICES = np.empty(0, np.intp)
"""An empty column of indices."""

SHARE_UNITS = 1_000_000
"""Resolution of a policy's `cap_share`: six decimals."""


def allocate_queue(available: Iterable[int], lots: int) -> Allocations:
    """Allocates all available lots of each position in turn until `lots` are allocated."""
    taken = []
    for index, offered in enumerate(available):
        if not lots:
            break
        if offered > 0:
            take = min(offered, lots)
            taken.append((index, take))
            lots -= take
    return taken


def allocate_pro_rata(available: Integers, profits: Floats, ordinals: Ordinals, lots: int) -> Shares:
    """Allocates lots by profit for one call; see `Sharing`."""
    return Sharing(profits, ordinals).allocate(available, lots)


class Sharing:
    """Allocates lots in proportion to unrealised profit, by the largest-remainder method. Ties are decided by account.

    A position whose share reaches its available lots is allocated all of them. The rest is shared again among the other
    positions. Positions without profit are allocated lots in the order of rank, only after all others are exhausted. The scaled
    profits are cached; they are computed again if the set of positions with available lots changes.
    """

    def __init__(self, profits: Floats, ordinals: Ordinals) -> None:
        self._profits = profits
        self._ordinals = ordinals
        self._offering = b""
        self._weights: dict[int, _Weights] = {}

    @cached_property
    def running(self) -> "RunningSharing":
        """The same sharing, for orders that follow one another."""
        return RunningSharing(self._profits, self._ordinals)

    def allocate(self, available: Integers, lots: int) -> Shares:
        """Allocates `lots`. Positions with less than one available lot are skipped."""
        known = self._weigh(available > 0, _weight_bits(lots))
        first = known.first(lots)
        sharing = known.indices[first]
        shares, left = _share(known.weights[first], known.ordinals[first], known.whole, available[sharing], lots)
        taken = np.zeros(len(available), np.int64)
        taken[sharing] = shares
        if left:
            for index, take in allocate_queue(numbers_of(available - taken), left):
                taken[index] = take
        (indices,) = taken.nonzero()
        return Shares(indices, taken[indices])

    def _weigh(self, offering: Mask, bits: int) -> "_Weights":
        known = offering.tobytes()
        if known != self._offering:
            self._offering = known
            self._weights = {}
        weights = self._weights.get(bits)
        if weights is None:
            sharing = np.where(offering & (self._profits > 0), self._profits, 0.0)
            weights = self._weights[bits] = _Weights(sharing, self._ordinals, bits)
        return weights


class _Weights:
    """Positive profits as integers with an exact sum (`whole`), largest first, with their indices and ordinals."""

    def __init__(self, profits: Floats, ordinals: Ordinals, bits: int) -> None:
        weights = _scaled(profits, bits - math.frexp(profits.sum())[1])
        indices = np.argsort(-weights)[: np.count_nonzero(weights)]
        self.whole = int(weights.sum())
        self.indices = indices
        self.weights = weights[indices]
        self.ordinals = ordinals[indices]
        self._rising = -self.weights

    def first(self, lots: int) -> slice:
        """Returns the weights that can get at least one lot: the `lots` largest, and all equal to the smallest of these."""
        if lots >= len(self._rising):
            return slice(None)
        return slice(int(self._rising.searchsorted(self._rising[lots - 1], "right")))


class RunningSharing:
    """Allocates lots like `Sharing`, for orders that follow one another, in a time that depends on what changes between them.

    The largest profits get lots first: an order of n lots needs the sum of all profits, but only the n largest and their ties.
    Profits are sorted once. `reset` sets the available lots of all positions, and `take` subtracts the lots of an order.
    `version` identifies the promises that the available lots include; -1 if they are unknown.
    """

    def __init__(self, profits: Floats, ordinals: Ordinals) -> None:
        self.version = -1
        self._profits = profits
        self._ordinals = ordinals
        self._order = np.argsort(-profits)[: np.count_nonzero(profits > 0)].astype(np.int32)

    def reset(self, available: Integers, version: int) -> None:
        """Sets the available lots of all positions."""
        self.version = version
        self._room = available[self._order]
        self._sum = self._sum_at_reset = float(np.where((available > 0) & (self._profits > 0), self._profits, 0.0).sum())
        self._exponent: int | None = math.frexp(self._sum)[1]
        self._weights: dict[int, tuple[Integers, int]] = {}
        self._front = NO_INDICES
        self._searched = 0

    def allocate(self, lots: int, excluded: NDArray[np.integer]) -> Shares | None:
        """Allocates `lots`, none of them to the positions at the indices `excluded`.

        Returns None if `Sharing` must do it: too few lots are available, or the sum of the profits is too close to a power of
        two.
        """
        left_out = self._places_of(excluded)
        if len(left_out) and self._exponent_of(self._sum - self._sum_of(left_out)) != self._exponent:
            return None
        weights, whole = self._weigh(_weight_bits(lots))
        places = self._first(weights, lots + len(left_out))
        if len(left_out):
            places = _largest(places[~np.isin(places, left_out)], weights, lots)
            whole -= int(weights[left_out].sum())
        indices = self._order[places]
        if len(places) == lots and int(weights[places[0]]) * lots < whole:
            shares, left = np.ones(lots, np.int64), 0  # No share reaches a whole lot, so the largest remainders get one each.
        else:
            shares, left = _share(weights[places], self._ordinals[indices], whole, self._room[places], lots)
        if left:
            return None
        self._allocated = places, shares
        (given,) = shares.nonzero()
        given = given[indices[given].argsort()]
        return Shares(indices[given], shares[given])

    def take(self, version: int) -> None:
        """Subtracts the lots of the last allocation from the available ones."""
        self.version = version
        places, shares = self._allocated
        rooms = self._room[places] - shares
        self._room[places] = rooms
        gone = places[rooms <= 0]
        if len(gone):
            self._remove(gone)

    def _places_of(self, indices: NDArray[np.integer]) -> NDArray[np.intp]:
        """Returns the places, by descending profit, of those positions that have available lots and a profit."""
        return np.flatnonzero(np.isin(self._order, indices) & (self._room > 0)) if len(indices) else NO_INDICES

    def _remove(self, places: NDArray[np.intp]) -> None:
        """Removes positions without available lots from the weights and their sums."""
        self._front = self._front[self._room[self._front] > 0]
        self._sum -= self._sum_of(places)
        exponent = self._exponent_of(self._sum)
        if exponent is None:
            self.version = -1
        if exponent != self._exponent:
            self._exponent = exponent
            self._weights.clear()
        for bits, (weights, whole) in self._weights.items():
            self._weights[bits] = weights, whole - int(weights[places].sum())
            weights[places] = 0

    def _sum_of(self, places: NDArray[np.intp]) -> float:
        return float(self._profits[self._order[places]].sum())

    def _exponent_of(self, total: float) -> int | None:
        """Returns the exponent of a sum of profits; None if its rounding error might change it."""
        fraction, exponent = math.frexp(total)
        is_certain = total * FALL_MAX > self._sum_at_reset and 0.5 + BOUNDARY < fraction < 1 - BOUNDARY
        return exponent if is_certain else None

    def _weigh(self, bits: int) -> tuple[Integers, int]:
        """Returns the scaled profits, largest first and 0 without available lots, and their exact sum."""
        known = self._weights.get(bits)
        if known is None:
            assert self._exponent is not None, "the sum of profits is known after a reset"
            weights = _scaled(np.where(self._room > 0, self._profits[self._order], 0.0), bits - self._exponent)
            known = self._weights[bits] = weights, int(weights.sum())
        return known

    def _first(self, weights: Integers, lots: int) -> NDArray[np.intp]:
        """Returns the places of the weights that can get at least one lot; see `_largest`."""
        while True:
            places = _largest(self._front, weights, lots)
            if len(places) < len(self._front) or self._searched == len(self._order):
                return places
            part = slice(self._searched, self._searched + max(FRONT_MIN, 2 * lots, len(self._front)))
            self._front = np.concatenate([self._front, np.flatnonzero(self._room[part] > 0) + part.start])
            self._searched = min(part.stop, len(self._order))


def _largest(places: NDArray[np.intp], weights: Integers, lots: int) -> NDArray[np.intp]:
    """Returns the places of the `lots` largest weights above 0, and of all equal to the smallest of these.

    `places` must be in the order of descending weights.
    """
    ranked = weights[places[: lots + 1]]
    if len(ranked) > lots and ranked[lots] < ranked[lots - 1]:
        return places[:lots]
    ranked = weights[places]
    least = max(1, int(ranked[lots - 1])) if lots <= len(ranked) else 1
    return places[: len(ranked) - int(ranked[::-1].searchsorted(least))]


def _share(weights: Integers, ordinals: Ordinals, whole: int, room: Integers, lots: int) -> tuple[Integers, int]:
    """Shares lots by weight, at most `room` each; returns the lots of each weight, and the lots left if all have all of theirs.

    The other weights of the sum `whole` are too small for a lot.
    """
    taken = np.zeros(len(weights), np.int64)
    sharing = np.arange(len(weights))
    while lots and len(sharing):
        rooms = room[sharing]
        if len(sharing) <= FEW and (few := _shared_by_few(weights, ordinals, whole, lots, rooms)):
            taken[sharing] = few
            return taken, 0
        shares, remainders = _divided(weights, whole, lots)
        full = shares >= rooms
        if not full.any():
            shares[np.lexsort((ordinals, -remainders))[: lots - int(shares.sum())]] += 1
            taken[sharing] = shares
            return taken, 0
        taken[sharing[full]] = rooms[full]
        lots -= sum(numbers_of(rooms[full]))
        whole -= int(weights[full].sum())
        weights, ordinals, sharing = weights[~full], ordinals[~full], sharing[~full]
    return taken, lots


def _shared_by_few(weights: Integers, ordinals: Ordinals, whole: int, lots: int, room: Integers) -> list[int] | None:
    """Allocates lots like `_divided` and largest remainder do; None if a share reaches its available lots.

    For few positions, Python integers take half the time of numpy calls.
    """
    divided = [divmod(weight * lots, whole) for weight in weights.tolist()]
    shares = [share for share, _ in divided]
    if any(map(ge, shares, room.tolist())):
        return None
    unit = float(whole) if _fits(whole, lots) else whole
    remainders = [-round(rest / unit * REMAINDER_UNITS) for _, rest in divided]
    ranked = sorted(zip(remainders, ordinals.tolist(), range(len(shares)), strict=True))
    for _, _, place in ranked[: lots - sum(shares)]:
        shares[place] += 1
    return shares


def _scaled(profits: Floats, exponent: int) -> Integers:
    """Returns profits x 2**exponent as integers."""
    weights: Integers = np.rint(np.ldexp(profits, exponent)).astype(np.int64)
    return weights


def _weight_bits(lots: int) -> int:
    """Returns the bits of the weights' sum: few enough for 64-bit products with `lots` if shares stay exact, else 62."""
    bits = WEIGHT_BITS - 1 - lots.bit_length()  # Rounding may carry the sum of weights to one more bit.
    return bits if bits >= WEIGHT_BITS_MIN else WEIGHT_BITS


def _fits(whole: int, lots: int) -> bool:
    """Returns whether the product of `lots` and any weight fits 64 bits."""
    return lots.bit_length() + whole.bit_length() <= WEIGHT_BITS


def _divided(weights: Integers, whole: int, lots: int) -> tuple[Integers, Floats]:
    """Returns the whole lots of each weight, and the remainders in units of 1/REMAINDER_UNITS lot, rounded.

    `whole` also includes weights that are too small for a lot and are not passed.
    """
    if _fits(whole, lots):
        shares, rests = np.divmod(weights * lots, whole)
        return shares, np.rint(rests / whole * REMAINDER_UNITS)
    shares, remainders = np.empty(len(weights), np.int64), np.empty(len(weights))
    for block in blocks(len(weights)):
        parts = [divmod(lots * weight, whole) for weight in weights[block].tolist()]
        shares[block] = [share for share, _ in parts]
        remainders[block] = [rest / whole for _, rest in parts]
    return shares, np.rint(remainders * REMAINDER_UNITS)
