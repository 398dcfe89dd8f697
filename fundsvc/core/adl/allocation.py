"""Who gives how many lots: the rules by which an ADL order is spread over ranked positions.

`available` are the lots that may be taken of each position, in the order of rank. What comes out is (index, lots) of those who
give some, in the same order.
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
    """Lots by index, as columns, in the order of the indices."""

    indices: NDArray[np.intp]
    lots: Integers


FEW = 32
"""So many positions are shared among without numpy."""

REMAINDER_UNITS = 1e9
"""Remainders that agree this far are a tie, so that the last bits of a profit decide nothing."""

WEIGHT_BITS = 62
"""Profits are scaled until their sum has so many bits: from there on sums and shares are exact."""

WEIGHT_BITS_MIN = 48
"""With as few, a share of up to 8,000 lots is still exact to ten decimals, and numpy can divide it."""

SHARE_UNITS = 1_000_000
"""Shares of a position are exact to six decimals."""


def allocate_queue(available: Iterable[int], lots: int) -> Allocations:
    """Takes from one position after the other until there is enough."""
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
    """Shares lots among positions once; see `Sharing`."""
    return Sharing(profits, ordinals).allocate(available, lots)


class Sharing:
    """Shares lots by unrealised profit: whole lots, largest remainder, ties by account.

    No position gives more than is available of it: what saturates gives all, and the rest is shared again among the others.
    A position without profit gives only what is left when all others have given everything, one after the other. What an
    allocation derives from the profits is kept for the next one: it changes only where another position has nothing to give.
    """

    def __init__(self, profits: Floats, ordinals: Ordinals) -> None:
        self._profits = profits
        self._ordinals = ordinals
        self._offering = b""
        self._weights: dict[int, _Weights] = {}

    def allocate(self, available: Integers, lots: int) -> Shares:
        """Shares so many lots; a position with less than one lot available gives none."""
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
        """Those that may get one of so many lots at all: the largest weights, and what ties with the last of them."""
        if lots >= len(self._rising):
            return slice(None)
        return slice(int(self._rising.searchsorted(self._rising[lots - 1], "right")))


def _shared_by_few(weights: Integers, ordinals: Ordinals, whole: int, lots: int, room: Integers) -> list[int] | None:
    """Whole lots by weight and largest remainder, as `_divided` has them; None where one saturates.

    Python divides and sorts a few numbers in half the time that numpy takes for its calls.
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
    """As many bits as leave room for the product with the lots in 64 bits, where shares are exact enough with these."""
    bits = WEIGHT_BITS - 1 - lots.bit_length()  # a sum of weights may round up to one bit more
    return bits if bits >= WEIGHT_BITS_MIN else WEIGHT_BITS


def _fits(whole: int, lots: int) -> bool:
    """Whether the product of the lots and any weight fits 64 bits."""
    return lots.bit_length() + whole.bit_length() <= WEIGHT_BITS


def _divided(weights: Integers, whole: int, lots: int) -> tuple[Integers, Floats]:
    """Whole lots by weight, and the remainders in REMAINDER_UNITS of a lot, rounded.

    Weights that are not there, as they are too small for a lot, count in `whole`.
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
