"""Who gives how many lots: the rules by which an ADL order is spread over ranked positions.

`available` are the lots that may be taken of each position, in the order of rank. What comes out is (index, lots) of those who
give some, in the same order.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fundsvc.core.alphabet import Places
from fundsvc.core.ranking import Floats, Integers

Takings = list[tuple[int, int]]

REMAINDER_DECIMALS = 9
"""Remainders that agree this far are a tie, so that the last bits of a profit decide nothing."""

WEIGHT_BITS = 62
"""Profits are scaled until their sum has so many bits: from there on sums and shares are exact."""

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


def allocate_pro_rata(available: Integers, profits: Floats, places: Places, lots: int) -> Takings:
    """Shares lots by unrealised profit: whole lots, largest remainder, ties by the places of the accounts in the alphabet.

    No position gives more than is available of it: what saturates gives all, and the rest is shared again among the others.
    A position without profit gives only what is left when all others have given everything, one after the other.
    """
    weights = _weights(available, profits)
    whole = int(weights.sum())
    sharing: list[int] = _largest(weights, lots).tolist()
    taken: dict[int, int] = {}
    while lots and sharing:
        shared, offered = weights[sharing].tolist(), available[sharing].tolist()
        full = _saturated(shared, offered, whole, lots)
        if not full:
            return sorted([*taken.items(), *_shares(sharing, shared, whole, places[sharing], lots)])
        taken |= {sharing[place]: offered[place] for place in full}
        lots -= sum(offered[place] for place in full)
        whole -= sum(shared[place] for place in full)
        sharing = [index for index in sharing if index not in taken]
    rest = available.copy()
    rest[list(taken)] = 0
    return sorted([*taken.items(), *allocate_queue(rest.tolist(), lots)])


def _saturated(weights: Sequence[int], offered: Sequence[int], whole: int, lots: int) -> list[int]:
    """The places whose share is at least what they offer."""
    if lots * max(weights) < min(offered) * whole:
        return []
    pairs = enumerate(zip(weights, offered, strict=True))
    return [place for place, (weight, offer) in pairs if lots * weight >= offer * whole]


def _weights(available: Integers, profits: Floats) -> Integers:
    """Profits as integers with an exact sum; 0 for positions that have none, or nothing to give."""
    sharing = np.where((available > 0) & (profits > 0), profits, 0.0)
    _, exponent = np.frexp(sharing.sum())
    return np.rint(np.ldexp(sharing, WEIGHT_BITS - int(exponent))).astype(np.int64)


def _largest(weights: Integers, count: int) -> NDArray[np.intp]:
    """The positions that may get one of so many lots at all: the largest weights, and what ties with the last of them."""
    last = -np.partition(-weights, count - 1)[count - 1] if count < len(weights) else 0
    return np.flatnonzero(weights >= max(1, last))


def _shares(sharing: Sequence[int], weights: Sequence[int], whole: int, places: Places, lots: int) -> Iterator[tuple[int, int]]:
    """Whole lots by weight. Weights that are not there, as they are too small for a lot, count in `whole`."""
    parts = [divmod(lots * weight, whole) for weight in weights]
    shares = [share for share, _ in parts]
    remainders = np.round([remainder / whole for _, remainder in parts], REMAINDER_DECIMALS)
    for place in np.lexsort((places, -remainders))[: lots - sum(shares)].tolist():
        shares[place] += 1
    return ((index, share) for index, share in zip(sharing, shares, strict=True) if share)
