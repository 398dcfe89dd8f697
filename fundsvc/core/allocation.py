"""Who gives how many lots: the rules by which an ADL order is spread over ranked positions.

`available` are the lots that may be taken of each position, in the order of rank. What comes out is (index, lots) of those who
give some, in the same order.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fundsvc.core.alphabet import Places
from fundsvc.core.ranking import Floats, Integers, blocks, numbers_of

Takings = list[tuple[int, int]]


class Shares(NamedTuple):
    """Lots by index, as columns, in the order of the indices."""

    indices: NDArray[np.intp]
    lots: Integers


REMAINDER_DECIMALS = 9
"""Remainders that agree this far are a tie, so that the last bits of a profit decide nothing."""

WEIGHT_BITS = 62
"""Profits are scaled until their sum has so many bits: from there on sums and shares are exact."""

WEIGHT_BITS_MIN = 48
"""With as few, a share of up to 8,000 lots is still exact to ten decimals, and numpy can divide it."""

SHARE_UNITS = 1_000_000
"""Shares of a position are exact to six decimals."""


def allocate_queue(available: Iterable[int], lots: int) -> Takings:
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


def allocate_pro_rata(available: Integers, profits: Floats, places: Places, lots: int) -> Shares:
    """Shares lots by unrealised profit: whole lots, largest remainder, ties by the places of the accounts in the alphabet.

    No position gives more than is available of it: what saturates gives all, and the rest is shared again among the others.
    A position without profit gives only what is left when all others have given everything, one after the other.
    """
    weights = _weights(available, profits, _weight_bits(lots))
    whole = int(weights.sum())
    sharing = _largest(weights, lots)
    taken = np.zeros(len(available), np.int64)
    while lots and len(sharing):
        shares, remainders = _divided(weights[sharing], whole, lots)
        full = shares >= available[sharing]
        if not full.any():
            more = np.lexsort((places[sharing], -remainders))[: lots - int(shares.sum())]
            shares[more] += 1
            taken[sharing] = shares
            return _given(taken)
        saturated, sharing = sharing[full], sharing[~full]
        taken[saturated] = available[saturated]
        lots -= sum(numbers_of(available[saturated]))
        whole -= int(weights[saturated].sum())
    for index, take in allocate_queue(numbers_of(available - taken), lots):
        taken[index] = take
    return _given(taken)


def _given(taken: Integers) -> Shares:
    indices = np.flatnonzero(taken)
    return Shares(indices, taken[indices])


def _weight_bits(lots: int) -> int:
    """As many bits as leave room for the product with the lots in 64 bits, where shares are exact enough with these."""
    bits = WEIGHT_BITS - 1 - lots.bit_length()  # a sum of weights may round up to one bit more
    return bits if bits >= WEIGHT_BITS_MIN else WEIGHT_BITS


def _weights(available: Integers, profits: Floats, bits: int) -> Integers:
    """Profits as integers with an exact sum; 0 for positions that have none, or nothing to give."""
    sharing = np.where((available > 0) & (profits > 0), profits, 0.0)
    _, exponent = np.frexp(sharing.sum())
    return np.rint(np.ldexp(sharing, bits - int(exponent))).astype(np.int64)


def _largest(weights: Integers, count: int) -> NDArray[np.intp]:
    """The positions that may get one of so many lots at all: the largest weights, and what ties with the last of them."""
    last = -np.partition(-weights, count - 1)[count - 1] if count < len(weights) else 0
    return np.flatnonzero(weights >= max(1, last))


def _divided(weights: Integers, whole: int, lots: int) -> tuple[Integers, Floats]:
    """Whole lots by weight, and the remainders as shares of a lot, rounded.

    Weights that are not there, as they are too small for a lot, count in `whole`.
    """
    if lots.bit_length() + whole.bit_length() <= WEIGHT_BITS:
        shares, rests = np.divmod(weights * lots, whole)
        return shares, np.round(rests / whole, REMAINDER_DECIMALS)
    shares, remainders = np.empty(len(weights), np.int64), np.empty(len(weights))
    for block in blocks(len(weights)):
        parts = [divmod(lots * weight, whole) for weight in weights[block].tolist()]
        shares[block] = [share for share, _ in parts]
        remainders[block] = [rest / whole for _, rest in parts]
    return shares, np.round(remainders, REMAINDER_DECIMALS)
