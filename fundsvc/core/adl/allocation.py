"""Allocates the lots of an ADL round to ranked positions.

`available` contains the lots of each position that may be allocated, in the order of rank. Results are pairs of index and lots,
in the same order, of the positions with at least one allocated lot.
"""

from collections.abc import Iterable
from operator import ge
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fundsvc.core.adl.account_order import Ordinals
from fundsvc.core.adl.ranking import Floats, Integers, Mask, blocks, numbers_of

Allocations = list[tuple[int, int]]


class Shares(NamedTuple):
    """Allocated lots as columns, in ascending order of the indices."""

    indices: NDArray[np.intp]
    lots: Integers


FEW = 32
"""Up to this number of positions, Python integers are faster than numpy calls."""

REMAINDER_UNITS = 1e9
"""Remainders are rounded to 1/1e9 lot before comparison, so that rounding errors of profits do not decide ties."""

WEIGHT_BITS = 62
"""Bits of the sum of scaled profits. Sums and shares of the scaled integers are exact."""

WEIGHT_BITS_MIN = 48
"""Lower limit of these bits for division by numpy. With 48 bits, shares of up to 8,000 lots are exact to ten decimals."""

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

    def allocate(self, available: Integers, lots: int) -> Shares:
        """Allocates `lots`. Positions with less than one available lot are skipped."""
        known = self._weigh(available > 0, _weight_bits(lots))
        first = known.first(lots)
        weights, ordinals, sharing, whole = known.weights[first], known.ordinals[first], known.indices[first], known.whole
        taken = np.zeros(len(available), np.int64)
        while lots and len(sharing):
            room = available[sharing]
            if len(sharing) <= FEW and (few := _shared_by_few(weights, ordinals, whole, lots, room)):
                taken[sharing] = few
                return _given(taken)
            shares, remainders = _divided(weights, whole, lots)
            full = shares >= room
            if not full.any():
                shares[np.lexsort((ordinals, -remainders))[: lots - int(shares.sum())]] += 1
                taken[sharing] = shares
                return _given(taken)
            taken[sharing[full]] = room[full]
            lots -= sum(numbers_of(room[full]))
            whole -= int(weights[full].sum())
            weights, ordinals, sharing = weights[~full], ordinals[~full], sharing[~full]
        if lots:
            for index, take in allocate_queue(numbers_of(available - taken), lots):
                taken[index] = take
        return _given(taken)

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
        _, exponent = np.frexp(profits.sum())
        weights = np.rint(np.ldexp(profits, bits - int(exponent))).astype(np.int64)
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


def _given(taken: Integers) -> Shares:
    (indices,) = taken.nonzero()
    return Shares(indices, taken[indices])


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
